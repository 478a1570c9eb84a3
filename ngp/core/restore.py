"""Restore: continue where the last process ended, from the ledger and from what the kernel carried meanwhile.

The kernel is ahead of the ledger by what it metered since the last write. The kernel's counters are charged, so that
nothing is lost; they are cumulative, so that nothing is counted twice. After a reboot the kernel knows nothing, and
counting goes on from the ledger's counters. Contracts that the ledger doesn't know are removed: nobody agreed to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from operator import attrgetter

from ngp.core import default_resale, invoices, unsold
from ngp.core.buying import bills, default_route, endings, service
from ngp.core.buying import metering as buyer_meter
from ngp.core.buying.account import ServerAccount
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import IN_USE_S, CloseReason, State
from ngp.core.effects import Effect, ForgetAccount, Persist, RevokeContract
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import Adopted, AdoptedAccount, AdoptedContract, LastingTerms, MeshRoutes
from ngp.core.messages import Role
from ngp.core.peers import Link, Neighbour
from ngp.core.prefixes import PackedPrefix
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
from ngp.core.rental import landlord
from ngp.core.reputation import Reputation
from ngp.core.selling import endings as seller_endings
from ngp.core.selling import grace
from ngp.core.selling import metering as seller_meter
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.selling.statements import add_to_statement
from ngp.core.timers import Due
from ngp.core.topups import REMEMBERED_S
from ngp.core.values import DAY_S, Now
from ngp.core.world import World

FORGET_NEIGHBOUR_S = 30 * DAY_S
SAME_END_S = 10.0
"""A contract's end in the kernel and its end in the ledger count as the same if they differ by no more than this.

