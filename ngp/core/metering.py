"""Metering: charge a client for what the kernel let through, see when a contract or the account runs out, close books.

Contracts are charged by their own counters and their schedule of prices. The account's sum in the kernel, which only
decides when to stop, is reckoned anew where the two could part: at a start, and after a change of price.
"""

from __future__ import annotations

from ngp.core import grace, invoices
from ngp.core.account import Account
from ngp.core.contract import CloseReason, Contract, State
from ngp.core.effects import CountAccount, Decide
from ngp.core.events import AccountCounted
from ngp.core.messages import Cancel, Role
from ngp.core.statements import CLOSED_WAIT_S, STATEMENT_INTERVAL_S, to_state
from ngp.core.timers import Due
from ngp.core.values import AccountReading, Reading, Verdict
from ngp.core.world import World

EXHAUSTED_LINGER_S = 2.0
RATE_SMOOTHING_S = 1.0


def release(world: World, contract: Contract) -> None:
    """Send held packets through the gate again, where they are charged, once there is money or credit for them."""
    account = world.account(contract.identity, Role.SERVER)
    if account.funds_msat > 0 or account.credit is not None or not contract.price_msat_per_gib:
        for handle in contract.held:
            world.do(Decide(handle, Verdict.REPEAT))
        contract.held.clear()


# --- what the kernel says ---------------------------------------------------------------------------------------------


def contract_read(world: World, contract: Contract, reading: Reading) -> Account | None:
    """Charge what the kernel metered. Returns the account if that changed it, for `account_read`."""
    account = world.account(contract.identity, Role.SERVER)
    if reading.exhausted:
        look_if_exhausted(world, contract)
    before, price = contract.used_bytes, contract.dearest_msat_per_gib
    due = account.charge(contract, reading.used_to_bytes, reading.used_from_bytes)
    carried = contract.used_bytes - before
    if carried <= 0:
        return None
    _rate(world, account, contract, carried, due)
    _redeem_opening(world, account, contract)
    world.unflushed.add(contract.contract)
    to_state(account, contract)
    world.timers.set_if_unset(Due.STATEMENT, account.identity, world.now.monotonic_s + STATEMENT_INTERVAL_S)
    if contract.crossed_price(before) and contract.halting is None and contract.running:
        if contract.dearest_msat_per_gib != price:
            world.grant(contract)
        count_again(world, account)
    return account


def account_read(world: World, account: Account) -> None:
    """Keep an account supplied after its contracts were charged: ask for money, lend until it comes."""
    grace.metered(world, account)
    if account.running:
        invoices.top_up_if_low(world, account)
        if account.balance_msat < world.low_msat(account):
            lend(world, account)
    world.limit(account)


def lend(world: World, account: Account) -> None:
    """Offer credit to an account that runs low, for a contract that was used lately, or waits for money."""
    for contracts in (reversed(account.unstated.values()), account.unpaid.values(), world.sold_to(account.identity)):
        for contract in contracts:
            if contract.running and contract.price_msat_per_gib:
                grace.offer(world, account, contract)
                return


def kernel_spent(world: World, reading: AccountReading) -> None:
    """Note what an account spent by the kernel's count, and find a lost hint."""
    account = world.accounts.get((reading.account, Role.SERVER))
    if account is not None:
        account.spent_units = reading.spent_units
        if reading.exhausted:
            account_exhausted(world, account)


def account_exhausted(world: World, account: Account) -> None:
    """The kernel refused a packet for want of money; all that it let pass has been charged."""
    lend(world, account)
    invoices.top_up_if_low(world, account, waits=True)
    world.limit(account)
    if account.funds_msat > 0:  # by the books there is money: the sum in the kernel was reckoned with care
        count_again(world, account)


def count_again(world: World, account: Account, payment_hash: bytes = b"") -> None:
    """Have the kernel say what the account spent and what of it by which contract, so that the limit is exact again."""
    if account.counting and not payment_hash:
        return
    account.counting += 1
    contracts = tuple(one.contract for one in world.sold_to(account.identity))
    world.do(CountAccount(account.identity, contracts, payment_hash))


