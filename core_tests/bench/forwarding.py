"""Forwarding: the speed of a gateway with ngp, beside one without, with more and more live contracts.

Both directions are metered. The small frames go to one destination, as a flow does, and to random destinations of all
contracts, which no cache can hold. The first shows the cost of the meter's programs, the second the cost of large
tables. Two more gateways have only one rule of the packet filter, or only an empty chain: they show the cost of the
packet filter itself, which no program of ours can reduce.

The gateways exist side by side and take turns many times a second, so that other load on the machine affects all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from core_tests.bench import report
from core_tests.bench.stage import MANY_FIRST, OFFLOADS_ON, Sink, Stage
from core_tests.lab import OFFLOADS_OFF, Lab
from core_tests.shell import LabError

CONTRACTS = (1, 10_000, 1_000_000)
FRAME_BYTES = 60
GOAL = 0.95
ROUND_S, EMULATIONS = 0.04, 9
MPPS, GBITS = 1e6, 1e9 / 8
PLAIN, METERED = "plain", "metered"
# Packet filters that let everything pass, in place of the gate, as iptables-nft writes them.
FILTERS = {
    "an empty chain": "",
    "a chain naming another interface": 'iifname "mesh1" counter drop',
}


class SideBySide:
    """The stages by name, and the one that is measured now."""

    def __init__(self, stages: dict[str, Stage]) -> None:
        self.stages = stages
        self.now = stages[PLAIN]

    def turn(self, name: str) -> Callable[[], None]:
        """Return a function that makes a stage the one that is measured."""

        def change() -> None:
            self.now = self.stages[name]

        return change

    def offloads(self, **features: bool) -> None:
        """Set segmentation offloads of all stages."""
        for stage in self.stages.values():
            stage.offloads(**features)


def run(quick: bool) -> None:
    """Measure and print."""
    pairs, streams, seconds = (15, 3, 0.3) if quick else (40, 5, 0.35)
    with ExitStack() as labs:
        names = (PLAIN, METERED, *FILTERS)
        every = SideBySide({name: Stage(labs.enter_context(Lab())) for name in names})
        for name, rule in FILTERS.items():
            every.stages[name].net.gateway.sh("nft", "-f", "-", text_in=_filter(rule))
        with every.stages[METERED].gateway() as gateway:
            gateway.metered()
            about = gateway.ask("describe")
            report.head("Forwarding, paired with plain kernel forwarding: ratio (quartiles; plain -> metered)")
            report.line("gate and hook", f"{about['interception']}; {about['hook']}")
            _require_plain(every.stages[PLAIN])
            for kind, features in (("offloads on", OFFLOADS_ON), ("else", OFFLOADS_OFF)):
                every.offloads(**features)
                report.line(f"offloads of all cards, {kind}", every.now.describe_offloads())
            _filters(every, pairs)
            for count in CONTRACTS:
                gateway.ask("many", MANY_FIRST, count)
                _small(every, count, pairs)
                _bulk(every, count, streams, seconds)
            gateway.metered(buys=True)
            for name in ("up", "down"):
                _flow(every, name, 1, pairs, f"{FRAME_BYTES}-byte UDP {name}, one destination, the gateway also buys")


def _filter(rule: str) -> str:
    lines = ["table ip bench {", "chain forward {", "type filter hook forward priority security", rule, "}", "}"]
    return "\n".join([*lines, ""])


def _require_plain(stage: Stage) -> None:
    """Make sure that plain forwarding has no rules or hooks, which would make ngp look better than it is."""
    rules = stage.net.gateway.sh("nft", "list", "ruleset").strip()
    hooks = stage.net.gateway.sh("bpftool", "net", "show").partition("flow_dissector")[0]
    if rules or "mesh0" in hooks or "wan0" in hooks:
        raise LabError(f"the plain gateway isn't plain: rules {rules}, {hooks}")


def _frames(every: SideBySide, name: str, spread: int) -> Callable[[], float]:
    """Return a function that sends small frames through the measured gateway, and returns the arrivals a second."""

    def measure() -> float:
        stage = every.now
        return stage.frames(getattr(stage, name), ROUND_S, spread=spread, frame_bytes=FRAME_BYTES)

    return measure


def _filters(every: SideBySide, pairs: int) -> None:
    """Measure packet filters without ngp: no goal, since any router with a firewall has this cost."""
    for name in FILTERS:
        found = report.take_pairs(pairs, every.turn(PLAIN), every.turn(name), _frames(every, "up", 1))
        report.line(f"{FRAME_BYTES}-byte UDP, {name}, no ngp", report.ratio(found, "Mpps", MPPS))


def _small(every: SideBySide, count: int, pairs: int) -> None:
    for name in ("up", "down"):
        for spread in sorted({1, count}):
            where = "one destination" if spread == 1 else "all destinations"
            _flow(every, name, spread, pairs, f"{FRAME_BYTES}-byte UDP {name}, {count:,} contracts, {where}")


def _flow(every: SideBySide, name: str, spread: int, pairs: int, title: str) -> None:
    """Measure small frames in one direction, to so many destinations."""
    found = report.take_pairs(pairs, every.turn(PLAIN), every.turn(METERED), _frames(every, name, spread))
    report.ratio_line(title, found, "Mpps", MPPS, GOAL)
    plain = every.stages[PLAIN]
    shares = [plain.emulation_ns(getattr(plain, name), ROUND_S, spread) for _ in range(EMULATIONS)]
    _share(found, statistics.median(shares))


def _share(found: report.Pairs, emulation_ns: float) -> None:
    """Print the gateway's own part: without the cost to make a frame and bring it to the gateway's card."""
    plain_ns, metered_ns = (1e9 / statistics.median(rates) - emulation_ns for rates in (found.plain, found.metered))
    value = f"{plain_ns / metered_ns:.2f} ({plain_ns:.0f} -> {metered_ns:.0f} ns a packet)"
    report.line("    of that the gateway's own part", value)


def _bulk(every: SideBySide, count: int, pairs: int, seconds: float) -> None:
    """One stream at a time between the client and a contracted destination, superpackets and single frames."""
    for name in ("up", "down"):
        with _streams(every, name == "up", seconds) as rate:
            for kind, features in (("offloads on", OFFLOADS_ON), ("1,500-byte frames", OFFLOADS_OFF)):
                every.offloads(**features)
                found = report.take_pairs(pairs, every.turn(PLAIN), every.turn(METERED), rate)
                report.ratio_line(f"bulk TCP {name}, {count:,} contracts, {kind}", found, "Gbit/s", GBITS, GOAL)
    every.offloads(**OFFLOADS_OFF)


@contextmanager
def _streams(every: SideBySide, up: bool, seconds: float) -> Iterator[Callable[[], float]]:
    """Start a receiver in the plain and the metered stage; yields a function that sends through the measured one."""
    sinks: dict[Stage, Sink] = {}

    def rate() -> float:
        net = every.now.net
        client = net.client.address("mesh0", 4)
        sender, source = (net.client, client) if up else (net.internet, MANY_FIRST)
        return sinks[every.now].rate(sender, source, seconds)

    try:
        for stage in (every.stages[PLAIN], every.stages[METERED]):
            client = stage.net.client
            receiver = (stage.net.internet, MANY_FIRST) if up else (client, client.address("mesh0", 4))
            sinks[stage] = Sink(stage.blast, *receiver)
        yield rate
    finally:
        for sink in sinks.values():
            sink.stop()
