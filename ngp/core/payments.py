"""Payments of ours: the intent is in the ledger before any money moves, and what isn't known stays unknown.

The buyer pays an invoice if its operator's budgets allow and the server isn't far ahead with its demands; otherwise it
declines by name. An outcome in doubt is asked for, never paid again.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core import networks
from ngp.core.account import Account, Patience
from ngp.core.budget import broken_limit, room_msat
from ngp.core.contract import State
from ngp.core.effects import PayInvoice, Persist, TrackPayment
from ngp.core.messages import Declined, DeclineReason, Invoice, Paid, Role
from ngp.core.pricing import floor_to_sat_msat
from ngp.core.reach import Bounds
from ngp.core.records import Direction, PaymentKind, PaymentRecord, PaymentState
from ngp.core.timers import Due
from ngp.core.topups import (
    MOST_PAUSE_S,
    REMEMBERED_S,
    grows,
    note_top_up,
    note_why_not,
    sendable,
    usual_msat,
)
from ngp.core.values import UNKNOWN_PAYMENT, DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.core.world import Neighbour, World

MOST_INVOICE_EXPIRY_S = 43_200
MOST_PENDING = 8
FIRST_FAILURE_PAUSE_S = 1.0
TRACK_S = 5.0
TRACK_AT_MOST_S = 60.0
"""What has been on its way for long is asked for less often: a twelfth of its age later, a minute at most."""
PAY_TIMEOUT_S = 60.0
LATE_S = 86_400
MOST_AHEAD = 2
"""A buyer lets at most so many top-ups lie unspent with a server."""
_NEVER_ORDERED = "our payment node never had the order, nothing has left it"
_PAID_BEFORE = "our clock went back by hours, so ngp may have paid its invoice already: restart ngp, which looks it up"


def invoice_received(world: World, neighbour: Neighbour, invoice: Invoice, decoded: DecodedInvoice | None) -> bool:
    """Pay a server's invoice, or decline it by name. Returns whether it was answered by a message."""
    if decoded is None or decoded.amount_msat != invoice.amount_msat or invoice.amount_msat <= 0:
        world.count("invoice_malformed")
        return False
    payment_hash = decoded.payment_hash
    known = world.payments.get(payment_hash)
    if known is not None and known.identity == neighbour.identity:
        return told_again(world, neighbour, known)
    if not 0 < decoded.expires_in_s <= MOST_INVOICE_EXPIRY_S:  # one that outlives our memory could be paid twice
        return _lapsed(world, neighbour, payment_hash, _over(decoded.expires_in_s))
    if may_be_forgotten(world, decoded.expires_in_s):
        return _lapsed(world, neighbour, payment_hash, _PAID_BEFORE)
    if neighbour.blocked or not world.settings.buys:
        world.send(neighbour, Declined(payment_hash, DeclineReason.NOT_BUYING))
        return True
    account = world.account(neighbour.identity, Role.CLIENT)
    reason, instead = _objection(world, neighbour, account, invoice.amount_msat, decoded)
    if reason is not None:
        world.send(neighbour, Declined(payment_hash, reason, instead))
        return True
    fee_limit_msat = world.settings.fee_limit.of_msat(invoice.amount_msat)
    pay(world, neighbour, PaymentKind.TOP_UP, invoice.bolt11, payment_hash, invoice.amount_msat, fee_limit_msat)
    return False


def paid_for(world: World, identity: bytes) -> None:
    """Our money is with a server: what was accepted on credit is active, on its side as on ours."""
    for neighbour in world.by_identity.get(identity, {}).values():
        for contract in neighbour.contracts.values():
            if contract.role is Role.CLIENT and contract.state is State.ACCEPTED and contract.halting is None:
                world.move(contract, State.ACTIVE)
                world.unflushed.add(contract.contract)


def may_be_forgotten(world: World, expires_in_s: int) -> bool:
    """Say whether an invoice may be one that we paid and remember no more, which takes a clock that went back by hours.

    What was paid lapsed within MOST_INVOICE_EXPIRY_S, by our clock then. A replayed one would be taken for new, and the
    ledger, which knows better, would take no payment at all any more.
    """
    return world.now.utc_s + expires_in_s <= world.forgotten_s + MOST_INVOICE_EXPIRY_S


def _lapsed(world: World, neighbour: Neighbour, payment_hash: bytes, why_not: str) -> bool:
    if (bought := world.accounts.get((neighbour.identity, Role.CLIENT))) is not None:
        note_why_not(world, bought, why_not)
    world.send(neighbour, Declined(payment_hash, DeclineReason.LAPSED))
    return True


def _over(expires_in_s: int) -> str:
    how = "have lapsed when they come" if expires_in_s <= 0 else "are valid for more than 12 hours"
    return f"by our clock its invoices {how}, so one of the clocks is wrong: set both"


