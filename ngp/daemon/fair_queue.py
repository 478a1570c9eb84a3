"""Fair queue: waiting events, one queue for each neighbour, taken in turn, so that a flood delays only its sender.

However much work a neighbour causes, it delays only itself: its new work waits behind its older work. All strangers
share one queue, since an attacker can make up identities for nothing. Events of this host (readings, hints, payments,
timers) get every other turn, because paid traffic depends on them. They don't get more than that: the counter readings
of 100,000 contracts must not delay a first packet.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from ngp.core.events import Event

Work = Event | Callable[[], Event | None]
"""An event, or a function that returns it: a message's signature is only checked when its turn has come."""

QUEUE_MOST = 1024
"""When so many events of a neighbour wait, its further messages are refused unread; the neighbour sends them again,
ever more slowly. The number is above that of the packets that are held of one neighbour: held packets alone must not
keep out the neighbour's accepts."""

STRANGERS = b""


class FairQueue:
    """Queues of work, emptied in turn."""

    def __init__(self) -> None:
        self._own: deque[Work] = deque()
        self._queues: OrderedDict[bytes, deque[Work]] = OrderedDict()  # next in turn first; none is empty

    def __bool__(self) -> bool:
        return bool(self._own or self._queues)

    def add(self, work: Work, cause: bytes | None = None) -> None:
        """Queue work. Args: cause: the identity that caused it, STRANGERS, or None for this host."""
        if cause is None:
            self._own.append(work)
        else:
            self._queues.setdefault(cause, deque()).append(work)

    def is_full(self, cause: bytes) -> bool:
        """Say whether too much work of a neighbour waits already, so that no more should be accepted."""
        return len(self._queues.get(cause, ())) >= QUEUE_MOST

    def take(self, most: int) -> Iterator[Work]:
        """Take at most this many: in turn one of this host, and one of the next neighbour."""
        for number in range(most):
            if self._own and not (number % 2 and self._queues):
                yield self._own.popleft()
            elif self._queues:
                cause, waiting = self._queues.popitem(last=False)
                work = waiting.popleft()
                if waiting:
                    self._queues[cause] = waiting
                yield work
            else:
                return
