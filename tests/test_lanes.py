"""Lanes: who floods waits behind himself."""

from __future__ import annotations

from ngp.core.events import MessageReceived, Tick
from ngp.core.messages import Bye
from ngp.daemon.lanes import LANE_MOST, STRANGERS, Lanes


def heard(who: bytes, number: int = 0) -> MessageReceived:
    return MessageReceived(who, ("mesh0", number.to_bytes(6, "big")), 1, Bye(), 1)


def test_a_flood_of_one_neighbour_lets_the_others_pass() -> None:
    lanes = Lanes()
    for number in range(1000):
        lanes.add(heard(b"flooder", number), b"flooder")
    lanes.add(heard(b"honest"), b"honest")
    lanes.add(heard(b"stranger"), STRANGERS)
    first = [event.identity for event in lanes.take(4) if isinstance(event, MessageReceived)]
    assert first == [b"flooder", b"honest", b"stranger", b"flooder"]


def test_a_lane_keeps_its_order_and_all_are_emptied() -> None:
    lanes = Lanes()
    for number in range(5):
        lanes.add(heard(b"a", number), b"a")
        lanes.add(heard(b"b", number), b"b")
    taken = [event for event in lanes.take(100) if isinstance(event, MessageReceived)]
    assert [event.link[1][-1] for event in taken if event.identity == b"a"] == [0, 1, 2, 3, 4]
    assert len(taken) == 10 and not lanes


def test_the_house_has_every_other_turn() -> None:
    lanes = Lanes()
    for number in range(3):
        lanes.add(heard(b"a", number), b"a")
        lanes.add(Tick())
    lanes.add(Tick())
    assert [type(event) for event in lanes.take(10)] == [*[Tick, MessageReceived] * 3, Tick]


def test_a_full_lane_says_so_and_the_others_are_not() -> None:
    lanes = Lanes()
    for _ in range(LANE_MOST):
        lanes.add(heard(b"a"), b"a")
    assert lanes.is_full(b"a") and not lanes.is_full(b"b")
    list(lanes.take(1))
    assert not lanes.is_full(b"a")
