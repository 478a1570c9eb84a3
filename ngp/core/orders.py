"""Orders: payments that we make. A payment is in the ledger before any money moves.

While its outcome is unknown we ask the node for it, and never pay the invoice again. `buying.payments` decides about
top-ups, `selling.refunds` about refunds; both pay by way of this module.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core import networks
from ngp.core.budget import broken_limit, room_msat
from ngp.core.buying import metering, service
from ngp.core.buying.account import Backoff, ServerAccount
from ngp.core.effects import PayInvoice, Persist, TrackPayment
from ngp.core.messages import Declined, DeclineReason, Paid
from ngp.core.money import Order
from ngp.core.payment_node import UNKNOWN_PAYMENT, DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.core.peers import Neighbour
from ngp.core.records import Direction, PaymentKind, PaymentRecord, PaymentState
from ngp.core.timers import Due
from ngp.core.topups import REMEMBERED_S, add_top_up, pause_s
from ngp.core.world import World

MOST_INVOICE_EXPIRY_S = 43_200
"""An invoice that is valid for longer than this (12 hours) isn't paid."""
FIRST_FAILURE_PAUSE_S = 1.0
TRACK_S = 5.0
TRACK_AT_MOST_S = 60.0
"""We ask for a pending payment again after a twelfth of its age, but at least TRACK_S and at most this time."""
PAY_TIMEOUT_S = 60.0
LATE_S = 86_400
"""A payment that is pending for longer than this doesn't keep us from paying other invoices of the neighbour."""
REFUND_PAUSE_S = 3600
"""Least time between two refunds that a client asked for."""
FAILED_REFUND_PAUSE_S = 300
"""Least time between a refund that failed and the next one that the client asks for."""
_NEVER_ORDERED = "our payment node never received the order, so no money left it"


def tell_outcome(world: World, neighbour: Neighbour, record: PaymentRecord) -> bool:
    """Tell a neighbour how the payment of its invoice ended, as often as it asks. Returns whether it has ended."""
    if record.state is PaymentState.SUCCEEDED:
        world.send(neighbour, Paid(record.payment_hash, record.preimage))
    elif record.state is PaymentState.FAILED:
        world.send(neighbour, Declined(record.payment_hash, DeclineReason.BUSY))
    return record.state is not PaymentState.PENDING


def is_from_announced_node(world: World, neighbour: Neighbour, decoded: DecodedInvoice) -> bool:
    """Say whether an invoice is from the node that the neighbour announced; real money goes to no other node.

    If it isn't, the log says so. Where money isn't real, a neighbour that announced no node may use any.
    """
    if decoded.payee == neighbour.payee.hex() or not (neighbour.payee or world.node.real_money):
        return True
    who, announced = neighbour.identity.hex()[:8], neighbour.payee.hex()[:16] or "none"
    world.count("invoice_foreign_payee")
    world.log(
        f"invoice from {who} not paid: its payee is {decoded.payee[:16]}, but the neighbour announced {announced}",
        logging.WARNING,
    )
    return False


def pending_msat(world: World, identity: bytes) -> int:
    """Return the sum of pending payments to a neighbour."""
    return sum(record.amount_msat for record in pending(world, identity))


def pending(world: World, identity: bytes) -> list[PaymentRecord]:
    """Return the payments to a neighbour that are pending for less than a day; budgets count older ones as well.

    A node may call a payment pending for ever although nobody holds it (lightningnetwork/lnd#5152: the node was killed
    before the channel knew of it). A few such payments must not end the trade, so after a day they don't count here any
    more. A server that holds payments back on purpose gains no more than one payment a day.
    """
    since_s = world.now.utc_s - LATE_S
    records = world.money.payments_to(identity)
    return [one for one in records if one.state is PaymentState.PENDING and one.created_at_s > since_s]


def backoff_of(world: World, account: ServerAccount) -> Backoff:
    """Return a server's backoff. Servers through which we never sent anything share one, as new keys cost nothing."""
    return account.backoff if account.sent else world.buying.backoff


def flaw_of(world: World, decoded: DecodedInvoice) -> DeclineReason | None:
    """Return why another node's invoice isn't paid, whoever sends it and whatever it is for; None: nothing is wrong."""
    if not networks.takes_invoice(world.node.network, decoded.network):
        return DeclineReason.NETWORK
    # An invoice that is valid for longer than we remember its payment might be paid twice.
    if not 0 < decoded.expires_in_s <= MOST_INVOICE_EXPIRY_S:
        return DeclineReason.LAPSED
    # If we paid a used invoice, one payment would credit two accounts, and we would reveal its preimage.
    return DeclineReason.TERMS if world.money.is_used(decoded) else None


def broken_budget(world: World, identity: bytes, amount_msat: int) -> str | None:
    """Name the budget that a payment would break together with its highest fee; None if it breaks none."""
    cost_msat = amount_msat + world.settings.fee_limit.of_msat(amount_msat)
    return broken_limit(world.settings.budgets, world.money.spending, identity, cost_msat, world.now)


def affordable_msat(world: World, identity: bytes) -> int:
    """Return the largest payment that the budgets allow together with its highest fee."""
    room = room_msat(world.settings.budgets, world.money.spending, identity, world.now)
    return world.settings.fee_limit.fits_msat(room)


