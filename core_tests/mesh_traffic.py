"""Random traffic in a mesh: pairs of nodes exchange datagrams, and at the end all ledgers come to zero.

The destination of each flow is the first address of a node, and a packet's way there is the cheapest one by the costs
of the session's links (`core_tests.mesh_session`), which the routing daemons must find. Each router on it sells to the
one before it, and the last one hands the packet to its destination, which costs it nothing.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network

from core_tests import mesh_session, traffic
from core_tests.host import Host
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.simulate.graph import distances
from core_tests.trade import Row, assert_conserved, used

MOST_LINKS = 8  # a buyer pays up to twice the price of a first seller, and each of a row adds a tenth
COUNTS, SIZES_BYTES = (5, 40), (100, 1400)  # datagrams of a flow, each with its echo, and their payload
PORT = 5000
ROUTES_S = 300.0
ANSWERED_S = 120.0
SETTLED_S = 300.0
TOLD_EVERY = 20
AGREED = "paid_msat", "charged_msat", "refunded_msat"
Neighbours = Mapping[str, Collection[str]]
NextNodes = Mapping[str, Mapping[str, str]]  # by node and target


@dataclass(frozen=True, slots=True)
class Flow:
    """Datagrams from one node to another, each with its echo."""

    source: str
    target: str
    count: int
    payload_bytes: int

    @property
    def bytes(self) -> int:
        """Return what each router on the way carries, there and back."""
        return 2 * traffic.l3_bytes(4, self.payload_bytes, self.count)


@dataclass(frozen=True, slots=True)
class Sums:
    """What the ledgers of all nodes say together; msat.

    Attributes: charged: what a buyer used of a seller, by (seller, buyer). contracts: how many were sold.
    """

    charged: Mapping[tuple[str, str], int]
    paid_msat: int
    contracts: int

    def earned(self, node: str) -> int:
        """Return what others used of a node."""
        return sum(msat for (seller, _), msat in self.charged.items() if seller == node)

    def spent(self, node: str) -> int:
        """Return what a node used of others."""
        return sum(msat for (_, buyer), msat in self.charged.items() if buyer == node)

    def net(self, node: str) -> int:
        """Return what a node earned, less what it spent."""
        return self.earned(node) - self.spent(node)


def neighbours(session: Session) -> Neighbours:
    """Return the neighbours that each node has by its cables: those with an address in a network of its own."""
    at: dict[str, list[str]] = {}
    for name, host in session.hosts.items():
        for text in _addresses(host):
            at.setdefault(str(ip_network(text, strict=False)), []).append(name)
    found: dict[str, list[str]] = {name: [] for name in session.hosts}
    for one, other in at.values():
        found[one].append(other)
        found[other].append(one)
    return found


def _addresses(host: Host) -> list[str]:
    return [text for some in host.addresses.values() for text in some if ":" not in text]


def _address(host: Host) -> str:
    return _addresses(host)[0].partition("/")[0]


def plan(mesh: Neighbours, flows: int, seed: int = 1) -> list[Flow]:
    """Choose flows between random pairs of nodes that MOST_LINKS links or fewer, but more than one, lie between."""
    chance = random.Random(seed)
    pairs = [
        (source, target)
        for source in mesh
        for target, links in distances(source, mesh.__getitem__).items()
        if 1 < links <= MOST_LINKS
    ]
    return [
        Flow(*chance.choice(pairs), count=chance.randint(*COUNTS), payload_bytes=chance.randint(*SIZES_BYTES))
        for _ in range(flows)
    ]


def costs_to(target: str, mesh: Neighbours) -> dict[str, int]:
    """Return what the cheapest way to a target costs from each node."""
    found: dict[str, int] = {}
    waiting = [(0, target)]
    while waiting:
        cost, node = heapq.heappop(waiting)
        if node not in found:
            found[node] = cost
            for other in mesh[node]:
                heapq.heappush(waiting, (cost + mesh_session.cost(node, other), other))
    return found


def next_nodes(mesh: Neighbours) -> NextNodes:
    """Return the node that comes next on the cheapest way from each node to each other."""
    found: dict[str, dict[str, str]] = {name: {} for name in mesh}
    for target in mesh:
        costs = costs_to(target, mesh)
        for name in mesh.keys() - {target}:
            found[name][target] = min(mesh[name], key=lambda other: costs[other] + mesh_session.cost(name, other))
    return found


def await_ready(session: Session, mesh: Neighbours, best: NextNodes) -> None:
    """Wait until all neighbours know each other, and each node's routes lead the cheapest way to every other."""
    for name, others in mesh.items():
        keys = {session.keys[other] for other in others}
        knows = partial(_knows, session, name, keys)
        await_until(knows, ROUTES_S, f"{name} knows its neighbours")
    for name in mesh:
        leads = partial(_leads, session, name, best[name])
        await_until(leads, ROUTES_S, f"{name} has the cheapest routes to all nodes")


