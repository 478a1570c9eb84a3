"""Lightning: what settling over real LND nodes costs, beside what the nodes do by themselves and beside the sandbox.

Two gateways stand side by side, each with its own clients: one settles in the sandbox, the other over LND, each client
by a node and a private channel of its own. They take turns, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals

from core_tests.bench import report
from core_tests.bench.helper import Helper
from core_tests.bench.market import Market, cpu_s, open_market, pss_bytes, rss_bytes
from core_tests.bench.probe import Arrivals, Crowd, Probe, addresses
from core_tests.bench.stage import MANY_FIRST
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.lightning.build import prepare, programs
from core_tests.lightning.network import LightningNetwork, Place
from core_tests.lightning.nodes import Lnd, Ports
from core_tests.lightning.trade import CHAIN_V4, node_settings
from core_tests.topologies import ThreeHosts
from core_tests.trade import Conf

CLIENTS = 2
AT_ONCE = 8
CHANNEL_SAT = 16_000_000
NODES_ADDRESS = CHAIN_V4.format(1).partition("/")[0]
# No credit, so that a newcomer's first packet waits for money; top-ups that last some seconds, as fast clients' do; no
# budget that a benchmark would use up.
KEYS: Conf = {
    "PAYMENT_AMOUNT": "40 sat",
    "CONTRACTS_MAX": 262144,
    "CONTRACT_TIME": "1 day",
    "GRACE_DATA": 0,
    "BUDGET_PAYMENT": "none",
    "BUDGET_HOUR": "none",
    "BUDGET_DAY": "none",
}
PAYLOAD_BYTES = 1200
NEWCOMERS_FIRST = 6_000_000
HANGING_COUNT = 500
PATIENCE_S = 20.0
MIB = 1 << 20


def run(quick: bool) -> None:
    """Measure and print."""
    prepare(lambda text: print(text, flush=True))
    with Lab() as plain, Lab() as real, ExitStack() as stack:
        nodes = NodesHost(real)

        def equip(net: ThreeHosts) -> Mapping[str, Conf]:
            return stack.enter_context(nodes.serving(net))

        over_lnd = Side("LND", open_market(real, CLIENTS, keys=KEYS, equip=equip))
        sandbox = Side("sandbox", open_market(plain, CLIENTS, keys=KEYS))
        sides = sandbox, over_lnd
        empty = {side: side.memory() for side in sides}
        _top_ups(nodes, real.folder, quick)
        for side in sides:
            side.newcomers(2 if quick else 8)
        _contracts(sandbox, over_lnd, quick)
        full = {side: (side.market.contracts(), side.memory()) for side in sides}
        lnd = nodes.network.node("gateway")
        _hanging(over_lnd, lnd, quick)
        report.head("Memory of the gateway's daemon, RSS / PSS (its share of what others have mapped as well)")
        for side in sides:
            side.weigh(empty[side], *full[side])
        assert lnd.process is not None
        report.line("the gateway's LND itself", _mib((rss_bytes(lnd.process.pid), pss_bytes(lnd.process.pid))))


class NodesHost:
    """The chain and all nodes on one host, which gateway and clients reach by a network of their own."""

    network: LightningNetwork

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = lab.host("nodes")

    @contextmanager
    def serving(self, net: ThreeHosts) -> Iterator[Mapping[str, Conf]]:
        """Bring the nodes up with a channel from each client to the gateway; returns keys of net.conf by host."""
        self._connect((net.gateway, *net.clients))
        names = [host.name for host in (net.gateway, *net.clients)]
        chain = Place("chain", self.host.inside())
        places = [self._place(name, number) for number, name in enumerate(names)]
        with LightningNetwork(programs(), self.lab.folder / "lightning", places, chain) as self.network:
            gateway, *clients = names
            for name in clients:
                self.network.open(name, gateway, CHANNEL_SAT, CHANNEL_SAT // 5, ["--private"])
                self.network.await_payable(name, gateway)
            keys = {name: self._settings(self.network.node(name)) for name in names}
            yield {**keys, gateway: {**keys[gateway], "IGNORE_INTERFACE": ["wan0", "chain0"]}}

    def _connect(self, hosts: Sequence[Host]) -> None:
        switch = self.lab.switch("chain")
        for number, host in enumerate((self.host, *hosts), 1):
            self.lab.link(End(host, "chain0", CHAIN_V4.format(number)), switch)
        self.lab.await_carriers()

    def _place(self, name: str, number: int) -> Place:
        ports = Ports(10009 + number, 9735 + number)
        listen = f"--rpclisten={NODES_ADDRESS}:{ports.rpc}"
        return Place(name, self.host.inside(), ports=ports, options=(listen,))

    @staticmethod
    def _settings(node: Lnd) -> Conf:
        return {**node_settings(node), "LND_HOST": f"{NODES_ADDRESS}:{node.ports.rpc}"}

    def payer(self, state_dir: Path) -> Helper:
        """Start what pays between the nodes."""
        options = json.dumps([node_settings(node) for node in self.network.nodes.values()])
        return Helper(self.host, "core_tests.bench.payer", str(state_dir), options)


# --- top-ups ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TopUps:
    """Rounds of payments by ngp's module and by the bare nodes, in turn."""

    payer: Helper
    count: int
    at_once: int
    verb: str = "ours"
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "raw": []})
    told_s: list[float] = field(default_factory=list)

    def ours(self) -> None:
        """Let the next round be ngp's."""
        self.verb = "ours"

    def raw(self) -> None:
        """Let the next round be the bare nodes'."""
        self.verb = "raw"

    def rate(self) -> float:
        """Pay a round; returns payments a second."""
        done = self.payer.ask(self.verb, self.count, self.at_once)
        self.seconds[self.verb] += done["seconds"]
        self.told_s += done["told_s"]
        return self.count / float(done["wall_s"])

    def report(self, title: str, pairs: int) -> None:
        """Measure and print."""
        found = report.take_pairs(pairs, self.raw, self.ours, self.rate)
        report.line(f"{title}, ratio to the bare nodes", report.ratio(found, "a second", 1))
        for verb, who in (("ours", "by ngp"), ("raw", "by the bare nodes")):
            report.line(f"    until the payer has its proof, {who}, median / p99", _ms(self.seconds[verb]))


