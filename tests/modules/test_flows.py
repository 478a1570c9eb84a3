"""The sweep of the kernel's flows: a whole round over the tables, a part at a time, and pauses between the rounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ngp.modules.network import layout
from ngp.modules.network.flows import FlowSweeper

NOBODY = 7


class Flows:
    """A table of flows that counts how often it is gone through."""

    def __init__(self, number: int) -> None:
        memory = layout.FLOW_MEMORY.pack(NOBODY, 0, 0)
        self.entries = {key.to_bytes(4, "big"): memory for key in range(number)}
        self.rounds = 0

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        self.rounds += 1
        yield from list(self.entries.items())

    def delete(self, key: bytes) -> None:
        del self.entries[key]


def test_the_tables_are_gone_through_once_a_minute_and_not_every_second() -> None:
    """The kernel goes through half a million places, which takes milliseconds, and a first packet may wait."""
    flows, places = Flows(0), Flows(0)
    tables: Any = {layout.FLOWS: flows, layout.PLACES: places}
    sweeper = FlowSweeper(tables, lambda _payer: False)
    for second in range(600):
        sweeper.sweep(float(second))
    assert flows.rounds == places.rounds == 10


def test_a_round_that_takes_longer_goes_on_every_second() -> None:
    flows = Flows(1000)
    tables: Any = {layout.FLOWS: flows, layout.PLACES: Flows(0)}
    sweeper = FlowSweeper(tables, lambda _payer: False)
    for second in range(101):
        sweeper.sweep(float(second), most=10)
    assert flows.rounds == 1 and not flows.entries
