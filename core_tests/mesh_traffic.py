"""Random traffic in a mesh: pairs of nodes exchange datagrams, and at the end all ledgers come to zero.

The destination of each flow is the first address of a node, and a packet's way there is what the routing daemons found.
Each router on it sells to the one before it, and the last one hands the packet to its destination, which costs it
nothing.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import islice

from core_tests import traffic
from core_tests.host import Host
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.simulate.graph import distances
from core_tests.trade import Row, assert_conserved, used

MOST_LINKS = 8  # a buyer pays up to twice the price of a first seller, and each of a row adds a tenth
COUNTS, SIZES_BYTES = (5, 40), (100, 1400)  # datagrams of a flow, each with its echo, and their payload
PORT = 5000
TRIED = 5  # times as many pairs are drawn as are needed: many have answers that come another way
ROUTES_S = 300.0
KEPT_S = 5.0  # routes that stay as they are for so long aren't being looked for any more
ANSWERED_S = 120.0
SETTLED_S = 300.0
AGREED = "paid_msat", "charged_msat", "refunded_msat"
Neighbours = Mapping[str, Collection[str]]


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


def await_ready(session: Session, mesh: Neighbours) -> None:
    """Wait until all neighbours know each other, and each node has routes to all others that stay as they are."""
    for name, others in mesh.items():
        keys = {session.keys[other] for other in others}
        knows = partial(_knows, session, name, keys)
        await_until(knows, ROUTES_S, f"{name} knows its neighbours")
    targets = {_address(host) for host in session.hosts.values()}
    for name, host in session.hosts.items():
        await_until(partial(_leads_to_all, host, targets), ROUTES_S, f"{name} has routes to all nodes")
    before: list[str] = []

    def kept() -> bool:
        nonlocal before
        now = [host.ip("route") for host in session.hosts.values()]
        if now == before:
            return True
        before = now
        time.sleep(KEPT_S)
        return False

    await_until(kept, ROUTES_S, "routes that stay as they are")


def _knows(session: Session, name: str, keys: set[str]) -> bool:
    return keys <= {row["neighbour"] for row in session.daemons[name].ask("neighbours") if row["up"]}


def _leads_to_all(host: Host, targets: set[str]) -> bool:
    networks = [ip_network(row["dst"]) for row in json.loads(host.ip("-j", "route")) if row["dst"] != "default"]
    return all(any(ip_address(target) in network for network in networks) for target in targets)


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


def _way(session: Session, source: str, target: str) -> list[str]:
    """Return the routers between two nodes, as the kernels' routes say."""
    owners = {text.partition("/")[0]: name for name, host in session.hosts.items() for text in _addresses(host)}
    address, found = _address(session.hosts[target]), [source]
    while found[-1] != target:
        (route,) = json.loads(session.hosts[found[-1]].ip("-j", "route", "get", address))
        found.append(owners[route.get("gateway", address)])
    return found[1:-1]


def _is_straight(session: Session, flow: Flow) -> bool:
    """Say whether a flow's answers come back the way that it goes; else they may be dropped (docs/architecture.md)."""
    return _way(session, flow.source, flow.target) == _way(session, flow.target, flow.source)[::-1]


def expected_bytes(session: Session, flows: Iterable[Flow]) -> dict[tuple[str, str], int]:
    """Return what each router on the way carries towards each cable with a target, by (router, cable's network)."""
    found: Counter[tuple[str, str]] = Counter()
    for flow in flows:
        for router in _way(session, flow.source, flow.target):
            found[router, _cable(_address(session.hosts[flow.target]))] += flow.bytes
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
    await_ready(session, mesh)
    tell("all neighbours know each other, and every node has a route to every other")
    for host in session.hosts.values():
        traffic.udp_echo(host, _address(host), PORT)
    flows = list(islice((flow for flow in plan(mesh, TRIED * count) if _is_straight(session, flow)), count))
    assert len(flows) == count, f"only {len(flows)} flows have answers that come back the same way"
    for flow in flows:
        await_echo(session, flow)
    settled(session)
    tell(f"{count} pairs of nodes have agreed on prices along their ways, and the first packets have come back")
    before, expected = carried_bytes(session), expected_bytes(session, flows)
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
