"""Timers: what is due, and when on the monotonic clock. Each key has one timer; setting it again replaces it."""

from __future__ import annotations

import heapq
import math
from enum import IntEnum, auto


class Due(IntEnum):
    """The purpose of a timer. Purpose and id (of a contract, an account or a payment) are a timer's key.

    It is an IntEnum since that is hashed as fast as a number: there may be a timer for each of a million contracts.
    """

    QUOTE = auto()  # a proposal's validity ends
    EXPIRY = auto()  # a contract's lifetime ends
    EXHAUSTED = auto()  # a contract used up its data and nobody renewed it
    CREDIT = auto()  # an account's grace is over, or wasn't used
    UNPAID = auto()  # contracts accepted without money weren't paid for in time
    REFUSAL = auto()  # a remembered refusal is forgotten
    INVOICE = auto()  # an invoice expires, or an account that had to wait may get another invoice
    STATEMENT = auto()  # a statement of an account goes to its client
    RENEWAL = auto()  # check whether a contract should be renewed
    TRACK = auto()  # ask the payment node again how a payment ended
    STRANGERS = auto()  # packets of unknown neighbours were held long enough
    RENTAL = auto()  # a rental's credit or its reserved time ends
    FORKS = auto()  # look after the forks in use
    UNSOLD = auto()  # look after what purchases bring that no client pays for
    MISSED = auto()  # ask again for what servers ended while it carried traffic
    LEFT = auto()  # look whether purchases whose traffic goes another way are idle
    NETWORKS = auto()  # look up our routes to parts of the networks that we sell
    DOUBTFUL = auto()  # look up our routes for contracts that rest on nothing, though their destinations are bought
    FLUSH = auto()  # running totals go to the ledger


CONTRACT_TIMERS = (Due.QUOTE, Due.EXPIRY, Due.EXHAUSTED, Due.REFUSAL, Due.RENEWAL)


class Timers:
    """All timers, in a heap. A timer that is moved or cleared leaves its old entry there, which is skipped later."""

    def __init__(self) -> None:
        self._at: dict[tuple[Due, bytes], float] = {}
        self._heap: list[tuple[float, int, tuple[Due, bytes]]] = []
        self._count = 0

    def set(self, due: Due, key: bytes, at_mono_s: float) -> None:
        """Set a timer to an instant; if it is set already, move it."""
        name = (due, key)
        self._at[name] = at_mono_s
        self._count += 1
        heapq.heappush(self._heap, (at_mono_s, self._count, name))
        if len(self._heap) > 64 + 4 * len(self._at):
            self._heap = [(at, number, name) for number, (name, at) in enumerate(self._at.items())]
            self._count = len(self._heap)
            heapq.heapify(self._heap)

    def set_if_unset(self, due: Due, key: bytes, at_mono_s: float) -> None:
        """Set a timer to an instant, unless it is set already."""
        if (due, key) not in self._at:
            self.set(due, key, at_mono_s)

    def at_mono_s(self, due: Due, key: bytes) -> float:
        """Return when a timer is due; infinite if it isn't set."""
        return self._at.get((due, key), math.inf)

    def clear(self, due: Due, key: bytes) -> None:
        """Remove a timer, if it is set."""
        self._at.pop((due, key), None)

    def ring(self, now_mono_s: float) -> list[tuple[Due, bytes]]:
        """Remove the timers that are due. Returns their keys."""
        rung = []
        while self._heap and self._heap[0][0] <= now_mono_s:
            at, _, name = heapq.heappop(self._heap)
            if self._at.get(name) == at:
                del self._at[name]
                rung.append(name)
        return rung

    def next_mono_s(self) -> float | None:
        """Return when the next timer is due; None if none is set."""
        while self._heap and self._at.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
