"""Invoices of ours: one at a time for each neighbour, made when the balance won't last, withdrawn when it lapses.

A gateway opens thousands of contracts a second, a payment node completes tens of payments; they meet in the account.
The seller asks for a top-up when the balance runs low for the present rate of use.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core.account import Account
from ngp.core.effects import CancelInvoice, MakeInvoice, Persist
from ngp.core.events import ChannelsSeen, InvoiceFailed, InvoiceMade
from ngp.core.messages import Declined, DeclineReason, Invoice, Refund, Role
from ngp.core.pricing import ceil_to_sat_msat
from ngp.core.reach import Bounds, Reach
from ngp.core.records import Direction, PaymentKind, PaymentRecord, PaymentState
from ngp.core.timers import Due
from ngp.core.topups import (
    MOST_PAUSE_S,
    REMEMBERED_S,
    grows,
    note_why_not,
    receivable,
    sendable,
    usual_msat,
)
from ngp.core.world import World

INVOICE_EXPIRY_S = 600
OPEN_S = 120.0
"""A top-up that isn't paid for so long is withdrawn, and another asked for: its payment may be stuck.

Twice as long as a payment is tried. The invoice itself is valid longer, since neighbours' clocks differ.
"""
RETRY_S = 5.0
FIRST_PAUSE_S = 0.5
CANCEL_AGAIN_S = 10.0


def top_up_msat(world: World, account: Account, bounds: Bounds) -> int:
    """Size a top-up, in whole sat: PAYMENT_AMOUNT, or what ten seconds at the present rate cost, as far as it can come.

    The rate of a client that waits for money says nothing about what it needs, so a top-up that was used up quickly is
    followed by one of twice its size.
    """
    amount = usual_msat(world, account, bounds)
    if grows(world, account, account.charged_msat):
        amount = max(amount, 2 * account.top_up_msat)
    amount = max(amount, -account.balance_msat)
    if account.most_asked_msat:  # what it owes as well: else a debt above its limits would never be paid
        amount = min(amount, account.most_asked_msat)
    return bounds.fit_msat(ceil_to_sat_msat(amount))


def top_up_if_low(world: World, account: Account, waits: bool = False) -> None:
    """Ask for money when what is left won't last; one invoice at a time for each neighbour.

    Args: waits: a packet was refused for want of money.
    """
    waits = waits or any(contract.price_msat_per_gib for contract in account.unpaid.values())
    if not account.running or not (waits or account.rate_msat_s):
        return  # nothing is used that costs anything
    if not waits and account.balance_msat >= world.low_msat(account):
        return
    if account.invoice_asked or account.invoice_not_before_mono_s > world.now.monotonic_s:
        return
    if account.invoice:
        _remind(world, account)
        return
    bounds = receivable(world, account.identity)
    if bounds.why_not:
        note_why_not(world, account, bounds.why_not)
        account.invoice_not_before_mono_s = world.now.monotonic_s + RETRY_S
        return
    account.invoice_asked = True
    memo = f"ngp top-up for {account.identity.hex()[:16]}"
    amount = top_up_msat(world, account, bounds)
    world.do(MakeInvoice(account.identity, PaymentKind.TOP_UP, amount, memo, INVOICE_EXPIRY_S))


def channels_seen(world: World, event: ChannelsSeen) -> None:
    """Take over what can be paid now, and ask at once where nothing could before."""
    held_up = [account for account in world.accounts.values() if account.why_not]
    held_up = [account for account in held_up if account.why_not == _bounds(world, account).why_not]
    declined = [one for one in world.accounts.values() if one.invoices_declined and one.role is Role.SERVER]
    declined = [account for account in declined if not _is_direct(world, account)]
    world.reach = Reach(event.channels)
    for account in declined:
        if _is_direct(world, account):  # what the pause has grown by was for want of this channel
            account.invoices_declined, account.invoice_not_before_mono_s = 0, 0.0
            top_up_if_low(world, account)
    for account in held_up:
        note_why_not(world, account, _bounds(world, account).why_not)
        if account.role is Role.SERVER and not account.why_not:
            account.invoice_not_before_mono_s = 0.0
            top_up_if_low(world, account)


def _is_direct(world: World, account: Account) -> bool:
    """Say whether there is a channel with the neighbour, with something left to be paid by it."""
    bounds = _bounds(world, account)
    return not bounds.why_not and not bounds.routed


def _bounds(world: World, account: Account) -> Bounds:
    of_role = receivable if account.role is Role.SERVER else sendable
    return of_role(world, account.identity)


def _remind(world: World, account: Account) -> None:
    """Send the open invoice again while money is short: the client may have been too busy for it.

    Without money nothing is carried, so nothing else brings us here.
    """
    account.invoice_not_before_mono_s = world.now.monotonic_s + RETRY_S
    world.timers.set(Due.INVOICE, account.identity, account.invoice_not_before_mono_s)
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
    world.do(Persist(record, durable=True))  # once it is out it may be paid, and a power cut must not make it foreign
    open_s = min(OPEN_S, event.expires_in_s) if event.kind is PaymentKind.TOP_UP else event.expires_in_s
    world.timers.set(Due.INVOICE, event.payment_hash, world.now.monotonic_s + open_s)
    if event.kind is not PaymentKind.MANUAL:
        account = world.account(event.identity, Role.SERVER if event.kind is PaymentKind.TOP_UP else Role.CLIENT)
        account.invoice, account.invoice_asked = event.payment_hash, False
        if event.kind is PaymentKind.TOP_UP:
            account.invoice_not_before_mono_s = world.now.monotonic_s + RETRY_S
            world.timers.set(Due.INVOICE, account.identity, account.invoice_not_before_mono_s)
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
    if account.why_not != event.why:  # told once, however often it is tried
        world.log(f"no invoice for {who}: {event.why}; tried again every {RETRY_S:.0f} s", logging.WARNING)
    account.why_not = event.why


def invoice_due(world: World, payment_hash: bytes) -> None:
    """Withdraw an invoice that nobody paid; should its payment come all the same, it still counts."""
    record = world.invoices.get(payment_hash)
    if record is None:
        return
    if payment_hash in world.uncancelled:
        _cancel(world, payment_hash)
        return
    if record.state is not PaymentState.OPEN:
        del world.invoices[payment_hash]  # long over; the ledger keeps it
        return
    withdraw(world, record, "expired")


def withdraw(world: World, record: PaymentRecord, why: str) -> None:
    """Take an invoice back; should its payment come all the same, it still counts.

    Until our node has cancelled it, no other is made for the account: somebody's payment of it may be on its way.
    """
    world.invoices[record.payment_hash] = replace(record, state=PaymentState.CANCELLED, reason=why, bolt11="")
    _cancel(world, record.payment_hash)


def _cancel(world: World, payment_hash: bytes) -> None:
    """Ask our node until it says so: while it may still take money for an invoice, or has and is away, we keep it.

    The ledger has it open as long; what it holds as cancelled it forgets after a day, and the money would be nobody's.
    """
    world.uncancelled.add(payment_hash)
    world.timers.set(Due.INVOICE, payment_hash, world.now.monotonic_s + CANCEL_AGAIN_S)
    world.do(CancelInvoice(payment_hash))


def invoice_cancelled(world: World, payment_hash: bytes) -> None:
    """Write down that an invoice can't be paid any more; the next one may be asked for."""
    if payment_hash not in world.uncancelled:
        return
    world.uncancelled.remove(payment_hash)
    record = world.invoices[payment_hash]
    world.do(Persist(record))
    world.timers.set(Due.INVOICE, payment_hash, world.now.monotonic_s + REMEMBERED_S)
    account = world.accounts.get((record.identity, Role.CLIENT if record.kind is PaymentKind.REFUND else Role.SERVER))
    if account is not None and account.invoice == payment_hash:
        account.invoice = b""
        if account.role is Role.SERVER and account.running:
            top_up_if_low(world, account)
    world.forget_if_gone(record.identity)


