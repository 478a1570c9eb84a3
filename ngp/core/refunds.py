"""Refunds: what a client prepaid and doesn't use goes back to it, once.

The server offers what is free on the account, the client answers with an invoice of its node, and that is paid like any
other: written down first, within the budgets, tracked to its end. The operator offers by `ngp refund`; a client may ask
(a refund of nothing), and where REFUND_WHEN_ASKED is yes that is answered by an offer.

What a client could gain by asking: routing fees, which the server pays, and may even go to the asker's own nodes. So
asked refunds cost no more, all together, than what was earned with that neighbour; one is worth a payment
(`LEAST_ASKED_MSAT`), and comes once an hour. And money that goes in and out again must not use up what its server buys
with: all of them leave half of the budgets to that. An offer is for what is free, so for what was paid and not charged;
one refund of a neighbour is under way at a time, and what it takes no contract may spend. An offer is kept in memory
only: a daemon that dies forgets it, and an invoice without an offer isn't paid.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ngp.core import metering, networks
from ngp.core.account import Account, PendingRefund
from ngp.core.budget import Spending, broken_limit, room_msat
from ngp.core.effects import MakeInvoice
from ngp.core.events import AccountCounted
from ngp.core.invoices import INVOICE_EXPIRY_S, send_invoice, withdraw
from ngp.core.messages import Declined, DeclineReason, Refund, Role
from ngp.core.payments import MOST_INVOICE_EXPIRY_S, may_be_forgotten, names_its_payee, pay, told_again
from ngp.core.pricing import SAT_MSAT, floor_to_sat_msat, show_money
from ngp.core.records import PaymentKind, PaymentRecord, PaymentState
from ngp.core.settings import Budgets
from ngp.core.topups import receivable, sendable
from ngp.core.values import DecodedInvoice
from ngp.core.world import Neighbour, World

LEAST_ASKED_MSAT = 10_000
ASKED_AGAIN_S = 3600
FAILED_AGAIN_S = 300
ASK_PAUSE_S = 5.0
TOLD_AGAIN_S = 3600.0
OFFER_STANDS_S = 600.0
ANSWER_S = 15.0
INVOICE_PAUSE_S = 60.0
"""Between two invoices for refunds of one server: offers cost nothing, invoices a call to our node and a row."""

_WHY_NOT = {
    DeclineReason.TERMS: "its operator decides (ngp refund there; REFUND_WHEN_ASKED)",
    DeclineReason.AMOUNT: "nothing is left there that is worth a payment",
    DeclineReason.BUSY: (
        f"a refund is on its way, was paid less than {ASKED_AGAIN_S // 60} min ago, or failed less than "
        f"{FAILED_AGAIN_S // 60} min ago: ask again then; its operator can pay at any time (ngp refund there)"
    ),
    DeclineReason.BLOCKED: "it has blocked us",
}


def refundable_msat(account: Account) -> int:
    """Return what of an account is its owner's to take away: paid and not charged."""
    return max(0, account.funds_msat)


def offerable_msat(world: World, account: Account) -> int:
    """Return what can be offered in one payment, in whole sat; 0 where that is no payment."""
    bounds = sendable(world, account.identity)
    amount = min(floor_to_sat_msat(refundable_msat(account)), bounds.most_msat)
    return amount if amount >= bounds.least_msat and not bounds.why_not else 0


# --- server -----------------------------------------------------------------------------------------------------------


def refund_offered(world: World, identity: bytes) -> str:
    """Offer a client its balance back; it answers with an invoice. Returns what was done, for the operator."""
    neighbour, why_not = world.any_link(identity), why_no_refund(world, identity)
    if neighbour is None or why_not:
        return why_not
    account = world.account(identity, Role.SERVER)
    amount = offerable_msat(world, account)
    _offer(world, neighbour, account, amount, asked=False)
    return f"refund of {amount} msat offered to {identity.hex()[:8]}; paid when it sends its invoice"


def why_no_refund(world: World, identity: bytes) -> str:
    """Say, for the operator, why a client can't be offered its balance now. Empty: it can."""
    account = world.accounts.get((identity, Role.SERVER))
    if account is not None and account.refunding_msat:
        amount = show_money(account.refunding_msat)
        return f"a refund of {amount} to {_named(identity)} is on its way: ngp accounts shows since when"
    if account is None or not offerable_msat(world, account):
        return f"nothing to refund: {_why_nothing(world, identity, account)}"
    return _why_away(world, identity, "send its invoice")