def _knows(session: Session, name: str, keys: set[str]) -> bool:
    return keys <= {row["neighbour"] for row in session.daemons[name].ask("neighbours") if row["up"]}


def _leads(session: Session, name: str, best: Mapping[str, str]) -> bool:
    """Say whether a node's kernel has a route to each address of others, by the best node if it is for that address.

    A datagram's source is the address of the interface by which it leaves, and answers go there. babeld finds a route
    to each address; bird to each node's first address, and to the others by the nearer end of their cable.
    """
    routes = {row["dst"]: row for row in json.loads(session.hosts[name].ip("-j", "route"))}
    owners = {text.partition("/")[0]: node for node, host in session.hosts.items() for text in _addresses(host)}
    for address, owner in owners.items():
        if owner == name:
            continue
        row = routes.get(address) or routes.get(_cable(address))
        if row is None or "type" in row:  # with a type it leads nowhere
            return False
        if row["dst"] == address and owners[row.get("gateway", address)] != best[owner]:
            return False
    return True


def await_echo(session: Session, flow: Flow) -> None:
    """Send one datagram after another from a flow's source to its target until one comes back."""
    source, target = session.hosts[flow.source], _address(session.hosts[flow.target])
    echoed = partial(traffic.udp_send, source, target, PORT, count=1, await_echoes=True, echo_wait_s=3.0)
    await_until(echoed, ANSWERED_S, f"{flow.target} answers {flow.source}")


def exchange(session: Session, flow: Flow) -> None:
    """Send the datagrams of a flow whose contracts run. Raises: AssertionError if one doesn't come back."""
    source, target = session.hosts[flow.source], _address(session.hosts[flow.target])
    size = flow.payload_bytes
    echoed = traffic.udp_send(source, target, PORT, count=flow.count, payload_bytes=size, await_echoes=True)
    assert echoed == flow.count, f"{flow}: {echoed} came back"


def expected_bytes(session: Session, flows: Iterable[Flow], best: NextNodes) -> dict[tuple[str, str], int]:
    """Return what each router on the way carries towards each cable with a target, by (router, cable's network)."""
    found: Counter[tuple[str, str]] = Counter()
    for flow in flows:
        router = best[flow.source][flow.target]
        while router != flow.target:
            found[router, _cable(_address(session.hosts[flow.target]))] += flow.bytes
            router = best[router][flow.target]
    return found


def carried_bytes(session: Session) -> dict[tuple[str, str], int]:
    """Return what each node has sold of the way to each cable, by (node, cable's network)."""
    found: Counter[tuple[str, str]] = Counter()
    for name in session.daemons:
        for row in _contracts(session, name, "server"):
            found[name, _cable(row["destination"].partition("/")[0])] += used(row)
    return found


def _cable(address: str) -> str:
    """Return the network of a cable, which babeld announces as two addresses and bird as a whole."""
    return str(ip_network(f"{address}/24", strict=False))


def settled(session: Session) -> Sums:
    """Wait until the two sides of each business say the same, and return what all ledgers say together.

    Raises: AssertionError, with the differences, if ledgers don't add up or don't come to zero.
    """
    try:
        await_until(lambda: not differences(session), SETTLED_S)
    finally:
        found = differences(session)
        assert not found, "\n".join(found)
    for daemon in session.daemons.values():
        assert_conserved(daemon, ["server"])
    accounts = _accounts(session)
    charged = {(name, other): row["charged_msat"] for (name, other, role), row in accounts.items() if role == "server"}
    paid, received = (
        sum(row["paid_msat"] for key, row in accounts.items() if key[2] == role) for role in ("client", "server")
    )
    spent = sum(row["charged_msat"] for key, row in accounts.items() if key[2] == "client")
    assert (paid, spent) == (received, sum(charged.values())), "the ledgers don't come to zero"
    return Sums(charged, paid, sum(len(_contracts(session, name, "server")) for name in session.daemons))


