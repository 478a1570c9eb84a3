"""Our invoices: made one at a time for each account, sent until they are paid, and withdrawn when they lapse.

A client pays such an invoice to top up its account (`selling.invoicing` decides when). A server pays one to refund what
we prepaid.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core.account import Account
from ngp.core.buying.account import ServerAccount
from ngp.core.effects import CancelInvoice, Persist
from ngp.core.events import InvoiceFailed, InvoiceMade
from ngp.core.messages import Invoice, Refund
from ngp.core.records import Direction, PaymentKind, PaymentRecord, PaymentState
from ngp.core.selling.account import ClientAccount
from ngp.core.timers import Due
from ngp.core.topups import REMEMBERED_S
from ngp.core.world import World

INVOICE_EXPIRY_S = 600
OPEN_S = 120.0
"""The invoice of a top-up that isn't paid within this time is withdrawn and replaced: its payment may be stuck.

The time is twice as long as a client tries to pay. The invoice itself is valid longer, since neighbours' clocks
differ.
"""
LATE_S = 60.0
"""For how long after its expiry the invoice of a rental is still told to the tenant as unpaid.

A tenant's client asks for the unpaid invoice. If it isn't told that invoice any more, it takes it for paid. It stops
asking when the invoice has expired by its own clock, which may be behind ours.
"""
RETRY_S = 5.0  # pause before an invoice is made, or sent, again
CANCEL_AGAIN_S = 10.0


def account_for(world: World, kind: PaymentKind, identity: bytes) -> ClientAccount | ServerAccount:
    """Return the account that an invoice of ours is for: our account with a server for a refund, else the client's."""
    return world.server(identity) if kind is PaymentKind.REFUND else world.client(identity)


def invoice_made(world: World, event: InvoiceMade) -> None:
    """Store an invoice of ours and send it to the neighbour that should pay it."""
    record = PaymentRecord(
        direction=Direction.IN,
        payment_hash=event.payment_hash,
        kind=event.kind,
        identity=event.identity,
        amount_msat=event.amount_msat,
        fee_msat=0,
        state=PaymentState.OPEN,
        bolt11=event.bolt11,
        preimage=event.preimage,
        created_at_s=world.now.utc_s,
    )
    world.money.invoices[event.payment_hash] = record
    world.do(Persist(record, durable=True))  # once sent it may be paid: a power cut must not make us forget it
    open_s = float(event.expires_in_s)
    if event.kind is PaymentKind.TOP_UP:
        open_s = min(OPEN_S, open_s)
    elif event.kind is PaymentKind.RENT:
        open_s += LATE_S
    world.timers.set(Due.INVOICE, event.payment_hash, world.now.monotonic_s + open_s)
    if event.kind is not PaymentKind.MANUAL:
        account = account_for(world, event.kind, event.identity)
        account.invoice.payment_hash, account.invoice.asked = event.payment_hash, False
        if event.kind is PaymentKind.TOP_UP:
            wait(world, account, RETRY_S)
    send_invoice(world, record)


def send_invoice(world: World, record: PaymentRecord) -> None:
    """Send an open invoice, or send it again after the neighbour was away."""
    neighbour = world.peers.any_link(record.identity)
    if neighbour is None:
        return
    if record.kind is PaymentKind.TOP_UP:
        world.send(neighbour, Invoice(record.bolt11, record.amount_msat))
    elif record.kind is PaymentKind.REFUND:
        world.send(neighbour, Refund(record.amount_msat, record.bolt11))


def send_again(world: World, account: Account) -> None:
    """Send the account's open invoice once more, if there is one."""
    record = world.money.invoices.get(account.invoice.payment_hash)
    if record is not None and record.state is PaymentState.OPEN:
        send_invoice(world, record)


def wait(world: World, account: Account, for_s: float) -> None:
    """Make and send no invoice for a while; then look whether the account needs one, as no reading may come by then."""
    account.invoice.not_before_mono_s = world.now.monotonic_s + for_s
    world.timers.set(Due.INVOICE, account.identity, account.invoice.not_before_mono_s)


def invoice_failed(world: World, event: InvoiceFailed) -> None:
    """Go on without a top-up for a while: there may be credit left, and the node may come back by itself."""
    account = account_for(world, event.kind, event.identity)
    account.invoice.asked = False
    wait(world, account, RETRY_S)
    who = event.identity.hex()[:8]
    if account.why_not != event.why:  # logged once, however often it is tried
        world.log(f"no invoice for {who}: {event.why}; ngp tries again every {RETRY_S:.0f} s", logging.WARNING)
    account.why_not = event.why


def invoice_due(world: World, payment_hash: bytes) -> None:
    """Do what is due for an invoice: withdraw one that nobody paid, cancel it again, or forget one that is over."""
    record = world.money.invoices.get(payment_hash)
    if record is None:
        return
    if record.state is PaymentState.WITHDRAWN:
        _cancel(world, payment_hash)
    elif record.state is PaymentState.OPEN:
        withdraw(world, record, "expired")
    else:
        del world.money.invoices[payment_hash]  # it was over long ago; the ledger keeps it


def withdraw(world: World, record: PaymentRecord, why: str) -> None:
    """Withdraw an invoice. If it is paid all the same, the payment still counts.

    No other invoice is made for the account until our node has cancelled this one: a payment may be on its way.
    """
    world.money.invoices[record.payment_hash] = replace(record, state=PaymentState.WITHDRAWN, reason=why, bolt11="")
    _cancel(world, record.payment_hash)


def _cancel(world: World, payment_hash: bytes) -> None:
    """Ask our node to cancel an invoice, again and again until it confirms. Until then the ledger has it as open.

    The node may still be paid for the invoice, or may have been paid already while we couldn't reach it. The ledger
    deletes a cancelled invoice after a day, and such a payment would then belong to nobody.
    """
    world.timers.set(Due.INVOICE, payment_hash, world.now.monotonic_s + CANCEL_AGAIN_S)
    world.do(CancelInvoice(payment_hash))


def invoice_cancelled(world: World, payment_hash: bytes) -> ClientAccount | ServerAccount | None:
    """Record that an invoice can't be paid any more.

    Returns:
        The account for which another invoice may be made now; None if no account waited for this.
    """
    record = world.money.invoices.get(payment_hash)
    if record is None or record.state is not PaymentState.WITHDRAWN:
        return None
    record = world.money.invoices[payment_hash] = replace(record, state=PaymentState.CANCELLED)
    world.do(Persist(record))
    world.timers.set(Due.INVOICE, payment_hash, world.now.monotonic_s + REMEMBERED_S)
    account = account_for(world, record.kind, record.identity)
    waited = account.invoice.payment_hash == payment_hash
    if waited:
        account.invoice.payment_hash = b""
    if record.identity not in world.letting.rentals:  # a rental may have other invoices: `rental.asking` forgets it
        world.forget_if_gone(record.identity)
    return account if waited else None
