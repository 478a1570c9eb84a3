"""Allowance: a token bucket that limits how much work others may cause."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class Allowance:
    """A number of uses per second. Unused ones are saved up, but no more of them than one second allows."""

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


class SharedAllowance:
    """An allowance for all users together, of which each user may take only a small part.

    Args:
        rate: uses per second of all users.
        part_rate: uses per second of each user.
        most: how many users are remembered. If there are more, the one silent for longest is forgotten: it then begins
            with a full part again, but `rate` still limits all users together.
    """

    def __init__(self, rate: int, part_rate: int, most: int) -> None:
        self._all = Allowance(rate)
        self._part_rate, self._most = part_rate, most
        self._parts: OrderedDict[Hashable, Allowance] = OrderedDict()

    def take(self, who: Hashable, now: float) -> bool:
        """Use one up, or return False. Args: now: monotonic seconds."""
        part = self._parts.get(who)
        if part is None:
            part = self._parts[who] = Allowance(self._part_rate)
            if len(self._parts) > self._most:
                self._parts.popitem(last=False)
        self._parts.move_to_end(who)
        return part.take(now) and self._all.take(now)
