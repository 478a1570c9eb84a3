"""The output of the benchmark: the machine, and one line for each figure with its goal.

On a machine with other load only ratios of neighbouring rounds mean anything. So a ratio is the median over pairs, each
of one round with ngp and one without, in alternating order; its quartiles say how far the pairs differ.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TITLE_COLUMNS = 58
VALUE_COLUMNS = 44


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rounds without and with ngp, in pairs; the unit is the caller's (more is better)."""

    plain: tuple[float, ...]
    metered: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of with / without."""
        return statistics.median(self._ratios())

    @property
    def quartiles(self) -> tuple[float, float]:
        """The range of the middle half of the pairs."""
        ratios = self._ratios()
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    def _ratios(self) -> list[float]:
        return [with_ / without for without, with_ in zip(self.plain, self.metered, strict=True) if without]


def take_pairs(
    pairs: int,
    plain: Callable[[], None],
    metered: Callable[[], None],
    measure: Callable[[], float],
) -> Pairs:
    """Measure with and without, after one round to warm up; the order alternates from pair to pair."""
    found: dict[Callable[[], None], list[float]] = {plain: [], metered: []}
    metered()
    measure()
    for number in range(pairs):
        for switch in (plain, metered) if number % 2 else (metered, plain):
            switch()
            found[switch].append(measure())
    return Pairs(tuple(found[plain]), tuple(found[metered]))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share (0 to 1) of all values doesn't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def head(title: str) -> None:
    """Print the title of a part."""
    print(f"\n{title}", flush=True)


def line(title: str, value: str, goal: str = "", reached: bool | None = None) -> None:
    """Print a figure; `reached` says whether it meets its goal, if it has one."""
    verdict = {None: "", True: "reached", False: "NOT reached"}[reached]
    aim = f"goal {goal}: {verdict}" if goal else ""
    print(f"  {title:<{TITLE_COLUMNS}} {value:<{VALUE_COLUMNS}} {aim}".rstrip(), flush=True)


def ratio(pairs: Pairs, unit: str, scale: float) -> str:
    """Return a ratio with its quartiles and the absolute values behind it, as text."""
    low, high = pairs.quartiles
    without, with_ = statistics.median(pairs.plain) / scale, statistics.median(pairs.metered) / scale
    return f"{pairs.ratio:.2f} ({low:.2f}-{high:.2f}; {without:.2f} -> {with_:.2f} {unit})"


def ratio_line(title: str, pairs: Pairs, unit: str, scale: float, goal: float) -> None:
    """Print a ratio beside its goal."""
    line(title, ratio(pairs, unit, scale), f"{goal:.2f}", pairs.ratio >= goal)


def describe_machine() -> list[str]:
    """Print the machine on which the figures were taken."""
    cpu = _after(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    memory_kb = int((_after(Path("/proc/meminfo"), "MemTotal") or "0").split()[0])
    return [
        f"cpu       {cpu}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        f"memory    {memory_kb / (1 << 20):.1f} GiB",
        f"kernel    {platform.system()} {platform.release()} {platform.version()}",
        f"python    {platform.python_version()}",
        f"load      {' '.join(f'{one:.2f}' for one in os.getloadavg())} (1, 5, 15 minutes, before the run)",
    ]


def _after(path: Path, name: str) -> str:
    for text in path.read_text().splitlines():
        key, _, value = text.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
