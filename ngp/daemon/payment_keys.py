"""Payment keys: which keys of net.conf are of payment modules, and which of them do nothing."""

from __future__ import annotations

from ngp.config import PAYMENT
from ngp.core.settings import Settings
from ngp.core.values import Check


def without_effect(settings: Settings) -> list[Check]:
    """Warn of keys of another module: whoever gave them may believe that its node is in use."""
    others = {name: given for (group, name), given in settings.modules.items() if group == PAYMENT}
    others.pop(settings.payment_module, None)
    if not others:
        return []
    idle = ", ".join(key for given in others.values() for key in given)
    found = f"{idle}: without effect, as PAYMENT_INTERFACE is {settings.payment_module}"
    meant = " or ".join(others)
    return [Check("payment keys", True, found, f"PAYMENT_INTERFACE: {meant}, if that node is meant; else remove them")]


def place(settings: Settings) -> str:
    """Say where the file has the payment node, by the key that modules have for it; "" where it doesn't."""
    for key, value in settings.of_module(PAYMENT, settings.payment_module).items():
        if key.endswith("_HOST"):
            return f"{value} ({key})"
    return ""