The ledger has whole seconds, and a start with very many contracts grants the last ones late.
"""
_LASTING = attrgetter(*LastingTerms._fields)


def restore(
    gatekeeper: Gatekeeper, snapshot: Snapshot, adopted: Adopted, now: Now, routes: Sequence[MeshRoutes] = ()
) -> list[Effect]:
    """Rebuild the world.

    Args:
        gatekeeper: a new one, with an empty world.
        snapshot: what the ledger holds.
        adopted: what was found running in the kernel.
        now: the present time, UTC and monotonic.
        routes: the host's routes into the mesh, if it may resell a default route.

    Returns:
        The effects to carry out, as from `Gatekeeper.step`.
    """
    world = gatekeeper.world
    world.now, world.effects = now, []
    world.room = adopted.room
    running = {found.grant.contract: found for found in adopted.contracts}
    world.money.cursor = snapshot.cursor
    world.peers.blocked = set(snapshot.blocked)
    for record in snapshot.accounts:
        _account(world, record)
    _neighbours(world, snapshot, running)
    bought_for = {one.rests_on: one.identity for one in snapshot.contracts if one.role is Role.SERVER}
    found_as_is: set[bytes] = set()
    halting: list[Sale | Purchase] = []
    for contract_record in sorted(snapshot.contracts, key=attrgetter("closed_at_s")):
        if contract_record.role is Role.CLIENT and contract_record.used_to_bytes:
            world.server(contract_record.identity).sent = True
        if not contract_record.closed_at_s:
            found = running.pop(contract_record.contract, None)
            contract = _contract(world, contract_record, found, bought_for.get(contract_record.contract, b""))
            if found is not None and _is_as_found(world, contract, found, adopted.at_mono_s):
                found_as_is.add(contract.id)
            elif isinstance(contract, Purchase):  # sales follow when their clients' accounts have limits
                world.grant(contract)
            if contract_record.state == State.HALTING:
                halting.append(contract)
        elif contract_record.role is Role.SERVER:
            seller_endings.restore(world, contract_record)
    _payments(world, snapshot)
    world.letting.others = snapshot.others
    accounts = {found.limit.account: found for found in adopted.accounts}
    landlord.restore(world, snapshot.rentals, snapshot.service, running, accounts)
    for left_over in running.keys() - world.letting.metered.keys():
        world.do(RevokeContract(left_over))
    _limits(world, snapshot, accounts, adopted.at_mono_s, found_as_is)
    for contract in halting:  # the last process died before the kernel's last reading closed them
        if isinstance(contract, Purchase):
            contract.disowned = contract.reason == CloseReason.CANCELLED  # its server may not have heard of it
            endings.restore(world, contract, contract.id in bought_for)
        world.halt(contract, CloseReason(contract.reason))
    _outlive(world, snapshot)
    _ask_anew(world, snapshot, bought_for)
    default_route.switched(world)
    default_resale.routes_seen(world, routes)
    default_resale.settle(world)
    gatekeeper.flush()
    return world.effects


def _neighbours(world: World, snapshot: Snapshot, running: dict[bytes, AdoptedContract]) -> None:
    """Restore the neighbours, with the numbers that the kernel has for them."""
    number_of: dict[tuple[bytes, Link], int | None] = {}  # None: the kernel has no contract of this neighbour
    for contract in snapshot.contracts:
        key = (contract.identity, (contract.interface, contract.link_address))
        if number_of.get(key) is None:
            found = running.get(contract.contract)
            number_of[key] = found.grant.neighbour if found is not None else None
    forgotten: list[NeighbourRecord] = []
    for record in snapshot.neighbours:
        key = (record.identity, (record.interface, record.link_address))
        if key not in number_of and record.last_seen_s < world.now.utc_s - FORGET_NEIGHBOUR_S:
            forgotten.append(record)
            continue
        neighbour = Neighbour(
            identity=record.identity,
            link=key[1],
            number=number_of.get(key) or world.peers.next_number(),
            kept=True,
            sells=record.sells,
            buys=record.buys,
            boot=record.boot,
            first_seen_s=record.first_seen_s,
            last_seen_s=record.last_seen_s,
        )
        world.peers.add(neighbour)
        existing = world.peers.by_link.get(key[1])
        if existing is None or existing.last_seen_s < neighbour.last_seen_s:
            world.peers.by_link[key[1]] = neighbour
    for neighbour in world.peers.by_link.values():
        world.tell_kernel(neighbour)
    for record in forgotten:  # the ledger forgets these links too; accounts with money and blocks stay
        world.do(Persist(ForgetLink(record.identity, record.interface, record.link_address)))
        world.forget_if_gone(record.identity)


def _outlive(world: World, snapshot: Snapshot) -> None:
    """Note the purchases that may have outlived those who bought from us: what they bring may be for nobody."""
    for record in snapshot.contracts:
        purchase = world.running_purchase(record.rests_on) if record.role is Role.SERVER else None
        if purchase is not None:
            purchase.needed_at = purchase.unsold_bytes, purchase.ours_bytes


def _ask_anew(world: World, snapshot: Snapshot, bought_for: Mapping[bytes, bytes]) -> None:
    """Ask anew for what ended by itself a moment ago: the last process may have died before it could ask."""
    for record in snapshot.contracts:
        is_recent = 0 <= world.now.utc_s - record.closed_at_s <= IN_USE_S
        if record.role is Role.CLIENT and is_recent:
            purchase = Purchase.of_record(record, *_place(world, record, None))
            purchase.rate.at_mono_s = world.now.monotonic_s
            endings.restore(world, purchase, purchase.id in bought_for)


def _account(world: World, record: AccountRecord) -> None:
    if record.role is Role.SERVER:
        account: ClientAccount | ServerAccount = world.client(record.identity)
    else:
        account = server = world.server(record.identity)
        server.billed_msat, server.disputed = record.billed_msat, record.disputed
        server.metered_msat, server.tolerated_msat = record.metered_msat, record.tolerated_msat
        service.restore(world, server, record.unseen_payments, record.served_msat)
    account.paid_msat = record.paid_msat
    account.charged_msat = record.charged_msat
    account.refunded_msat = record.refunded_msat
    account.reputation = Reputation(record.reputation_ppm, record.reputation_at_s)


def _contract(world: World, record: ContractRecord, found: AdoptedContract | None, client: bytes) -> Sale | Purchase:
    """Restore a contract, and charge what it carried while no daemon ran.

    Args: client: a client for which it was bought; b"": it is a sale, or we bought it for ourselves.
    """
    contract = _sale(world, record, found) if record.role is Role.SERVER else _purchase(world, record, found)
    contract.opened_for = client
    if not contract.used_bytes:
        world.count_opening(contract)
        # The kernel can't tell if it has forgotten all, or blocks all, as when the last process died while it stopped.
        if isinstance(contract, Sale) and (found is None or found.grant.blocked):
            contract.unbought = contract.state is State.ACCEPTED and bool(contract.rests_on)
    return contract


def _sale(world: World, record: ContractRecord, found: AdoptedContract | None) -> Sale:
    sale = Sale.of_record(record, *_place(world, record, found))
    account = world.client(sale.identity)
    account.priced += sale.priced
    _begin_again(world, sale)
    account.running += 1
    if found is None:
        return sale
    if found.reading.exhausted:
        seller_meter.look_if_exhausted(world, sale)  # the kernel's hint came while no daemon ran
    if account.charge(sale, found.reading):
        add_to_statement(account, sale)
        world.save_later(sale.id)
    return sale


def _purchase(world: World, record: ContractRecord, found: AdoptedContract | None) -> Purchase:
    purchase = Purchase.of_record(record, *_place(world, record, found))
    purchase.billed_bytes = record.billed_bytes
    purchase.meter_lost = True  # a reboot or stop may have stopped our meter, and no bill has come since
    _begin_again(world, purchase)
    account = world.server(purchase.identity)
    account.running += 1
    if purchase.state is State.ACCEPTED:
        account.unpaid[purchase.id] = purchase
    if found is not None and found.reading.used_bytes > purchase.used_bytes:
        came_back = found.reading.used_from_bytes > purchase.used_from_bytes
        buyer_meter.meter(world, purchase, found.reading)
        if came_back:  # else a daemon that was killed wouldn't pay a server that waits for a payment
            account.seen.served_msat = max(account.seen.served_msat, account.metered_msat + account.tolerated_msat)
        world.save_later(purchase.id)
    purchase.sold_to_bytes, purchase.sold_from_bytes = purchase.used_to_bytes, purchase.used_from_bytes
    if not world.settings.never_renews:
        world.timers.set(Due.RENEWAL, purchase.id, min(purchase.expires_mono_s, world.now.monotonic_s + 1.0))
    if purchase.identity in world.peers.blocked:  # the last process died before the kernel's last reading closed it
        bills.disown(world, purchase)
    return purchase


def _place(
    world: World, record: ContractRecord, found: AdoptedContract | None
) -> tuple[bytes, Link, int, PackedPrefix]:
    """Return a contract's neighbour, its link, the link's number, and the contract's destination."""
    destination = PackedPrefix.of(ip_network(record.destination)) if found is None else found.grant.destination
    identity, link = record.identity, (record.interface, record.link_address)
    neighbour = world.peers.neighbours.get((identity, link))
    if neighbour is None:
        return identity, link, world.peers.next_number(), destination
    return neighbour.identity, neighbour.link, neighbour.number, destination


