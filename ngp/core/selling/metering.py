"""Metering: charge a client for what the kernel let through, and notice when a contract or its account runs out.

Contracts are charged by their own counters and price schedules. The account's limit in the kernel only decides when
traffic stops. The limit is computed anew when it could differ from the charges: at a start, after a change of price,
and when the kernel stopped an account that has money by our books.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from ngp.core import losses, parts, unsold, upstream
from ngp.core.contract import CloseReason, State
from ngp.core.effects import CountAccount, Decide
from ngp.core.events import AccountCounted
from ngp.core.kernel import UNITS_PER_MSAT, AccountReading, Reading, Verdict
from ngp.core.selling import endings, grace, invoicing
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.selling.statements import CLOSED_WAIT_S, STATEMENT_INTERVAL_S, add_to_statement
from ngp.core.timers import Due
from ngp.core.world import World

EXHAUSTED_LINGER_S = 2.0  # how long a contract whose data is used up waits for its renewal


def release(world: World, sale: Sale, is_new: bool = False) -> None:
    """Send held packets through the gate again, which charges them, if there is money or credit for them.

    Only then is that bought on which the contract rests; until then the kernel lets nothing pass by it, whatever the
    account still has there, and whoever else buys that meanwhile. If it isn't sold any more, or not on these terms, the
    contract ends.

    Args:
        is_new: the kernel doesn't have the contract yet, or not with these terms.
    """
    if not sale.running:
        return  # it is about to end: nothing more is bought for it
    account, was_unbought, passes = world.client(sale.identity), sale.unbought, None
    sale.unbought = was_unbought or (bool(sale.rests_on) and world.running_purchase(sale.rests_on) is None)
    has_money = account.funds_msat > 0 or not sale.price_msat_per_gib
    if sale.unbought and not unsold.may_buy_for(world, account, sale.price_msat_per_gib):
        if has_money:  # less than we bought for it in vain: it is asked for more
            grace.accepted_unpaid(world, account, sale)
    elif has_money or account.credit is not None:
        passes = not sale.unbought or _buy(world, sale, was_unbought)
        sale.unbought = not passes
    if is_new or sale.unbought is not was_unbought:
        world.grant(sale)
    if sale.state is State.ACTIVE and sale.unbought is not was_unbought:
        world.save_contract(sale)
    if passes:
        decide(world, sale, Verdict.REPEAT)
    elif passes is not None:
        world.halt(sale, CloseReason.UPSTREAM)


def _buy(world: World, sale: Sale, has_waited: bool) -> bool:
    """Buy what a contract rests on. Returns False if it isn't sold any more.

    Args: has_waited: since its accept others may have taken the room, and a part of a network may cost more by now.
    """
    if has_waited:
        room = upstream.room(world, sale)
        if room is None or room < sale.data_limit_bytes - sale.used_bytes or parts.has_dear(world, sale, sale.seller):
            return False
    return not losses.is_withheld(world, sale) and upstream.secure(world, sale)


def decide(world: World, sale: Sale, verdict: Verdict) -> None:
    """Decide about all first packets of a contract."""
    for handle in sale.held:
        world.do(Decide(handle, verdict))
    sale.held.clear()


# --- readings and hints from the kernel -------------------------------------------------------------------------------


def contract_read(world: World, sale: Sale, reading: Reading) -> ClientAccount | None:
    """Charge what the kernel metered. Returns the account if it changed: then `account_read` must follow."""
    account = world.client(sale.identity)
    if reading.exhausted:
        look_if_exhausted(world, sale)
    before = sale.used_bytes
    if reading.used_from_bytes > sale.used_from_bytes:
        sale.returned_mono_s = world.now.monotonic_s
    due = _charge(world, account, sale, reading)
    carried = sale.used_bytes - before
    if carried <= 0:
        return None
    sale.rate.count(carried, world.now.monotonic_s)
    account.rate.count(due, world.now.monotonic_s)
    _redeem_opening(world, account, sale)
    world.save_later(sale.id)
    add_to_statement(account, sale)
    world.timers.set_if_unset(Due.STATEMENT, account.identity, world.now.monotonic_s + STATEMENT_INTERVAL_S)
    if sale.crossed_price(before) and sale.running:
        world.grant(sale)
        count_again(world, account)
    return account


def _charge(world: World, account: ClientAccount, sale: Sale, reading: Reading) -> int:
    to_bytes, from_bytes = sale.used_to_bytes, sale.used_from_bytes
    due_msat = account.charge(sale, reading)
    unsold.sold(world, account, sale, sale.used_to_bytes - to_bytes, sale.used_from_bytes - from_bytes)
    return due_msat


def account_read(world: World, account: ClientAccount) -> None:
    """Keep an account supplied after its contracts were charged: ask for money, and give credit until it comes."""
    grace.metered(world, account)
    if account.running:
        invoicing.top_up_if_low(world, account)
        if account.balance_msat < world.ample_msat(account):  # also if it may prepay only little yet
            lend(world, account)
    world.limit(account)


def lend(world: World, account: ClientAccount) -> None:
    """Offer credit to an account that runs low, for a contract that was used lately or waits for money.

    If it gets some, its contracts for which nothing was bought yet don't wait any longer.
    """
    for sale in chain(reversed(account.unstated.values()), account.unpaid.values(), _open_sales(world, account)):
        if sale.running and sale.price_msat_per_gib:
            if grace.offer(world, account, sale):
                release_unbought(world, account)
            return


def release_unbought(world: World, account: ClientAccount) -> None:
    """Release an account's contracts for which nothing was bought yet, as the account has money or credit now."""
    for sale in [one for one in account.unpaid.values() if one.unbought]:
        release(world, sale)


