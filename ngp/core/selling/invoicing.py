"""Invoicing: ask a client for a top-up when what it prepaid won't last at the present rate of use.

A gateway opens thousands of contracts a second, but a payment node completes only tens of payments. So payments go to
the account, not to single contracts.
"""

from __future__ import annotations

from ngp.core.account import Account
from ngp.core.effects import MakeInvoice
from ngp.core.events import ChannelsSeen
from ngp.core.invoices import INVOICE_EXPIRY_S, RETRY_S, send_again, wait, withdraw
from ngp.core.messages import Declined, DeclineReason
from ngp.core.pricing import SAT_MSAT, ceil_to_sat_msat, floor_to_sat_msat
from ngp.core.reach import Bounds, Reach
from ngp.core.records import PaymentKind, PaymentRecord, PaymentState
from ngp.core.selling.account import ClientAccount
from ngp.core.topups import (
    MOST_PAUSE_S,
    ahead_msat,
    grows,
    note_why_not,
    pause_s,
    receivable,
    sendable,
    usual_msat,
)
from ngp.core.world import World

FIRST_PAUSE_S = 0.5
"""Pause after the first invoice that a client declined; each further one in a row doubles the pause."""


def top_up_msat(world: World, account: ClientAccount, bounds: Bounds) -> int:
    """Return the size of a top-up, in whole sat: PAYMENT_AMOUNT or ten seconds' use, within the bounds of a payment.

    The rate of a client that waits for money says nothing about its needs. So a top-up that was used up quickly is
    followed by one of twice its size. A client prepays no more than it trusts us with, and its meter may be behind
    ours: where that matters we ask for a sat less. Returns 0 if it wouldn't pay anything now.
    """
    amount = usual_msat(world, account, bounds)
    if grows(world, account):
        amount = max(amount, 2 * account.top_up.amount_msat)
    amount = max(amount, -account.balance_msat)
    most = floor_to_sat_msat(ahead_msat(world, account, bounds))
    if most < bounds.least_msat and account.balance_msat > 0:
        return 0
    if most - SAT_MSAT >= max(bounds.least_msat, -account.balance_msat):
        most -= SAT_MSAT
    amount = min(amount, most)
    if account.most_asked_msat:  # limits debts as well: otherwise a debt above it would never be paid
        amount = min(amount, account.most_asked_msat)
    return bounds.fit_msat(ceil_to_sat_msat(amount))


def top_up_if_low(world: World, account: ClientAccount) -> None:
    """Ask a client for money when what is left won't last, or it waits for money; it has one invoice at a time."""
    waits = account.is_out and bool(account.priced or account.debt_msat)
    waits = waits or any(sale.price_msat_per_gib for sale in account.unpaid.values())
    if not account.running or not (waits or account.rate.a_second):
        return  # no traffic that costs anything
    if not waits and account.balance_msat >= world.low_msat(account):
        return
    if account.invoice.asked or account.invoice.not_before_mono_s > world.now.monotonic_s:
        return
    if account.invoice.payment_hash:
        wait(world, account, RETRY_S)
        send_again(world, account)  # the client may have been too busy to take it
        return
    bounds = receivable(world, account.identity)
    if bounds.why_not:
        note_why_not(world, account, bounds.why_not)
        wait(world, account, RETRY_S)
        return
    amount = top_up_msat(world, account, bounds)
    if not amount:
        return
    account.invoice.asked = True
    memo = f"ngp top-up for {account.identity.hex()[:16]}"
    world.do(MakeInvoice(account.identity, PaymentKind.TOP_UP, amount, memo, INVOICE_EXPIRY_S))


