"""Tenant: what net.conf says about renting, and limits there that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from ngp.config import tenant_keys as own
from ngp.config.document import Finding
from ngp.config.written import Written
from ngp.core.pricing import show_money
from ngp.core.tenant.terms import TenantSettings


def tenant_settings(written: Written) -> TenantSettings:
    """Return what net.conf says about renting."""
    return TenantSettings(**{key.fields[0].removeprefix("tenant."): written[key] for key in own.KEYS})


def check_payments(written: Written) -> Iterator[Finding]:
    """Refuse limits that no payment fits."""
    least_msat, most_msat = written[own.PAYMENT_MIN], written[own.PAYMENT_MAX]
    if least_msat > most_msat:
        most = f"TENANT_PAYMENT_MAX ({show_money(most_msat)})"
        yield written.finding(own.PAYMENT_MIN, f"is above {most}: no payment fits; change one of them")
