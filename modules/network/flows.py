"""Sweep the table of flows, in which the kernel remembers who began a conversation (flows.h).

The kernel makes room only among one payer's flows, and finds that a flow is too old only when a packet asks for it. So
the flows of a neighbour that was forgotten, or that got another number at a restart, would stay for ever. A sweep
removes them, some at a time: the tables may hold half a million. Rounds have pauses, since the kernel goes through half
a million places also when hardly one is taken: a packet that waits meanwhile waits for some milliseconds more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

from ngp.modules.bpf import Table
from ngp.modules.network import layout

_AT_ONCE = 1024
_ROUND_EVERY_S = 60.0


class FlowSweeper:
    """Removes old flows.

    Args:
        tables: the meter's, by name.
        is_payer: says whether a number belongs to a payer that is known now.
    """

    def __init__(self, tables: dict[str, Table], is_payer: Callable[[int], bool]) -> None:
        self._flows, self._places, self._is_payer = tables[layout.FLOWS], tables[layout.PLACES], is_payer
        self._round: Iterator[None] = iter(())
        self._next_round_s = 0.0

    def sweep(self, now_s: float, most: int = _AT_ONCE) -> None:
        """Look at `most` flows and places; the next call continues behind them.

        Args: now_s: by the monotonic clock; a round begins at most once a minute. Raises KernelError.
        """
        if sum(1 for _ in islice(self._round, most)) < most and now_s >= self._next_round_s:
            self._round, self._next_round_s = self._look_at_all(), now_s + _ROUND_EVERY_S

    def _look_at_all(self) -> Iterator[None]:
        for flow, memory in self._flows.items():
            payer, _, seen_ns = layout.FLOW_MEMORY.unpack(memory)
            if time.monotonic_ns() - seen_ns > layout.FLOW_NS or not self._is_payer(payer):
                self._flows.delete(flow)
            yield
        for place, flow in self._places.items():
            memory_now = self._flows.get(flow)
            if memory_now is None or memory_now[: layout.FLOW_PLACE.size] != place:
                self._places.delete(place)
            yield
