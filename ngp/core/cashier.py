"""Cashier: invoices, payments, refunds. Money is applied once, by payment hash; what isn't known stays unknown.

A gateway opens thousands of contracts a second, a payment node completes tens of payments; they meet in the account.
The seller asks for a top-up when the balance runs low for the present rate of use; the buyer pays if its operator's
budgets allow and the server isn't far ahead with its demands. The intent is in the ledger before any money moves.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from enum import Enum
from hashlib import sha256

from ngp.core import grants
from ngp.core.account import Account, Patience
from ngp.core.budget import broken_limit, room_msat
from ngp.core.effects import CancelInvoice, MakeInvoice, PayInvoice, Persist, ProveSettlement, TrackPayment
from ngp.core.events import InvoiceFailed, InvoiceMade
from ngp.core.messages import Invoice, Paid, Refund, Reject, RejectReason, Role
from ngp.core.records import CursorRecord, Direction, PaymentKind, PaymentRecord, PaymentState
from ngp.core.timers import Due
from ngp.core.values import DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.core.world import Neighbour, World

TOP_UP_LASTS_S = 10
LOW_LASTS_S = 4
INVOICE_EXPIRY_S = 600
MOST_INVOICE_EXPIRY_S = 43_200
REMEMBERED_S = 86_400.0
MOST_PENDING = 8
RETRY_S = 5.0
FIRST_PAUSE_S = 0.5
FIRST_FAILURE_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0
TRACK_S = 5.0
PAY_TIMEOUT_S = 60.0
SAT_MSAT = 1000
MOST_AHEAD = 2
"""A buyer lets at most so many top-ups lie unspent with a server."""


class Applied(Enum):
    """What an announced payment turned out to be."""

    APPLIED = "applied"
    REPLAYED = "replayed"
    FOREIGN = "foreign"


# --- earning ----------------------------------------------------------------------------------------------------------


def top_up_msat(world: World, account: Account) -> int:
    """Size a top-up, in whole sat: PAYMENT_AMOUNT, or what ten seconds at the present rate cost.

    The rate of a client that waits for money says nothing about what it needs, so a top-up that was used up quickly is
    followed by one of twice its size.
    """
    amount = max(world.settings.payment_amount_msat, int(account.rate_msat_s * TOP_UP_LASTS_S))
    if _grows(world, account, account.charged_msat):
        amount = max(amount, 2 * account.top_up_msat)
    if account.most_asked_msat:
        amount = min(amount, account.most_asked_msat)
    amount = max(amount, -account.balance_msat, world.means.least_amount_msat)
    return -(-amount // SAT_MSAT) * SAT_MSAT


def _grows(world: World, account: Account, charged_msat: int) -> bool:
    """Say whether half of the last top-up was carried within half the time that it was made for."""
    used_msat = charged_msat - account.topped_up_at_msat
    soon = world.now.monotonic_s - account.topped_up_mono_s < TOP_UP_LASTS_S / 2
    return soon and used_msat * 2 >= account.top_up_msat > 0


def _note_top_up(world: World, account: Account, amount_msat: int, charged_msat: int) -> None:
    account.top_up_msat = amount_msat
    account.topped_up_mono_s = world.now.monotonic_s
    account.topped_up_at_msat = charged_msat


def top_up_if_low(world: World, account: Account) -> None:
    """Ask for money when what is left won't last; one invoice at a time for each neighbour."""
    if account.invoice_asked or account.invoice_not_before_mono_s > world.now.monotonic_s:
        return
    if account.invoice:
        _remind(world, account)
        return
    if not account.running or (not account.waiting and not account.rate_msat_s):
        return  # nothing is used that costs anything
    if not any(contract.price_msat_per_gib for contract in account.waiting.values()):
        lasts = int(account.rate_msat_s * LOW_LASTS_S)
        low = max(world.settings.payment_amount_msat // 2, account.top_up_msat // 2, lasts)
        if account.balance_msat >= low:
            return
    account.invoice_asked = True
    memo = f"ngp top-up for {account.identity.hex()[:16]}"
    world.do(MakeInvoice(account.identity, PaymentKind.TOP_UP, top_up_msat(world, account), memo, INVOICE_EXPIRY_S))


def _remind(world: World, account: Account) -> None:
    """Send the open invoice again while money is short: the client may have been too busy for it."""
    account.invoice_not_before_mono_s = world.now.monotonic_s + RETRY_S
    record = world.invoices.get(account.invoice)
    if record is not None and record.state is PaymentState.OPEN:
        send_invoice(world, record)


def invoice_made(world: World, event: InvoiceMade) -> None:
    """Store an invoice of ours and send it to whom it is for."""
    record = PaymentRecord(
        direction=Direction.IN,
        payment_hash=event.payment_hash,
        kind=event.kind,
        identity=event.identity,
        amount_msat=event.amount_msat,
        fee_msat=0,
        state=PaymentState.OPEN,
        bolt11=event.bolt11,
        preimage=b"",
        created_at_s=world.now.utc_s,
        settled_at_s=0,
        reason="",
    )
    world.invoices[event.payment_hash] = record
    world.do(Persist(record))
    world.timers.set(Due.INVOICE, event.payment_hash, world.now.monotonic_s + event.expires_in_s)
    if event.kind is not PaymentKind.MANUAL:
        account = world.account(event.identity, Role.SERVER if event.kind is PaymentKind.TOP_UP else Role.CLIENT)
        account.invoice, account.invoice_asked = event.payment_hash, False
        account.invoice_not_before_mono_s = world.now.monotonic_s + RETRY_S
    send_invoice(world, record)


def send_invoice(world: World, record: PaymentRecord) -> None:
    """Send an open invoice (again, after the neighbour was away)."""
    neighbour = world.any_link(record.identity)
    if neighbour is None:
        return
    if record.kind is PaymentKind.TOP_UP:
        world.send(neighbour, Invoice(record.bolt11, record.amount_msat))
    elif record.kind is PaymentKind.REFUND:
        world.send(neighbour, Refund(record.amount_msat, record.bolt11))


def invoice_failed(world: World, event: InvoiceFailed) -> None:
    """Go on without a top-up for a while: credit that is there lasts, and the node may come back by itself."""
    account = world.account(event.identity, Role.CLIENT if event.kind is PaymentKind.REFUND else Role.SERVER)
    if event.kind is not PaymentKind.MANUAL:
        account.invoice_asked = False
    account.invoice_not_before_mono_s = world.now.monotonic_s + RETRY_S
    who = event.identity.hex()[:8]
    world.log(f"no invoice for {who}: {event.why}; tried again in {RETRY_S:.0f} s", logging.WARNING)


def invoice_due(world: World, payment_hash: bytes) -> None:
    """Withdraw an invoice that nobody paid; should its payment come all the same, it still counts."""
    record = world.invoices.get(payment_hash)
    if record is None:
        return
    if record.state is not PaymentState.OPEN:
        del world.invoices[payment_hash]  # long over; the ledger keeps it
        return
    _withdraw(world, record, "expired")
    account = world.accounts.get((record.identity, Role.SERVER))
    if account is not None and account.running:
        top_up_if_low(world, account)
    world.forget_if_gone(record.identity)


def _withdraw(world: World, record: PaymentRecord, why: str) -> None:
    role = Role.CLIENT if record.kind is PaymentKind.REFUND else Role.SERVER
    account = world.account(record.identity, role)
    if account.invoice == record.payment_hash:
        account.invoice = b""
    world.timers.set(Due.INVOICE, record.payment_hash, world.now.monotonic_s + REMEMBERED_S)
    world.invoices[record.payment_hash] = replace(record, state=PaymentState.CANCELLED, reason=why, bolt11="")
    world.do(Persist(world.invoices[record.payment_hash]))
    world.do(CancelInvoice(record.payment_hash))


def invoice_declined(world: World, reject: Reject) -> None:
    """The client won't pay this invoice: ask for what it would pay, or wait a little."""
    record = world.invoices.get(reject.subject)
    if record is None or record.state is not PaymentState.OPEN:
        return
    account = world.account(record.identity, Role.SERVER)
    _withdraw(world, record, f"declined: {reject.reason.value}")
    account.most_asked_msat = max(reject.amount_msat, world.means.least_amount_msat) if reject.amount_msat else 0
    smaller = 0 < reject.amount_msat < record.amount_msat and account.invoices_declined < 2
    pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(account.invoices_declined, 16))
    account.invoices_declined += 1
    account.invoice_not_before_mono_s = world.now.monotonic_s + (0.2 if smaller else pause_s)
    if account.running:
        world.timers.set(Due.INVOICE, account.identity, account.invoice_not_before_mono_s)


