"""Restore: begin where the last process ended, out of the ledger and what the kernel went on doing meanwhile.

The kernel is ahead of the ledger by what was metered since the last write: its counters are charged, so that nothing is
lost, and they are cumulative, so that nothing is counted twice. After a reboot the kernel knows nothing and the
ledger's counters are the base. Contracts that the ledger doesn't know are taken out: nobody agreed to them.
"""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_network
from operator import attrgetter

from ngp.core import bills, buyer, grace, invoices, metering
from ngp.core.account import Account, Credit
from ngp.core.contract import CloseReason, Contract, State
from ngp.core.effects import Effect, ForgetAccount, Persist, RevokeContract
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.messages import Role
from ngp.core.records import (
    AccountRecord,
    ContractRecord,
    Direction,
    ForgetLink,
    NeighbourRecord,
    PaymentKind,
    PaymentState,
    Snapshot,
)
from ngp.core.statements import to_state
from ngp.core.timers import Due
from ngp.core.topups import REMEMBERED_S
from ngp.core.values import UNITS_PER_MSAT, Adopted, AdoptedAccount, AdoptedContract, Grant, Now
from ngp.core.world import Neighbour, World

FORGET_NEIGHBOUR_S = 30 * 86400
SAME_END_S = 2.0  # the ledger has whole seconds
_PASSING = ("expires_in_s", "used_to_base_bytes", "used_from_base_bytes")  # what differs from a grant to its next
_KEPT = attrgetter(*(field.name for field in fields(Grant) if field.name not in _PASSING))


def restore(gatekeeper: Gatekeeper, snapshot: Snapshot, adopted: Adopted, now: Now) -> list[Effect]:
    """Rebuild the world.

    Args:
        gatekeeper: a fresh one.
        snapshot: what the ledger holds.
        adopted: what was found running in the kernel.
        now: when.

    Returns:
        What is to be done, as `Gatekeeper.step` does.
    """
    world = gatekeeper.world
    world.now, world.effects = now, []
    running = {found.grant.contract: found for found in adopted.contracts}
    world.cursor = snapshot.cursor
    world.blocked = set(snapshot.blocked)
    for record in snapshot.accounts:
        _account(world, record)
    _neighbours(world, snapshot, {contract: found.grant.neighbour for contract, found in running.items()})
    found_as_is: set[bytes] = set()
    for contract_record in snapshot.contracts:
        if contract_record.role is Role.CLIENT and contract_record.used_to_bytes:
            world.account(contract_record.identity, Role.CLIENT).sent = True
        if not contract_record.closed_at_s:
            found = running.pop(contract_record.contract, None)
            contract = _contract(world, contract_record, found)
            if found is not None and _is_as_found(world, contract, found):
                found_as_is.add(contract.contract)
    for left_over in running:
        world.do(RevokeContract(left_over))
    _payments(world, snapshot)
    _limits(world, snapshot, adopted, found_as_is)
    gatekeeper.flush()
    return world.effects


def _neighbours(world: World, snapshot: Snapshot, numbers: dict[bytes, int]) -> None:
    """Put neighbours back, under the numbers that the kernel has for them."""
    number_of = {
        (record.identity, (record.interface, record.link_address)): numbers[record.contract]
        for record in snapshot.contracts
        if record.contract in numbers
    }
    forgotten: list[NeighbourRecord] = []
    needed = {(record.identity, (record.interface, record.link_address)) for record in snapshot.contracts}
    for record in snapshot.neighbours:
        key = (record.identity, (record.interface, record.link_address))
        if key not in needed and record.last_seen_s < world.now.utc_s - FORGET_NEIGHBOUR_S:
            forgotten.append(record)
            continue
        neighbour = Neighbour(
            identity=record.identity,
            link=key[1],
            number=number_of.get(key) or world.next_number(),
            kept=True,
            sells=record.sells,
            buys=record.buys,
            boot=record.boot,
            first_seen_s=record.first_seen_s,
            last_seen_s=record.last_seen_s,
        )
        world.add_neighbour(neighbour)
        standing = world.by_link.get(key[1])
        if standing is None or standing.last_seen_s < neighbour.last_seen_s:
            world.by_link[key[1]] = neighbour
    for neighbour in world.by_link.values():
        world.tell_kernel(neighbour)
    for record in forgotten:  # by the ledger, too; what there is of money and blocks stays
        world.do(Persist(ForgetLink(record.identity, record.interface, record.link_address)))
        world.forget_if_gone(record.identity)


