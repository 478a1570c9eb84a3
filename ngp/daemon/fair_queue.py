"""Fair queue: waiting events, one queue for each neighbour, taken in turn, so that a flood delays only its sender.

However much work a neighbour causes, it delays only itself: its new work waits behind its older work. All strangers
share one queue, since an attacker can make up identities for nothing. Events of this host (readings, hints, payments,
timers) get every other turn, because paid traffic depends on them. They don't get more than that: the counter readings
of 100,000 contracts must not delay a first packet.

Messages wait unread in memory, so their number is limited, for all neighbours together. A neighbour may add a message
only while fewer of its messages wait than there are free places. So the places never run out: if several neighbours
flood, each gets an equal part, and as much stays free for the others. Neighbours with which no money was exchanged yet
have a limit of their own, since an attacker can make up thousands of them. Packets that the kernel holds need no limit
here: the kernel's queue has one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ngp.core.events import Event

Work = Event | Callable[[], Event | None]
"""An event, or a function that returns it: a message's signature is only checked when its turn has come."""

QUEUE_MOST = 1024
"""How many messages of one neighbour may wait. Further ones are refused unread, and the neighbour sends them again, at
longer and longer intervals."""
ROOM = 4096
"""How many messages may wait in all from neighbours with which money was exchanged, and again as many from all others;
a message has some 2 kB."""

STRANGERS = b""


@dataclass(frozen=True, slots=True)
class _Unread:
    """A message, and whether money was exchanged with its sender: such messages have a limit of their own."""

    read: Callable[[], Event | None]
    has_traded: bool


@dataclass(slots=True)
class _Line:
    """The waiting work of one neighbour. `messages`: how many of these items are messages."""

    work: deque[Event | _Unread] = field(default_factory=deque)
    messages: int = 0


class FairQueue:
    """Queues of work, emptied in turn."""

    def __init__(self) -> None:
        self._own: deque[Event] = deque()
        self._lines: OrderedDict[bytes, _Line] = OrderedDict()  # next in turn first; none is empty
        self._messages = {True: 0, False: 0}  # of neighbours with which money was exchanged, and of others

    def __bool__(self) -> bool:
        return bool(self._own or self._lines)

    def add(self, event: Event, cause: bytes | None = None) -> None:
        """Queue an event. Args: cause: the identity that caused it, or None for this host."""
        if cause is None:
            self._own.append(event)
        else:
            self._lines.setdefault(cause, _Line()).work.append(event)

    def add_message(self, read: Callable[[], Event | None], sender: bytes, has_traded: bool) -> bool:
        """Queue a message unread. Returns False if too many wait already.

        Args:
            read: checks the message and returns its event; called when its turn has come.
            sender: an identity, or STRANGERS.
            has_traded: whether money has passed between us and the sender.
        """
        line, free = self._lines.get(sender) or _Line(), ROOM - self._messages[has_traded]
        if line.messages >= min(QUEUE_MOST, free):
            return False
        line.work.append(_Unread(read, has_traded))
        line.messages += 1
        self._messages[has_traded] += 1
        self._lines.setdefault(sender, line)
        return True

    def take(self, most: int) -> Iterator[Work]:
        """Take at most `most` items: in turn one of this host, and one of the next neighbour."""
        for number in range(most):
            if self._own and not (number % 2 and self._lines):
                yield self._own.popleft()
            elif self._lines:
                yield self._next_neighbours()
            else:
                return

    def _next_neighbours(self) -> Work:
        cause, line = self._lines.popitem(last=False)
        work = line.work.popleft()
        if line.work:
            self._lines[cause] = line
        if not isinstance(work, _Unread):
            return work
        line.messages -= 1
        self._messages[work.has_traded] -= 1
        return work.read