def _begin_again(world: World, contract: Sale | Purchase) -> None:
    """Enter a contract with what is left of its lifetime, which went on while no daemon ran."""
    left_s = min(contract.expires_at_s - world.now.utc_s, contract.lifetime_s)
    contract.rate.at_mono_s = world.now.monotonic_s
    contract.expires_mono_s = world.now.monotonic_s + max(0, left_s)
    contract.begun_mono_s = contract.expires_mono_s - contract.lifetime_s
    world.add_contract(contract)
    world.watch_end(contract)


def _is_as_found(world: World, contract: Sale | Purchase, found: AdoptedContract, at_mono_s: float) -> bool:
    """Say whether the kernel has exactly this contract: a start with many contracts need not write them all again.

    Args: at_mono_s: when it was found.
    """
    same_end = abs(at_mono_s + found.grant.expires_in_s - contract.expires_mono_s) <= SAME_END_S
    return same_end and _LASTING(found.grant) == world.lasting_terms(contract)


def _limits(
    world: World, snapshot: Snapshot, found: dict[bytes, AdoptedAccount], at_mono_s: float, found_as_is: set[bytes]
) -> None:
    """Restore clients' limits in the kernel, then their contracts.

    What an account spent in the kernel was read before its contracts' counters, and by now these have been charged. So
    the charges include all that was spent, and the limit that is computed from both is exact.
    """
    running: dict[bytes, list[Sale]] = {}
    waited = list[Sale]()
    for contract in world.contracts.values():
        if isinstance(contract, Sale):
            running.setdefault(contract.identity, []).append(contract)
    for record in snapshot.accounts:
        if record.role is Role.SERVER and record.identity not in world.letting.rentals:
            contracts = running.pop(record.identity, [])
            _limit(world, record, contracts, found.pop(record.identity, None), at_mono_s)
            blocked, links = record.identity in world.peers.blocked, world.peers.by_identity.get(record.identity, {})
            for contract in contracts:
                purchase = world.running_purchase(contract.rests_on)
                contract.seller = b"" if purchase is None else purchase.identity
                if blocked or contract.link not in links:
                    world.halt(contract, CloseReason.CANCELLED)
                elif contract.rests_on and purchase is None:
                    world.halt(contract, CloseReason.UPSTREAM)  # it was agreed, but not bought yet
                elif purchase is not None and contract.least_msat_per_gib < purchase.highest_msat_per_gib:
                    world.halt(contract, CloseReason.UPSTREAM)  # it was about to end when the last process died
                elif contract.unbought:
                    waited.append(contract)
                elif contract.id not in found_as_is:
                    world.grant(contract)
    # Those with credit first: what they rest on may have been bought for them.
    for contract in sorted(waited, key=lambda one: world.client(one.identity).credit is None):
        seller_meter.release(world, contract, is_new=True)
    for account in list(world.clients.values()):  # when all old credits count on their links
        seller_meter.use_funds(world, account.identity)
        # The kernel refused a packet; or nothing passes, so it won't hint.
        if account.is_out or any(contract.unbought for contract in account.unpaid.values()):
            world.timers.set(Due.INVOICE, account.identity, world.now.monotonic_s + invoices.RETRY_S)
            seller_meter.lend(world, account)
            world.limit(account)
        if account.is_out:
            unsold.exhausted(world, account)
    for identity in found:
        rental = world.letting.rentals.get(identity)
        if rental is None or not rental.meter.is_in_kernel:
            world.do(ForgetAccount(identity))