def told_again(world: World, neighbour: Neighbour, known: PaymentRecord) -> bool:
    """Say once more what became of an invoice: the server, or we, may have died while it was said."""
    if known.state is PaymentState.SUCCEEDED:
        world.send(neighbour, Paid(known.payment_hash, known.preimage))
    elif known.state is PaymentState.FAILED:
        world.send(neighbour, Declined(known.payment_hash, DeclineReason.BUSY))
    return known.state is not PaymentState.PENDING


def _objection(
    world: World, neighbour: Neighbour, account: Account, amount_msat: int, decoded: DecodedInvoice
) -> tuple[DeclineReason | None, int]:
    if not networks.takes_invoice(world.means.network, decoded.network):
        return DeclineReason.NETWORK, 0
    if not names_its_payee(world, neighbour, decoded):
        return DeclineReason.TERMS, 0
    another_has_it = decoded.payment_hash in world.payments or decoded.payment_hash in world.invoices
    if account.disputed or another_has_it:  # one payment would credit two accounts; its preimage is not for everybody
        return DeclineReason.TERMS, 0
    if not account.running and account.balance_msat >= 0:
        return DeclineReason.NOT_BUYING, 0
    bounds = sendable(world, neighbour.identity)
    if objection := _unsendable(world, account, bounds, amount_msat):
        return objection
    if not account.sent and amount_msat > _newcomers_room_msat(world):
        return DeclineReason.BUSY, 0
    waits = _patience(world, account).not_before_mono_s > world.now.monotonic_s
    if waits or len(_pending(world, neighbour.identity)) >= MOST_PENDING:
        return DeclineReason.BUSY, 0
    most = MOST_AHEAD * usual_msat(world, account, bounds)
    if grows(world, account, account.metered_msat):
        most = max(most, 3 * account.top_up_msat)
    unspent = account.paid_msat - max(account.metered_msat, account.charged_msat) - account.refunded_msat
    ahead = most - unspent - pending_msat(world, neighbour.identity)
    if amount_msat > ahead:
        return DeclineReason.AMOUNT, _worth_asking(ahead, bounds)
    fees = world.settings.fee_limit
    cost = amount_msat + fees.of_msat(amount_msat)
    limit = broken_limit(world.settings.budgets, world.spending, neighbour.identity, cost, world.now.utc_s)
    if limit is None:
        return None, 0
    world.log(f"invoice of {amount_msat} msat from {neighbour.identity.hex()[:8]} declined: {limit}", logging.WARNING)
    room = room_msat(world.settings.budgets, world.spending, neighbour.identity, world.now.utc_s)
    account.why_not = limit
    return DeclineReason.BUDGET, _worth_asking(fees.fits_msat(room), bounds)


def _unsendable(world: World, account: Account, bounds: Bounds, amount_msat: int) -> tuple[DeclineReason, int] | None:
    """Object to an invoice that our channels can't pay now, and say what they could."""
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
    """Return what we would pay instead, in whole sat, or 0 where that is no payment."""
    whole = floor_to_sat_msat(amount_msat)
    return whole if whole >= bounds.least_msat else 0


def names_its_payee(world: World, neighbour: Neighbour, decoded: DecodedInvoice) -> bool:
    """Say whether an invoice is of the node that the neighbour announced; real money goes to no other."""
    if decoded.payee == neighbour.payee.hex() or not (neighbour.payee or world.means.real_money):
        return True
    who, announced = neighbour.identity.hex()[:8], neighbour.payee.hex()[:16] or "none"
    world.count("invoice_foreign_payee")
    world.log(
        f"invoice from {who} not paid: its payee is {decoded.payee[:16]}, the neighbour announced {announced}",
        logging.WARNING,
    )
    return False


def _newcomers_room_msat(world: World) -> int:
    """Return what may go to servers by which we haven't sent anything yet, all of them together.

    Keys and proposals cost nothing: without this, everybody could make up servers and be paid ahead as each of them.
    """
    newcomers = {who: one for (who, role), one in world.accounts.items() if role is Role.CLIENT and not one.sent}
    out = [one for one in world.payments.values() if one.state is PaymentState.PENDING and one.identity in newcomers]
    unspent = sum(max(0, one.balance_msat) for one in newcomers.values()) + sum(one.amount_msat for one in out)
    return MOST_AHEAD * world.settings.payment_amount_msat - unspent


def _patience(world: World, account: Account) -> Patience:
    """Servers that we haven't sent anything by share theirs: invoices that can't be paid cost nothing, nor do keys."""
    return account.patience if account.sent else world.patience


def pending_msat(world: World, identity: bytes) -> int:
    """Sum what is on its way to a neighbour."""
    return sum(record.amount_msat for record in _pending(world, identity))


