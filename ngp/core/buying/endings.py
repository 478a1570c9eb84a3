"""Endings of purchases, and new ones instead of those that we miss.

We miss a purchase that ended by itself at its server while it carried traffic. Who only receives would wait for ever:
what comes is dropped on the way, so our side has nothing to answer, and no packet of ours shows the server that the
destination is wanted. So we ask for it when the old contract is closed, and again after 1, 2, 4 ... seconds, until a
new one carries something or the server refuses for a reason that lasts: a question may be lost, the server may have no
money further up for a while, and a new contract may end before it is used, while the price further up is still
changing. After two minutes hardly anybody waits any more.

A default route isn't asked for: its server may have none any more. Our clients' contracts end with a purchase, and they
ask, so we don't ask for what only a client used. What a client asked for, or hasn't used lately, doesn't count.
"""

from __future__ import annotations

from ngp.core.buying import negotiation
from ngp.core.buying.memory import Missed
from ngp.core.buying.metering import usage_read
from ngp.core.buying.purchase import Purchase
from ngp.core.buying.renewal import WORTH_BYTES
from ngp.core.contract import CloseReason, Contract
from ngp.core.kernel import FULL_PACKET_BYTES, Reading
from ngp.core.messages import Cancel
from ngp.core.peers import Neighbour
from ngp.core.timers import Due
from ngp.core.world import World

WORTH_S = 60.0
"""A contract that ends within this time after its opening, and carried less than WORTH_BYTES, counts as unused.
Otherwise a server could end each contract after one packet, and make us open another."""
ASK_AGAIN_S = 1.0  # the first pause between two questions; each further one is twice as long
MISSED_S = 120.0  # for so long after it carried something last do we ask
_BY_ITSELF = {CloseReason.UPSTREAM.value, CloseReason.EXPIRED.value, CloseReason.EXHAUSTED.value}


def cancelled(world: World, neighbour: Neighbour, cancel: Cancel) -> None:
    """End a contract that its server has ended, or note that the server has ended one that we ended first."""
    purchase = world.bought(cancel.contract)
    if purchase is None or purchase.identity != neighbour.identity:
        return
    purchase.disowned = False
    is_sold = any(_was_used(world, sale) for sale in world.resting.get(purchase.id, {}).values())
    _ended(world, purchase, cancel.reason, not is_sold or purchase.ours_bytes > FULL_PACKET_BYTES)
    if purchase.running:
        known = cancel.reason in [reason.value for reason in CloseReason]
        world.halt(purchase, CloseReason(cancel.reason) if known else CloseReason.CANCELLED)
        world.save(purchase)  # else it would live again if we are killed before the kernel's last reading


def restore(world: World, purchase: Purchase, was_sold: bool) -> None:
    """Go on with the end of a contract that its server had ended before the last process died.

    Who used it last isn't in the ledger. So we ask for it anew in any case, but if it was sold, the new one ends when
    it brings more than the grace while we send nothing by it. What expired was hardly in use: it would have been
    renewed.

    Args: was_sold: clients of ours had bought it.
    """
    if was_sold:
        purchase.needed_at = purchase.unsold_bytes, purchase.ours_bytes
    if purchase.reason != CloseReason.EXPIRED:
        _ended(world, purchase, purchase.reason, True)


def _ended(world: World, purchase: Purchase, reason: str, is_ours: bool) -> None:
    # A purchase that we ended, as it brought too much for nobody, mustn't be bought again because its server says so.
    if reason in _BY_ITSELF and not (purchase.ended_by_itself or purchase.unneeded):
        purchase.ended_by_itself = True
        if is_ours and _is_missed(world, purchase):
            _miss(world, purchase)


def halted(world: World, purchase: Purchase, reading: Reading | None) -> None:
    """Close a contract on our side after our meter's last reading."""
    if reading is not None:
        usage_read(world, purchase, reading)
    is_short = purchase.used_bytes < WORTH_BYTES and world.now.utc_s - purchase.opened_at_s < WORTH_S
    if is_short and not purchase.unneeded:
        world.count_opening(purchase)
    world.close(purchase)
    world.buying.ended.note(purchase.id, purchase)
    world.forget_if_gone(purchase.identity)
    missed = world.buying.missed.get((purchase.identity, purchase.destination.prefix))
    if missed is not None and missed.purchase is purchase:
        _ask_at_once(world, missed)


def look_for_missed(world: World) -> None:
    """Ask again for what we miss, until a new contract carries something, or nobody waits any more.

    If we may not ask for all now, we ask for what has waited longest.
    """
    missed, now = world.buying.missed, world.now.monotonic_s
    for key, one in sorted(missed.items(), key=lambda item: item[1].asked_mono_s):
        new = world.purchases.exact(*key)
        is_back = new is not None and new is not one.purchase and new.used_bytes
        if is_back or now > one.until_mono_s or world.settings.never_renews:
            del missed[key]
        elif now - one.asked_mono_s >= one.pause_s:
            _ask_instead(world, one)
    if missed:
        world.timers.set(Due.MISSED, b"", now + ASK_AGAIN_S)


def _is_missed(world: World, purchase: Purchase) -> bool:
    is_used = _was_used(world, purchase) and not purchase.outlived
    return is_used and not purchase.destination.is_default and not world.settings.never_renews


def _was_used(world: World, contract: Contract) -> bool:
    return bool(contract.used_bytes) and contract.in_use(world.now.monotonic_s)


def _miss(world: World, purchase: Purchase) -> None:
    """Ask for a new contract from now on: at once, and then again and again.

    If we miss the destination already, not at once: its server may end contracts as fast as we open them.
    """
    key = purchase.identity, purchase.destination.prefix
    missed = Missed(purchase, purchase.rate.at_mono_s + MISSED_S, ASK_AGAIN_S)
    if (before := world.buying.missed.get(key)) is not None:
        missed.asked_mono_s = before.asked_mono_s
    world.buying.missed.note(key, missed)
    world.timers.set_if_unset(Due.MISSED, b"", world.now.monotonic_s + ASK_AGAIN_S)
    _ask_at_once(world, missed)


def _ask_at_once(world: World, missed: Missed) -> None:
    if missed.asked_mono_s == float("-inf"):
        _ask_instead(world, missed)


def _ask_instead(world: World, missed: Missed) -> None:
    """Ask for a new contract, unless there is one already, or the old one isn't closed yet."""
    purchase, destination = missed.purchase, missed.purchase.destination.prefix
    neighbour = world.peers.of(purchase)
    if neighbour is None or world.purchases.exact(purchase.identity, destination) is not None:
        return
    if negotiation.ask(world, neighbour, destination):
        if missed.asked_mono_s > float("-inf"):
            missed.pause_s *= 2
        missed.asked_mono_s = world.now.monotonic_s
