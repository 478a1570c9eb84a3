"""Top-ups: seller and buyer reckon alike how long one lasts, so that neither asks for what the other won't pay."""

from __future__ import annotations

from ngp.core.account import Account
from ngp.core.world import World

SAT_MSAT = 1000
TOP_UP_LASTS_S = 10
REMEMBERED_S = 86_400.0
"""Invoices and payments that are over stay known for so long: what comes late, or twice, still meets its record."""
MOST_PAUSE_S = 60.0


def grows(world: World, account: Account, charged_msat: int) -> bool:
    """Say whether half of the last top-up was carried within half the time that it was made for."""
    used_msat = charged_msat - account.topped_up_at_msat
    soon = world.now.monotonic_s - account.topped_up_mono_s < TOP_UP_LASTS_S / 2
    return soon and used_msat * 2 >= account.top_up_msat > 0


def note_top_up(world: World, account: Account, amount_msat: int, charged_msat: int) -> None:
    """Remember a top-up that was paid, and what had been charged by then; the next one's size goes by it."""
    account.top_up_msat = amount_msat
    account.topped_up_mono_s = world.now.monotonic_s
    account.topped_up_at_msat = charged_msat
