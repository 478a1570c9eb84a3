"""Flows: who began a conversation, as the kernel remembers it (flows.h), and what nobody needs any more of that.

The kernel makes room among a payer's own flows, and forgets by the clock only when it looks at one. So what is left of
a neighbour that is forgotten, or has another number since a restart, would stay for ever. A sweep takes it away, some
at a time: the tables may hold half a million.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

from ngp.modules.bpf import Table
from ngp.modules.network import layout

_AT_ONCE = 1024


class FlowSweeper:
    """Forgets old flows.

    Args:
        tables: the meter's, by name.
        is_payer: whether a number is a neighbour's, known now.
    """

    def __init__(self, tables: dict[str, Table], is_payer: Callable[[int], bool]) -> None:
        self._flows, self._places, self._is_payer = tables[layout.FLOWS], tables[layout.PLACES], is_payer
        self._round: Iterator[None] = iter(())

    def sweep(self, most: int = _AT_ONCE) -> None:
        """Look at some flows and places; the next call goes on from there. Raises KernelError."""
        if sum(1 for _ in islice(self._round, most)) < most:
            self._round = self._look_at_all()

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
