"""Mesh: first packets over several routers, quotes a second of one in the middle, and fail-over to another gateway.

Six routers in a line, which trust each other; the other settings are as shipped. A first packet of the first one has
five hops: five routers ask, quote, accept and sell. Each router sends to new destinations itself, so all lengths share
one network. The links add nothing to speak of, and what they add is subtracted: it is the time of the next packet to
the same destination.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from core_tests.bench import report
from core_tests.bench.latency import AGAIN_S
from core_tests.bench.market import cpu_s
from core_tests.bench.probe import Arrivals, Crowd, Probe, addresses
from core_tests.bench.stage import MANY_FIRST, MANY_NET
from core_tests.daemon import Daemon
from core_tests.diamond import Diamond, diamond, fail_over, gateway
from core_tests.lab import Lab
from core_tests.routers import Line
from core_tests.trade import KNOWN
from ngp.core.peers import QUESTIONS_A_SECOND

NAMES = "abcdef"
HOPS = range(1, len(NAMES))
GOAL_HOP_S = 0.003
GOAL_FAIL_OVER_S = 1.0
ROUND, WARM, IN_A_ROW = 10, 50, 200
APART = 1 << 16  # destinations of one length of the way from those of the next
# Prepaid in few payments, so that quotes are measured and not payments; long enough that no contract ends meanwhile.
# Each open contract sets 1 msat aside. Here each carries one packet, which costs less: a stranger, trusted with what it
# has carried, would be prepaid too little for more than some 1,000 of them.
KEYS = {"CONTRACTS_MAX": 65536, "CONTRACT_TIME": "1 day", "PAYMENT_AMOUNT": "10000 sat", **KNOWN}


def run(quick: bool) -> None:
    """Measure and print."""
    with Lab() as lab:
        report.head("First packet over several hops, all routers on this machine, one destination after another")
        _first_packets(_line(lab, NAMES), rounds=5 if quick else 30)
    with Lab() as lab:
        report.head("Quotes through a router in the middle, which buys each one from the next router")
        _quotes(_line(lab, "abc"), rounds=5 if quick else 20)
    report.head("Fail-over of a client with two gateways (CHOOSE_ROUTES): the pause when the chosen one fails")
    for title, fail in FAILURES.items():
        _fail_over(title, fail, rounds=3 if quick else 10)


def _line(lab: Lab, names: str) -> Line:
    line = Line(lab, masquerade=False, names=names, keys=KEYS)
    line.internet.owns(MANY_NET)
    line.await_acquainted()
    return line


def _first_packets(line: Line, rounds: int) -> None:
    """Measure all lengths in turn, some destinations of each at a time, so that other load on the machine meets all."""
    first: dict[int, list[Arrivals]] = {hops: [] for hops in HOPS}
    again: dict[int, list[Arrivals]] = {hops: [] for hops in HOPS}
    for number in range(-1, rounds):
        for hops in HOPS:
            probe = Probe(line.routers[-1 - hops], line.internet)  # the receiver's port is free for one at a time
            fresh = addresses(MANY_FIRST, hops * APART + (number + 1) * ROUND, ROUND)
            opened, plain = probe.each(fresh), probe.each(fresh, timeout_s=AGAIN_S)
            probe.close()
            if number >= 0:  # the first round warms up
                first[hops].append(opened)
                again[hops].append(plain)
    for hops in HOPS:
        _tell(hops, _joined(first[hops]), _joined(again[hops]))


def _tell(hops: int, opened: Arrivals, plain: Arrivals) -> None:
    if not opened.seconds or not plain.seconds:
        report.line(f"{hops} hops, median / p99", opened.text(), "all", reached=False)
        return
    own_s = report.percentile(opened.seconds, 0.5) - report.percentile(plain.seconds, 0.5)
    reached = len(opened.seconds) == opened.sent and own_s <= GOAL_HOP_S * hops
    text = f"{opened.text()}; {own_s / hops * 1000:.1f} ms a hop"
    report.line(f"{hops} hops, median / p99", text, f"{GOAL_HOP_S * 1000:.0f} ms a hop", reached)


def _quotes(line: Line, rounds: int) -> None:
    """Let the first router ask for many destinations at once, as many as it may ask for without a pause."""
    crowd = Crowd([line.routers[0]], line.internet)
    crowd.open([addresses(MANY_FIRST, 0, WARM)])
    pids = {daemon.name: _pid(daemon) for daemon in line.daemons}
    used_s, wall_s = dict.fromkeys(pids, 0.0), 0.0
    for number in range(rounds):
        time.sleep(IN_A_ROW / QUESTIONS_A_SECOND)  # until it may ask for so many again
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        wall_s += crowd.open([addresses(MANY_FIRST, WARM + number * IN_A_ROW, IN_A_ROW)])
        for name, pid in pids.items():
            used_s[name] += cpu_s(pid) - before[name]
    crowd.close()
    count = rounds * IN_A_ROW
    rate = f"{count / wall_s:,.0f} a second; {count / used_s['b']:,.0f} a second of its core"
    report.line(f"quoted, bought and sold, {rounds} times {IN_A_ROW} at once", rate)
    shares = " / ".join(f"{one / count * 1000:.1f}" for one in used_s.values())
    report.line("    processor time for each: client, middle, last", f"{shares} ms")


FAILURES: dict[str, Callable[[Diamond, str], None]] = {
    "its link goes down": Diamond.cut_off,
    "it falls silent, its link stays up": Diamond.silence,
}


def _fail_over(title: str, fail: Callable[[Diamond, str], None], rounds: int) -> None:
    """Let the chosen gateway fail during a conversation of 100 echoes a second, in a network of its own each time."""
    pauses = []
    for _ in range(rounds):
        with Lab() as lab:
            pauses.append(fail_over(diamond(lab, gateway("5 msat"), gateway("2 msat")), fail))
    text = f"{report.percentile(pauses, 0.5):.2f} s, longest {max(pauses):.2f} s ({rounds} times)"
    report.line(title, text, f"{GOAL_FAIL_OVER_S:.0f} s", max(pauses) < GOAL_FAIL_OVER_S)


def _joined(some: Sequence[Arrivals]) -> Arrivals:
    return Arrivals(sum(one.sent for one in some), tuple(second for one in some for second in one.seconds))


def _pid(daemon: Daemon) -> int:
    (pid,) = daemon.pids()
    return pid
