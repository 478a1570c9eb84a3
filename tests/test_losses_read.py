"""What the kernel refused as nobody's is read when there is more of it, and told by purchase, in small events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ngp.core.events import Event, LossesSeen, UnsoldSeen
from ngp.daemon.readings import READINGS_AT_ONCE, Readings


class Network:
    """A kernel that refused some bytes; it counts how often it was asked by which purchases they came."""

    def __init__(self) -> None:
        self.unsold, self.fresh, self.looks = 0, dict[bytes, int](), 0

    def read(self, _contracts: object) -> list[object]:
        return []

    read_accounts = read

    def unsold_bytes(self) -> int:
        return self.unsold

    def unsold_by_purchase(self) -> dict[bytes, int]:
        self.looks += 1
        fresh, self.fresh = self.fresh, {}
        return fresh


@pytest.mark.parametrize("resells", [False, True])
def test_it_is_told_by_purchase_before_it_is_told_in_sum(monkeypatch: pytest.MonkeyPatch, resells: bool) -> None:
    monkeypatch.setattr("ngp.daemon.readings.is_in_use", lambda _world: resells)
    network, told, world = Network(), list[Event](), SimpleNamespace()
    readings: Any = Readings(network, world, told.append)  # type: ignore[arg-type]
    readings.read_all()
    assert network.looks == 0 and told == [UnsoldSeen(0)] * resells
    many = {bytes([number]): number + 1 for number in range(READINGS_AT_ONCE + 1)}
    network.unsold, network.fresh = sum(many.values()), many
    told.clear()
    readings.read_all()
    first, second = list(many.items())[:READINGS_AT_ONCE], list(many.items())[READINGS_AT_ONCE:]
    assert told == [LossesSeen(tuple(first)), LossesSeen(tuple(second)), *[UnsoldSeen(network.unsold)] * resells]
    readings.read_all()
    assert network.looks == 1