def _pending(world: World, identity: bytes) -> list[PaymentRecord]:
    """Find what is on its way to a neighbour, and can still be what it lives on; budgets count the rest as well.

    A node may call a payment on its way that nobody holds (lightningnetwork/lnd#5152: killed before the channel knew
    of it), for ever. A few of those must not end the trade, nor may a server collect more than one a day unspent.
    """
    since_s = world.now.utc_s - LATE_S
    records = [record for record in world.payments.values() if record.identity == identity]
    return [one for one in records if one.state is PaymentState.PENDING and one.created_at_s > since_s]


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
    world.payments[payment_hash] = record
    world.spending.add(identity, amount_msat + fee_limit_msat, world.now.utc_s)
    world.do(Persist(record, durable=True))
    world.tell_kernel_of(identity)  # once it is paid it may hold more first packets, which our meter counts as well
    world.do(PayInvoice(bolt11, payment_hash, fee_limit_msat, PAY_TIMEOUT_S, neighbour.payee.hex() or None))


def payment_result(world: World, outcome: PaymentOutcome) -> None:
    """Book what became of a payment of ours. Pending stays pending: nothing is paid again on a doubt."""
    record = world.payments.get(outcome.payment_hash)
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
        world.unheard_of.discard(outcome.payment_hash)
        return False
    first_time = outcome.payment_hash not in world.unheard_of
    world.unheard_of ^= {outcome.payment_hash}
    return first_time


def _succeeded(world: World, record: PaymentRecord, outcome: PaymentOutcome) -> None:
    done = replace(
        record,
        state=PaymentState.SUCCEEDED,
        preimage=outcome.preimage,
        fee_msat=outcome.fee_msat,
        settled_at_s=world.now.utc_s,
    )
    world.payments[record.payment_hash] = done
    world.spending.add(record.identity, outcome.fee_msat - record.fee_msat, record.created_at_s)
    world.do(Persist(done, durable=True))
    if record.kind is PaymentKind.REFUND:
        account = world.account(record.identity, Role.SERVER)
        account.refunding_msat -= record.amount_msat
        account.refunded_msat += record.amount_msat
        world.journal("refund", record.identity, done.state.value, -record.amount_msat, paid=record.payment_hash)
    else:
        account = world.account(record.identity, Role.CLIENT)
        account.paid_msat += record.amount_msat
        _patience(world, account).failures = 0
        note_top_up(world, account, record.amount_msat, account.metered_msat)
        world.journal("payment", record.identity, done.state.value, -record.amount_msat, paid=record.payment_hash)
        if account.balance_msat > 0:
            paid_for(world, record.identity)
    world.save_account(account, durable=True)
    world.log(f"payment of {record.amount_msat} msat to {record.identity.hex()[:8]} succeeded")
    neighbour = world.any_link(record.identity)
    if neighbour is not None:
        world.send(neighbour, Paid(record.payment_hash, outcome.preimage))


def _failed(world: World, record: PaymentRecord, outcome: PaymentOutcome) -> None:
    world.payments[record.payment_hash] = replace(
        record, state=PaymentState.FAILED, reason=outcome.reason, settled_at_s=world.now.utc_s
    )
    world.spending.add(record.identity, -(record.amount_msat + record.fee_msat), record.created_at_s)
    world.do(Persist(world.payments[record.payment_hash], durable=True))
    why = _NEVER_ORDERED if outcome.reason == UNKNOWN_PAYMENT else outcome.reason
    world.log(f"payment of {record.amount_msat} msat to {record.identity.hex()[:8]} failed: {why}", logging.WARNING)
    if record.kind is PaymentKind.REFUND:
        account = world.account(record.identity, Role.SERVER)
        account.refunding_msat -= record.amount_msat
        world.limit(account)
    else:
        account = world.account(record.identity, Role.CLIENT)
        account.why_not = f"the last payment failed: {why}"
        patience = _patience(world, account)
        pause_s = min(MOST_PAUSE_S, FIRST_FAILURE_PAUSE_S * 2 ** min(patience.failures, 16))
        patience.not_before_mono_s, patience.failures = world.now.monotonic_s + pause_s, patience.failures + 1
    neighbour = world.any_link(record.identity)
    if neighbour is not None:
        world.send(neighbour, Declined(record.payment_hash, DeclineReason.BUSY))


def track_due(world: World, payment_hash: bytes) -> None:
    """Ask again about a payment whose outcome isn't known; forget one that is long over (the ledger keeps it)."""
    record = world.payments.get(payment_hash)
    if record is None:
        return
    if record.state is PaymentState.PENDING:
        world.do(TrackPayment(payment_hash))
    else:
        touched_s = max(record.created_at_s, record.settled_at_s)
        if touched_s <= world.now.utc_s:  # else it is of a clock that was ahead, and its invoice is valid for too long
            world.forgotten_s = max(world.forgotten_s, touched_s)
        del world.payments[payment_hash]