def _open_sales(world: World, account: ClientAccount) -> Iterator[Sale]:
    yield from world.sold_to(account.identity)  # listed only if they are needed: there may be a hundred thousand


def kernel_spent(world: World, account: ClientAccount, reading: AccountReading) -> None:
    """Note what an account spent by the kernel's count. If it met its limit, act at once: the hint may be lost."""
    account.kernel.spent_units = reading.spent_units
    if reading.exhausted:
        account_exhausted(world, account)
        limit_units = account.kernel.told[0] if account.kernel.told is not None else 0
        left_msat = account.balance_msat - account.refund.promised_msat - account.priced
        if (left_msat - 1) * UNITS_PER_MSAT > limit_units - reading.spent_units:  # the kernel's limit is too low
            count_again(world, account)


def account_exhausted(world: World, account: ClientAccount) -> None:
    """Ask for money and offer credit after the kernel refused a packet for lack of money, and readings were charged.

    The kernel tells that once for each limit. So it is remembered, as an invoice may not be due just now.
    """
    account.is_out = True
    lend(world, account)
    invoicing.top_up_if_low(world, account)
    world.limit(account)
    unsold.exhausted(world, account)


def count_again(world: World, account: ClientAccount) -> None:
    """Have the account's sum and its contracts' counters read, so that the limit is exact again."""
    account.kernel.counting = min(2, account.kernel.counting + 1)
    if account.kernel.counting == 1:
        _count(world, account)


def _count(world: World, account: ClientAccount) -> None:
    world.do(CountAccount(account.identity, tuple(sale.id for sale in world.sold_to(account.identity))))


def account_counted(world: World, event: AccountCounted) -> None:
    """Compute the limit anew from what was read, unless the account was forgotten meanwhile."""
    account = world.clients.get(event.account)
    if account is None or not account.kernel.counting:
        return
    for reading in event.readings:
        sale = world.sale(reading.contract)
        if sale is not None:
            contract_read(world, sale, reading)
    account.kernel.counting -= 1
    if account.kernel.counting:
        _count(world, account)
    account.count_from(event.spent_units, world.sold_to(account.identity))
    account_read(world, account)