def invoice_retry_due(world: World, identity: bytes) -> None:
    """Look again whether an account that had to wait needs a top-up."""
    account = world.accounts.get((identity, Role.SERVER))
    if account is not None and account.running:
        top_up_if_low(world, account)


def proof_received(world: World, paid: Paid) -> Applied:
    """Take a preimage as proof that an invoice of ours was paid (BOLT 11: SHA-256 of it is the payment hash).

    Service resumes at once, before our own node says so; the ledger counts it once.
    """
    if sha256(paid.preimage).digest() != paid.payment_hash:
        world.count("proof_wrong")
        return Applied.FOREIGN
    record = world.invoices.get(paid.payment_hash)
    if record is None:
        world.count("proof_foreign")
        return Applied.FOREIGN
    if record.state is PaymentState.SETTLED:
        return Applied.REPLAYED
    _credit(world, replace(record, preimage=paid.preimage), record.amount_msat)
    if world.means.settles_by_proof:
        world.do(ProveSettlement(paid.preimage))
    return Applied.APPLIED


def settlement_seen(world: World, cursor: int, payment_hash: bytes, amount_msat: int) -> Applied:
    """Count what our node says was paid, together with how far its stream was read."""
    if cursor > world.cursor:
        world.cursor = cursor
        world.do(Persist(CursorRecord(cursor), durable=True))
    record = world.invoices.get(payment_hash)
    if record is None:
        return Applied.FOREIGN
    if record.state is PaymentState.SETTLED:
        return Applied.REPLAYED
    _credit(world, record, amount_msat)
    return Applied.APPLIED


