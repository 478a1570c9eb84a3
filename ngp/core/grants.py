"""Grants: supply contracts with budget, charge what the kernel metered, cut.

Grants go out in slices that double while a contract runs fast, so that one contract doesn't lock up a neighbour's whole
balance and a fast one never waits. Paid money first, then credit; what lies idle is taken back when another needs it.
"""

from __future__ import annotations

from itertools import islice

from ngp.core import invoices
from ngp.core.account import Account
from ngp.core.contract import CloseReason, Contract, State
from ngp.core.effects import Decide
from ngp.core.messages import Cancel, Role
from ngp.core.pricing import affordable_bytes, amount_due_msat
from ngp.core.statements import CLOSED_WAIT_S, STATEMENT_INTERVAL_S, to_state
from ngp.core.timers import Due
from ngp.core.values import Reading, Verdict
from ngp.core.world import World

IDLE_S = 2.0
LEND_PAUSE_S = 0.5
MOST_SHRUNK_AT_ONCE = 8
EXHAUSTED_LINGER_S = 2.0
LEAST_SLICE_BYTES = 4096
FIRST_PAID_SLICE_BYTES = 64 * 1024
FIRST_GRACE_SLICE_BYTES = 16 * 1024
GRACE_SHARES = 12
FUNDS_SHARES = 8
MOST_SLICE_BYTES = 1 << 28
RATE_SMOOTHING_S = 1.0


# --- budget -----------------------------------------------------------------------------------------------


def release(world: World, contract: Contract) -> None:
    """Send held packets through the gate again, where they are charged like any other."""
    if contract.held and contract.granted_bytes > contract.used_bytes:
        for handle in contract.held:
            world.do(Decide(handle, Verdict.REPEAT))
        contract.held.clear()


