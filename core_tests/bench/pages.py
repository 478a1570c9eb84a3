"""Pages: the time of a household that opens 200 hosts at once, each a contract of its own, beside plain forwarding.

The household is behind its own router, which hides it (NAT) and has a daemon with the shipped settings. The gateway has
them too; its uplink carries 100 Mbit/s. In each round the daemons start as newcomers to each other. The first visit
waits for proposals, acceptance and the first payments; the second finds contracts. `others` is a first visit to other
hosts, by a customer that has paid before. Each figure is compared with plain forwarding of the same bytes in its round.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from core_tests.bench import report
from core_tests.bench.helper import Helper
from core_tests.bench.market import Equip, Market, build_market
from core_tests.bench.nodes import NodesHost
from core_tests.bench.probe import addresses
from core_tests.bench.stage import MANY_FIRST
from core_tests.lab import Lab
from core_tests.lightning.build import prepare
from core_tests.topologies import ThreeHosts
from core_tests.trade import Conf

HOSTS = 200
FEW_BYTES, MANY_BYTES = 60_000, 600_000
# An uplink as fast as many households'. Its queue has room for all packets under way, so that it loses none.
UPLINK = ("tbf", "rate", "100mbit", "burst", "64kb", "limit", "16mb")
FIRST_TIMES, FIRST_MORE_S, SECOND_TIMES = 2.0, 1.0, 1.3


def run(quick: bool) -> None:
    """Measure and print."""
    rounds = 1 if quick else 3
    with Lab() as lab:
        stand = Stand(lab, 1)
        stand.report("One household", FEW_BYTES, rounds)
        stand.report("One household", MANY_BYTES, (rounds + 1) // 2)
    with Lab() as lab:
        Stand(lab, 3).report("Three households at once", FEW_BYTES, rounds)
    prepare(lambda text: print(text, flush=True))
    with Lab() as lab, ExitStack() as stack:
        nodes = NodesHost(lab)

        def equip(net: ThreeHosts) -> Mapping[str, Conf]:
            return stack.enter_context(nodes.serving(net))

        Stand(lab, 1, equip).report("One household that pays over LND", FEW_BYTES, rounds)


@dataclass(slots=True)
class Visits:
    """Seconds of all visits of a kind, seconds of plain forwarding in the same rounds, and failures."""

    title: str
    seconds: list[float] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def note(self, seconds: float, plain_s: float, failed: list[str]) -> None:
        """Add a round."""
        self.seconds.append(seconds)
        self.plain_s.append(plain_s)
        self.failed += failed

    def line(self, times: float, more_s: float) -> None:
        """Print the visits and the goal: a multiple of plain forwarding plus some seconds, in each round."""
        ratio = statistics.median(mine / plain for mine, plain in zip(self.seconds, self.plain_s, strict=True))
        value = f"{_seconds(self.seconds)}, {ratio:.2f} of plain, {len(self.failed)} failed"
        pairs = zip(self.seconds, self.plain_s, strict=True)
        reached = not self.failed and all(mine <= times * plain + more_s for mine, plain in pairs)
        goal = f"{times} x plain" + (f" + {more_s:.0f} s" if more_s else "") + ", none fails"
        report.line(self.title, value, goal, reached)
        for why in self.failed[:3]:
            report.line(f"    {why}", "")


class Stand:
    """The network, with a browser in each household and all the hosts that they open behind the gateway."""

    def __init__(self, lab: Lab, households: int, equip: Equip = lambda _: {}) -> None:
        self.market: Market = build_market(lab, households, equip=equip, households=households, masquerade=True)
        for host in (self.market.gateway, self.market.internet):
            host.sh("tc", "qdisc", "replace", "dev", "wan0", "root", *UPLINK)
        Helper(self.market.internet, "core_tests.bench.browser", "serve")
        self._browsers = [Helper(host, "core_tests.bench.browser", "visit") for host in self.market.households]
        self._opened = 0

    def report(self, title: str, size_bytes: int, rounds: int) -> None:
        """Measure and print one size of pages."""
        report.head(f"{title}: {HOSTS} hosts at once, {size_bytes / 1000:.0f} kB from each")
        plain, first, second, others = (
            Visits(text) for text in ("plain forwarding", "first visit, by a newcomer", "second visit", "other hosts")
        )
        for _ in range(rounds):
            hosts = self._hosts()
            plain_s, failed = self._visit(hosts, size_bytes)
            plain.note(plain_s, plain_s, failed)
            self.market.start_anew()
            for visits, where in ((first, hosts), (second, hosts), (others, self._hosts())):
                seconds, failed = self._visit(where, size_bytes)
                visits.note(seconds, plain_s, failed)
            self.market.stop()
        report.line(plain.title, f"{_seconds(plain.seconds)}, {len(plain.failed)} failed")
        first.line(FIRST_TIMES, FIRST_MORE_S)
        second.line(SECOND_TIMES, 0)
        others.line(FIRST_TIMES, FIRST_MORE_S)

    def _hosts(self) -> list[list[str]]:
        """Return hosts that nobody has opened yet, different ones for each household."""
        found = []
        for _ in self._browsers:
            found.append(addresses(MANY_FIRST, self._opened, HOSTS))
            self._opened += HOSTS
        return found

    def _visit(self, hosts: list[list[str]], size_bytes: int) -> tuple[float, list[str]]:
        """Make all households open their hosts at once; returns the seconds of the slowest, and the failures."""
        with ThreadPoolExecutor(len(hosts)) as pool:
            said = list(pool.map(lambda browser, mine: browser.ask("visit", mine, size_bytes), self._browsers, hosts))
        return max(float(one["seconds"]) for one in said), [why for one in said for why in one["failed"]]


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"