def _why_nothing(world: World, identity: bytes, account: Account | None) -> str:
    free_msat = 0 if account is None else refundable_msat(account)
    bounds = sendable(world, identity)
    if free_msat >= bounds.least_msat and bounds.why_not:
        return bounds.why_not
    free = f"{free_msat} msat of {_named(identity)}'s balance are free"
    return f"{free}, and less than {bounds.least_msat} msat can't be sent"


def _why_away(world: World, identity: bytes, to_do: str) -> str:
    if world.any_link(identity) is not None:
        return ""
    return f"{_named(identity)} is away and can't {to_do}: run this again when it is back"


def _named(identity: bytes) -> str:
    """Name a neighbour as the listings do, so that the operator finds it there."""
    return identity.hex()[:16]


def _offer(world: World, neighbour: Neighbour, account: Account, amount_msat: int, asked: bool) -> None:
    account.refund_offered_msat, account.refund_asked = amount_msat, asked
    account.refund_offered_mono_s = world.now.monotonic_s
    world.send(neighbour, Refund(amount_msat))


def refund_received(
    world: World, neighbour: Neighbour, refund: Refund, decoded: DecodedInvoice | None, message_id: int = 0
) -> bool:
    """Client: answer an offer with an invoice. Server: answer an ask, or pay the invoice that answers our offer.

    Returns whether it was answered by a message.
    """
    if refund.bolt11:
        return _pay_back(world, neighbour, refund, decoded)
    if refund.amount_msat:
        return _take_back(world, neighbour, refund)
    return _asked(world, neighbour, message_id)


def _asked(world: World, neighbour: Neighbour, message_id: int) -> bool:
    account = world.accounts.get((neighbour.identity, Role.SERVER))
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


def _objection(world: World, neighbour: Neighbour, account: Account | None) -> DeclineReason | None:
    if neighbour.blocked:
        return DeclineReason.BLOCKED
    amount = offerable_msat(world, account) if account is not None else 0
    if account is None or amount < LEAST_ASKED_MSAT:
        return DeclineReason.AMOUNT
    if account.refunding_msat:
        return DeclineReason.BUSY
    if _refunded_lately(world, account.identity):
        _tell_of_ask(world, account, amount, "it had a refund, or one failed, lately, so none is paid by itself; ")
        return DeclineReason.BUSY
    if world.settings.refund_when_asked:
        return None
    _tell_of_ask(world, account, amount)
    return DeclineReason.TERMS


def _tell_of_ask(world: World, account: Account, amount_msat: int, why: str = "") -> None:
    """Tell the operator, once an hour, of an ask that waits for nobody else."""
    if world.now.monotonic_s - account.refund_told_mono_s >= TOLD_AGAIN_S:
        account.refund_told_mono_s = world.now.monotonic_s
        who = account.identity.hex()[:8]
        world.log(f"{who} asks for {amount_msat} msat of its balance: {why}ngp refund {who}, if it shall have it")


def _refunded_lately(world: World, identity: bytes) -> bool:
    """Look at the payments themselves, which outlive the process: a restart is no new hour."""
    for record in world.payments.values():
        if record.kind is PaymentKind.REFUND and record.identity == identity:
            again_s = FAILED_AGAIN_S if record.state is PaymentState.FAILED else ASKED_AGAIN_S
            if world.now.utc_s - max(record.created_at_s, record.settled_at_s) < again_s:
                return True
    return False


def _pay_back(world: World, neighbour: Neighbour, refund: Refund, decoded: DecodedInvoice | None) -> bool:
    ours = decoded is not None and networks.takes_invoice(world.means.network, decoded.network)
    if decoded is None or decoded.amount_msat != refund.amount_msat or not ours:
        world.count("invoice_malformed")
        return False
    known = world.payments.get(decoded.payment_hash)
    if known is not None and known.identity == neighbour.identity:
        return told_again(world, neighbour, known)
    account = world.accounts.get((neighbour.identity, Role.SERVER))
    ours = known is not None or decoded.payment_hash in world.invoices
    lasts = 0 < decoded.expires_in_s <= MOST_INVOICE_EXPIRY_S and not may_be_forgotten(world, decoded.expires_in_s)
    if account is None or ours or not lasts or not names_its_payee(world, neighbour, decoded):
        world.count("refund_refused")
        return False
    stands = world.now.monotonic_s - account.refund_offered_mono_s < OFFER_STANDS_S
    offered = account.refund_offered_msat if stands and not account.refunding_msat else 0
    if not offered:  # unasked for, the fees alone would drain us; it may come again behind the next offer
        world.count("refund_refused")
        return False
    reason, instead = _unpayable(world, account, refund.amount_msat, offered)
    if reason is not None:
        world.send(neighbour, Declined(decoded.payment_hash, reason, instead))
        return True
    if refund.amount_msat < offered:
        world.log(f"{neighbour.identity.hex()[:8]} asks for {refund.amount_msat} msat of {offered} msat offered")
    account.refund_offered_msat = 0
    fee_limit_msat = _fee_limit_msat(world, account, refund.amount_msat)
    account.refunding_msat += refund.amount_msat
    account.pending_refund = PendingRefund(refund.bolt11, decoded.payment_hash, refund.amount_msat, fee_limit_msat)
    world.limit(account)
    if account.told is None:  # no contract runs that could spend it
        _pay_pending(world, account)
    else:
        metering.count_again(world, account, decoded.payment_hash)
    return False


