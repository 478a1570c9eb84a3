"""Sweep the table of flows, in which the kernel remembers who began a conversation (flows.h).

The kernel only replaces a payer's flow by a newer flow of the same payer. So the flows of a neighbour that was
forgotten, or that got another number at a restart, would stay for ever. A sweep removes them. The tables may have half
a million flows, so each call of `sweep` looks at some of them only. Between two rounds there is a pause, since listing
costs the kernel some milliseconds even if nearly all of the half a million places are empty, and a held packet may have
to wait that long.

Each payer has a part of the table for itself (`Rooms`), so that others, however many, can't fill it. When there are
more payers, each part gets smaller, and a sweep removes the flows for which there is no room any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from ngp.modules.bpf import Table
from ngp.modules.network import layout

_AT_ONCE = 1024
_ROUND_EVERY_S = 60.0
_PAID_MOST, _ON_GRACE_MOST = 4096, 64


@dataclass(frozen=True, slots=True)
class Rooms:
    """How many flows are remembered for one payer, as exponents of 2: for one that has paid; for one on grace."""

    paid_bits: int
    on_grace_bits: int


def divide(entries: int, paid: int, on_grace: int) -> Rooms:
    """Divide a table: a quarter for neighbours on grace; the rest for those that have paid, our LANs and strangers.

    Args:
        entries: places in the table.
        paid, on_grace: how many neighbours have paid, and how many haven't.
    """
    for_paid, for_others = entries * 3 // 4, entries // 4
    return Rooms(_bits(for_paid // (paid + 2), _PAID_MOST), _bits(for_others // max(1, on_grace), _ON_GRACE_MOST))


def _bits(share: int, most: int) -> int:
    return max(1, min(share, most)).bit_length() - 1


class FlowSweeper:
    """Removes old flows.

    Args:
        tables: the meter's tables, by name.
        room_of: returns how many flows are remembered for a payer now, by its number; 0 if the payer isn't known.
    """

    def __init__(self, tables: dict[str, Table], room_of: Callable[[int], int]) -> None:
        self._flows, self._places, self._room_of = tables[layout.FLOWS], tables[layout.PLACES], room_of
        self._round: Iterator[None] = iter(())
        self._next_round_s = 0.0

    def sweep(self, now_s: float, most: int = _AT_ONCE) -> None:
        """Look at the next `most` flows and places.

        Args: now_s: by the monotonic clock; a round begins at most once a minute. Raises KernelError.
        """
        if sum(1 for _ in islice(self._round, most)) < most and now_s >= self._next_round_s:
            self._round, self._next_round_s = self._look_at_all(), now_s + _ROUND_EVERY_S

    def hurry(self) -> None:
        """Begin the next round as soon as this one is over."""
        self._next_round_s = 0.0

    def _look_at_all(self) -> Iterator[None]:
        for flow, memory in self._flows.items():
            payer, number, seen_ns = layout.FLOW_MEMORY.unpack(memory)
            if time.monotonic_ns() - seen_ns > layout.FLOW_NS or number >= self._room_of(payer):
                self._flows.delete(flow)
            yield
        for place, flow in self._places.items():
            memory_now = self._flows.get(flow)
            if memory_now is None or memory_now[: layout.FLOW_PLACE.size] != place:
                self._places.delete(place)
            yield
