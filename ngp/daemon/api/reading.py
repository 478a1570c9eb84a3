"""Reading: answers about a running node. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ngp import __version__, identity
from ngp.config import parse
from ngp.core.buying import choosing, service
from ngp.core.channels import Channel
from ngp.core.events import ChannelsSeen
from ngp.core.networks import is_same
from ngp.core.peers import Neighbour
from ngp.core.rental.rental import RentalState
from ngp.core.settings import FULL_PPM, Settings
from ngp.core.standing import reputation_ppm
from ngp.core.values import Check
from ngp.daemon import checkup, evidence, lightning
from ngp.daemon.api import books
from ngp.daemon.api.plain import instant
from ngp.daemon.api.rentals import OfferRow, RentalRow, letting_status, offer_row, rental_row
from ngp.daemon.api.rows import (
    MOST_TOP,
    AccountRow,
    ChannelRow,
    CheckRow,
    ContractRow,
    JournalRow,
    NeighbourRow,
    OfferedRow,
    RouteRow,
    WatchRow,
    account_row,
    channel_row,
    check_row,
    contract_row,
    on_their_way,
    watch_row,
)
from ngp.daemon.api.status import (
    Counters,
    LedgerStatus,
    LightningStatus,
    NotToppedUp,
    PaymentStatus,
    QueueStatus,
    Status,
)
from ngp.daemon.node import Node
from ngp.errors import KernelError, PaymentError
from ngp.ports import ChannelManager, Network, TowerManager
from ngp.ports.letting import PeerReading
from ngp.ports.network import HostBytes
from ngp.ports.payment import Watch

BOOKS_S = 5.0


class Reading:
    """Answers about one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._world = node.parts.gatekeeper.world

    def status(self) -> Status:
        """Describe the daemon."""
        node, parts, world = self._node, self._node.parts, self._world
        counters = parts.network.counters()
        return Status(
            version=__version__,
            uptime_s=int(parts.clock.now().monotonic_s - node.started_mono_s),
            identity=identity.text(node.identity),
            interfaces=node.host.desired.mesh_interfaces,
            upstream_interfaces=node.host.desired.upstream_interfaces,
            lan_interfaces=node.host.desired.lan_interfaces,
            upstream_load=world.load_ppm / FULL_PPM,
            queue=QueueStatus(counters.get("held", 0), counters.get("dropped", 0)),
            datapath=parts.network.describe(),
            payment=self._payment(),
            ledger=LedgerStatus(not node.loop.ledger_why_not, node.loop.ledger_why_not or None),
            contracts=len(world.contracts),
            neighbours=len(world.peers.by_link),
            not_topped_up=self._not_topped_up(),
            routes=self._routes(),
            letting=letting_status(world, node.landlord.tunnel.describe() if node.landlord is not None else {}),
            counters=Counters(node.post.counters(), dict(world.counters), counters),
        )

    def _payment(self) -> PaymentStatus:
        why_not, means = self._node.payment.why_not, self._world.node
        return PaymentStatus(
            module=self._node.settings.payment_module,
            ready=not why_not,
            why_not=why_not or None,
            network=means.network,
            real_money=means.real_money,
            on_their_way=sum(map(len, on_their_way(self._world.money.payments.values()).values())),
        )

    def _not_topped_up(self) -> tuple[NotToppedUp, ...]:
        return tuple(
            NotToppedUp(identity.short_text(account.identity), account.role.value, account.why_not)
            for account in self._world.accounts
            if account.why_not and account.running
        )

    def _routes(self) -> tuple[RouteRow, ...]:
        found = []
        for prefix, router, neighbour in choosing.chosen(self._world):
            who = identity.text(neighbour.identity) if neighbour is not None else None
            address = str(router.address) if router.address is not None else None
            found.append(RouteRow(str(prefix), router.interface, address, who))
        return tuple(found)

    def inside(self) -> dict[bytes, list[HostBytes]]:
        """Return, by running contract for several addresses, what it carried to those with the most bytes."""
        return self._node.parts.network.inside(MOST_TOP)

    async def check(self, text: str | None = None, path: Path = Path()) -> list[CheckRow]:
        """Check the host with the daemon's rights, in its network namespace.

        Args: text, path: of a net.conf whose settings are checked, in place of those in force.
        """
        node, wanted = self._node, self._node.settings
        if text is not None:  # in a thread: a long file would block the loop
            wanted = await asyncio.to_thread(parse, text, path)
        began_s, before = time.monotonic(), self._look_at_traffic()
        checks = await node.host.aside(lambda network: self._host_as(wanted, network))
        if wanted.letting is not None:
            checks += await asyncio.to_thread(node.parts.check_letting, wanted.letting)
        checks += checkup.rentals(self._world.letting, wanted)
        if wanted.buys:
            hops = await node.host.aside(lambda network: network.next_hops(node.host.desired))
            checks += checkup.strange_hops(self._world, hops)
            ways = await node.host.aside(lambda network: checkup.routers_to_free(wanted, network, node.host.desired))
            checks += checkup.free_beyond(ways, self._world)
        payment = await checkup.payment(node.settings, wanted, node.parts.payment, node.payment.why_not)
        checks += [*payment, *checkup.neighbours(self._world, node.host.desired.mesh_interfaces)]
        checks += [*checkup.unheard(self._world, node.parts.clock.now()), *checkup.accounts(self._world)]
        if before.is_doubtful:
            await asyncio.sleep(began_s + evidence.APART_S - time.monotonic())
            checks += evidence.compare(before, self._look_at_traffic())
        checks.append(checkup.health("ledger", node.loop.ledger_why_not, "can be written"))
        if not node.loop.ledger_why_not:  # in a thread: adding up years of records would block the loop
            checks.append(await asyncio.to_thread(checkup.books, node.parts.store, BOOKS_S))
        checks.append(checkup.effect(node.settings, wanted))
        kinds = {**{one.name: "payment" for one in payment}, "ledger": "ledger", "books": "ledger"}
        return [check_row(one, kinds.get(one.name, "kernel")) for one in checks]

    def _look_at_traffic(self) -> evidence.Seen:
        self._node.loop.refresh()
        return evidence.look(self._world, self._node.parts.clock.now(), self._node.parts.network.uncovered())

    def _host_as(self, wanted: Settings, network: Network) -> list[Check]:
        """Check the host for a file's settings.

        Args: network: another instance of the network module than the daemon's, which has the queue open.
        """
        node = self._node
        checks = checkup.network(wanted, network, node.parts.make_links(wanted), node.host.node_addresses)
        return checks + network.taken(replace(node.host.desired, queue_number=wanted.queue_number))

    def contracts(self, include_closed: bool) -> Iterator[ContractRow]:
        """List contracts, with fresh readings of the meter."""
        self._node.loop.refresh()
        return self._contracts(include_closed)

    def _contracts(self, include_closed: bool) -> Iterator[ContractRow]:
        real, now_mono_s = self._world.node.real_money, self._node.parts.clock.now().monotonic_s
        live = [contract for contract in self._world.contracts.values() if contract.opened_at_s]
        for contract in live:
            yield contract_row(contract, real, now_mono_s)
        if include_closed:
            known = {contract.id.hex() for contract in live}
            rows = books.contracts(self._node.parts.ledger, True, real)
            yield from (row for row in rows if row.id not in known)

    def accounts(self) -> list[AccountRow]:
        """List accounts, with fresh readings of the meter."""
        self._node.loop.refresh()
        real, grace_data_bytes = self._world.node.real_money, self._node.settings.grace_data_bytes
        under_way = on_their_way(self._world.money.payments.values())
        rentals = self._world.letting.rentals
        return [
            account_row(
                account, real, under_way.get((account.identity, account.role), ()), grace_data_bytes,
                rentals[account.identity].networks if account.identity in rentals else (),
            )
            for account in self._world.accounts
        ]  # fmt: skip

    def neighbours(self) -> list[NeighbourRow]:
        """List neighbours, and blocked ones even if they are on no link."""
        world, now = self._world, self._node.loop.blocked
        waits = world.peers.blocked ^ now
        gone = sorted((world.peers.blocked | now) - world.peers.by_identity.keys())
        chosen_for: dict[Neighbour | None, list[str]] = {}
        for prefix, _, who in choosing.chosen(world):
            chosen_for.setdefault(who, []).append(str(prefix))
        return [
            *(self._neighbour(each, now, waits, chosen_for.get(each, ())) for each in world.peers.neighbours.values()),
            *(NeighbourRow(identity.text(who), blocked=who in now, block_waits=who in waits) for who in gone),
        ]

    def _neighbour(
        self, neighbour: Neighbour, blocked: Set[bytes], waits: Set[bytes], chosen_for: Iterable[str]
    ) -> NeighbourRow:
        world = self._world
        return NeighbourRow(
            neighbour=identity.text(neighbour.identity),
            interface=neighbour.link[0],
            link_address=neighbour.link[1].hex(":"),
            address=self._node.post.transport(neighbour.link),
            network=neighbour.network,
            same_network=is_same(neighbour.network, world.node.network),
            sells=neighbour.sells,
            buys=neighbour.buys,
            up=neighbour.up and world.peers.by_link.get(neighbour.link) is neighbour,
            blocked=neighbour.identity in blocked,
            block_waits=neighbour.identity in waits,
            lane_bytes=self._node.parts.network.lane_bytes(neighbour.number),
            last_seen=instant(neighbour.last_seen_s),
            reputation=round(reputation_ppm(world, neighbour.identity) / FULL_PPM, 3),
            why_unpaid=self._why_unpaid(neighbour.identity) or None,
            why_not_bought=neighbour.why_not_bought or None,
            offers=tuple(OfferedRow(str(what), price) for what, price in choosing.offers_of(world, neighbour)),
            quality=round(neighbour.quality.value(self._node.parts.clock.now().monotonic_s), 3),
            chosen_for=tuple(chosen_for),
        )

    def _why_unpaid(self, identity: bytes) -> str:
        server = self._world.servers.get(identity)
        return service.why_unpaid(self._world, server) if server is not None else ""

    def journal(self, since_s: int | None) -> Iterator[JournalRow]:
        """List the journal, oldest first. Args: since_s: UTC seconds."""
        return books.journal(self._node.parts.ledger, since_s, self._world.node.real_money)

    # --- letting ------------------------------------------------------------------------------------------------------

    def rentals(self, include_released: bool) -> Iterator[RentalRow]:
        """List rentals; the released ones too, if wanted."""
        node, world, now = self._node, self._world, self._node.parts.clock.now()
        readings: dict[bytes, PeerReading] = {}
        if node.landlord is not None:
            with suppress(KernelError):  # the tunnel may be gone; the books aren't
                readings = {one.wireguard_key: one for one in node.landlord.tunnel.read()}
        for rental in list(world.letting.rentals.values()):
            if rental.id in world.letting.rentals and rental.state is not RentalState.RELEASED:  # even now
                yield rental_row(world, rental, now, readings.get(rental.wireguard_key))
        if include_released:
            rows = books.rentals(node.parts.ledger, True, world.node.real_money)
            yield from (row for row in rows if row.state == RentalState.RELEASED)

    def offers(self) -> list[OfferRow]:
        """List what tenants may rent."""
        settings = self._node.settings.letting
        offers = settings.offers if settings is not None else ()
        return [offer_row(self._world, one, self._node.identity) for one in offers]

    # --- Lightning ----------------------------------------------------------------------------------------------------

    async def lightning(self) -> LightningStatus:
        """Describe our node, its channels and its watchtowers. Raises PaymentError."""
        node, world, manager = self._node, self._world, channel_manager(self._node)
        in_use, chain = await manager.channels(), await manager.chain()
        node.loop.tell(ChannelsSeen(tuple(in_use)))  # the daemon should trade by what the operator sees
        channels = in_use + await manager.pending_channels()
        watch = await lightning.watch_of(node.parts.payment)
        by_key = {one.payee.hex(): one for one in world.peers.by_link.values() if one.payee}
        return LightningStatus(
            module=node.settings.payment_module,
            node=world.node.payee.hex(),
            network=world.node.network,
            ready=not node.payment.why_not,
            why_not=node.payment.why_not or None,
            block=chain.height,
            synced=chain.synced,
            balance_msat=await node.parts.payment.balance_msat(),
            channels=tuple(self._channel(one, by_key.get(one.peer), watch) for one in channels),
            watchtowers=watch_row(watch),
            advice=tuple(lightning.advice(channels, by_key.values(), world, watch, chain)),
        )

    def _channel(self, channel: Channel, neighbour: Neighbour | None, watch: Watch) -> ChannelRow:
        why_not = [lack.why for lack in lightning.lacks(channel, neighbour, self._world)] if neighbour else []
        if not lightning.is_safe(channel, watch, self._world.settings):
            why_not.append("short CSV delay, and no watchtower")
        return channel_row(channel, neighbour.identity if neighbour else None, why_not)

    async def watchtowers(self) -> WatchRow:
        """Describe the node's watchtowers. Raises PaymentError."""
        return watch_row(await tower_manager(self._node).watch())


def channel_manager(node: Node) -> ChannelManager:
    """Return the payment node's channels. Raises PaymentError where it has none."""
    payment = node.parts.payment
    if not isinstance(payment, ChannelManager):
        raise PaymentError(f"{node.settings.payment_module} has no channels that ngp could manage")
    return payment


def tower_manager(node: Node) -> TowerManager:
    """Return the payment node's watchtowers. Raises PaymentError where it has none."""
    payment = node.parts.payment
    if not isinstance(payment, TowerManager):
        raise PaymentError(f"{node.settings.payment_module} has no watchtowers that ngp could manage")
    return payment
