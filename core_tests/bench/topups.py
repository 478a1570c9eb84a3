"""Top-ups: the time to make, read, pay and prove an invoice, by ngp's modules and by the bare nodes, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from core_tests.bench import report
from core_tests.bench.helper import Helper


@dataclass(slots=True)
class TopUps:
    """Rounds of payments by ngp's module and by the bare nodes.

    Attributes:
        payers: the nodes that pay in turn, by their numbers.
        count, at_once: of a round.
        told_s: seconds from the payer's proof until the earning node reported the payment.
    """

    payer: Helper
    payers: Sequence[int]
    count: int
    at_once: int = 1
    verb: str = "ours"
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "raw": []})
    told_s: list[float] = field(default_factory=list)

    def ours(self) -> None:
        """Make the next round one by ngp's modules."""
        self.verb = "ours"

    def raw(self) -> None:
        """Make the next round one by the bare nodes."""
        self.verb = "raw"

    def rate(self) -> float:
        """Pay a round; returns payments a second."""
        done = self.payer.ask(self.verb, self.payers, self.count, self.at_once)
        self.seconds[self.verb] += done["seconds"]
        self.told_s += done["told_s"]
        return self.count / float(done["wall_s"])

    def report(self, title: str, pairs: int) -> None:
        """Measure and print."""
        found = report.take_pairs(pairs, self.raw, self.ours, self.rate)
        report.line(f"{title}, ratio to the bare nodes", report.ratio(found, "a second", 1))
        for verb, who in (("ours", "by ngp"), ("raw", "by the bare nodes")):
            report.line(f"    until the payer has its proof, {who}, median / p99", ms(self.seconds[verb]))


def ms(seconds: Sequence[float]) -> str:
    """Return median and p99 in ms, as text."""
    median, p99 = (1000 * report.percentile(seconds, share) for share in (0.5, 0.99))
    return f"{median:.0f} / {p99:.0f} ms"
