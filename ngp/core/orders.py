"""Orders: payments of ours. The intent is in the ledger before any money moves, and what isn't known stays unknown.

An outcome in doubt is asked for, never paid again. What is paid for, and whether, is the buyer's to decide
(`buying.payments`), and for refunds the seller's (`selling.refunds`).
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core.buying import metering
from ngp.core.buying.account import Backoff, ServerAccount
from ngp.core.effects import PayInvoice, Persist, TrackPayment
from ngp.core.messages import Declined, DeclineReason, Paid
from ngp.core.peers import Neighbour
from ngp.core.records import Direction, PaymentKind, PaymentRecord, PaymentState
from ngp.core.timers import Due
from ngp.core.topups import MOST_PAUSE_S, REMEMBERED_S, note_top_up
from ngp.core.values import UNKNOWN_PAYMENT, DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.core.world import World

MOST_INVOICE_EXPIRY_S = 43_200
FIRST_FAILURE_PAUSE_S = 1.0
TRACK_S = 5.0
TRACK_AT_MOST_S = 60.0
"""What has been on its way for long is asked for less often: a twelfth of its age later, a minute at most."""
PAY_TIMEOUT_S = 60.0
LATE_S = 86_400
ASKED_AGAIN_S = 3600
FAILED_AGAIN_S = 300
"""A client that asks for its balance gets one refund in so long, and another try so long after one failed."""
_NEVER_ORDERED = "our payment node never had the order, nothing has left it"


def may_be_forgotten(world: World, expires_in_s: int) -> bool:
    """Say whether an invoice may be one that we paid and remember no more, which takes a clock that went back by hours.

    What was paid lapsed within MOST_INVOICE_EXPIRY_S, by our clock then. A replayed one would be taken for new, and the
    ledger, which knows better, would take no payment at all any more.
    """
    return world.now.utc_s + expires_in_s <= world.money.forgotten_s + MOST_INVOICE_EXPIRY_S


def told_again(world: World, neighbour: Neighbour, known: PaymentRecord) -> bool:
    """Say once more what became of an invoice: the server, or we, may have died while it was said."""
    if known.state is PaymentState.SUCCEEDED:
        world.send(neighbour, Paid(known.payment_hash, known.preimage))
    elif known.state is PaymentState.FAILED:
        world.send(neighbour, Declined(known.payment_hash, DeclineReason.BUSY))
    return known.state is not PaymentState.PENDING


def names_its_payee(world: World, neighbour: Neighbour, decoded: DecodedInvoice) -> bool:
    """Say whether an invoice is of the node that the neighbour announced; real money goes to no other."""
    if decoded.payee == neighbour.payee.hex() or not (neighbour.payee or world.node.real_money):
        return True
    who, announced = neighbour.identity.hex()[:8], neighbour.payee.hex()[:16] or "none"
    world.count("invoice_foreign_payee")
    world.log(
        f"invoice from {who} not paid: its payee is {decoded.payee[:16]}, the neighbour announced {announced}",
        logging.WARNING,
    )
    return False


def pending_msat(world: World, identity: bytes) -> int:
    """Sum what is on its way to a neighbour."""
    return sum(record.amount_msat for record in pending(world, identity))


def pending(world: World, identity: bytes) -> list[PaymentRecord]:
    """Find what is on its way to a neighbour, and can still be what it lives on; budgets count the rest as well.

    A node may call a payment on its way that nobody holds (lightningnetwork/lnd#5152: killed before the channel knew
    of it), for ever. A few of those must not end the trade, nor may a server collect more than one a day unspent.
    """
    since_s = world.now.utc_s - LATE_S
    records = [record for record in world.money.payments.values() if record.identity == identity]
    return [one for one in records if one.state is PaymentState.PENDING and one.created_at_s > since_s]


def backoff_of(world: World, account: ServerAccount) -> Backoff:
    """Servers that we haven't sent anything by share theirs: invoices that can't be paid cost nothing, nor do keys."""
    return account.backoff if account.sent else world.buying.backoff


def pay(
    world: World,
    neighbour: Neighbour,
    kind: PaymentKind,
    bolt11: str,
    payment_hash: bytes,
    amount_msat: int,
    fee_limit_msat: int,
) -> None:
    """Write a payment down as pending, take it off the budgets with the most its routing may cost, and send it."""
    identity = neighbour.identity
    record = PaymentRecord(
        direction=Direction.OUT,
        payment_hash=payment_hash,
        kind=kind,
        identity=identity,
        amount_msat=amount_msat,
        fee_msat=fee_limit_msat,
        state=PaymentState.PENDING,
        bolt11=bolt11,
        preimage=b"",
        created_at_s=world.now.utc_s,
        settled_at_s=0,
        reason="",
    )
    world.money.payments[payment_hash] = record
    world.money.spending.add(identity, amount_msat + fee_limit_msat, world.now.utc_s)
    world.do(Persist(record, durable=True))
    world.tell_kernel_of(identity)  # once it is paid it may hold more first packets, which our meter counts as well
    world.do(PayInvoice(bolt11, payment_hash, fee_limit_msat, PAY_TIMEOUT_S, neighbour.payee.hex() or None))


def payment_result(world: World, outcome: PaymentOutcome) -> None:
    """Book what became of a payment of ours. Pending stays pending: nothing is paid again on a doubt."""
    record = world.money.payments.get(outcome.payment_hash)
    if record is None or record.state is not PaymentState.PENDING:
        return
    if _heard_of_too_early(world, outcome) or outcome.status is PaymentStatus.PENDING:
        again_s = min(TRACK_AT_MOST_S, max(TRACK_S, (world.now.utc_s - record.created_at_s) / 12))
        world.timers.set(Due.TRACK, outcome.payment_hash, world.now.monotonic_s + again_s)
        return
    world.timers.set(Due.TRACK, outcome.payment_hash, world.now.monotonic_s + REMEMBERED_S)
    if outcome.status is PaymentStatus.SUCCEEDED:
        _succeeded(world, record, outcome)
    else:
        _failed(world, record, outcome)


def _heard_of_too_early(world: World, outcome: PaymentOutcome) -> bool:
    """Say whether a node that never heard of a payment should be asked once more.

    Our order to pay may still lie in its buffers, behind a connection that broke: it must not be booked as failed first
    and be paid then. A node that was stopped answers so at once when it goes on, so it counts twice in a row only.
    """
    if outcome.status is not PaymentStatus.FAILED or outcome.reason != UNKNOWN_PAYMENT:
        world.money.unheard_of.discard(outcome.payment_hash)
        return False
    first_time = outcome.payment_hash not in world.money.unheard_of
    world.money.unheard_of ^= {outcome.payment_hash}
    return first_time


def _succeeded(world: World, record: PaymentRecord, outcome: PaymentOutcome) -> None:
    done = replace(
        record,
        state=PaymentState.SUCCEEDED,
        preimage=outcome.preimage,
        fee_msat=outcome.fee_msat,
        settled_at_s=world.now.utc_s,
    )
    world.money.payments[record.payment_hash] = done
    world.money.spending.add(record.identity, outcome.fee_msat - record.fee_msat, record.created_at_s)
    world.do(Persist(done, durable=True))
    kind = "refund" if record.kind is PaymentKind.REFUND else "payment"
    world.journal(kind, record.identity, done.state.value, -record.amount_msat, paid=record.payment_hash)
    if record.kind is PaymentKind.REFUND:
        client = world.client(record.identity)
        client.refund.promised_msat -= record.amount_msat
        client.refunded_msat += record.amount_msat
        world.save_account(client, durable=True)
    else:
        _prepaid(world, world.server(record.identity), record.amount_msat)
    world.log(f"payment of {record.amount_msat} msat to {record.identity.hex()[:8]} succeeded")
    neighbour = world.peers.any_link(record.identity)
    if neighbour is not None:
        world.send(neighbour, Paid(record.payment_hash, outcome.preimage))


def _prepaid(world: World, server: ServerAccount, amount_msat: int) -> None:
    server.paid_msat += amount_msat
    backoff_of(world, server).failures = 0
    note_top_up(world, server, amount_msat, server.metered_msat)
    if server.balance_msat > 0:
        metering.paid_for(world, server.identity)
    world.save_account(server, durable=True)


def _failed(world: World, record: PaymentRecord, outcome: PaymentOutcome) -> None:
    world.money.payments[record.payment_hash] = replace(
        record, state=PaymentState.FAILED, reason=outcome.reason, settled_at_s=world.now.utc_s
    )
    world.money.spending.add(record.identity, -(record.amount_msat + record.fee_msat), record.created_at_s)
    world.do(Persist(world.money.payments[record.payment_hash], durable=True))
    why = _NEVER_ORDERED if outcome.reason == UNKNOWN_PAYMENT else outcome.reason
    world.log(f"payment of {record.amount_msat} msat to {record.identity.hex()[:8]} failed: {why}", logging.WARNING)
    if record.kind is PaymentKind.REFUND:
        client = world.client(record.identity)
        client.refund.promised_msat -= record.amount_msat
        world.limit(client)
    else:
        server = world.server(record.identity)
        server.why_not = f"the last payment failed: {why}"
        backoff = backoff_of(world, server)
        pause_s = min(MOST_PAUSE_S, FIRST_FAILURE_PAUSE_S * 2 ** min(backoff.failures, 16))
        backoff.not_before_mono_s, backoff.failures = world.now.monotonic_s + pause_s, backoff.failures + 1
    neighbour = world.peers.any_link(record.identity)
    if neighbour is not None:
        world.send(neighbour, Declined(record.payment_hash, DeclineReason.BUSY))


def track_due(world: World, payment_hash: bytes) -> None:
    """Ask again about a payment whose outcome isn't known; forget one that is long over (the ledger keeps it)."""
    record = world.money.payments.get(payment_hash)
    if record is None:
        return
    if record.state is PaymentState.PENDING:
        world.do(TrackPayment(payment_hash))
    else:
        touched_s = max(record.created_at_s, record.settled_at_s)
        if touched_s <= world.now.utc_s:  # else it is of a clock that was ahead, and its invoice is valid for too long
            world.money.forgotten_s = max(world.money.forgotten_s, touched_s)
        del world.money.payments[payment_hash]
