"""Replay: which sequences of one sender have been seen, in a sliding window (RFC 6479, RFC 4303 3.4.3).

Datagrams come twice, late and out of order. So accepting only "larger than the last" would lose good ones, and a set of
all sequences would grow for ever. RFC 6479 uses a ring of words to avoid shifting. No ring is needed here, since a
Python int shifts 4,096 bits in one operation.
"""

from __future__ import annotations

WINDOW = 4096
_MASK = (1 << WINDOW) - 1


class ReplayWindow:
    """The last WINDOW counts of one boot of one sender; bit 0 is the highest count seen."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0

    def is_stale(self, count: int) -> bool:
        """Say whether a count is below the window, so that nobody knows any more if it was seen."""
        return count <= self._highest - WINDOW

    def has(self, count: int) -> bool:
        """Say whether a count inside the window was added."""
        behind = self._highest - count
        return 0 <= behind < WINDOW and bool(self._seen >> behind & 1)

    def add(self, count: int) -> None:
        """Remember a new count (neither `is_stale` nor `has`), after its message's signature was checked."""
        ahead = count - self._highest
        if ahead > 0:
            self._seen = (self._seen << min(ahead, WINDOW) | 1) & _MASK
            self._highest = count
        else:
            self._seen |= 1 << -ahead