def _credit(world: World, record: PaymentRecord, amount_msat: int) -> None:
    settled = replace(record, state=PaymentState.SETTLED, amount_msat=amount_msat, settled_at_s=world.now.utc_s)
    world.invoices[record.payment_hash] = settled
    world.timers.set(Due.INVOICE, record.payment_hash, world.now.monotonic_s + REMEMBERED_S)
    world.do(Persist(settled, durable=True))
    kind = "refund" if record.kind is PaymentKind.REFUND else "payment"
    world.journal(kind, record.identity, settled.state.value, amount_msat, paid=record.payment_hash)
    if record.kind is PaymentKind.REFUND:
        account = world.account(record.identity, Role.CLIENT)
        account.refunded_msat += amount_msat
        account.invoice = b""
        world.save_account(account, durable=True)
        world.log(f"refund of {amount_msat} msat received from {record.identity.hex()[:8]}")
        return
    account = world.account(record.identity, Role.SERVER)
    if account.invoice == record.payment_hash:
        account.invoice, account.invoice_not_before_mono_s = b"", 0.0
    account.most_asked_msat *= 2  # what the client would not pay at once it may pay step by step
    account.paid_msat += amount_msat
    account.invoices_declined = 0
    _note_top_up(world, account, amount_msat, account.charged_msat)
    world.log(f"payment of {amount_msat} msat received from {record.identity.hex()[:8]}")
    grants.paid_for(world, account)
    world.save_account(account, durable=True)
    world.timers.set_if_unset(Due.STATEMENT, account.identity, world.now.monotonic_s + 0.05)
    if account.running:
        top_up_if_low(world, account)


# --- spending ---------------------------------------------------------------------------------------------------------