def _account(world: World, record: AccountRecord) -> None:
    account = world.account(record.identity, record.role)
    account.paid_msat = record.paid_msat
    account.charged_msat = record.charged_msat
    account.refunded_msat = record.refunded_msat
    account.billed_msat = record.billed_msat
    account.disputed = record.disputed
    account.metered_msat, account.tolerated_msat = record.metered_msat, record.tolerated_msat


def _contract(world: World, record: ContractRecord, found: AdoptedContract | None) -> Contract:
    link = (record.interface, record.link_address)
    neighbour = world.neighbours.get((record.identity, link))
    contract = Contract(
        contract=record.contract,
        role=record.role,
        identity=record.identity,
        link=link,
        neighbour=neighbour.number if neighbour is not None else world.next_number(),
        destination=ip_network(record.destination) if found is None else found.grant.destination,
        prices=list(record.prices),
        data_limit_bytes=record.data_limit_bytes,
        lifetime_s=record.lifetime_s,
        state=State(record.state),
        reason=record.reason,
        used_to_bytes=record.used_to_bytes,
        used_from_bytes=record.used_from_bytes,
        charged_msat=record.charged_msat,
        billed_bytes=record.billed_bytes,
        opened_at_s=record.opened_at_s,
        expires_at_s=record.expires_at_s,
    )
    if contract.state is State.RENEWING:
        contract.state = State.ACTIVE
    left_s = min(record.expires_at_s - world.now.utc_s, record.lifetime_s)
    account = world.account(contract.identity, contract.role)
    account.running += 1
    world.add_contract(contract)
    contract.carried_mono_s = world.now.monotonic_s
    contract.meter_lost = True  # by a reboot or stop, now or at a start before this one that no bill has followed yet
    if found is not None:
        _charge_missed(world, account, contract, found)
    contract.expires_mono_s = world.now.monotonic_s + max(0, left_s)
    world.watch_end(contract)
    if not contract.used_bytes:
        world.count_opening(contract)
    if contract.role is Role.CLIENT and not world.settings.never_renews:
        world.timers.set(Due.RENEWAL, contract.contract, min(contract.expires_mono_s, world.now.monotonic_s + 1.0))
    if contract.role is Role.SERVER:
        account.priced += contract.price_msat_per_gib > 0
        if found is not None and found.reading.exhausted:
            metering.look_if_exhausted(world, contract)  # the kernel told it while nobody listened
    if contract.role is Role.CLIENT:
        contract.tolerated_msat = bills.first_packets_msat(contract)  # stands in the account's sum
        world.grant(contract)
        if contract.identity in world.blocked:  # we died before the kernel's last reading closed it
            bills.disown(world, contract)
    return contract


def _is_as_found(world: World, contract: Contract, found: AdoptedContract) -> bool:
    """Say whether the kernel has just this contract, so that a start with many need not write them all again."""
    wanted = world.kernel_grant(contract)
    same_end = abs(found.grant.expires_in_s - wanted.expires_in_s) <= SAME_END_S
    return same_end and _KEPT(found.grant) == _KEPT(wanted)


def _charge_missed(world: World, account: Account, contract: Contract, found: AdoptedContract) -> None:
    reading = found.reading
    if reading.used_to_bytes + reading.used_from_bytes <= contract.used_bytes:
        return  # the ledger knows all of it; its client is told at the end at the latest
    if contract.role is Role.SERVER:
        account.charge(contract, reading.used_to_bytes, reading.used_from_bytes)
        to_state(account, contract)
    else:
        buyer.meter(world, contract, reading)
    world.unflushed.add(contract.contract)


