"""Lanes: work that waits, one queue for each neighbour, taken in turn, so that a flood only slows whom it comes from.

A neighbour may cause as much work as it likes, but it waits behind its own work and nobody else's. All strangers share
one lane, since names cost nothing to make up. What the house itself tells (readings, hints, payments, timers) has every
other turn: paid traffic hangs on it, and the totals of a hundred thousand contracts must not hold up a first packet.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from ngp.core.events import Event

Work = Event | Callable[[], Event | None]
"""An event, or what has to be done to find out which one: a message's signature is looked at when it is its turn."""

LANE_MOST = 1024
"""Work of a neighbour that waits before its messages are refused unread: they come again, more slowly each time. More
than the packets that are held of one, so that these alone don't shut out its accepts."""

STRANGERS = b""


class Lanes:
    """Queues of work, emptied in turn."""

    def __init__(self) -> None:
        self._house: deque[Work] = deque()
        self._lanes: OrderedDict[bytes, deque[Work]] = OrderedDict()  # next in turn first; none is empty

    def __bool__(self) -> bool:
        return bool(self._house or self._lanes)

    def add(self, work: Work, lane: bytes | None = None) -> None:
        """Queue work. Args: lane: the identity that caused it, STRANGERS, or None for the house."""
        if lane is None:
            self._house.append(work)
        else:
            self._lanes.setdefault(lane, deque()).append(work)

    def is_full(self, lane: bytes) -> bool:
        """Say whether so much of one lane waits that no more should be taken in."""
        return len(self._lanes.get(lane, ())) >= LANE_MOST

    def take(self, most: int) -> Iterator[Work]:
        """Take out so much: one piece of the house, one of the neighbour whose turn it is, and so on."""
        for number in range(most):
            if self._house and not (number % 2 and self._lanes):
                yield self._house.popleft()
            elif self._lanes:
                lane, waiting = self._lanes.popitem(last=False)
                work = waiting.popleft()
                if waiting:
                    self._lanes[lane] = waiting
                yield work
            else:
                return