def account_counted(world: World, event: AccountCounted) -> None:
    """Reckon the limit anew from what was read."""
    account = world.account(event.account, Role.SERVER)
    account.counting -= 1
    for reading in event.readings:
        contract = world.contracts.get(reading.contract)
        if contract is not None:
            contract_read(world, contract, reading)
    account.count_from(event.spent_units, world.sold_to(account.identity))
    account_read(world, account)


def _redeem_opening(world: World, account: Account, contract: Contract) -> None:
    """Give a contract's opening back, and another's, once it carried bytes that stand on paid money."""
    if account.balance_msat >= 0 and contract.used_bytes and world.uncount_opening(contract):
        world.count_idle(contract, -1)


def _rate(world: World, account: Account, contract: Contract, carried_bytes: int, due_msat: int) -> None:
    now = world.now.monotonic_s
    elapsed = max(0.001, now - contract.carried_mono_s)
    weight = min(1.0, elapsed / RATE_SMOOTHING_S)
    contract.rate_bytes_s += (carried_bytes / elapsed - contract.rate_bytes_s) * weight
    contract.carried_mono_s = now
    elapsed = max(0.001, now - account.rated_mono_s)
    weight = min(1.0, elapsed / RATE_SMOOTHING_S)
    account.rate_msat_s += (due_msat / elapsed - account.rate_msat_s) * weight
    account.rated_mono_s = now


# --- the end ----------------------------------------------------------------------------------------------------------


def look_if_exhausted(world: World, contract: Contract) -> None:
    """Give the client a moment to renew a contract whose data is used up, then close it."""
    if contract.running and contract.halting is None:
        world.timers.set_if_unset(Due.EXHAUSTED, contract.contract, world.now.monotonic_s + EXHAUSTED_LINGER_S)


def exhausted_due(world: World, contract: Contract) -> None:
    """Close a contract whose data is used up, unless a renewal is being agreed."""
    if contract.state is State.RENEWING:
        world.timers.set(Due.EXHAUSTED, contract.contract, world.now.monotonic_s + EXHAUSTED_LINGER_S)
    elif contract.running:
        world.halt(contract, CloseReason.EXHAUSTED)


def paid_for(world: World, account: Account) -> None:
    """A payment came: what was owed is paid first, and contracts that waited for money are active."""
    if account.balance_msat >= 0:
        grace.take_back(world, account)
    waited = list(account.unpaid.values())
    if account.funds_msat > 0:
        world.timers.clear(Due.UNPAID, account.identity)
        for contract in list(account.unpaid.values()):
            _redeem_opening(world, account, contract)
            if contract.state is State.ACCEPTED and contract.halting is None:
                world.move(contract, State.ACTIVE)
                world.save_contract(contract)
        account.unpaid.clear()
    account_read(world, account)
    for contract in waited:
        release(world, contract)


def halted(world: World, contract: Contract, reading: Reading | None) -> None:
    """Close the books after the kernel's last reading."""
    account = world.account(contract.identity, Role.SERVER)
    if reading is not None:
        account.charge(contract, reading.used_to_bytes, reading.used_from_bytes)
    _redeem_opening(world, account, contract)
    for handle in contract.held:
        world.do(Decide(handle, Verdict.DROP))
    contract.held.clear()
    account.close(contract)
    world.close(contract, -contract.charged_msat)
    if not account.running and not account.debt_msat:
        grace.take_back(world, account)
    if len(contract.prices) > 1 and account.running:
        count_again(world, account)
    to_state(account, contract)
    world.timers.set(Due.STATEMENT, account.identity, world.now.monotonic_s + CLOSED_WAIT_S)
    account_read(world, account)
    world.forget_if_gone(contract.identity)
    neighbour = world.neighbour_of(contract)
    if neighbour is not None:
        world.send(neighbour, Cancel(contract.contract, contract.reason))