def _top_ups(nodes: NodesHost, folder: Path, quick: bool) -> None:
    payer = nodes.payer(folder / "payer")
    report.head(f"Top-ups over LND: an invoice made, read, paid and proven; {CLIENTS} payers with a channel each")
    one = TopUps(payer, 5 if quick else 10, 1)
    one.report("one after another", 3 if quick else 8)
    report.line("    then until the gateway's node tells of it, median / p99", _ms(one.told_s))
    TopUps(payer, AT_ONCE * 3, AT_ONCE).report(f"{AT_ONCE} at once", 2 if quick else 6)
    payer.end()


def _ms(seconds: Sequence[float]) -> str:
    median, p99 = (1000 * report.percentile(seconds, share) for share in (0.5, 0.99))
    return f"{median:.0f} / {p99:.0f} ms"


# --- contracts --------------------------------------------------------------------------------------------------------


class Side:
    """A gateway with its clients, and how they settle."""

    def __init__(self, name: str, market: Market) -> None:
        self.name = name
        self.market = market
        self._crowd = Crowd(market.clients, market.internet, PAYLOAD_BYTES)
        (self._pid,) = market.seller.pids()
        self._opened = 0
        self.core_s, self.contracts = 0.0, 0

    def newcomers(self, count: int) -> None:
        """Time the first packet of clients that nobody knows, without credit: it waits until they have paid."""
        market, buyer = self.market, self.market.buyers[0]
        probe = Probe(market.clients[0], market.internet)
        found = []
        for address in addresses(MANY_FIRST, NEWCOMERS_FIRST, count):
            buyer.stop()
            shutil.rmtree(buyer.state_dir)
            buyer.state_dir.mkdir(mode=0o700)
            buyer.start()
            market.await_acquainted()
            found.append(probe.one(address, PATIENCE_S))
        probe.close()
        arrivals = Arrivals(count, tuple(one for one in found if one is not None))
        report.line(f"first packet of a newcomer without credit, {self.name}, median / p99", arrivals.text())

    def open(self, count: int) -> float:
        """Open so many contracts for each client; returns contracts a second."""
        shares = [addresses(MANY_FIRST, self._opened + number * count, count) for number in range(CLIENTS)]
        self._opened += CLIENTS * count
        cpu = cpu_s(self._pid)
        wall_s = self._crowd.open(shares)
        self.core_s += cpu_s(self._pid) - cpu
        self.contracts += CLIENTS * count
        return CLIENTS * count / wall_s

    def payments(self) -> int:
        """Return how many payments the gateway has booked."""
        return sum(row["kind"] == "payment" for row in self.market.seller.ask("ledger"))

    def memory(self) -> tuple[int, int]:
        """Return RSS and PSS of the gateway's daemon, in bytes."""
        return rss_bytes(self._pid), pss_bytes(self._pid)

    def weigh(self, empty: tuple[int, int], contracts: int, full: tuple[int, int]) -> None:
        """Print what the gateway's daemon weighs without contracts and with so many."""
        report.line(f"{self.name}, without a contract", _mib(empty))
        each = (full[0] - empty[0]) / contracts
        report.line(f"{self.name}, with {contracts:,} contracts", f"{_mib(full)} ({each:,.0f} bytes each)")


def _mib(memory: tuple[int, int]) -> str:
    return " / ".join(f"{one / MIB:.0f}" for one in memory) + " MiB"


def _contracts(sandbox: Side, over_lnd: Side, quick: bool) -> None:
    report.head(f"Contracts of one gateway daemon, settled over LND by {CLIENTS} clients, {PAYLOAD_BYTES} bytes each")
    count = 500 if quick else 1500
    before = {side: side.payments() for side in (sandbox, over_lnd)}
    chosen = sandbox

    def choose(side: Side) -> None:
        nonlocal chosen
        chosen = side

    pairs = report.take_pairs(
        3 if quick else 8, lambda: choose(sandbox), lambda: choose(over_lnd), lambda: chosen.open(count)
    )
    report.line("opened, ratio of LND to the sandbox", report.ratio(pairs, "a second", 1))
    for side in (sandbox, over_lnd):
        value = f"{side.contracts / side.core_s:,.0f} a second of the gateway's core"
        report.line(f"    {side.name}: {side.contracts:,}, {side.payments() - before[side]} payments meanwhile", value)


def _hanging(over_lnd: Side, lnd: Lnd, quick: bool) -> None:
    """Open contracts while the gateway's payment node answers nothing: what was prepaid lasts."""
    try:
        pairs = report.take_pairs(
            2 if quick else 4,
            lambda: _signal(lnd, SIGCONT),
            lambda: _signal(lnd, SIGSTOP),
            lambda: over_lnd.open(HANGING_COUNT),
        )
    finally:
        _signal(lnd, SIGCONT)
    report.line("opened while the gateway's LND hangs, ratio to LND as usual", report.ratio(pairs, "a second", 1))


def _signal(node: Lnd, signal: Signals) -> None:
    assert node.process is not None
    node.process.send_signal(signal)
