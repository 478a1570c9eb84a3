"""Top-ups: seller and buyer compute a top-up's size by the same rule, so the seller asks for what the buyer will pay.

A top-up is PAYMENT_AMOUNT, or what ten seconds at the present rate cost if that is more. So a client at full line rate
pays once in several seconds, and a client with little traffic never prepays more than PAYMENT_AMOUNT. Payments are
whole sat; charges are msat, and the remainder stays in the balance.

Trust. If the seller is a cheat, what was prepaid is lost, and new keys cost nothing. So a buyer never pays further
ahead than the worth of what the seller has shown to have carried, and a stranger gets no more than the grace that it
would give (`World.trust_msat`). So the first top-ups are small, and double with what is carried.

Dust. A payment below the channel's dust limit (some 354 sat) arrives like any other. But while it is on its way, it has
no output on the chain: if the channel is closed in just those seconds, the miners get it. At most one top-up is lost,
and a client trusts its server with that much anyway. So small top-ups aren't raised to the dust limit, except when
traffic for that amount takes less than a minute.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core.account import Account, TopUp
from ngp.core.messages import Role
from ngp.core.pricing import ceil_to_sat_msat, floor_to_sat_msat
from ngp.core.reach import UNBOUNDED, Bounds
from ngp.core.world import TOP_UP_LASTS_S, World

DUST_LASTS_S = 60
"""A top-up is raised to the dust limit only if this amount pays for no more than this time."""
REMEMBERED_S = 86_400.0
"""How long invoices and payments that are over stay in memory, so that a late or repeated message finds its record."""
MOST_PAUSE_S = 60.0
MOST_AHEAD = 2
"""Number of top-ups that a buyer leaves unspent with a server, at most."""


def pause_s(first_s: float, failures: int) -> float:
    """Return how long to wait after a failed attempt: after each failure twice as long, at most MOST_PAUSE_S."""
    return min(MOST_PAUSE_S, first_s * (1 << min(failures, 16)))


def sendable(world: World, identity: bytes) -> Bounds:
    """Return the bounds of one payment from us to a neighbour."""
    bounds = _bounds(world, identity, ours=True)
    if bounds.routed:
        most = floor_to_sat_msat(world.settings.fee_limit.fits_msat(bounds.most_msat))
        bounds = replace(bounds, most_msat=max(most, bounds.least_msat))
    return bounds


def receivable(world: World, identity: bytes) -> Bounds:
    """Return the bounds of one payment from a neighbour to us."""
    return _bounds(world, identity, ours=False)


def _bounds(world: World, identity: bytes, ours: bool) -> Bounds:
    bounds, reach = UNBOUNDED, world.money.reach
    if reach is not None:
        # The payment node's key as the neighbour said it last, even if the neighbour is away now.
        keys = (neighbour.payee.hex() for neighbour in world.peers.links_of(identity) if neighbour.payee)
        bounds = reach.bounds(next(keys, ""), identity.hex()[:8], ours)
    least = ceil_to_sat_msat(world.node.least_amount_msat)
    return bounds if least <= bounds.least_msat else replace(bounds, least_msat=least)


def usual_msat(world: World, account: Account, bounds: Bounds) -> int:
    """Return the size of a top-up at the present rate of use, regardless of what either side can or will pay."""
    usual = max(world.settings.payment_amount_msat, int(account.rate.a_second * TOP_UP_LASTS_S))
    return bounds.dust_msat if usual < bounds.dust_msat <= account.rate.a_second * DUST_LASTS_S else usual


def grows(world: World, account: Account) -> bool:
    """Say whether half of the last top-up was used within half the time that it should have lasted."""
    used_msat = account.used_msat - account.top_up.used_msat
    soon = world.now.monotonic_s - account.top_up.at_mono_s < TOP_UP_LASTS_S / 2
    return soon and used_msat * 2 >= account.top_up.amount_msat > 0


def most_ahead_msat(world: World, account: Account, bounds: Bounds) -> int:
    """Return how much may be prepaid beyond what was carried: two top-ups, three if they grow, but no more than trust.

    The smallest possible payment is always allowed, also while up to an eighth of one is left: that may be too little
    for the next packet, or the buyer's meter lacks as much of the bill. Without grace both would wait for ever.
    """
    most = MOST_AHEAD * usual_msat(world, account, bounds)
    if grows(world, account):
        most = max(most, 3 * account.top_up.amount_msat)
    return min(most, max(world.trust_msat(account), bounds.least_msat * 9 // 8))


def ahead_msat(world: World, account: Account, bounds: Bounds) -> int:
    """Return how much more may be prepaid now; negative if it is too much already."""
    unserved_msat = account.paid_msat - account.refunded_msat - account.served_msat
    return most_ahead_msat(world, account, bounds) - unserved_msat


def add_top_up(world: World, account: Account, amount_msat: int) -> None:
    """Credit a top-up that was paid, and note what had been used by then: the next top-up's size depends on both."""
    account.paid_msat += amount_msat
    if account.paid_msat == amount_msat:
        world.first_paid(account)
    account.top_up = TopUp(amount_msat, world.now.monotonic_s, account.used_msat)
    account.why_not = ""


def note_why_not(world: World, account: Account, why_not: str) -> None:
    """Remember why an account isn't topped up, and log each reason once, however often a top-up is tried."""
    if why_not and why_not != account.why_not:
        whose = "the account of" if account.role is Role.SERVER else "our account with"
        world.log(f"{whose} {account.identity.hex()[:8]} is not topped up: {why_not}", logging.WARNING)
    account.why_not = why_not
