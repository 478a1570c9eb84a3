"""Rate: how fast something grows, smoothed over a second."""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING_S = 1.0


@dataclass(slots=True)
class Rate:
    """A smoothed rate, in units a second.

    Attributes:
        a_second: the rate when something was last counted; 0 if nothing was, as after a start.
        at_mono_s: when something was last counted, or when counting began.
    """

    a_second: float = 0.0
    at_mono_s: float = 0.0

    def at(self, now_mono_s: float) -> float:
        """Return the rate at a later moment, if nothing came since it was last counted."""
        elapsed_s = max(0.0, now_mono_s - self.at_mono_s)
        return self.a_second * (1 - min(1.0, elapsed_s / SMOOTHING_S))

    def count(self, much: int, now_mono_s: float) -> None:
        """Count an amount that came since the last call."""
        elapsed_s = max(0.001, now_mono_s - self.at_mono_s)
        self.a_second += (much / elapsed_s - self.a_second) * min(1.0, elapsed_s / SMOOTHING_S)
        self.at_mono_s = now_mono_s