def pay(world: World, identity: bytes, kind: PaymentKind, order: Order) -> None:
    """Store a payment as pending, count it in the budgets with its highest possible fee, and order it.

    Args: identity: whose account the payment is for; if it is a neighbour's, a channel to its node is preferred.
    """
    neighbour = world.peers.any_link(identity)
    record = PaymentRecord(
        direction=Direction.OUT,
        payment_hash=order.payment_hash,
        kind=kind,
        identity=identity,
        amount_msat=order.amount_msat,
        fee_msat=order.fee_limit_msat,
        state=PaymentState.PENDING,
        bolt11=order.bolt11,
        preimage=b"",
        created_at_s=world.now.utc_s,
    )
    world.money.payments[order.payment_hash] = record
    world.money.spending.add(identity, order.amount_msat + order.fee_limit_msat, world.now.utc_s, world.now)
    world.do(Persist(record, durable=True))
    if kind is PaymentKind.TOP_UP:
        service.ordered(world, world.server(identity))
    world.tell_kernel_of(identity)  # a server that was paid may hold more first packets; our meter must count them too
    via_peer = neighbour.payee.hex() if neighbour is not None else ""
    world.do(PayInvoice(order.bolt11, order.payment_hash, order.fee_limit_msat, PAY_TIMEOUT_S, via_peer or None))


def payment_result(world: World, outcome: PaymentOutcome) -> None:
    """Record the outcome of a payment of ours. While the node calls it pending, its invoice is never paid again."""
    record = world.money.payments.get(outcome.payment_hash)
    if record is None or record.state is not PaymentState.PENDING:
        return
    if _heard_of_too_early(world, outcome) or outcome.status is PaymentStatus.PENDING:
        again_s = min(TRACK_AT_MOST_S, max(TRACK_S, (world.now.utc_s - record.created_at_s) / 12))
        world.timers.set(Due.TRACK, outcome.payment_hash, world.now.monotonic_s + again_s)
        return
    world.timers.set(Due.TRACK, outcome.payment_hash, world.now.monotonic_s + REMEMBERED_S)
    succeeded = outcome.status is PaymentStatus.SUCCEEDED
    done = world.money.payments[record.payment_hash] = replace(
        record,
        state=PaymentState.SUCCEEDED if succeeded else PaymentState.FAILED,
        preimage=outcome.preimage,
        fee_msat=outcome.fee_msat if succeeded else record.fee_msat,
        settled_at_s=world.now.utc_s,
        reason=outcome.reason,
    )
    cost_msat = record.amount_msat + outcome.fee_msat if succeeded else 0
    counted_msat = record.amount_msat + record.fee_msat
    world.money.spending.add(record.identity, cost_msat - counted_msat, record.created_at_s, world.now)
    world.do(Persist(done, durable=True))
    if record.kind is PaymentKind.REFUND:
        world.client(record.identity).refund.promised_msat -= record.amount_msat
    (_succeeded if succeeded else _failed)(world, done)
    neighbour = world.peers.any_link(record.identity)
    if neighbour is not None:
        tell_outcome(world, neighbour, done)


def _heard_of_too_early(world: World, outcome: PaymentOutcome) -> bool:
    """Say whether the node says that it never heard of a payment, and must be asked once more.

    After a broken connection our order may still be in the node's buffers. We must not record the payment as failed
    while the node then pays it. When a suspended node goes on, it may answer our question before it reads the order. So
    the answer counts only if it comes twice in a row.
    """
    if outcome.status is not PaymentStatus.FAILED or outcome.reason != UNKNOWN_PAYMENT:
        world.money.unheard_of.discard(outcome.payment_hash)
        return False
    first_time = outcome.payment_hash not in world.money.unheard_of
    world.money.unheard_of ^= {outcome.payment_hash}
    return first_time


def _succeeded(world: World, done: PaymentRecord) -> None:
    kind = "refund" if done.kind is PaymentKind.REFUND else "payment"
    world.journal(kind, done.identity, done.state.value, -done.amount_msat, paid=done.payment_hash)
    if done.kind is PaymentKind.REFUND:
        client = world.client(done.identity)
        client.refunded_msat += done.amount_msat
        world.save_account(client, durable=True)
    else:
        server = world.server(done.identity)
        backoff_of(world, server).failures = 0
        add_top_up(world, server, done.amount_msat)
        if server.balance_msat > 0:
            metering.paid_for(world, server)
        service.paid(world, server)
        world.save_account(server, durable=True)
    world.log(f"payment of {done.amount_msat} msat to {done.identity.hex()[:8]} succeeded")


def _failed(world: World, done: PaymentRecord) -> None:
    why = _NEVER_ORDERED if done.reason == UNKNOWN_PAYMENT else done.reason
    world.log(f"payment of {done.amount_msat} msat to {done.identity.hex()[:8]} failed: {why}", logging.WARNING)
    if done.kind is PaymentKind.REFUND:
        world.limit(world.client(done.identity))
    else:
        server = world.server(done.identity)
        server.why_not = f"the last payment failed: {why}"
        backoff = backoff_of(world, server)
        backoff.not_before_mono_s = world.now.monotonic_s + pause_s(FIRST_FAILURE_PAUSE_S, backoff.failures)
        backoff.failures += 1


def track_due(world: World, payment_hash: bytes) -> None:
    """Ask again about a payment whose outcome isn't known; forget one that was over long ago (the ledger keeps it)."""
    record = world.money.payments.get(payment_hash)
    if record is None:
        return
    if record.state is PaymentState.PENDING:
        world.do(TrackPayment(payment_hash))
    else:
        del world.money.payments[payment_hash]
