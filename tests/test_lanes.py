"""Lanes: who floods waits behind himself."""

from __future__ import annotations

from ngp.core.events import AskFor, Tick
from ngp.daemon.lanes import LANE_MOST, STRANGERS, Lanes


def asked(who: bytes, number: int = 0) -> AskFor:
    return AskFor(who, ("mesh0", number.to_bytes(6, "big")), None)  # type: ignore[arg-type]


def test_a_flood_of_one_neighbour_lets_the_others_pass() -> None:
    lanes = Lanes()
    for number in range(1000):
        lanes.add(asked(b"flooder", number), b"flooder")
    lanes.add(asked(b"honest"), b"honest")
    lanes.add(asked(b"stranger"), STRANGERS)
    first = [event.identity for event in lanes.take(4) if isinstance(event, AskFor)]
    assert first == [b"flooder", b"honest", b"stranger", b"flooder"]


def test_a_lane_keeps_its_order_and_all_are_emptied() -> None:
    lanes = Lanes()
    for number in range(5):
        lanes.add(asked(b"a", number), b"a")
        lanes.add(asked(b"b", number), b"b")
    taken = [event for event in lanes.take(100) if isinstance(event, AskFor)]
    assert [event.link[1][-1] for event in taken if event.identity == b"a"] == [0, 1, 2, 3, 4]
    assert len(taken) == 10 and not lanes


def test_the_house_has_every_other_turn() -> None:
    lanes = Lanes()
    for number in range(3):
        lanes.add(asked(b"a", number), b"a")
        lanes.add(Tick())
    lanes.add(Tick())
    assert [type(event) for event in lanes.take(10)] == [Tick, AskFor, Tick, AskFor, Tick, AskFor, Tick]


def test_a_full_lane_says_so_and_the_others_are_not() -> None:
    lanes = Lanes()
    for _ in range(LANE_MOST):
        lanes.add(asked(b"a"), b"a")
    assert lanes.is_full(b"a") and not lanes.is_full(b"b")
    list(lanes.take(1))
    assert not lanes.is_full(b"a")
