"""Payment keys: the keys of net.conf that belong to payment modules, and which of them have no effect."""

from __future__ import annotations

from ngp.config import PAYMENT
from ngp.core.settings import Settings
from ngp.core.values import Check


def without_effect(settings: Settings) -> list[Check]:
    """Warn of keys of a payment module that isn't in use: the operator may believe that its node is used."""
    others = {name: given for (group, name), given in settings.modules.items() if group == PAYMENT}
    others.pop(settings.payment_module, None)
    if not others:
        return []
    idle = ", ".join(key for given in others.values() for key in given)
    found = f"{idle}: without effect, as PAYMENT_INTERFACE is {settings.payment_module}"
    meant = " or ".join(others)
    return [Check("payment keys", True, found, f"PAYMENT_INTERFACE: {meant}, to use that node; else remove them")]


def place(settings: Settings) -> str:
    """Return the payment node's address in net.conf with its key (a module's key `..._HOST`); "" if there is none."""
    for key, value in settings.of_module(PAYMENT, settings.payment_module).items():
        if key.endswith("_HOST"):
            return f"{value} ({key})"
    return ""