def fee_limit_msat(amount_msat: int) -> int:
    """Return the most that routing may cost: nothing to a direct neighbour with a channel, else 1 %, at least 1 sat."""
    return max(SAT_MSAT, amount_msat // 100)


def invoice_received(world: World, neighbour: Neighbour, invoice: Invoice, decoded: DecodedInvoice | None) -> bool:
    """Pay a server's invoice, or decline it by name. Returns whether it was answered by a message."""
    if decoded is None or decoded.amount_msat != invoice.amount_msat or invoice.amount_msat <= 0:
        world.count("invoice_malformed")
        return False
    payment_hash = decoded.payment_hash
    known = world.payments.get(payment_hash)
    if known is not None:
        if known.state is PaymentState.SUCCEEDED:
            world.send(neighbour, Paid(payment_hash, known.preimage))
        return known.state is PaymentState.SUCCEEDED
    if not 0 < decoded.expires_in_s <= MOST_INVOICE_EXPIRY_S:  # one that outlives our memory could be paid twice
        world.send(neighbour, Reject(payment_hash, RejectReason.LAPSED))
        return True
    account = world.account(neighbour.identity, Role.CLIENT)
    reason, instead = _objection(world, neighbour, account, invoice.amount_msat, decoded)
    if reason is not None:
        world.send(neighbour, Reject(payment_hash, reason, amount_msat=instead))
        return True
    _pay(world, neighbour, PaymentKind.TOP_UP, invoice.bolt11, payment_hash, invoice.amount_msat)
    return False


def _objection(
    world: World, neighbour: Neighbour, account: Account, amount_msat: int, decoded: DecodedInvoice
) -> tuple[RejectReason | None, int]:
    if neighbour.blocked or not world.settings.buys:
        return RejectReason.NOT_BUYING, 0
    if decoded.network != world.means.network:
        return RejectReason.NETWORK, 0
    if not _own_invoice(world, neighbour, decoded):
        return RejectReason.TERMS, 0
    if account.disputed or decoded.payment_hash in world.invoices:  # our own: we would credit two accounts for nothing
        return RejectReason.TERMS, 0
    if not account.running and account.balance_msat >= 0:
        return RejectReason.NOT_BUYING, 0
    if not account.sent and amount_msat > _newcomers_room_msat(world):
        return RejectReason.BUSY, 0
    waits = _patience(world, account).not_before_mono_s > world.now.monotonic_s
    if waits or len(_pending(world, neighbour.identity)) >= MOST_PENDING:
        return RejectReason.BUSY, 0
    most = MOST_AHEAD * max(world.settings.payment_amount_msat, int(account.rate_msat_s * TOP_UP_LASTS_S))
    if _grows(world, account, account.metered_msat):
        most = max(most, 3 * account.top_up_msat)
    unspent = account.paid_msat - max(account.metered_msat, account.charged_msat) - account.refunded_msat
    ahead = most - unspent - pending_msat(world, neighbour.identity)
    if amount_msat > ahead:
        return RejectReason.AMOUNT, max(0, ahead) // SAT_MSAT * SAT_MSAT
    cost = amount_msat + fee_limit_msat(amount_msat)
    limit = broken_limit(world.settings.budgets, world.spending, neighbour.identity, cost, world.now.utc_s)
    if limit is None:
        return None, 0
    world.log(f"invoice of {amount_msat} msat from {neighbour.identity.hex()[:8]} declined: {limit}", logging.WARNING)
    room = room_msat(world.settings.budgets, world.spending, neighbour.identity, world.now.utc_s)
    return RejectReason.BUDGET, max(0, room * 100 // 101 - SAT_MSAT) // SAT_MSAT * SAT_MSAT


def _own_invoice(world: World, neighbour: Neighbour, decoded: DecodedInvoice) -> bool:
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
    records = [record for record in world.payments.values() if record.identity == identity]
    return [record for record in records if record.state is PaymentState.PENDING]


def _pay(
    world: World, neighbour: Neighbour, kind: PaymentKind, bolt11: str, payment_hash: bytes, amount_msat: int
) -> None:
    identity = neighbour.identity
    fee_limit = fee_limit_msat(amount_msat)
    record = PaymentRecord(
        direction=Direction.OUT,
        payment_hash=payment_hash,
        kind=kind,
        identity=identity,
        amount_msat=amount_msat,
        fee_msat=fee_limit,
        state=PaymentState.PENDING,
        bolt11=bolt11,
        preimage=b"",
        created_at_s=world.now.utc_s,
        settled_at_s=0,
        reason="",
    )
    world.payments[payment_hash] = record
    world.spending.add(identity, amount_msat + fee_limit, world.now.utc_s)
    world.do(Persist(record, durable=True))
    world.do(PayInvoice(bolt11, payment_hash, fee_limit, PAY_TIMEOUT_S, neighbour.payee.hex() or None))


def payment_result(world: World, outcome: PaymentOutcome) -> None:
    """Book what became of a payment of ours. Pending stays pending: nothing is paid again on a doubt."""
    record = world.payments.get(outcome.payment_hash)
    if record is None or record.state is not PaymentState.PENDING:
        return
    if outcome.status is PaymentStatus.PENDING:
        world.timers.set(Due.TRACK, outcome.payment_hash, world.now.monotonic_s + TRACK_S)
        return
    world.timers.set(Due.TRACK, outcome.payment_hash, world.now.monotonic_s + REMEMBERED_S)
    if outcome.status is PaymentStatus.SUCCEEDED:
        _succeeded(world, record, outcome)
    else:
        _failed(world, record, outcome)


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
        _note_top_up(world, account, record.amount_msat, account.metered_msat)
        world.journal("payment", record.identity, done.state.value, -record.amount_msat, paid=record.payment_hash)
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
    account = world.account(record.identity, Role.CLIENT)
    patience = _patience(world, account)
    pause_s = min(MOST_PAUSE_S, FIRST_FAILURE_PAUSE_S * 2 ** min(patience.failures, 16))
    patience.not_before_mono_s, patience.failures = world.now.monotonic_s + pause_s, patience.failures + 1
    world.do(Persist(world.payments[record.payment_hash], durable=True))
    if record.kind is PaymentKind.REFUND:
        world.account(record.identity, Role.SERVER).refunding_msat -= record.amount_msat
    world.log(
        f"payment of {record.amount_msat} msat to {record.identity.hex()[:8]} failed: {outcome.reason}", logging.WARNING
    )
    neighbour = world.any_link(record.identity)
    if neighbour is not None and record.kind is PaymentKind.TOP_UP:
        world.send(neighbour, Reject(record.payment_hash, RejectReason.BUSY))


def track_due(world: World, payment_hash: bytes) -> None:
    """Ask again about a payment whose outcome isn't known; forget one that is long over (the ledger keeps it)."""
    record = world.payments.get(payment_hash)
    if record is None:
        return
    if record.state is PaymentState.PENDING:
        world.do(TrackPayment(payment_hash))
    else:
        del world.payments[payment_hash]


# --- refunds ----------------------------------------------------------------------------------------------------------


def refundable_msat(account: Account) -> int:
    """Return what of an account is its owner's to take away: paid, not charged, not held by running contracts."""
    return max(0, account.funds_msat)


def refund_offered(world: World, identity: bytes) -> str:
    """Offer a client its balance back; it answers with an invoice. Returns what was done, for the operator."""
    account = world.accounts.get((identity, Role.SERVER))
    amount = refundable_msat(account) // SAT_MSAT * SAT_MSAT if account is not None else 0
    if account is None or amount < max(SAT_MSAT, world.means.least_amount_msat):
        return f"nothing to refund to {identity.hex()[:8]}: {amount} msat are free on its account"
    neighbour = world.any_link(identity)
    if neighbour is None:
        return f"no refund to {identity.hex()[:8]}: it is away; run the command again when it is back"
    account.refund_offered_msat = amount
    world.send(neighbour, Refund(amount))
    return f"refund of {amount} msat offered to {identity.hex()[:8]}; paid when it sends its invoice"


def refund_received(
    world: World, neighbour: Neighbour, refund: Refund, decoded: DecodedInvoice | None
) -> None:
    """Client: answer an offer with an invoice. Server: pay the invoice that answers our offer, within the balance."""
    if not refund.bolt11:
        paid = world.account(neighbour.identity, Role.CLIENT)
        amount = min(refund.amount_msat, max(0, paid.balance_msat)) // SAT_MSAT * SAT_MSAT
        if amount < refund.amount_msat:
            world.log(
                f"{neighbour.identity.hex()[:8]} offers a refund of {refund.amount_msat} msat; by our books we have "
                f"{paid.balance_msat} msat with it and ask for no more"
            )
        if amount >= max(SAT_MSAT, world.means.least_amount_msat) and not (paid.invoice or paid.invoice_asked):
            paid.invoice_asked = True
            memo = f"ngp refund from {neighbour.identity.hex()[:16]}"
            world.do(MakeInvoice(neighbour.identity, PaymentKind.REFUND, amount, memo, INVOICE_EXPIRY_S))
        return
    account = world.account(neighbour.identity, Role.SERVER)
    if decoded is None or decoded.amount_msat != refund.amount_msat or decoded.network != world.means.network:
        world.count("invoice_malformed")
        return
    if not 0 < decoded.expires_in_s <= MOST_INVOICE_EXPIRY_S or not _own_invoice(world, neighbour, decoded):
        world.count("refund_refused")
        return
    amount = refund.amount_msat
    offered = min(account.refund_offered_msat, refundable_msat(account))  # unasked for, the fees alone would drain us
    ours = decoded.payment_hash in world.payments or decoded.payment_hash in world.invoices
    if ours or not 0 < amount <= offered:
        world.count("refund_refused")
        return
    cost = amount + fee_limit_msat(amount)
    limit = broken_limit(world.settings.budgets, world.spending, neighbour.identity, cost, world.now.utc_s)
    if limit is not None:
        world.log(f"refund of {amount} msat to {neighbour.identity.hex()[:8]} not paid: {limit}", logging.WARNING)
        return
    if amount < offered:
        world.log(f"{neighbour.identity.hex()[:8]} asks for {amount} msat of {offered} msat offered")
    account.refund_offered_msat = 0
    account.refunding_msat += amount
    _pay(world, neighbour, PaymentKind.REFUND, refund.bolt11, decoded.payment_hash, amount)