def _redeem_opening(world: World, account: ClientAccount, sale: Sale) -> None:
    """Once a contract carried bytes that are paid for, take it and one more opening off the neighbour's count."""
    if account.balance_msat >= 0 and sale.used_bytes and world.uncount_opening(sale):
        world.count_idle(sale, -1)


# --- a contract's end -------------------------------------------------------------------------------------------------


def look_if_exhausted(world: World, sale: Sale) -> None:
    """Give the client a moment to renew a contract whose data is used up, then close it."""
    if sale.running:
        world.timers.set_if_unset(Due.EXHAUSTED, sale.id, world.now.monotonic_s + EXHAUSTED_LINGER_S)


def exhausted_due(world: World, sale: Sale) -> None:
    """Close a contract whose data is used up, unless a renewal is being agreed."""
    if sale.state is State.RENEWING:
        world.timers.set(Due.EXHAUSTED, sale.id, world.now.monotonic_s + EXHAUSTED_LINGER_S)
    elif sale.running:
        world.halt(sale, CloseReason.EXHAUSTED)


def paid_for(world: World, account: ClientAccount) -> None:
    """Use a payment: it first pays what is owed, then makes contracts active that waited for money.

    The caller writes the account in the same step.
    """
    account.is_out = False
    grace.paid(world, account)
    unsold.paid(world, account)
    waited = list(account.unpaid.values())
    if account.funds_msat > 0:
        account.unpaid.clear()
        for sale in waited:
            _redeem_opening(world, account, sale)
            if sale.state is State.ACTIVE:
                continue  # it waits for more money, and is stored as it is
            if sale.state is State.ACCEPTED:
                world.move(sale, State.ACTIVE)
            if sale.running:
                world.save_contract(sale)
    account_read(world, account)
    for sale in waited:
        release(world, sale)
    if account.unpaid:  # it was too little; the time within which more must come goes on
        invoicing.top_up_if_low(world, account)
    else:
        world.timers.clear(Due.UNPAID, account.identity)


def unpaid_due(world: World, account: ClientAccount) -> None:
    """End contracts that were accepted and not paid for; the account's other contracts stay, and wait for money."""
    use_funds(world, account.identity)
    world.timers.clear(Due.UNPAID, account.identity)
    for sale in list(account.unpaid.values()):
        world.halt(sale, CloseReason.UNPAID)


def use_funds(world: World, identity: bytes) -> None:
    """Use money without a payment, for contracts that wait for it: a refund failed, others ended, or we started."""
    account = world.clients.get(identity)
    if (
        account is not None
        and account.funds_msat > 0
        and any(_may_go_on(world, account, one) for one in account.unpaid.values())
    ):
        paid_for(world, account)
        world.save_account(account)


def _may_go_on(world: World, account: ClientAccount, sale: Sale) -> bool:
    return sale.state is not State.ACTIVE or unsold.may_buy_for(world, account, sale.price_msat_per_gib)


def halted(world: World, sale: Sale, reading: Reading | None) -> None:
    """Close the books after the kernel's last reading."""
    account = world.client(sale.identity)
    if reading is not None:
        _charge(world, account, sale, reading)
    _redeem_opening(world, account, sale)
    decide(world, sale, Verdict.DROP)
    account.close(sale)
    world.close(sale)
    unsold.sale_over(world, sale)
    use_funds(world, sale.identity)
    if not account.running:
        account.is_out = False
        if not account.debt_msat:
            grace.take_back(world, account)
    if len(sale.prices) > 1 and account.running:
        count_again(world, account)
    add_to_statement(account, sale)
    world.timers.set(Due.STATEMENT, account.identity, world.now.monotonic_s + CLOSED_WAIT_S)
    account_read(world, account)
    world.forget_if_gone(sale.identity)
    endings.over(world, account, sale)
