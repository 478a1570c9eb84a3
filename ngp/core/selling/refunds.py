"""Refunds: what a client prepaid and doesn't use is paid back to it, once.

The server offers what is free on the account, that is, paid and not charged. The client answers with an invoice of its
node. The invoice is paid like any other: stored first, within the budgets, tracked to its end. The operator makes an
offer by `ngp refund`. A client may also ask for an offer, by a `Refund` without amount and invoice; it gets one if
REFUND_WHEN_ASKED is yes.

What could a client gain by asking? The server pays routing fees, perhaps to nodes of that client. So there are limits
for refunds that clients ask for: all their fees together are no more than the server earned with the client, each is
at least `LEAST_ASKED_MSAT`, and there is one an hour at most. And money that goes in and out again must not use up the
server's budgets: these refunds leave half of each budget for what the server buys.

One refund of a neighbour is under way at a time, and no contract may spend its amount. An offer is kept in memory only:
a daemon that dies forgets it, and an invoice without an offer isn't paid.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core.budget import Spending, broken_limit, room_msat
from ngp.core.events import AccountCounted
from ngp.core.messages import Declined, DeclineReason, Refund
from ngp.core.money import Order
from ngp.core.orders import (
    FAILED_REFUND_PAUSE_S,
    REFUND_PAUSE_S,
    flaw_of,
    is_from_announced_node,
    pay,
    tell_outcome,
)
from ngp.core.payment_node import DecodedInvoice
from ngp.core.peers import Neighbour, named
from ngp.core.pricing import floor_to_sat_msat, show_money
from ngp.core.records import PaymentKind, PaymentState
from ngp.core.selling import metering
from ngp.core.selling.account import ClientAccount
from ngp.core.settings import Budgets
from ngp.core.topups import sendable
from ngp.core.world import World

LEAST_ASKED_MSAT = 10_000  # least refund that a client may ask for
ASK_PAUSE_S = 5.0  # requests of a client that come sooner after the last one are ignored
OFFER_VALID_S = 600.0


def offerable_msat(world: World, account: ClientAccount) -> int:
    """Return what can be offered in one payment, in whole sat; 0 if that is too little for a payment."""
    bounds = sendable(world, account.identity)
    amount = min(floor_to_sat_msat(account.funds_msat), bounds.most_msat)
    return amount if amount >= bounds.least_msat and not bounds.why_not else 0


def refund_offered(world: World, identity: bytes) -> str:
    """Offer a client its balance back; it answers with an invoice. Returns a sentence for the operator."""
    neighbour, why_not = world.peers.any_link(identity), why_no_refund(world, identity)
    if neighbour is None or why_not:
        return why_not
    account = world.client(identity)
    amount = offerable_msat(world, account)
    _offer(world, neighbour, account, amount, asked=False)
    return f"refund of {amount} msat offered to {identity.hex()[:8]}; it is paid when the client sends its invoice"


def why_no_refund(world: World, identity: bytes) -> str:
    """Return why a client can't be offered its balance now, in words for the operator; "" if it can."""
    account = world.clients.get(identity)
    if account is not None and account.refund.promised_msat:
        amount = show_money(account.refund.promised_msat)
        return f"a refund of {amount} to {named(identity)} is on its way: ngp accounts shows since when"
    if account is None or not offerable_msat(world, account):
        return f"nothing to refund: {_why_nothing(world, identity, account)}"
    return world.peers.why_away(identity, "send its invoice")


def _why_nothing(world: World, identity: bytes, account: ClientAccount | None) -> str:
    free_msat = 0 if account is None else max(0, account.funds_msat)
    bounds = sendable(world, identity)
    if free_msat >= bounds.least_msat and bounds.why_not:
        return bounds.why_not
    free = f"{free_msat} msat of {named(identity)}'s balance can be paid back"
    return f"{free}, and a payment must be at least {bounds.least_msat} msat"


def _offer(world: World, neighbour: Neighbour, account: ClientAccount, amount_msat: int, asked: bool) -> None:
    account.refund.offered_msat, account.refund.was_asked = amount_msat, asked
    account.refund.offered_mono_s = world.now.monotonic_s
    world.send(neighbour, Refund(amount_msat))


