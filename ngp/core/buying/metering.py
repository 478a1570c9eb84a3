"""Metering, as the buyer: count at our own interface, by the seller's rule."""

from __future__ import annotations

from ngp.core.buying import service
from ngp.core.buying.account import ServerAccount
from ngp.core.buying.purchase import Purchase
from ngp.core.buying.renewal import WORTH_BYTES, renew_if_due
from ngp.core.contract import State
from ngp.core.kernel import Reading
from ngp.core.world import World


def usage_read(world: World, purchase: Purchase, reading: Reading) -> None:
    """Take what our own meter counted, and renew the contract if that is due."""
    account = world.server(purchase.identity)
    carried = reading.used_bytes - purchase.used_bytes
    if carried <= 0:
        return
    now = world.now.monotonic_s
    purchase.rate.count(carried, now)
    came_back = reading.used_from_bytes > purchase.used_from_bytes
    before = purchase.used_bytes
    due = meter(world, purchase, reading)
    if came_back:
        purchase.returned_mono_s = now
        service.came_back(world, account)
    else:
        service.only_sent(world, account, purchase, carried)
    if purchase.used_to_bytes:
        world.uncount_opening(purchase)
    if before < WORTH_BYTES <= purchase.used_bytes:
        world.count_idle(purchase, -1)
    account.rate.count(due, now)
    world.save_later(purchase.id)
    renew_if_due(world, purchase)


def meter(world: World, purchase: Purchase, reading: Reading) -> int:
    """Price what our own meter counted. Returns the msat by which the charge grew, >= 0."""
    carried, came_back = reading.used_bytes - purchase.used_bytes, reading.used_from_bytes - purchase.used_from_bytes
    purchase.fresh_to_bytes, purchase.fresh_from_bytes = carried - came_back, came_back
    due = purchase.count(reading)
    account = world.server(purchase.identity)
    account.metered_msat += due
    account.came_back_msat += due * max(0, came_back) // carried
    account.unsaved_msat += due
    account.sent = account.sent or purchase.used_to_bytes > 0
    return due


def paid_for(world: World, account: ServerAccount) -> None:
    """Make contracts active that we accepted on credit: the server has our money, and makes them active, too.

    The caller writes the account in the same step.
    """
    waited = list(account.unpaid.values())
    account.unpaid.clear()
    for purchase in waited:
        if purchase.state is State.ACCEPTED:
            world.move(purchase, State.ACTIVE)
        world.save_contract(purchase)