def counted(world: World, event: AccountCounted) -> None:
    """Pay a refund now that the kernel can't spend it any more; what was carried meanwhile comes first."""
    account = world.account(event.account, Role.SERVER)
    if account.pending_refund is not None and account.pending_refund.payment_hash == event.payment_hash:
        _pay_pending(world, account)


def _pay_pending(world: World, account: Account) -> None:
    refund, neighbour = account.pending_refund, world.any_link(account.identity)
    assert refund is not None
    account.pending_refund = None
    missing_msat = max(0, account.refunding_msat - account.balance_msat)
    if neighbour is not None and not missing_msat:
        amounts = refund.amount_msat, refund.fee_limit_msat
        pay(world, neighbour, PaymentKind.REFUND, refund.bolt11, refund.payment_hash, *amounts)
        return
    account.refunding_msat -= refund.amount_msat
    world.limit(account)
    if neighbour is not None:
        account.refund_offered_msat = max(0, floor_to_sat_msat(refund.amount_msat - missing_msat))
        world.send(neighbour, Declined(refund.payment_hash, DeclineReason.AMOUNT, account.refund_offered_msat))


def _fee_limit_msat(world: World, account: Account, amount_msat: int) -> int:
    """Return what the routing of a refund may cost: asked for, what its client brought in and hasn't cost yet.

    Its fees are what was spent on it beyond what it got, in either role: nothing else has them over years and restarts.
    """
    limit = world.settings.fee_limit.of_msat(amount_msat)
    if not account.refund_asked:
        return limit
    bought = world.accounts.get((account.identity, Role.CLIENT))
    ours = [one for one in world.payments.values() if one.identity == account.identity]
    got_msat = account.refunded_msat + (bought.paid_msat if bought is not None else 0)
    got_msat += sum(one.amount_msat for one in ours if one.state is PaymentState.PENDING)
    fees_msat = max(0, world.spending.by_neighbour.get(account.identity, 0) - got_msat)
    return min(limit, max(0, account.charged_msat - fees_msat))


def _unpayable(world: World, account: Account, amount_msat: int, offered_msat: int) -> tuple[DeclineReason | None, int]:
    """Object to an invoice for a refund, and say what would be paid instead."""
    free_msat = min(offered_msat, offerable_msat(world, account))
    if amount_msat > free_msat:
        return DeclineReason.AMOUNT, free_msat
    cost, now_s = amount_msat + _fee_limit_msat(world, account, amount_msat), world.now.utc_s
    purses = [("", world.settings.budgets, world.spending)]
    if account.refund_asked and world.settings.buys:
        purses.append(("half of ", _half(world.settings.budgets), _refunds(world)))
    broken = [(of, broken_limit(budgets, spent, account.identity, cost, now_s)) for of, budgets, spent in purses]
    limits = [of + limit for of, limit in broken if limit is not None]
    if not limits:
        return None, 0
    who = account.identity.hex()[:8]
    world.log(f"refund of {amount_msat} msat to {who} not paid: {limits[0]}", logging.WARNING)
    room = min(room_msat(budgets, spent, account.identity, now_s) for _, budgets, spent in purses)
    return DeclineReason.BUDGET, floor_to_sat_msat(world.settings.fee_limit.fits_msat(room))


