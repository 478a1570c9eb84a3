"""Payments, as the buyer: pay a server's invoice if the budgets allow it and the server doesn't ask for too much ahead.

Otherwise the invoice is declined with a reason.
"""

from __future__ import annotations

import logging

from ngp.core.buying import service
from ngp.core.buying.account import ServerAccount
from ngp.core.messages import Declined, DeclineReason, Invoice
from ngp.core.money import Order
from ngp.core.orders import (
    affordable_msat,
    backoff_of,
    broken_budget,
    flaw_of,
    is_from_announced_node,
    pay,
    pending,
    pending_msat,
    tell_outcome,
)
from ngp.core.payment_node import DecodedInvoice
from ngp.core.peers import Neighbour
from ngp.core.pricing import floor_to_sat_msat, show_money
from ngp.core.reach import Bounds
from ngp.core.records import PaymentKind, PaymentState
from ngp.core.topups import MOST_AHEAD, ahead_msat, note_why_not, sendable, usual_msat
from ngp.core.world import World

MOST_PENDING = 8
NEWCOMERS_S = 3600
"""Within this time all servers that have carried nothing yet are paid no more than one of them alone."""


def invoice_received(world: World, neighbour: Neighbour, invoice: Invoice, decoded: DecodedInvoice | None) -> bool:
    """Pay a server's invoice, or decline it with a reason. Returns whether a message was sent in answer."""
    if decoded is None or decoded.amount_msat != invoice.amount_msat or invoice.amount_msat <= 0:
        world.count("invoice_malformed")
        return False
    payment_hash = decoded.payment_hash
    known = world.money.payments.get(payment_hash)
    if known is not None and known.identity == neighbour.identity:
        return tell_outcome(world, neighbour, known)
    if flaw_of(world, decoded) is DeclineReason.LAPSED:
        return _lapsed(world, neighbour, decoded)
    if not _buys_from(world, neighbour.identity):
        if (bought := world.servers.get(neighbour.identity)) is not None:
            bought.declined_hash = payment_hash
        world.send(neighbour, Declined(payment_hash, DeclineReason.NOT_BUYING))
        return True
    account = world.server(neighbour.identity)
    reason, instead = _objection(world, neighbour, account, invoice.amount_msat, decoded)
    if reason is not None:
        account.declined_hash = payment_hash
        world.send(neighbour, Declined(payment_hash, reason, instead))
        return True
    account.declined_hash = b""
    fee_limit_msat = world.settings.fee_limit.of_msat(invoice.amount_msat)
    order = Order(invoice.bolt11, payment_hash, invoice.amount_msat, fee_limit_msat)
    pay(world, account.identity, PaymentKind.TOP_UP, order)
    return False


def pay_now(world: World, account: ServerAccount) -> None:
    """Tell a server whose invoice we declined what we would pay now: its next invoice might come only in a minute."""
    neighbour = world.peers.any_link(account.identity)
    if not account.declined_hash or neighbour is None or account.disputed:
        return
    if not _buys_from(world, account.identity) or _needs_nothing(account) or service.why_unpaid(world, account):
        return
    bounds = sendable(world, account.identity)
    most_msat = min(_ahead_msat(world, account, bounds), affordable_msat(world, account.identity), bounds.most_msat)
    amount_msat = 0 if bounds.why_not else _worth_asking(most_msat, bounds)
    if amount_msat:
        world.send(neighbour, Declined(account.declined_hash, DeclineReason.AMOUNT, amount_msat))
        account.declined_hash = b""


def _buys_from(world: World, identity: bytes) -> bool:
    return world.settings.buys and identity not in world.peers.blocked


def _needs_nothing(account: ServerAccount) -> bool:
    return not account.running and account.balance_msat >= 0


def _lapsed(world: World, neighbour: Neighbour, decoded: DecodedInvoice) -> bool:
    if (bought := world.servers.get(neighbour.identity)) is not None:
        how = "have lapsed when they arrive" if decoded.expires_in_s <= 0 else "are valid for more than 12 hours"
        why_not = f"by our clock its invoices {how}, so one of the clocks is wrong: check both"
        note_why_not(world, bought, why_not)
    world.send(neighbour, Declined(decoded.payment_hash, DeclineReason.LAPSED))
    return True


