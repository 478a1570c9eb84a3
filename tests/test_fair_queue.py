"""Fair queue: a flood delays only its sender."""

from __future__ import annotations

from ngp.core.events import MessageReceived, Tick
from ngp.core.messages import Bye
from ngp.daemon.fair_queue import QUEUE_MOST, STRANGERS, FairQueue


def heard(who: bytes, number: int = 0) -> MessageReceived:
    return MessageReceived(who, ("mesh0", number.to_bytes(6, "big")), 1, Bye(), 1)


def test_a_flood_of_one_neighbour_lets_the_others_pass() -> None:
    queue = FairQueue()
    for number in range(1000):
        queue.add(heard(b"flooder", number), b"flooder")
    queue.add(heard(b"honest"), b"honest")
    queue.add(heard(b"stranger"), STRANGERS)
    first = [event.identity for event in queue.take(4) if isinstance(event, MessageReceived)]
    assert first == [b"flooder", b"honest", b"stranger", b"flooder"]


def test_each_neighbours_order_is_kept_and_all_queues_are_emptied() -> None:
    queue = FairQueue()
    for number in range(5):
        queue.add(heard(b"a", number), b"a")
        queue.add(heard(b"b", number), b"b")
    taken = [event for event in queue.take(100) if isinstance(event, MessageReceived)]
    assert [event.link[1][-1] for event in taken if event.identity == b"a"] == [0, 1, 2, 3, 4]
    assert len(taken) == 10 and not queue


def test_events_of_this_host_get_every_other_turn() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.add(heard(b"a", number), b"a")
        queue.add(Tick())
    queue.add(Tick())
    assert [type(event) for event in queue.take(10)] == [*[Tick, MessageReceived] * 3, Tick]


def test_a_full_queue_says_so_and_the_others_are_not_full() -> None:
    queue = FairQueue()
    for _ in range(QUEUE_MOST):
        queue.add(heard(b"a"), b"a")
    assert queue.is_full(b"a") and not queue.is_full(b"b")
    list(queue.take(1))
    assert not queue.is_full(b"a")
