"""Latency: the time from a client's first packet to a destination until it arrives there, with two real daemons.

In between the gateway's kernel holds the packet, both daemons negotiate and sign, the ledgers are written, the contract
is granted in the kernel, and the packet passes the gate again. A second packet shows the time without all that.
"""

from __future__ import annotations

from core_tests.bench import report
from core_tests.bench.market import Market, open_market
from core_tests.bench.probe import PAUSE_S, Probe, addresses
from core_tests.bench.stage import MANY_FIRST
from core_tests.lab import Lab

GOAL_MEDIAN_S, GOAL_P99_S = 0.0015, 0.005
WARM = 20
AGAIN_S = 0.2  # a refused packet isn't held, and nothing sends it again


def run(quick: bool) -> None:
    """Measure and print."""
    count = 100 if quick else 1000
    with Lab() as lab:
        market: Market = open_market(lab)
        probe = Probe(market.clients[0], market.internet)
        report.head("First packet to forwarded packet, two real daemons, new destinations one after another")
        probe.each(addresses(MANY_FIRST, 0, WARM))
        fresh = addresses(MANY_FIRST, WARM, count)
        first, again = probe.each(fresh, pause_s=PAUSE_S), probe.each(fresh, timeout_s=AGAIN_S)
        probe.close()
        lost = first.sent - len(first.seconds)
        median, p99 = (report.percentile(first.seconds, share) for share in (0.5, 0.99))
        reached = not lost and median < GOAL_MEDIAN_S and p99 < GOAL_P99_S
        goal = f"{GOAL_MEDIAN_S * 1e3:.1f} / {GOAL_P99_S * 1e3:.0f} ms"
        report.line("first packet, median / p99", first.text(), goal, reached)
        report.line("the next packet to each of them", again.text(), "all", again.sent == len(again.seconds))
