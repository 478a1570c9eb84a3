"""Allowance: how much work others may cause, as a token bucket."""

from __future__ import annotations


class Allowance:
    """So many a second; what was left unused is good for a burst of one second's worth."""

    __slots__ = ("_rate", "_then", "_tokens")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._then: float | None = None

    def take(self, now: float) -> bool:
        """Use one up, or return False. Args: now: monotonic seconds."""
        if self._then is not None:
            self._tokens = min(self._rate, self._tokens + max(0.0, now - self._then) * self._rate)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
