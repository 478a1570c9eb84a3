"""The kernel's table of flows: how payers share it, and how it is swept in parts, with pauses between the rounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from ngp.core.forgetting import MOST_NEIGHBOURS
from ngp.modules.network import layout
from ngp.modules.network.flows import FlowSweeper, Rooms, divide
from ngp.modules.network.meter import table_sizes

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
    """To go through half a million places takes milliseconds, for which a first packet may have to wait."""
    flows, places = Flows(0), Flows(0)
    tables: Any = {layout.FLOWS: flows, layout.PLACES: places}
    sweeper = FlowSweeper(tables, lambda _payer: 0)
    for second in range(600):
        sweeper.sweep(float(second))
    assert flows.rounds == places.rounds == 10


def test_a_round_that_takes_longer_goes_on_every_second() -> None:
    flows = Flows(1000)
    tables: Any = {layout.FLOWS: flows, layout.PLACES: Flows(0)}
    sweeper = FlowSweeper(tables, lambda _payer: 0)
    for second in range(101):
        sweeper.sweep(float(second), most=10)
    assert flows.rounds == 1 and not flows.entries


@pytest.mark.parametrize("contracts_max", [1, 20_000, 131_072])
@pytest.mark.parametrize("paid", [0, 1, 2, 7, 100, 1000, MOST_NEIGHBOURS])
@pytest.mark.parametrize("on_grace", [0, 1, 50, 500, MOST_NEIGHBOURS])
def test_the_flow_table_has_room_for_all_payers_together(contracts_max: int, paid: int, on_grace: int) -> None:
    entries = table_sizes(contracts_max)[layout.FLOWS]
    rooms = divide(entries, paid, on_grace)
    assert (paid + 2 << rooms.paid_bits) + (on_grace << rooms.on_grace_bits) <= entries


def test_few_payers_have_the_room_that_the_architecture_names() -> None:
    assert divide(layout.FLOWS_MOST, 90, 2048) == Rooms(12, 6) == divide(table_sizes(1)[layout.FLOWS], 1, 64)


def test_what_has_no_room_any_more_is_swept_at_once() -> None:
    flows, places = Flows(0), Flows(0)
    now_ns = time.monotonic_ns()
    flows.entries = {bytes([n]): layout.FLOW_MEMORY.pack(NOBODY, n, now_ns) for n in range(8)}
    tables: Any = {layout.FLOWS: flows, layout.PLACES: places}
    room = 8
    sweeper = FlowSweeper(tables, lambda _payer: room)
    for second in range(3):
        sweeper.sweep(float(second))
    assert len(flows.entries) == 8
    room = 4
    sweeper.hurry()
    for second in range(3, 5):
        sweeper.sweep(float(second))
    assert sorted(flows.entries) == [bytes([n]) for n in range(4)]