def invoice_declined(world: World, record: PaymentRecord, declined: Declined) -> None:
    """The client won't pay this invoice: ask for what it would pay, or wait a little."""
    if record.state is not PaymentState.OPEN:
        return
    account = world.account(record.identity, Role.SERVER)
    withdraw(world, record, f"declined: {declined.reason.value}")
    account.most_asked_msat = max(declined.amount_msat, world.means.least_amount_msat) if declined.amount_msat else 0
    if declined.reason is DeclineReason.BUDGET:  # which stays as it is; what a client trusts us with grows as it pays
        account.budget_told_mono_s = world.now.monotonic_s
    smaller = 0 < declined.amount_msat < record.amount_msat and account.invoices_declined < 2
    pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(account.invoices_declined, 16))
    account.invoices_declined += 1
    if not smaller:
        note_why_not(world, account, f"it declines our invoices ({_declined_for(declined)}); its log says more")
    account.invoice_not_before_mono_s = world.now.monotonic_s + (0.2 if smaller else pause_s)
    if account.running:
        world.timers.set(Due.INVOICE, account.identity, account.invoice_not_before_mono_s)


def _declined_for(declined: Declined) -> str:
    """Say what a client's refusal most likely means: "amount" alone sounds like a price."""
    if declined.reason is DeclineReason.AMOUNT and not declined.amount_msat:
        return "amount: its payment node has no channel with enough left, or a payment of it is still on its way"
    return declined.reason.value


def invoice_retry_due(world: World, identity: bytes) -> None:
    """Look again whether an account that had to wait needs a top-up."""
    account = world.accounts.get((identity, Role.SERVER))
    if account is not None and account.running:
        top_up_if_low(world, account)