def invoice_declined(world: World, record: PaymentRecord, declined: Declined) -> None:
    """Withdraw an invoice that the client won't pay; then ask for what it would pay, or wait a little.

    If the invoice is withdrawn already, the client says how much it would pay now.
    """
    if record.state in (PaymentState.WITHDRAWN, PaymentState.CANCELLED):
        _hurry(world, record.identity, declined.amount_msat)
    if record.state is not PaymentState.OPEN:
        return
    account = world.client(record.identity)
    withdraw(world, record, f"declined: {declined.reason.value}")
    account.most_asked_msat = max(declined.amount_msat, world.node.least_amount_msat) if declined.amount_msat else 0
    if declined.reason is DeclineReason.BUDGET:  # a budget doesn't grow; other limits grow as the client pays
        account.budget_told_mono_s = world.now.monotonic_s
    smaller = 0 < declined.amount_msat < record.amount_msat and _may_hurry(world, account)
    wait_s = 0.2 if smaller else pause_s(FIRST_PAUSE_S, account.invoice.declined)
    account.invoice.declined += 1
    if not smaller and account.funds_msat <= 0:  # else it may just not have seen yet what its money carried
        why_not = f"this neighbour declines our invoices ({_declined_for(declined)}); its log says more"
        note_why_not(world, account, why_not)
    wait(world, account, wait_s)


def _may_hurry(world: World, account: ClientAccount) -> bool:
    """Say whether a client that names what it would pay is asked for that at once: two times, then once a minute.

    It may have declined many invoices for other reasons, which are over now.
    """
    return account.invoice.declined < 2 or _take_haste(world, account)


def _take_haste(world: World, account: ClientAccount) -> bool:
    """Say whether a client gets an invoice at once though it declined others; that is so once a minute."""
    if world.now.monotonic_s - account.invoice.hurried_mono_s < MOST_PAUSE_S:
        return False
    account.invoice.hurried_mono_s = world.now.monotonic_s
    return True


def _hurry(world: World, identity: bytes, amount_msat: int) -> None:
    """Make the next invoice at once, but not often: a client must not keep our node busy with invoices."""
    account = world.clients.get(identity)
    if account is None or not amount_msat or not account.invoice.declined:
        return
    if _take_haste(world, account):
        account.invoice.not_before_mono_s = 0.0
        account.most_asked_msat = max(amount_msat, world.node.least_amount_msat)
        top_up_if_low(world, account)


def _declined_for(declined: Declined) -> str:
    """Say what a client's refusal most likely means: "amount" alone sounds as if the price were too high."""
    if declined.reason is DeclineReason.AMOUNT and not declined.amount_msat:
        return (
            "amount: its payment node has no channel with enough left, a payment to us is still on its way, or it "
            "trusts us with no more yet (its TRUST_AMOUNT)"
        )
    if declined.reason is DeclineReason.BUSY:
        return "busy: its payments may be failing, or one to us is still on its way"
    return declined.reason.value


def invoice_retry_due(world: World, identity: bytes) -> None:
    """Check again whether an account that had to wait needs a top-up."""
    account = world.clients.get(identity)
    if account is not None and account.running:
        top_up_if_low(world, account)


def channels_seen(world: World, event: ChannelsSeen) -> None:
    """Take over the present channels, and ask at once for top-ups that weren't possible before."""
    waiting = [(one, _bounds(world, one)) for one in world.accounts if one.why_not or one.invoice.declined]
    world.money.reach = Reach(event.channels)
    for account, before in waiting:
        bounds = _bounds(world, account)
        held_up = account.why_not and account.why_not == before.why_not
        if held_up:
            note_why_not(world, account, bounds.why_not)
        # Invoices were declined for lack of a channel with money left, and now there is one.
        direct = account.invoice.declined and (before.why_not or before.routed) and not bounds.routed
        if isinstance(account, ClientAccount) and (held_up or direct) and not bounds.why_not:
            account.invoice.declined, account.invoice.not_before_mono_s = 0, 0.0
            top_up_if_low(world, account)


def _bounds(world: World, account: Account) -> Bounds:
    of_role = receivable if isinstance(account, ClientAccount) else sendable
    return of_role(world, account.identity)
