"""Payment keys: which of net.conf's keys say where a payment module's node is, and which of them do nothing."""

from __future__ import annotations

from ngp.core.settings import Settings
from ngp.core.values import Check


def own(settings: Settings) -> dict[str, str]:
    """Return the keys that are the chosen module's, with their values."""
    return {key: value for key, value in _given(settings).items() if _module(key) == settings.payment_module}


def without_effect(settings: Settings) -> list[Check]:
    """Warn of keys of another module: whoever gave them may believe that its node is in use."""
    idle = [key for key in _given(settings) if _module(key) != settings.payment_module]
    if not idle:
        return []
    found = f"{', '.join(idle)}: without effect, as PAYMENT_INTERFACE is {settings.payment_module}"
    meant = " or ".join(dict.fromkeys(map(_module, idle)))
    return [Check("payment keys", True, found, f"PAYMENT_INTERFACE: {meant}, if that node is meant; else remove them")]


def _module(key: str) -> str:
    return key.partition("_")[0].lower()


def _given(settings: Settings) -> dict[str, str]:
    keys = {
        "LND_CONNECT": settings.lnd_connect,
        "LND_HOST": settings.lnd_host,
        "LND_CERT": settings.lnd_cert,
        "LND_MACAROON": settings.lnd_macaroon,
        "ELECTRUM_HOST": settings.electrum_host,
        "ELECTRUM_USER": settings.electrum_user,
        "ELECTRUM_PASSWORD_FILE": settings.electrum_password_file,
        "ELECTRUM_WALLET": settings.electrum_wallet,
    }
    return {key: value for key, value in keys.items() if value is not None}