def _limit(
    world: World, record: AccountRecord, contracts: list[Sale], found: AdoptedAccount | None, at_mono_s: float
) -> None:
    account = world.client(record.identity)
    unpaid = [contract for contract in contracts if contract.state is State.ACCEPTED]
    for contract in unpaid:
        grace.accepted_unpaid(world, account, contract)
    link = record.grace_interface, record.grace_link_address
    known = unpaid or contracts or world.peers.links_of(account.identity)
    if not record.grace_interface and known:  # of an older version; most likely the first that waits opened the credit
        link = known[0].link
    lasts_s = float(record.grace_until_s - world.now.utc_s)
    if found is not None and found.limit.credit_units:
        lasts_s = at_mono_s + found.limit.credit_ends_in_s - world.now.monotonic_s
    elif found is not None:
        lasts_s = min(0.0, lasts_s)  # when it ended, only the ledger knows
    grace.restore(world, account, record, link, lasts_s)
    if found is not None:
        account.count_from(found.reading.spent_units, contracts)
        account.kernel.told = (found.limit.limit_units, found.limit.credit_units, 0.0)
        account.is_out = found.reading.exhausted
    if found is not None or contracts:
        world.limit(account)


def _payments(world: World, snapshot: Snapshot) -> None:
    for payment in snapshot.payments:
        if payment.direction is Direction.IN:
            world.money.invoices[payment.payment_hash] = payment
            world.timers.set(Due.INVOICE, payment.payment_hash, world.now.monotonic_s + REMEMBERED_S)
            if payment.state is PaymentState.OPEN:
                open_s, letting = invoices.OPEN_S, world.settings.letting
                if payment.kind is PaymentKind.RENT and letting is not None:
                    open_s = letting.invoice_s + invoices.LATE_S
                world.timers.set(Due.INVOICE, payment.payment_hash, world.now.monotonic_s + open_s)
                if payment.kind is not PaymentKind.MANUAL:
                    account = invoices.account_for(world, payment.kind, payment.identity)
                    account.invoice.payment_hash = payment.payment_hash
        else:
            world.money.payments[payment.payment_hash] = payment
            world.timers.set(Due.TRACK, payment.payment_hash, world.now.monotonic_s + REMEMBERED_S)
            if payment.state is PaymentState.PENDING:
                world.timers.set(Due.TRACK, payment.payment_hash, world.now.monotonic_s)
                if payment.kind is PaymentKind.REFUND:
                    world.client(payment.identity).refund.promised_msat += payment.amount_msat
            spent_at = max(payment.created_at_s, payment.settled_at_s)
            if payment.state in (PaymentState.PENDING, PaymentState.SUCCEEDED):
                world.money.spending.note(payment.amount_msat + payment.fee_msat, spent_at, world.now)
    world.money.spending.total_msat = snapshot.spent_total_msat
    for identity, amount in snapshot.spent_by_neighbour_msat:
        world.money.spending.by_neighbour[identity] = amount
