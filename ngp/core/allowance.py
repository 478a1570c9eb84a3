"""Allowance: a token bucket that limits how much work others may cause."""

from __future__ import annotations

from collections.abc import Hashable

from ngp.core.newest import Newest


class Allowance:
    """A number of uses per second.

    Args:
        rate: uses per second.
        burst: how many unused uses are saved up at most; None: as many as one second brings.
    """

    __slots__ = ("_burst", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._tokens = self._burst = float(rate if burst is None else burst)
        self._then: float | None = None

    def take(self, now: float) -> bool:
        """Take one use. Returns False, and takes nothing, if none is left. Args: now: monotonic seconds."""
        if self._then is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._then) * self._rate)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class SharedAllowance:
    """An allowance for all users together, of which each user may take only a small part.

    Args:
        rate, burst: uses per second of all users together, and how many are saved up (see `Allowance`).
        part_rate, part_burst: uses per second of a single user, and how many are saved up.
        most: how many users are remembered. If there are more, the one silent for longest is forgotten: it then begins
            with a full part again, but `rate` still limits all users together.
    """

    def __init__(
        self, rate: float, part_rate: float, most: int, burst: float | None = None, part_burst: float | None = None
    ) -> None:
        self._all = Allowance(rate, burst)
        self._part_rate, self._part_burst = part_rate, part_burst
        self._parts: Newest[Hashable, Allowance] = Newest(most)

    def take(self, who: Hashable, now: float) -> bool:
        """Take one use for a user. Returns False if the user, or all together, have none.

        Args: now: monotonic seconds.
        """
        part = self._parts.get(who) or Allowance(self._part_rate, self._part_burst)
        self._parts.note(who, part)
        return part.take(now) and self._all.take(now)