def _accounts(session: Session) -> dict[tuple[str, str, str], Row]:
    """Return all accounts, by (node, neighbour, role of the node)."""
    names = {key: name for name, key in session.keys.items()}
    return {
        (name, names[row["neighbour"]], row["role"]): row
        for name, daemon in session.daemons.items()
        for row in daemon.ask("accounts")
    }


def differences(session: Session) -> list[str]:
    """List where the books of a seller and its buyer differ: accounts, and what each contract carried and was billed.

    A buyer's own meter isn't compared: if each of two neighbours buys the end behind the other, the addresses of a
    first packet don't show who pays (docs/architecture.md).
    """
    found = []
    accounts = _accounts(session)
    sold = {row["id"]: (name, row) for name in session.daemons for row in _contracts(session, name, "server")}
    bought = {row["id"]: (name, row) for name in session.daemons for row in _contracts(session, name, "client")}
    for (seller, buyer, role), ours in accounts.items():
        theirs = accounts.get((buyer, seller, "client" if role == "server" else "server"))
        if theirs is None:
            found.append(f"{seller} has an account of {buyer} as {role}, and {buyer} has none")
        elif any(ours[key] != theirs[key] for key in AGREED):
            found.append(f"{seller} and {buyer}: " + ", ".join(f"{key} {ours[key]} {theirs[key]}" for key in AGREED))
    for number in sold.keys() ^ bought.keys():
        name, row = (sold | bought)[number]
        found.append(f"{name}: {row['destination']}: its neighbour has no such contract")
    for number in sold.keys() & bought.keys():
        (seller, ours), (buyer, theirs) = sold[number], bought[number]
        if used(ours) != theirs["billed_bytes"]:
            what = f"{used(ours)} bytes carried, {theirs['billed_bytes']} billed"
            found.append(f"{seller} to {buyer}: {ours['destination']}: {what}")
    return found


def _contracts(session: Session, name: str, role: str) -> list[Row]:
    rows: list[Row] = session.daemons[name].ask("contracts", all=True, by_destination=False)
    return [row for row in rows if row["role"] == role]


def expect(session: Session, count: int, tell: Callable[[str], None] = lambda text: None) -> Sums:
    """Play random traffic in a mesh, and return what came of it.

    Args: count: of flows. tell: is called with a line about each part.
    Raises: AssertionError if a datagram doesn't come back, or the ledgers don't say what must come of it.
    """
    mesh = neighbours(session)
    best = next_nodes(mesh)
    await_ready(session, mesh, best)
    tell("all neighbours know each other, and every node has the cheapest route to every other")
    for host in session.hosts.values():
        traffic.udp_echo(host, _address(host), PORT)
    flows = plan(mesh, count)
    for number, flow in enumerate(flows, 1):
        await_echo(session, flow)
        if number % TOLD_EVERY == 0 and number < count:
            tell(f"first packets of {number} pairs have come back")
    settled(session)
    tell(f"{count} pairs of nodes have agreed on prices along their ways, and the first packets have come back")
    before, expected = carried_bytes(session), expected_bytes(session, flows, best)
    for flow in flows:
        exchange(session, flow)
    tell(f"{sum(flow.count for flow in flows):,} datagrams were sent, and every one came back")
    sums, after = settled(session), carried_bytes(session)
    carried = {key: after.get(key, 0) - before.get(key, 0) for key in expected}
    assert carried == expected, {key: (carried[key], bytes_) for key, bytes_ in expected.items()}
    tell(f"sold to the byte: {sum(carried.values()):,} bytes, those of the flows times the routers on their ways")
    net = [sums.net(node) for node in session.hosts]
    assert sums.paid_msat > 0, "nothing was paid"
    assert sum(net) == 0, f"all together earned {sum(net)} msat more than they spent"
    assert max(net) > 0, "no node earned more than it spent"
    return sums
