"""Lightning: the cost of payments over real LND nodes, beside the bare nodes and beside the sandbox.

Two gateways exist side by side, each with its own clients. One is paid in the sandbox, the other over LND, where each
client has a node and a private channel of its own. They take turns, so that other load on the machine affects both.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from signal import SIGCONT

from core_tests.bench import report
from core_tests.bench.market import Market, cpu_s, open_market, pss_bytes, rss_bytes
from core_tests.bench.nodes import NodesHost
from core_tests.bench.probe import Arrivals, Crowd, Probe, addresses
from core_tests.bench.stage import MANY_FIRST
from core_tests.bench.topups import TopUps, ms
from core_tests.lab import Lab
from core_tests.lightning.build import prepare
from core_tests.lightning.nodes import Lnd
from core_tests.shell import suspend
from core_tests.topologies import ThreeHosts
from core_tests.trade import Conf

CLIENTS = 2
AT_ONCE = 8
# No credit, so that a newcomer's packets pass only when it has paid. Top-ups last some seconds, like those of fast
# clients. No budget, since a benchmark would use it up.
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
        _top_ups(nodes, quick)
        for side in sides:
            side.newcomers(2 if quick else 6)
        _contracts(sandbox, over_lnd, quick)
        full = {side: (side.market.contracts(), side.memory()) for side in sides}
        lnd = nodes.network.node("gateway")
        _hanging(over_lnd, lnd, quick)
        report.head("Memory of the gateway's daemon, RSS / PSS (its share of what others have mapped as well)")
        for side in sides:
            side.weigh(empty[side], *full[side])
        assert lnd.process is not None
        report.line("the gateway's LND itself", _mib((rss_bytes(lnd.process.pid), pss_bytes(lnd.process.pid))))


# --- top-ups ----------------------------------------------------------------------------------------------------------


def _top_ups(nodes: NodesHost, quick: bool) -> None:
    report.head("Top-ups: an invoice of the gateway's LND made, read, paid and proven")
    with nodes.electrum() as electrum:
        payer = nodes.payer(electrum)
        clients, last = list(range(1, CLIENTS + 1)), CLIENTS + 1
        one = TopUps(payer, clients, 5 if quick else 10)
        one.report("by LND, one after another", 3 if quick else 8)
        report.line("    then until the gateway's node reports it, median / p99", ms(one.told_s))
        TopUps(payer, clients, AT_ONCE * 3, AT_ONCE).report(f"by {CLIENTS} LND, {AT_ONCE} at once", 2 if quick else 6)
        TopUps(payer, [last], 2 if quick else 5).report("by Electrum, one after another", 2 if quick else 4)
        payer.end()
        assert electrum.process is not None
        report.line("    Electrum's own memory, RSS", f"{rss_bytes(electrum.process.pid) / MIB:.0f} MiB")


# --- contracts --------------------------------------------------------------------------------------------------------


class Side:
    """A gateway with its clients, and their way to pay."""

    def __init__(self, name: str, market: Market) -> None:
        self.name = name
        self.market = market
        self._crowd = Crowd(market.clients, market.internet, PAYLOAD_BYTES)
        (self._pid,) = market.seller.pids()
        self._opened = 0
        self.core_s, self.contracts = 0.0, 0

    def newcomers(self, count: int) -> None:
        """Time until a packet of an unknown client without credit passes: none does before it has paid."""
        market, buyer = self.market, self.market.buyers[0]
        probe = Probe(market.clients[0], market.internet)
        found = []
        for address in addresses(MANY_FIRST, NEWCOMERS_FIRST, count):
            buyer.stop()
            shutil.rmtree(buyer.state_dir)
            buyer.state_dir.mkdir(mode=0o700)
            buyer.start()
            market.await_acquainted()
            found.append(probe.until_one(address, PATIENCE_S))
        probe.close()
        arrivals = Arrivals(count, tuple(one for one in found if one is not None))
        report.line(f"until a newcomer's packets pass without credit, {self.name}, median / p99", arrivals.text())

    def open(self, count: int) -> float:
        """Open a number of contracts for each client; returns contracts a second."""
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
        """Print the memory of the gateway's daemon, without contracts and with a number of them."""
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
        3 if quick else 6, lambda: choose(sandbox), lambda: choose(over_lnd), lambda: chosen.open(count)
    )
    report.line("opened, ratio of LND to the sandbox", report.ratio(pairs, "a second", 1))
    for side in (sandbox, over_lnd):
        value = f"{side.contracts / side.core_s:,.0f} a second of the gateway's core"
        report.line(f"    {side.name}: {side.contracts:,}, {side.payments() - before[side]} payments meanwhile", value)


def _hanging(over_lnd: Side, lnd: Lnd, quick: bool) -> None:
    """Open contracts while the gateway's payment node doesn't answer: the prepaid money is enough."""
    assert lnd.process is not None
    pid = lnd.process.pid
    go_on, hang = partial(os.kill, pid, SIGCONT), partial(suspend, pid)
    try:
        pairs = report.take_pairs(2 if quick else 4, go_on, hang, lambda: over_lnd.open(HANGING_COUNT))
    finally:
        go_on()
    report.line("opened while the gateway's LND hangs, ratio to LND as usual", report.ratio(pairs, "a second", 1))
