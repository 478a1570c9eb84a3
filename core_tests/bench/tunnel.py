"""Tunnel: the speed of a rental's tunnel, beside WireGuard that was set up by hand.

Landlord, tenant and a third party, once with WireGuard by hand on the landlord, once with ngp, and once with ngp and a
price for a kilobyte. The tenant's end is by hand in all. So the ratios are the cost of ngp's routes and rules, and of
the meter; no daemon has a part in it. WireGuard is the kernel's everywhere, or wireguard-go where the kernel has none.
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
GB, SAT = 1 << 30, 1000
PRICE = "1 msat"  # for a kilobyte: the credit pays for 50 GB
FAMILIES = {4: "IPv4", 6: "IPv6"}


def run(quick: bool) -> None:
    """Measure and print."""
    pairs, seconds = (8, 0.3) if quick else (60, 0.3)
    with ExitStack() as labs:
        by_hand, let, metered = (Side(labs.enter_context(Lab())) for _ in range(3))
        by_hand.let_by_hand()
        let.let_by_ngp()
        metered.let_by_ngp(LANDLORD_PRICE=PRICE)
        report.head("A rental's tunnel, paired with WireGuard by hand: ratio (quartiles; by hand -> rented)")
        report.line("WireGuard", {"kernel": "the kernel's", "userspace": "wireguard-go"}[kind()])
        for title, found in _compare(by_hand, let, pairs, seconds):
            report.ratio_line(title, found, "Mbit/s", MBITS, GOAL)
        report.head("A rental with a price for a kilobyte, paired with one without: ratio (quartiles; without -> with)")
        for title, found in _compare(let, metered, pairs, seconds):
            report.line(title, report.ratio(found, "Mbit/s", MBITS))
        (row,) = metered.landlord.daemons[0].json("rentals")
        used = row["used_to_bytes"] + row["used_from_bytes"]
        report.line("metered meanwhile", f"{used / GB:.1f} GB for {row['charged_msat'] / SAT:,.0f} sat")


def _compare(plain: Side, other: Side, pairs: int, seconds: float) -> Iterator[tuple[str, report.Pairs]]:
    """Send one stream at a time through one of two tunnels, in both families and directions."""
    for version, family in FAMILIES.items():
        for way in ("down", "up"):
            with _streams((plain, other), way == "down", version, seconds) as (turn, rate):
                yield f"bulk TCP {way}, {family}", report.take_pairs(pairs, turn(plain), turn(other), rate)


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