def _half(budgets: Budgets) -> Budgets:
    total = budgets.total_msat // 2 if budgets.total_msat is not None else None
    return replace(budgets, hour_msat=budgets.hour_msat // 2, day_msat=budgets.day_msat // 2, total_msat=total)


def _refunds(world: World) -> Spending:
    """Count what was paid back: of the last day by its payments, ever by the accounts."""
    spent = Spending()
    for one in world.payments.values():
        if one.kind is PaymentKind.REFUND and one.state is not PaymentState.FAILED:
            spent.add(one.identity, one.amount_msat + one.fee_msat, one.created_at_s)
    sold = [account for (_, role), account in world.accounts.items() if role is Role.SERVER]
    spent.total_msat = sum(one.refunded_msat + one.refunding_msat for one in sold)
    return spent


# --- client -----------------------------------------------------------------------------------------------------------


def ask_back(world: World, identity: bytes) -> str:
    """Ask a server for what we prepaid and don't use. Returns what was done, for the operator."""
    neighbour, why_not = world.any_link(identity), why_not_ask(world, identity)
    if neighbour is None or why_not:
        return why_not
    account = world.account(identity, Role.CLIENT)
    account.refund_ask_mono_s = world.now.monotonic_s
    world.send(neighbour, Refund(0))
    return f"{identity.hex()[:8]} asked for what is free of our {account.balance_msat} msat"


def why_not_ask(world: World, identity: bytes) -> str:
    """Say, for the operator, why a server can't be asked for what we prepaid. Empty: it can."""
    account = world.accounts.get((identity, Role.CLIENT))
    balance_msat = 0 if account is None else account.balance_msat
    if balance_msat < SAT_MSAT:
        return f"nothing to ask for: {balance_msat} msat of ours are with {_named(identity)}"
    return _why_away(world, identity, "be asked")


def ask_declined(world: World, neighbour: Neighbour, declined: Declined) -> None:
    """A server offers no refund now: say why, if one was asked for."""
    account = world.accounts.get((neighbour.identity, Role.CLIENT))
    if account is not None and world.now.monotonic_s - account.refund_ask_mono_s < ANSWER_S:
        account.refund_ask_mono_s = float("-inf")
        why = _WHY_NOT.get(declined.reason, declined.reason.value)
        world.log(f"{neighbour.identity.hex()[:8]} offers no refund: {why}", logging.WARNING)


def _take_back(world: World, neighbour: Neighbour, refund: Refund) -> bool:
    account = world.accounts.get((neighbour.identity, Role.CLIENT))
    balance_msat = 0 if account is None else account.balance_msat
    amount = min(refund.amount_msat, max(0, balance_msat))
    if amount < refund.amount_msat:
        world.log(
            f"{neighbour.identity.hex()[:8]} offers a refund of {refund.amount_msat} msat; by our books we have "
            f"{balance_msat} msat with it and ask for no more"
        )
    if account is None or account.invoice_asked:
        return False
    account.refund_ask_mono_s = float("-inf")
    standing = world.invoices.get(account.invoice)
    if standing is not None and standing.state is PaymentState.OPEN and standing.amount_msat <= refund.amount_msat:
        send_invoice(world, standing)  # it came behind an offer that the server forgot
    elif world.now.monotonic_s >= account.invoice_not_before_mono_s:
        if standing is not None and standing.state is PaymentState.OPEN:
            withdraw(world, standing, "another amount was offered")
        account.invoices_declined = 0
        _ask_invoice(world, account, amount)
    return False


def _ask_invoice(world: World, account: Account, amount_msat: int) -> None:
    bounds = receivable(world, account.identity)
    amount = min(floor_to_sat_msat(amount_msat), bounds.most_msat)
    if bounds.why_not:
        world.log(f"no refund can be received from {account.identity.hex()[:8]}: {bounds.why_not}", logging.WARNING)
    elif amount >= bounds.least_msat:
        account.invoice_asked = True
        account.invoice_not_before_mono_s = world.now.monotonic_s + INVOICE_PAUSE_S
        memo = f"ngp refund from {account.identity.hex()[:16]}"
        world.do(MakeInvoice(account.identity, PaymentKind.REFUND, amount, memo, INVOICE_EXPIRY_S))


def invoice_declined(world: World, record: PaymentRecord, declined: Declined) -> None:
    """The server won't pay this invoice (any more): take less, once, if it names less."""
    if record.state is not PaymentState.OPEN:
        return
    account = world.account(record.identity, Role.CLIENT)
    withdraw(world, record, f"declined: {declined.reason.value}")
    less = 0 < declined.amount_msat < record.amount_msat
    who = record.identity.hex()[:8]
    instead = f"; {declined.amount_msat} msat at most" if less else ""
    world.log(f"{who} didn't pay the refund of {record.amount_msat} msat: {declined.reason.value}{instead}")
    if less and not account.invoices_declined and not account.invoice_asked:
        account.invoices_declined += 1
        _ask_invoice(world, account, min(declined.amount_msat, max(0, account.balance_msat)))