def extend(world: World, account: Account, contract: Contract) -> bool:
    """Grant the next slice, out of paid money first, then on credit. Returns whether anything was granted.

    A slice is a share of the free money, so that a fast flow never meets the end of one before we hear of it; what lies
    idle is taken back when others need it. A new contract gets a smaller share the more contracts run, since most carry
    little: else seventy new destinations would hold all of any balance, and the next ones wait until those are idle.
    Where money is short a slice doubles when the one before lasted less than a second, and one of several contracts
    takes at most half of what is free, unless that is less than the least slice.
    """
    room = contract.data_limit_bytes - contract.granted_bytes
    if room <= 0 or contract.halting is not None or contract.shrinking:
        contract.short = False
        return False
    lasted_s = world.now.monotonic_s - contract.granted_mono_s
    size = contract.slice_bytes * 2
    if lasted_s >= 1.0:
        size = max(contract.slice_bytes // 2, int(contract.rate_bytes_s * 2))
    size = max(LEAST_SLICE_BYTES, min(size, MOST_SLICE_BYTES))
    is_new = account.running > 1 and contract.used_bytes < LEAST_SLICE_BYTES
    wanted = min(room, LEAST_SLICE_BYTES if is_new else max(FIRST_PAID_SLICE_BYTES, size))
    ample = affordable_bytes(
        account.funds_msat // (FUNDS_SHARES + (account.running if is_new else 0)),
        contract.granted_bytes,
        contract.granted_bytes + min(room, MOST_SLICE_BYTES),
        contract.prices,
    )
    granted = account.extend_paid(contract, max(wanted, ample), 1 if account.running <= 1 or ample >= wanted else 2)
    if granted < min(LEAST_SLICE_BYTES, room):
        granted += account.extend_paid(contract, min(LEAST_SLICE_BYTES, room) - granted)
    contract.short = granted < min(LEAST_SLICE_BYTES, room)
    if contract.short:
        granted += _extend_on_grace(world, account, contract, size, room - granted)
        _shrink_idle(world, account, contract)
    if granted:
        contract.slice_bytes = granted
        contract.granted_mono_s = world.now.monotonic_s
    account.lenders.pop(contract.contract, None)
    if contract.granted_bytes > contract.used_bytes:
        account.lenders[contract.contract] = contract
    if contract.grace_bytes or contract.short:
        account.waiting[contract.contract] = contract
        # Also without credit there is an end: it is prepaid in time or goes.
        world.timers.set_if_unset(Due.GRACE, account.identity, world.now.monotonic_s + world.settings.grace_time_s)
    else:
        account.waiting.pop(contract.contract, None)
    return granted > 0


def _shrink_idle(world: World, account: Account, asking: Contract) -> None:
    """Take budget back from contracts that don't use it: a page's many destinations must not starve the next one.

    A resting contract keeps its least slice, so that its next packet passes at once, where the balance is enough for
    all to do so, and until nothing else is left to take. Where none is idle yet this looks again by itself: nobody else
    would, and the packets of who asked are held.
    """
    now = world.now.monotonic_s
    world.timers.set_if_unset(Due.LEND, account.identity, now + LEND_PAUSE_S)
    for contract in list(islice(account.lenders.values(), MOST_SHRUNK_AT_ONCE)):
        if contract is asking or now - max(contract.carried_mono_s, contract.granted_mono_s) < IDLE_S:
            if now - contract.granted_mono_s > 2 * IDLE_S:  # a slow stream: in front it would hide idle ones for ever
                account.lenders[contract.contract] = account.lenders.pop(contract.contract)
            continue
        del account.lenders[contract.contract]
        rest_msat = amount_due_msat(LEAST_SLICE_BYTES, contract.prices[-1:]) * account.running
        if contract.granted_bytes - contract.used_bytes > LEAST_SLICE_BYTES and rest_msat <= account.balance_msat:
            account.lenders[contract.contract] = contract  # behind all others
            world.shrink(contract, contract.used_bytes + LEAST_SLICE_BYTES)
        else:
            world.shrink(contract, contract.used_bytes)


def lend_due(world: World, account: Account) -> None:
    """Look again for idle budget on behalf of who waits longest; what that frees serves the others as well."""
    asking = next((one for one in account.waiting.values() if one.short and one.halting is None), None)
    if asking is not None and not asking.shrinking and _grant_more(world, account, asking):
        serve_waiting(world, account)


def _grant_more(world: World, account: Account, contract: Contract) -> bool:
    """Extend a contract in the kernel too, and let go what waited for that. Returns whether there was anything."""
    if not extend(world, account, contract):
        return False
    world.grant(contract)
    release(world, contract)
    return True


def shrunk(world: World, contract: Contract, reading: Reading | None) -> None:
    """The kernel stops a contract earlier now: what it doesn't use any more is free for others."""
    account = world.account(contract.identity, Role.SERVER)
    if reading is not None:
        usage_read(world, contract, reading)
    account.give_back(contract, max(0, contract.shrink_to_bytes - contract.used_bytes), world.credit)
    contract.shrinking = contract.short = False
    contract.slice_bytes = LEAST_SLICE_BYTES
    if not contract.grace_bytes:
        account.waiting.pop(contract.contract, None)
    world.save(contract)
    world.grant(contract)
    serve_waiting(world, account)


def _extend_on_grace(world: World, account: Account, contract: Contract, size_bytes: int, room_bytes: int) -> int:
    """Lend a slice: enough for a burst at first, but always a small share of what is left, so that a page's other
    destinations find some too."""
    settings = world.settings
    if account.grace_until_mono_s is None:
        if account.debts:
            return 0
        account.grace_until_mono_s = world.now.monotonic_s + settings.grace_time_s
        world.timers.set(Due.GRACE, account.identity, account.grace_until_mono_s)
    elif account.grace_until_mono_s <= world.now.monotonic_s:
        return 0
    left = min(
        world.credit.left_bytes(contract.link, settings.grace_data_bytes),
        settings.grace_data_bytes - account.grace_bytes_in_use,
    )
    share = left // (GRACE_SHARES if account.running > 1 else 2)
    wanted_bytes = min(room_bytes, max(LEAST_SLICE_BYTES, min(max(size_bytes, FIRST_GRACE_SLICE_BYTES), share)))
    return account.extend_on_grace(contract, wanted_bytes, left, world.credit)


def usage_read(world: World, contract: Contract, reading: Reading) -> None:
    """Charge what the kernel metered and keep the contract supplied."""
    account = world.account(contract.identity, Role.SERVER)
    before = contract.used_bytes
    due = account.charge(contract, reading.used_to_bytes, reading.used_from_bytes)
    carried = contract.used_bytes - before
    refused, contract.refused_bytes = reading.refused_bytes > contract.refused_bytes, reading.refused_bytes
    if carried <= 0:
        if refused:  # its hint was lost
            depleted(world, contract)
        return
    _rate(world, account, contract, carried, due)
    _redeem_opening(world, contract)
    world.unflushed.add(contract.contract)
    to_state(account, contract)
    world.timers.set_if_unset(Due.STATEMENT, account.identity, world.now.monotonic_s + STATEMENT_INTERVAL_S)
    if not contract.running or contract.halting is not None or contract.shrinking:
        return
    if refused or contract.granted_bytes - contract.used_bytes <= contract.slice_bytes // 2:
        _grant_more(world, account, contract)
        invoices.top_up_if_low(world, account)


def _redeem_opening(world: World, contract: Contract) -> None:
    """Give a contract's opening back, and another's, once it carried bytes that stand on paid money."""
    paid = 0 < contract.used_bytes <= contract.granted_bytes - contract.grace_bytes
    if paid and world.uncount_opening(contract):
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


def depleted(world: World, contract: Contract) -> None:
    """The kernel refused a packet at the limit: find more budget, or see whether the data is used up."""
    if contract.halting is not None or not contract.running or contract.shrinking:
        return
    account = world.account(contract.identity, Role.SERVER)
    _grant_more(world, account, contract)
    invoices.top_up_if_low(world, account)
    look_if_exhausted(world, contract)


def look_if_exhausted(world: World, contract: Contract) -> None:
    """Give the client a moment to renew a contract whose data is used up, then close it."""
    if contract.running and contract.granted_bytes >= contract.data_limit_bytes:
        world.timers.set_if_unset(Due.EXHAUSTED, contract.contract, world.now.monotonic_s + EXHAUSTED_LINGER_S)


def exhausted_due(world: World, contract: Contract) -> None:
    """Close a contract whose data is used up, unless a renewal is being agreed."""
    if contract.state is State.RENEWING:
        world.timers.set(Due.EXHAUSTED, contract.contract, world.now.monotonic_s + EXHAUSTED_LINGER_S)
    elif contract.running:
        world.halt(contract, CloseReason.EXHAUSTED)


def grace_due(world: World, account: Account) -> None:
    """Cut what runs on credit when the grace time is over: not one byte more, and what was paid for stays."""
    for contract in list(account.waiting.values()):
        for handle in contract.held:
            world.do(Decide(handle, Verdict.DROP))
        contract.held.clear()
        if contract.state is State.ACCEPTED or contract.granted_bytes <= contract.grace_bytes:
            world.halt(contract, CloseReason.UNPAID)
        elif contract.grace_bytes:
            world.shrink(contract, contract.granted_bytes - contract.grace_bytes)


def paid_for(world: World, account: Account) -> None:
    """A payment came: serve the contracts that waited for it."""
    account.redeem(world.credit)
    if account.grace_until_mono_s is None:
        world.timers.clear(Due.GRACE, account.identity)
    serve_waiting(world, account)


def serve_waiting(world: World, account: Account) -> None:
    """Extend the contracts that wait for money, those that waited longest first, while there is some."""
    dry = False  # who asks in vain takes our time, and there may be thousands
    for contract in list(account.waiting.values()):
        _redeem_opening(world, contract)
        if contract.halting is not None or contract.shrinking:
            continue
        before = (contract.granted_bytes, contract.state)
        if contract.short and not dry:
            account.waiting.pop(contract.contract)
            dry = not extend(world, account, contract)  # if it is short again it waits behind the others
            if contract.grace_bytes:
                account.waiting[contract.contract] = contract
        elif not contract.short and not contract.grace_bytes:
            account.waiting.pop(contract.contract)
        if contract.state is State.ACCEPTED and not contract.grace_bytes and contract.granted_bytes:
            world.move(contract, State.ACTIVE)
        if (contract.granted_bytes, contract.state) != before:
            world.save(contract)
            world.grant(contract)
            release(world, contract)


def halted(world: World, contract: Contract, reading: Reading | None) -> None:
    """Close the books after the kernel's last reading."""
    account = world.account(contract.identity, Role.SERVER)
    if reading is not None:
        account.charge(contract, reading.used_to_bytes, reading.used_from_bytes)
    _redeem_opening(world, contract)
    for handle in contract.held:
        world.do(Decide(handle, Verdict.DROP))
    contract.held.clear()
    owed = account.settle(contract, world.credit)
    if owed and account.debts:
        world.credit.remember_default(contract.link, owed, world.now.monotonic_s)
    account.running -= 1
    account.lenders.pop(contract.contract, None)
    account.waiting.pop(contract.contract, None)
    world.close(contract, -contract.charged_msat)
    to_state(account, contract)
    world.timers.set(Due.STATEMENT, account.identity, world.now.monotonic_s + CLOSED_WAIT_S)
    world.forget_if_gone(contract.identity)
    neighbour = world.neighbour_of(contract)
    if neighbour is not None:
        world.send(neighbour, Cancel(contract.contract, contract.reason))


def late_bytes(world: World, contract: Contract, reading: Reading) -> None:
    """Charge bytes that another CPU let pass while a contract was halted: granted, carried and owed."""
    account = world.account(contract.identity, Role.SERVER)
    if account.charge(contract, reading.used_to_bytes, reading.used_from_bytes):
        world.save(contract)
        to_state(account, contract)
        world.timers.set_if_unset(Due.STATEMENT, account.identity, world.now.monotonic_s + STATEMENT_INTERVAL_S)
