"""Tunnel: the speed of a rental's tunnel, beside WireGuard that was set up by hand.

Landlord, tenant and a third party, once with WireGuard by hand on the landlord, and once with ngp. The tenant's end is
by hand in both. So the ratio is the cost of ngp's routes and rules, and no daemon has a part in it. WireGuard is the
kernel's on both sides, or wireguard-go where the kernel has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from core_tests.bench import report
from core_tests.bench.letting import RENTED, Side
from core_tests.bench.stage import Blast, Sink
from core_tests.bench.wireguard import kind
from core_tests.lab import Lab

GOAL = 0.97
MBITS = 1e6 / 8
FAMILIES = {4: "IPv4", 6: "IPv6"}


def run(quick: bool) -> None:
    """Measure and print."""
    pairs, seconds = (8, 0.3) if quick else (60, 0.3)
    with ExitStack() as labs:
        by_hand, let = (Side(labs.enter_context(Lab())) for _ in range(2))
        by_hand.let_by_hand()
        let.let_by_ngp()
        report.head("A rental's tunnel, paired with WireGuard by hand: ratio (quartiles; by hand -> rented)")
        report.line("WireGuard", {"kernel": "the kernel's", "userspace": "wireguard-go"}[kind()])
        _compare("", by_hand, let, pairs, seconds, GOAL)


def _compare(what: str, plain: Side, other: Side, pairs: int, seconds: float, goal: float) -> None:
    """Send one stream at a time through one of two tunnels, in both families and directions."""
    for version, family in FAMILIES.items():
        for way in ("down", "up"):
            with _streams((plain, other), way == "down", version, seconds) as (turn, rate):
                found = report.take_pairs(pairs, turn(plain), turn(other), rate)
            report.ratio_line(f"bulk TCP {way}{what}, {family}", found, "Mbit/s", MBITS, goal)


Turn = Callable[[Side], Callable[[], None]]


@contextmanager
def _streams(
    sides: tuple[Side, ...], down: bool, version: int, seconds: float
) -> Iterator[tuple[Turn, Callable[[], float]]]:
    """Start receivers. Yields a function that chooses a side, and one that sends through the chosen one."""
    rented = RENTED[version == 6]
    sinks: dict[Side, Sink] = {}
    now = sides[0]

    def turn(side: Side) -> Callable[[], None]:
        def change() -> None:
            nonlocal now
            now = side

        return change

    def rate() -> float:
        outside = now.third.address("wan0", version)
        sender, source = (now.third, outside) if down else (now.tenant, rented)
        return sinks[now].rate(sender, source, seconds)

    try:
        for side in sides:
            receiver = (side.tenant, rented) if down else (side.third, side.third.address("wan0", version))
            sinks[side] = Sink(Blast(side.lab.folder, first=False), *receiver)
        yield turn, rate
    finally:
        for sink in sinks.values():
            sink.stop()
