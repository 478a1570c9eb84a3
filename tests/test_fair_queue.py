"""Fair queue: a flood delays only its sender."""

from __future__ import annotations

import pytest

from ngp.core.events import MessageReceived, Tick
from ngp.core.messages import Bye
from ngp.daemon.fair_queue import QUEUE_MOST, ROOM, STRANGERS, FairQueue


def heard(who: bytes, number: int = 0) -> MessageReceived:
    return MessageReceived(who, ("mesh0", number.to_bytes(6, "big")), 1, Bye(), 1)


def unread() -> None:
    """A message that gives no event."""


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


def test_so_many_messages_of_a_neighbour_wait_and_held_packets_keep_none_out() -> None:
    queue = FairQueue()
    for number in range(600):
        queue.add(heard(b"a", number), b"a")
    assert sum(queue.add_message(unread, b"a", has_traded=True) for _ in range(2 * QUEUE_MOST)) == QUEUE_MOST
    assert queue.add_message(unread, b"b", has_traded=True)
    list(queue.take(600 + 2))
    assert queue.add_message(unread, b"a", has_traded=True)
    assert len(list(queue.take(5000))) == QUEUE_MOST and not queue


@pytest.mark.parametrize("has_traded", [False, True])
def test_a_crowd_of_flooding_neighbours_fills_a_bounded_room_and_leaves_places(has_traded: bool) -> None:
    """Without a bound for all, a hundred neighbours that send junk take 200 MB of a router's memory."""
    queue, crowd = FairQueue(), [number.to_bytes(2, "big") for number in range(300)]
    waiting = sum(queue.add_message(unread, who, has_traded) for _ in range(QUEUE_MOST) for who in crowd)
    assert ROOM * 9 // 10 < waiting < ROOM
    assert queue.add_message(unread, b"honest", has_traded), "there is a place for another neighbour"
    assert sum(queue.add_message(unread, b"other", not has_traded) for _ in range(50)) == 50, "its room is another"
    assert len(list(queue.take(len(crowd) + 2))) == len(crowd) + 2
    assert sum(queue.add_message(unread, b"honest", has_traded) for _ in range(10)) == 10


def test_a_room_has_all_its_places_again_when_all_messages_are_read() -> None:
    """A message counts in the room that it came into, although its sender has paid since."""
    queue = FairQueue()
    for _ in range(3 * ROOM):
        while not queue.add_message(unread, b"a", has_traded=False):
            list(queue.take(32))
    assert queue.add_message(unread, b"a", has_traded=True) is False, "it has as many waiting as it may"
    list(queue.take(32))
    assert queue.add_message(unread, b"a", has_traded=True)
    list(queue.take(2 * ROOM))
    for room, senders in ((False, (b"b", b"c")), (True, (b"d", b"e"))):
        taken = sum(queue.add_message(unread, who, room) for who in senders for _ in range(2 * QUEUE_MOST))
        assert taken == len(senders) * QUEUE_MOST
