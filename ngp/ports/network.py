"""Network: the gate, meter and queue in the kernel, and what the daemon needs to know of this host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ngp.core.kernel import (
    AccountLimit,
    AccountReading,
    Adopted,
    Fork,
    Grant,
    HeldPacket,
    Hint,
    KernelNeighbour,
    MeshRoutes,
    Onward,
    Reading,
    Router,
    Verdict,
)
from ngp.core.messages import Address, Prefix
from ngp.core.values import Check


@dataclass(frozen=True, slots=True)
class KernelState:
    """Which parts of ngp are in the kernel, put there by a daemon that runs or was killed, or by `ngp stop`.

    Attributes:
        meter: traffic is counted and cut. sells: the meter was set up to sell, so there should be a gate.
        gate: the firewall asks the meter about what neighbours send.
        closed: the firewall drops what is forwarded from or to the mesh interfaces (WHEN_STOPPED: closed).
    """

    meter: bool = False
    sells: bool = False
    gate: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class FreeRule:
    """Traffic that costs nothing: a prefix, optionally with one protocol (IP protocol number) and one port.

    A payment service is such a rule with one address, one protocol and one port.
    """

    prefix: Prefix
    protocol: int | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class LetTraffic:
    """What the operator's firewall must let pass so that tenants can ask, and be reached. Only checks look at it.

    Attributes:
        outside: interface towards the internet.
        tunnel_port: UDP port of the tunnel, on all addresses.
        tunnel_versions: the IP versions by which tenants are told to reach the tunnel; empty: those of which `outside`
            has an address.
        faces: (address, port) pairs, TCP, where tenants ask.
        pools: prefixes from which networks are let.
    """

    outside: str
    tunnel_port: int
    tunnel_versions: frozenset[int]
    faces: tuple[tuple[str, int], ...]
    pools: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class DesiredNetwork:
    """The state that the kernel should have while the daemon runs; `apply` makes the kernel match it.

    Attributes:
        mesh_interfaces: existing interfaces that are gated and metered.
        lan_interfaces: ours, behind this router. Interfaces that are neither mesh nor LAN are upstream. A neighbour
            needs its own contract for traffic that it sends out of an upstream interface, and for traffic that comes
            from one.
        upstream_interfaces: the upstream interfaces that have a route now.
        families: IP versions, a subset of {4, 6}.
        sells: put the gate in place. buys: put the client's meter in place.
        free: traffic that is never charged, in either direction.
        services: payment services. Traffic with them is never charged, but each neighbour's is limited to
            `lane_bytes_s`. Their answers reach only the neighbour that asked.
        own_services: payment services on this host. What a neighbour exchanges with their ports, on any of our
            addresses, counts towards `lane_bytes_s` as well.
        lane_bytes_s: each neighbour's bytes a second with payment services, both directions together, at least 1.
        lane_burst_bytes: how many bytes may pass at once after a pause.
        queue_number: NFQUEUE number.
        link_port: port of the ngp link itself; link_protocols: by which of tcp and udp neighbours reach us there.
        contracts_max: slots of the contract table; fixed when the table is made, until ngp is restarted.
        stranger_rate, stranger_burst: how many first packets of all unknown neighbours together the daemon gets in a
            second, and at once.
        neighbour_rate, neighbour_burst: the same for each known neighbour.
        tunnel: the landlord's interface, where tenants' contracts are enforced, for both IP versions; "": none.
        unpaid_bytes_s: bytes a second that pass uncharged, both directions together: for each neighbour that has paid
            before but has no contract or money now, and for all others together; 0: none.
        unpaid_burst_bytes: how many of them may pass at once after a pause.
        let: what tenants need of this host's firewall; None: nothing is let.
        buys_default_route: whether a default route into the mesh is wanted, to be bought as a whole.
    """

    mesh_interfaces: tuple[str, ...]
    lan_interfaces: tuple[str, ...]
    upstream_interfaces: tuple[str, ...]
    families: frozenset[int]
    sells: bool
    buys: bool
    free: tuple[FreeRule, ...]
    services: tuple[FreeRule, ...]
    own_services: tuple[FreeRule, ...]
    lane_bytes_s: int
    lane_burst_bytes: int
    queue_number: int
    link_port: int
    contracts_max: int
    stranger_rate: int
    stranger_burst: int
    neighbour_rate: int
    neighbour_burst: int
    link_protocols: tuple[str, ...] = ("udp",)
    tunnel: str = ""
    let: LetTraffic | None = None
    unpaid_bytes_s: int = 0
    unpaid_burst_bytes: int = 0
    buys_default_route: bool = False


@dataclass(frozen=True, slots=True)
class InterfaceTraffic:
    """What an interface received and sent since it was made, and what it carries in one direction; None: unknown."""

    received_bytes: int
    sent_bytes: int
    bytes_s: int | None


@dataclass(frozen=True, slots=True)
class HostBytes:
    """What was carried to and from one address within a contract for several."""

    address: Address
    used_to_bytes: int
    used_from_bytes: int


class Network(Protocol):
    """Gates, meters and cuts traffic in the kernel, and answers questions about the host.

    The questions are answered whether or not it is set up, and also after `close`.
    """

    def mesh_interfaces(self, patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the existing interfaces that MESH_INTERFACES matches, sorted. Raises KernelError."""

    def left_out(self, patterns: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return interfaces that MESH_INTERFACES matches but that can't be mesh: by name, the reason and the remedy.

        The remedy is "" if nothing has to be done: only a pattern matches the interface, and it receives no packets
        that would have to be charged on it.
        """

    def other_interfaces(
        self, mesh: Sequence[str], lan: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the interfaces that aren't mesh: our LAN interfaces, and which of the remaining ones have a route now.

        Args:
            mesh: names.
            lan: names and patterns of LAN_INTERFACE; None: `auto`.
        Raises: KernelError.
        """

    def traffic(self, names: Sequence[str]) -> dict[str, InterfaceTraffic]:
        """Return what each of these interfaces carried so far, and its speed; one that doesn't exist is left out.

        Raises KernelError.
        """

    def local_addresses(self) -> tuple[Address, ...]:
        """Return this host's own addresses, both families; no loopback and no link-local ones. Raises KernelError."""

    def watch(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], on_touched: Callable[[], None]
    ) -> None:
        """Call on_change in the loop after links, addresses or routes changed, a few times a second at most.

        on_touched is called at once when a program, even this one, changed the tables that have the gate; `apply` then
        repairs the gate.
        """

    def stop_watching(self) -> None:
        """End `watch`; safe to call twice."""

    def beside(self) -> Network:
        """Return another instance, for questions about the host from another thread. The caller closes it.

        The other instance knows what this one has in the kernel, and doesn't report it as another program's.
        """

    def taken(self, desired: DesiredNetwork) -> list[Check]:
        """Return the obstacles that a start would meet: another program uses what only one can use (a queue number).

        Leaves nothing behind. Don't call it while a daemon of ours runs with the same settings.
        """

    def refuse(self, desired: DesiredNetwork) -> None:
        """Raise KernelError if traffic can bypass the meter on this host, so that a start fails and doesn't hide it."""

    def check(self, desired: DesiredNetwork) -> list[Check]:
        """Return what this host can do and what is missing; changes nothing."""

    def look(self, desired: DesiredNetwork, most_s: float) -> list[Check]:
        """Return the cheap checks of things that may change while the daemon runs; takes about `most_s` at most."""

    def next_hops(self, desired: DesiredNetwork) -> list[tuple[str, Address, bytes]]:
        """Return the routers to which default routes into the mesh lead: interface, address, and link address.

        A router whose link address isn't known yet is left out. Raises KernelError.
        """

    def routers_towards(self, desired: DesiredNetwork, destinations: Iterable[Prefix]) -> list[tuple[Prefix, Router]]:
        """Return the routers in the mesh to which our routes lead for each destination, or for a part of it.

        Raises KernelError.
        """

    def kernel_state(self) -> KernelState:
        """Return which parts of ngp are in the kernel; changes nothing. Raises KernelError, also if we aren't root."""

    def end_former(self, desired: DesiredNetwork | None) -> list[Reading] | None:
        """Stop the contracts of another version's meter, and return what they used; None if no such meter runs.

        Call `set_up`, which removes that meter, only when all of this is charged. Until then each call returns the same
        readings, also after a crash.

        Args: desired: what `set_up` will be called with; if `set_up` would fail, nothing is stopped. None: `set_up`
            won't be called.
        Raises: KernelError; also if this version of ngp doesn't know that meter.
        """

    def set_up(self, desired: DesiredNetwork) -> Adopted:
        """Load and attach the programs, or adopt those that a killed daemon left running.

        Adopting reads what each account spent, waits until every processor has left the programs, and only then reads
        the contracts. So their counters include everything that the account was charged for.
        Raises: KernelError; then nothing of a new set-up is left.
        """

    def apply(self, desired: DesiredNetwork) -> bool:
        """Make the kernel match the desired state. May be repeated; adds before it deletes.

        Returns: whether another program had changed the gate. Raises KernelError.
        """

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_held: Callable[[HeldPacket], None],
        on_hints: Callable[[Sequence[Hint]], None],
    ) -> None:
        """From now on call `on_held` and `on_hints` in the event loop.

        Args:
            on_held: called for each packet that the kernel holds for our verdict.
            on_hints: called with what the kernel reports: a contract or an account is nearly used up or refused a
                packet, or we send a neighbour traffic for which we should ask for a contract.
        """

    def set_neighbours(self, neighbours: Sequence[KernelNeighbour]) -> None:
        """Add or change neighbours."""

    def forget_neighbours(self, neighbours: Sequence[int]) -> None:
        """Remove neighbours by number."""

    def limit_accounts(self, limits: Sequence[AccountLimit]) -> None:
        """Create or change clients' accounts. Raises KernelError if the table is full."""

    def forget_accounts(self, accounts: Sequence[bytes]) -> None:
        """Remove accounts without contracts from the kernel; unknown ones are ignored."""

    def grant(self, grants: Sequence[Grant]) -> None:
        """Create or change contracts.

        Raises: KernelError: the table is full (the text names contracts_max), or a grant's account isn't known.
        """

    def set_elsewhere(self, prefixes: Collection[Prefix]) -> None:
        """Except these prefixes and no others from all contracts that are `resold`. Raises KernelError."""

    def unsold_bytes(self) -> int:
        """Return the bytes, since the tables were made, that came from the mesh to neighbours that didn't buy them."""

    def unsold_by_purchase(self) -> Mapping[bytes, int]:
        """Return such bytes, by the purchases by which they came, since the last such call or `set_up`.

        What came by none of our purchases isn't in it. Raises: KernelError.
        """

    def block_all(self) -> None:
        """Let nothing more pass on any contract until it is granted again."""

    async def settled(self) -> None:
        """Return when every packet that was inside the meter has left it.

        After that the readings of a contract that was blocked before the call are final, and a limit that was lowered
        before the call is in force for every packet.
        """

    def revoke(self, contracts: Sequence[bytes]) -> None:
        """Remove contracts from the kernel. For their last readings first block them, await `settled`, and read."""

    def read(self, contracts: Sequence[bytes] | None = None) -> list[Reading]:
        """Read contracts. Args: contracts: their ids; None: all that changed since the last such call, or `set_up`."""

    def inside(self, most: int) -> dict[bytes, list[HostBytes]]:
        """Return, by contract for several addresses, so many addresses in it at most, those with the most bytes first.

        The kernel remembers the addresses that were used last, of all contracts together. So these counts are for the
        operator to see; nothing is charged by them. Raises KernelError.
        """

    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> list[AccountReading]:
        """Read accounts. Args: accounts: their keys; None: all that changed since the last such call, or `set_up`."""

    def sends_to(self, links: Mapping[int, tuple[str, bytes]], destination: Prefix) -> Prefix | None:
        """Return the part of a destination to which our traffic goes through a neighbour.

        Args: links: interface and link address of each of the neighbour's links, by number, also new ones.

        Returns:
            The whole destination if our route for all of it leads to one of these links. Otherwise a single host in it,
            if we sent a packet to that host over one of these links in the last seconds and no contract covered the
            packet. None if there was no such packet, or if the destination is on the link itself.
        """

    def onward(self, destination: Address, anew: bool = False) -> Onward:
        """Say where packets to a destination go on from here. Args: anew: no remembered answer will do."""

    def onward_whole(self, destination: Prefix, fresh: bool = False) -> Onward:
        """Say, asked anew, where packets to a destination go on from here; for a network, also those to its parts.

        Args: fresh: the routes to parts of it must not be those of a moment ago.
        """

    def mesh_routes(self) -> tuple[MeshRoutes, ...]:
        """Return this host's routes that lead to other routers in the mesh, by IP version. Raises KernelError."""

    def forks(self, mesh: Sequence[str], families: Iterable[int]) -> tuple[Fork, ...]:
        """Return the prefixes to which the main routing table leads through several routers in the mesh.

        A prefix for which we made a route is included, whatever the operator's routes are by now.

        Args: mesh: names of the mesh interfaces. families: 4, 6. Raises: KernelError.
        """

    def others_in(self, table: int) -> Prefix | None:
        """Return a destination to which a route of another program leads in a routing table; None: there is none.

        Raises: KernelError.
        """

    def rule_behind(self, priority: int) -> tuple[int, int] | None:
        """Return priority and table of a rule that is asked after ours, so that ours lead packets past it.

        Rules of other programs that lead to a table of theirs count; those for this host's own packets alone don't.
        None: there is none. Args: priority: of our rules. Raises: KernelError.
        """

    def set_routes(self, routes: Mapping[Prefix, Router], table: int, priority: int) -> None:
        """Make our routes: these and no others, in a table of our own, with rules that lead there.

        A route of ours takes the place of the main table's routes to the same prefix, and of no other: routes to parts
        of the prefix still come first. May be repeated; adds before it deletes. Nothing is made in a table in which
        another program has routes: these would be replaced, and our rules would lead to them.

        Args: table: its number. priority: of the rule; those of prefixes longer than /0 come before it.
        Raises: KernelError.
        """

    def uncovered(self) -> list[tuple[int, Address, float]]:
        """Return the destinations to which we lately sent packets through sellers while no contract covered them.

        Returns: the number of one of the seller's links, the destination, and how many seconds ago a packet went there.
        """

    def ask_echo(self, destination: Address) -> None:
        """Send an echo request to a destination, whose answer the meter counts; one that can't be sent is lost."""

    def verdict(self, handle: int, verdict: Verdict) -> None:
        """Decide about a held packet; one that was decided about before is ignored."""

    def lane_bytes(self, neighbour: int) -> int:
        """Return a neighbour's bytes to and from payment services; 0 if the neighbour isn't known."""

    def counters(self) -> dict[str, int]:
        """Return counters of kernel and queue: held, dropped, hints_lost, ..."""

    def describe(self) -> dict[str, str]:
        """Return which interception, hook and object are in use, for `ngp status`."""

    def close(self) -> None:
        """Close sockets and descriptors; the kernel goes on gating, metering and cutting."""

    def shut(self, mesh: Sequence[str], ignored: Sequence[str], families: Iterable[int]) -> None:
        """Drop traffic from and to mesh interfaces until `set_up` or `clean_up`; the interfaces needn't exist yet.

        Args: mesh, ignored: names and patterns of MESH_INTERFACES and IGNORE_INTERFACE. families: 4, 6.
        Raises: KernelError; also if there is a meter.
        """

    def clean_up(self, leave_closed: bool) -> None:
        """Remove all that ngp made, and nothing else, without a record of what it made. Safe to call twice.

        `leave_closed` leaves a rule that drops forwarded traffic of the mesh interfaces (WHEN_STOPPED: closed). If no
        mesh interface is known, an existing rule of this kind stays.
        """
