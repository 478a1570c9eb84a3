"""Forwarding: how fast the gateway is with ngp, beside itself without, under ever more live contracts.

Both directions are metered in every round that isn't plain. The small frames go to one destination, as a flow does,
and to all destinations of all contracts at random, which no cache can hold: the first shows what the meter's programs
cost, the second what the size of its tables costs.
"""

from __future__ import annotations

import statistics

from core_tests.bench import report
from core_tests.bench.stage import MANY_FIRST, OFFLOADS_ON, Gateway, Sink, Stage, Way
from core_tests.host import Host
from core_tests.lab import OFFLOADS_OFF, Lab
from core_tests.shell import LabError

CONTRACTS = (1, 10_000, 1_000_000)
FRAME_BYTES = 60
GOAL = 0.95
SHARE_S = 0.2
MPPS, GBITS = 1e6, 1e9 / 8


def run(quick: bool) -> None:
    """Measure and print."""
    pairs, streams, seconds = (3, 3, 0.3) if quick else (7, 5, 0.35)
    with Lab() as lab:
        stage = Stage(lab)
        with stage.gateway() as gateway:
            about = gateway.ask("describe")
            report.head("Forwarding, paired with plain kernel forwarding: ratio (quartiles; plain -> metered)")
            report.line("gate and hook", f"{about['interception']}; {about['hook']}")
            _require_plain(stage, gateway)
            for kind, features in (("offloads on", OFFLOADS_ON), ("else", OFFLOADS_OFF)):
                stage.offloads(**features)
                report.line(f"offloads of all cards, {kind}", stage.describe_offloads())
            for count in CONTRACTS:
                gateway.ask("many", MANY_FIRST, count)
                _small(stage, gateway, count, pairs, seconds)
                _bulk(stage, gateway, count, streams, seconds)


def _require_plain(stage: Stage, gateway: Gateway) -> None:
    """Make sure that nothing of ngp, and nothing else, is in a plain packet's way: half a rival would flatter us."""
    programs = gateway.ask("plain")
    rules = stage.net.gateway.sh("nft", "list", "ruleset").strip()
    if rules or programs:
        raise LabError(f"the gateway isn't plain: programs {programs} on mesh0, rules {rules}")


def _small(stage: Stage, gateway: Gateway, count: int, pairs: int, seconds: float) -> None:
    for name, way in (("up", stage.up), ("down", stage.down)):
        for spread in sorted({1, count}):

            def measure(way: Way = way, spread: int = spread) -> float:
                return stage.frames(way, seconds, spread=spread, frame_bytes=FRAME_BYTES)

            emulation_ns: list[float] = []

            def emulation(way: Way = way, spread: int = spread, found: list[float] = emulation_ns) -> None:
                found.append(stage.emulation_ns(way, SHARE_S, spread))

            found = report.take_pairs(pairs, gateway.plain, gateway.metered, measure, emulation)
            where = "one destination" if spread == 1 else "all destinations"
            title = f"{FRAME_BYTES}-byte UDP {name}, {count:,} contracts, {where}"
            report.ratio_line(title, found, "Mpps", MPPS, GOAL)
            _share(found, statistics.median(emulation_ns))


def _share(found: report.Pairs, emulation_ns: float) -> None:
    """Say what of it is the gateway's own: without what it costs to make a frame and bring it to the gateway's card."""
    plain_ns, metered_ns = (1e9 / statistics.median(rates) - emulation_ns for rates in (found.plain, found.metered))
    value = f"{plain_ns / metered_ns:.2f} ({plain_ns:.0f} -> {metered_ns:.0f} ns a packet)"
    report.line("    of that the gateway's own part", value)


def _bulk(stage: Stage, gateway: Gateway, count: int, pairs: int, seconds: float) -> None:
    """One stream at a time between the client and a contracted destination, superpackets and single frames."""
    net = stage.net
    client = net.client.address("mesh0", 4)
    for name, sender, source, receiver, address in (
        ("up", net.client, client, net.internet, MANY_FIRST),
        ("down", net.internet, MANY_FIRST, net.client, client),
    ):
        sink = Sink(stage, receiver, address)

        def measure(sink: Sink = sink, sender: Host = sender, source: str = source) -> float:
            return sink.rate(sender, source, seconds)

        for kind, features in (("offloads on", OFFLOADS_ON), ("1,500-byte frames", OFFLOADS_OFF)):
            stage.offloads(**features)
            found = report.take_pairs(pairs, gateway.plain, gateway.metered, measure)
            report.ratio_line(f"bulk TCP {name}, {count:,} contracts, {kind}", found, "Gbit/s", GBITS, GOAL)
        sink.stop()
    stage.offloads(**OFFLOADS_OFF)