def _objection(
    world: World, neighbour: Neighbour, account: ServerAccount, amount_msat: int, decoded: DecodedInvoice
) -> tuple[DeclineReason | None, int]:
    if (flaw := flaw_of(world, decoded)) is not None:
        return flaw, 0
    if account.disputed or not is_from_announced_node(world, neighbour, decoded):
        return DeclineReason.TERMS, 0
    if _needs_nothing(account):
        return DeclineReason.NOT_BUYING, 0
    if service.stops_paying(world, account):
        return DeclineReason.BUSY, 0
    bounds = sendable(world, neighbour.identity)
    if objection := _unsendable(world, account, bounds, amount_msat):
        return objection
    if not account.served_msat and (room_msat := _newcomers_room_msat(world, account, bounds)) < bounds.least_msat:
        why = (
            "neighbours that have carried nothing yet get no more than TRUST_AMOUNT in an hour, all together, and "
            f"{show_money(max(0, room_msat))} of it is left: it is paid as soon as something has come back through it"
        )
        note_why_not(world, account, why)
        return DeclineReason.BUSY, 0
    waits = backoff_of(world, account).not_before_mono_s > world.now.monotonic_s
    if waits or len(pending(world, neighbour.identity)) >= MOST_PENDING:
        return DeclineReason.BUSY, 0
    ahead = _ahead_msat(world, account, bounds)
    if amount_msat > ahead:
        return DeclineReason.AMOUNT, _worth_asking(ahead, bounds)
    limit = broken_budget(world, neighbour.identity, amount_msat)
    if limit is None:
        return None, 0
    world.log(f"invoice of {amount_msat} msat from {neighbour.identity.hex()[:8]} declined: {limit}", logging.WARNING)
    account.why_not = limit
    return DeclineReason.BUDGET, _worth_asking(affordable_msat(world, neighbour.identity), bounds)


def _ahead_msat(world: World, account: ServerAccount, bounds: Bounds) -> int:
    """Return how much more of our money a server may have unspent; negative if it has too much already."""
    pending_now_msat = pending_msat(world, account.identity)
    if account.served_msat < world.first_trust_msat(account):
        # One payment whose outcome stays unknown is all that it is trusted with: it must not wait for a day.
        pending_now_msat = min(pending_now_msat, _paid_lately_msat(world, account.identity))
    ahead = ahead_msat(world, account, bounds) - pending_now_msat
    if not account.served_msat:
        ahead = min(ahead, _newcomers_room_msat(world, account, bounds))
    return max(ahead, bounds.least_msat) if service.is_tried(world, account) and not pending_now_msat else ahead


def _unsendable(
    world: World, account: ServerAccount, bounds: Bounds, amount_msat: int
) -> tuple[DeclineReason, int] | None:
    """Return why our channels can't pay an invoice now, and the amount that they can pay; None if they can pay it."""
    if bounds.why_not:
        note_why_not(world, account, bounds.why_not)
        return DeclineReason.AMOUNT, 0
    if bounds.least_msat > MOST_AHEAD * usual_msat(world, account, bounds):
        why = f"the channel takes no payment below {bounds.least_msat} msat; raise PAYMENT_AMOUNT to prepay as much"
        note_why_not(world, account, why)
        return DeclineReason.AMOUNT, 0
    fits = bounds.least_msat <= amount_msat <= bounds.most_msat
    return None if fits else (DeclineReason.AMOUNT, bounds.fit_msat(amount_msat))


def _worth_asking(amount_msat: int, bounds: Bounds) -> int:
    """Round down to whole sat the amount that we would pay instead; 0 if it is too small for a payment."""
    whole = floor_to_sat_msat(amount_msat)
    return whole if whole >= bounds.least_msat else 0


def _newcomers_room_msat(world: World, account: ServerAccount, bounds: Bounds) -> int:
    """Return how much we may still pay to servers that have carried nothing yet, all of them together.

    Keys and proposals cost nothing. Without this limit, one attacker could make up many servers and be paid ahead as
    each of them. One that has carried a packet isn't kept waiting: a cheat would keep honest newcomers waiting, too.
    """
    newcomers = (one.identity for one in world.servers.values() if not one.served_msat)
    paid_msat = sum(_paid_lately_msat(world, identity) for identity in newcomers)
    return max(world.trust_msat(account), bounds.least_msat) - paid_msat


def _paid_lately_msat(world: World, identity: bytes) -> int:
    since_s = world.now.utc_s - NEWCOMERS_S
    paid = world.money.payments_to(identity)
    return sum(one.amount_msat for one in paid if one.state is not PaymentState.FAILED and one.created_at_s >= since_s)