def _limits(world: World, snapshot: Snapshot, adopted: Adopted, found_as_is: set[bytes]) -> None:
    """Put what clients may spend back into the kernel, then their contracts.

    What an account spent was read before its contracts were, and these have been charged: so the limit is exact.
    """
    running: dict[bytes, list[Contract]] = {}
    for contract in world.contracts.values():
        if contract.role is Role.SERVER:
            running.setdefault(contract.identity, []).append(contract)
    found = {one.limit.account: one for one in adopted.accounts}
    for record in snapshot.accounts:
        if record.role is Role.SERVER:
            contracts = running.pop(record.identity, [])
            _limit(world, record, contracts, found.pop(record.identity, None))
            for contract in contracts:
                if world.neighbour_of(contract) is None or contract.identity in world.blocked:
                    world.halt(contract, CloseReason.CANCELLED)
                elif contract.contract not in found_as_is:
                    world.grant(contract)
    for identity in found:
        world.do(ForgetAccount(identity))


def _limit(world: World, record: AccountRecord, contracts: list[Contract], found: AdoptedAccount | None) -> None:
    account = world.account(record.identity, Role.SERVER)
    for contract in contracts:
        if contract.state is State.ACCEPTED:
            grace.accepted_unpaid(world, account, contract)
    if account.debt_msat:
        _restore_credit(world, account, record, contracts)
    if found is not None and contracts:
        account.count_from(found.reading.spent_units, contracts)
        account.told = (found.limit.limit_units, found.limit.credit_units, 0.0)
    if found is not None and found.reading.exhausted:
        metering.lend(world, account)
    if found is not None or contracts:
        world.limit(account)


def _restore_credit(world: World, account: Account, record: AccountRecord, contracts: list[Contract]) -> None:
    """Count what is owed as grace used, whose time goes on; what nobody used was only offered, and is offered anew.

    An older ledger has not kept how much it was, nor at which price: then it is what is owed, and no more.
    """
    price = record.grace_price_msat_per_gib or max(1, world.settings.sell_msat_per_gib)
    owed_bytes = -(-account.debt_msat * UNITS_PER_MSAT // price)
    left_s = min(record.grace_until_s - world.now.utc_s, world.settings.grace_time_s)  # clocks are set back, too
    links = {contract.link for contract in contracts} or set(world.by_identity.get(account.identity, ()))
    account.credit = credit = Credit(
        data_bytes=record.grace_data_bytes or min(owed_bytes, world.settings.grace_data_bytes),
        price_msat_per_gib=price,
        until_mono_s=world.now.monotonic_s + max(0, left_s),
        links=links or {("", b"")},
    )
    for link in credit.links:
        world.credit.change(link, credit.data_bytes)
    world.timers.set(Due.CREDIT, account.identity, credit.until_mono_s)
    if left_s <= 0:
        grace.end(world, account, credit)


def _payments(world: World, snapshot: Snapshot) -> None:
    world.forgotten_s = snapshot.forgotten_s
    for payment in snapshot.payments:
        if payment.direction is Direction.IN:
            world.invoices[payment.payment_hash] = payment
            world.timers.set(Due.INVOICE, payment.payment_hash, world.now.monotonic_s + REMEMBERED_S)
            if payment.state is PaymentState.OPEN:
                world.timers.set(Due.INVOICE, payment.payment_hash, world.now.monotonic_s + invoices.OPEN_S)
                if payment.kind is not PaymentKind.MANUAL:
                    role = Role.SERVER if payment.kind is PaymentKind.TOP_UP else Role.CLIENT
                    world.account(payment.identity, role).invoice = payment.payment_hash
        else:
            world.payments[payment.payment_hash] = payment
            world.timers.set(Due.TRACK, payment.payment_hash, world.now.monotonic_s + REMEMBERED_S)
            if payment.state is PaymentState.PENDING:
                world.timers.set(Due.TRACK, payment.payment_hash, world.now.monotonic_s)
                if payment.kind is PaymentKind.REFUND:
                    world.account(payment.identity, Role.SERVER).refunding_msat += payment.amount_msat
            spent_at = max(payment.created_at_s, payment.settled_at_s)
            if payment.state in (PaymentState.PENDING, PaymentState.SUCCEEDED):
                world.spending.recent.append((spent_at, payment.amount_msat + payment.fee_msat))
    world.spending.recent = type(world.spending.recent)(sorted(world.spending.recent))
    world.spending.total_msat = snapshot.spent_total_msat
    for identity, amount in snapshot.spent_by_neighbour_msat:
        world.spending.by_neighbour[identity] = amount