def asked(world: World, neighbour: Neighbour, message_id: int) -> bool:
    """Answer a client that asks for its balance. Returns whether the answer was sent as a reply to the request."""
    account = world.clients.get(neighbour.identity)
    if account is not None:
        if world.now.monotonic_s - account.refund_ask_mono_s < ASK_PAUSE_S:
            world.count("refund_asks_ignored")
            return False
        account.refund_ask_mono_s = world.now.monotonic_s
    reason = _objection(world, neighbour, account)
    if account is None or reason is not None:
        world.count("refund_asks_declined")
        world.send(neighbour, Declined(b"", reason or DeclineReason.AMOUNT), message_id)
        return True
    amount = offerable_msat(world, account)
    world.log(f"{neighbour.identity.hex()[:8]} asks for its balance; refund of {amount} msat offered")
    _offer(world, neighbour, account, amount, asked=True)
    return False


def _objection(world: World, neighbour: Neighbour, account: ClientAccount | None) -> DeclineReason | None:
    if neighbour.identity in world.peers.blocked:
        return DeclineReason.BLOCKED
    amount = offerable_msat(world, account) if account is not None else 0
    if account is None or amount < LEAST_ASKED_MSAT:
        return DeclineReason.AMOUNT
    if account.refund.promised_msat:
        return DeclineReason.BUSY
    if not world.settings.refund_when_asked:
        _tell_of_ask(world, account, amount)
        return DeclineReason.TERMS
    if _refunded_lately(world, account.identity):
        _tell_of_ask(world, account, amount, "a refund was paid or failed lately, so ngp pays no other by itself; ")
        return DeclineReason.BUSY
    return None


def _tell_of_ask(world: World, account: ClientAccount, amount_msat: int, why: str = "") -> None:
    """Tell the operator, once an hour at most, of a request that only the operator can grant."""
    who = account.identity.hex()[:8]
    text = f"{who} asks for {amount_msat} msat of its balance: {why}to pay it, run ngp refund {who}"
    world.log_seldom(("refund", account.identity), text, logging.INFO)


def _refunded_lately(world: World, identity: bytes) -> bool:
    """Say whether a neighbour had a refund lately. Looks at the payments, as these survive a restart."""
    for record in world.money.payments_to(identity):
        if record.kind is PaymentKind.REFUND:
            again_s = FAILED_REFUND_PAUSE_S if record.state is PaymentState.FAILED else REFUND_PAUSE_S
            if world.now.utc_s - max(record.created_at_s, record.settled_at_s) < again_s:
                return True
    return False


def pay_back(world: World, neighbour: Neighbour, refund: Refund, decoded: DecodedInvoice | None) -> bool:
    """Pay the invoice that answers our offer. Returns whether a message was sent in answer."""
    flaw = flaw_of(world, decoded) if decoded is not None else None
    if decoded is None or decoded.amount_msat != refund.amount_msat or flaw is DeclineReason.NETWORK:
        world.count("invoice_malformed")
        return False
    known = world.money.payments.get(decoded.payment_hash)
    if known is not None and known.identity == neighbour.identity:
        return tell_outcome(world, neighbour, known)
    account = world.clients.get(neighbour.identity)
    if account is None or flaw is not None or not is_from_announced_node(world, neighbour, decoded):
        world.count("refund_refused")
        return False
    valid = world.now.monotonic_s - account.refund.offered_mono_s < OFFER_VALID_S
    offered = account.refund.offered_msat if valid and not account.refund.promised_msat else 0
    if not offered:  # without offers, fees could drain us; after an offer the client may send the invoice again
        world.count("refund_refused")
        return False
    reason, instead = _unpayable(world, account, refund.amount_msat, offered)
    if reason is not None:
        world.send(neighbour, Declined(decoded.payment_hash, reason, instead))
        return True
    if refund.amount_msat < offered:
        world.log(f"{neighbour.identity.hex()[:8]} asks for {refund.amount_msat} msat of {offered} msat offered")
    account.refund.offered_msat = 0
    fee_limit_msat = _fee_limit_msat(world, account, refund.amount_msat)
    account.refund.promised_msat += refund.amount_msat
    account.refund.pending = Order(refund.bolt11, decoded.payment_hash, refund.amount_msat, fee_limit_msat)
    world.limit(account)
    if account.kernel.told is None:  # no contract runs that could spend it
        _pay_pending(world, account)
    else:
        metering.count_again(world, account)
    return False


