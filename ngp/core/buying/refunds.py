"""Refunds, as the client: ask a server for what we prepaid and don't use, and take what it offers.

`selling.refunds` explains the course of a refund, and what a client could gain by asking.
"""

from __future__ import annotations

import logging

from ngp.core.buying.account import ServerAccount
from ngp.core.effects import MakeInvoice
from ngp.core.invoices import INVOICE_EXPIRY_S, send_invoice, withdraw
from ngp.core.messages import Declined, DeclineReason, Refund
from ngp.core.orders import FAILED_REFUND_PAUSE_S, REFUND_PAUSE_S
from ngp.core.peers import Neighbour, named
from ngp.core.pricing import SAT_MSAT, floor_to_sat_msat
from ngp.core.records import PaymentKind, PaymentRecord, PaymentState
from ngp.core.topups import receivable
from ngp.core.world import World

ANSWER_S = 15.0  # a refusal that comes within this time answers our request for a refund
INVOICE_PAUSE_S = 60.0
"""Least time between two invoices for refunds from one server: an invoice costs a call to our node and a row in the
ledger, while an offer costs the server nothing."""

_WHY_NOT = {
    DeclineReason.TERMS: "its operator decides, by `ngp refund` or by REFUND_WHEN_ASKED in its net.conf",
    DeclineReason.AMOUNT: "what we prepaid and didn't use is too little for a payment",
    DeclineReason.BUSY: (
        f"a refund is on its way, was paid less than {REFUND_PAUSE_S // 60} min ago, or failed less than "
        f"{FAILED_REFUND_PAUSE_S // 60} min ago: ask again later; the server's operator can pay at any time, by "
        "`ngp refund`"
    ),
    DeclineReason.BLOCKED: "it has blocked us",
}


def ask_back(world: World, identity: bytes) -> str:
    """Ask a server for what we prepaid and don't use. Returns a sentence for the operator that says what was done."""
    neighbour, why_not = world.peers.any_link(identity), why_not_ask(world, identity)
    if neighbour is None or why_not:
        return why_not
    account = world.server(identity)
    account.refund_ask_mono_s = world.now.monotonic_s
    world.send(neighbour, Refund(0))
    return f"asked {identity.hex()[:8]} to pay back our balance, {account.balance_msat} msat, less further charges"


def why_not_ask(world: World, identity: bytes) -> str:
    """Return why a server can't be asked for what we prepaid, in words for the operator; "" if it can."""
    account = world.servers.get(identity)
    balance_msat = 0 if account is None else account.balance_msat
    if balance_msat < SAT_MSAT:
        return f"nothing to ask for: our balance with {named(identity)} is {balance_msat} msat"
    return world.peers.why_away(identity, "be asked")


def ask_declined(world: World, neighbour: Neighbour, declined: Declined) -> None:
    """Log why a server offers no refund, if we asked for one."""
    account = world.servers.get(neighbour.identity)
    if account is not None and world.now.monotonic_s - account.refund_ask_mono_s < ANSWER_S:
        account.refund_ask_mono_s = float("-inf")
        why = _WHY_NOT.get(declined.reason, declined.reason.value)
        world.log(f"{neighbour.identity.hex()[:8]} offers no refund: {why}", logging.WARNING)


def take_back(world: World, neighbour: Neighbour, refund: Refund) -> bool:
    """Answer an offer with an invoice. Returns whether a message was sent in answer."""
    account = world.servers.get(neighbour.identity)
    balance_msat = 0 if account is None else account.balance_msat
    amount = min(refund.amount_msat, max(0, balance_msat))
    if amount < refund.amount_msat:
        world.log(
            f"{neighbour.identity.hex()[:8]} offers a refund of {refund.amount_msat} msat; by our books we have "
            f"{balance_msat} msat with it and ask for no more"
        )
    if account is None or account.invoice.asked:
        return False
    account.refund_ask_mono_s = float("-inf")
    existing = world.money.invoices.get(account.invoice.payment_hash)
    if existing is not None and existing.state is PaymentState.OPEN and existing.amount_msat <= refund.amount_msat:
        send_invoice(world, existing)  # the server forgot its first offer, and made this one
    elif world.now.monotonic_s >= account.invoice.not_before_mono_s:
        if existing is not None and existing.state is PaymentState.OPEN:
            withdraw(world, existing, "another amount was offered")
        account.invoice.declined = 0
        _ask_invoice(world, account, amount)
    return False


def _ask_invoice(world: World, account: ServerAccount, amount_msat: int) -> None:
    bounds = receivable(world, account.identity)
    amount = min(floor_to_sat_msat(amount_msat), bounds.most_msat)
    if bounds.why_not:
        world.log(f"no refund can be received from {account.identity.hex()[:8]}: {bounds.why_not}", logging.WARNING)
    elif amount >= bounds.least_msat:
        account.invoice.asked = True
        account.invoice.not_before_mono_s = world.now.monotonic_s + INVOICE_PAUSE_S
        memo = f"ngp refund from {account.identity.hex()[:16]}"
        world.do(MakeInvoice(account.identity, PaymentKind.REFUND, amount, memo, INVOICE_EXPIRY_S))


def invoice_declined(world: World, record: PaymentRecord, declined: Declined) -> None:
    """Withdraw an invoice that the server won't pay; if it names a smaller amount, ask for that, once."""
    if record.state is not PaymentState.OPEN:
        return
    account = world.server(record.identity)
    withdraw(world, record, f"declined: {declined.reason.value}")
    less = 0 < declined.amount_msat < record.amount_msat
    who = record.identity.hex()[:8]
    instead = f"; it would pay {declined.amount_msat} msat at most" if less else ""
    world.log(f"{who} didn't pay the refund of {record.amount_msat} msat: {declined.reason.value}{instead}")
    if less and not account.invoice.declined and not account.invoice.asked:
        account.invoice.declined += 1
        _ask_invoice(world, account, min(declined.amount_msat, max(0, account.balance_msat)))