def account_counted(world: World, event: AccountCounted) -> None:
    """Pay a refund now that no contract can spend its amount any more, unless they spent too much before."""
    account = world.clients.get(event.account)
    if account is not None and not account.kernel.counting:  # the last count was asked for after the limit was lowered
        _pay_pending(world, account)


def _pay_pending(world: World, account: ClientAccount) -> None:
    refund, neighbour = account.refund.pending, world.peers.any_link(account.identity)
    if refund is None:
        return
    account.refund.pending = None
    missing_msat = max(0, account.refund.promised_msat - account.balance_msat)
    # Meanwhile another neighbour may have sent an invoice with the same hash. The ledger would refuse a second payment
    # with this hash, and with the payment the whole batch of records.
    is_used = world.money.knows(refund.payment_hash)
    if neighbour is not None and not missing_msat and not is_used:
        pay(world, account.identity, PaymentKind.REFUND, refund)
        return
    account.refund.promised_msat -= refund.amount_msat
    world.limit(account)
    metering.use_funds(world, account.identity)
    if neighbour is not None and is_used:
        world.count("refund_refused")
        world.send(neighbour, Declined(refund.payment_hash, DeclineReason.TERMS))
    elif neighbour is not None:
        account.refund.offered_msat = max(0, floor_to_sat_msat(refund.amount_msat - missing_msat))
        world.send(neighbour, Declined(refund.payment_hash, DeclineReason.AMOUNT, account.refund.offered_msat))


def _fee_limit_msat(world: World, account: ClientAccount, amount_msat: int) -> int:
    """Return the most that routing a refund may cost: if the client asked for it, no more than we earned by the client.

    The fees that we paid before are taken off what we earned. They are computed as what we spent on the neighbour minus
    what it received, in both roles: these two sums are kept for years and over restarts, single fees aren't.
    """
    limit = world.settings.fee_limit.of_msat(amount_msat)
    if not account.refund.was_asked:
        return limit
    bought = world.servers.get(account.identity)
    got_msat = account.refunded_msat + (bought.paid_msat if bought is not None else 0)
    got_msat += sum(
        one.amount_msat for one in world.money.payments_to(account.identity) if one.state is PaymentState.PENDING
    )
    fees_msat = max(0, world.money.spending.by_neighbour.get(account.identity, 0) - got_msat)
    return min(limit, max(0, account.charged_msat - fees_msat))


def _unpayable(
    world: World, account: ClientAccount, amount_msat: int, offered_msat: int
) -> tuple[DeclineReason | None, int]:
    """Return why an invoice for a refund can't be paid (None if it can), and what would be paid instead."""
    free_msat = min(offered_msat, offerable_msat(world, account))
    if amount_msat > free_msat:
        return DeclineReason.AMOUNT, free_msat
    cost, now = amount_msat + _fee_limit_msat(world, account, amount_msat), world.now
    limited = [("", world.settings.budgets, world.money.spending)]
    if account.refund.was_asked and world.settings.buys:
        limited.append(("half of ", _half(world.settings.budgets), _refunds(world)))
    broken = [(of, broken_limit(budgets, spent, account.identity, cost, now)) for of, budgets, spent in limited]
    limits = [of + limit for of, limit in broken if limit is not None]
    if not limits:
        return None, 0
    who = account.identity.hex()[:8]
    world.log(f"refund of {amount_msat} msat to {who} not paid: {limits[0]}", logging.WARNING)
    room = min(room_msat(budgets, spent, account.identity, now) for _, budgets, spent in limited)
    return DeclineReason.BUDGET, floor_to_sat_msat(world.settings.fee_limit.fits_msat(room))


def _half(budgets: Budgets) -> Budgets:
    total = budgets.total_msat // 2 if budgets.total_msat is not None else None
    return replace(budgets, hour_msat=budgets.hour_msat // 2, day_msat=budgets.day_msat // 2, total_msat=total)


def _refunds(world: World) -> Spending:
    """Sum up all refunds: those of the last day by their payments, the total by the accounts."""
    spent = Spending()
    for one in world.money.payments.values():
        if one.kind is PaymentKind.REFUND and one.state is not PaymentState.FAILED:
            spent.add(one.identity, one.amount_msat + one.fee_msat, one.created_at_s, world.now)
    sold = world.clients.values()
    spent.total_msat = sum(one.refunded_msat + one.refund.promised_msat for one in sold)
    return spent
