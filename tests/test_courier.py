"""The courier: at most once, and once if the link heals; what is stored is acked, and what isn't is told."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_couriers import ALICE, MALLORY, TO_A, TO_B, TO_M, A, B, M, greet, note, only, pair

from ngp import courier, wire
from ngp.core import messages as m
from ngp.core.events import Delivered, Undelivered
from ngp.courier import Courier
from ngp.delivery import Limits, Outgoing, Received


def bill(number: int) -> m.Message:
    return m.Statement(number, number, 0, ())


def test_a_bill_is_acked_when_it_is_stored_and_not_before() -> None:
    """A daemon that is too busy for a tenth of a second, and then killed, would have acked what it never stored."""
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, bill(1), 0.0))
    received = bob.receive(datagram, TO_A, 0.0)
    assert received is not None
    for now in (0.05, 0.2, 1.0, 5.0):
        assert bob.receive(datagram, TO_A, now) is None
        assert bob.due(now) == []
    assert alice.due(0.2)[0].datagram == datagram
    bob.acknowledge(A, received.message_id, 6.0)
    assert alice.receive(only(bob.due(6.1)), TO_B, 6.1) is None
    assert alice.due(6.1) == [] and alice.outcomes() == [Delivered(B, TO_B, bill(1))]


def test_a_bill_that_nobody_stores_is_undelivered_and_forgotten() -> None:
    alice, bob = pair()
    assert bob.receive(only(alice.send(B, TO_B, bill(1), 0.0)), TO_A, 0.0) is not None
    for tenths in range(200):
        alice.due(tenths / 10)
    assert alice.outcomes() == [Undelivered(B, TO_B, bill(1))]
    bob.due(courier.GIVE_UP_S)
    assert not bob._known[A].self_acks


def test_sending_to_the_unknown_is_undelivered() -> None:
    alice, _ = pair()
    assert alice.send(M, TO_M, note(1), 0.0) == []
    assert alice.send(B, TO_M, note(2), 0.0) == []
    assert alice.next_due() == 0.0
    assert [lost.message for lost in alice.outcomes()] == [note(1), note(2)]


# --- a network that loses, doubles, delays and reorders ---------------------------------------------------------------


@dataclass
class Network:
    """Carries datagrams between two couriers on a virtual clock; each draws its fate from hypothesis."""

    alice: Courier
    bob: Courier
    fates: list[tuple[float, ...]]
    healed_at: float
    now: float = 0.0
    flying: list[tuple[float, float, Courier, bytes]] = field(default_factory=list)
    got: dict[bytes, list[Received]] = field(default_factory=lambda: {A: [], B: []})
    undelivered: list[Undelivered] = field(default_factory=list)
    sent: int = 0
    answers: bool = False

    def carry(self, sender: Courier, outgoing: list[Outgoing]) -> None:
        for one in outgoing:
            receiver = self.bob if sender is self.alice else self.alice
            self.sent += 1
            fate = (0.001,) if self.now >= self.healed_at else self.fates[self.sent % len(self.fates)]
            for copy, delay in enumerate(fate):
                heapq.heappush(self.flying, (self.now + delay, self.sent + copy / 10, receiver, one.datagram))

    def run(self) -> None:
        while True:
            times = [time for c in (self.alice, self.bob) if (time := c.next_due()) is not None]
            times += [self.flying[0][0]] if self.flying else []
            if not times:
                return
            self.now = max(self.now, min(times))
            while self.flying and self.flying[0][0] <= self.now:
                _, _, receiver, datagram = heapq.heappop(self.flying)
                self.arrive(receiver, datagram)
            for one in (self.alice, self.bob):
                self.carry(one, one.due(self.now))
                self.undelivered += [lost for lost in one.outcomes() if isinstance(lost, Undelivered)]

    def arrive(self, receiver: Courier, datagram: bytes) -> None:
        received = receiver.receive(datagram, TO_A if receiver is self.bob else TO_B, self.now)
        if received is None:
            return
        self.got[receiver.identity].append(received)
        if self.answers and received.reply_to == 0:
            answer = m.Declined(b"", m.DeclineReason.BUSY, received.message_id)
            link = received.link
            self.carry(receiver, receiver.send(received.sender, link, answer, self.now, received.message_id))


FATES = st.lists(st.lists(st.floats(0, 2.0), max_size=3).map(tuple), min_size=1, max_size=40)


@given(FATES, st.integers(0, 30), st.integers(0, 30), st.floats(0, 5), st.booleans())
@settings(max_examples=settings.default.max_examples // 2)
def test_exactly_once_when_the_link_heals(
    fates: list[tuple[float, ...]], from_alice: int, from_bob: int, healed_at: float, answers: bool
) -> None:
    alice, bob = pair()
    network = Network(alice, bob, fates, healed_at, answers=answers)
    for number in range(from_alice):
        network.carry(alice, alice.send(B, TO_B, note(number), 0.0))
    for number in range(from_bob):
        network.carry(bob, bob.send(A, TO_A, note(1000 + number), 0.0))
    network.run()
    assert network.undelivered == []
    for identity, expected in ((B, range(from_alice)), (A, range(1000, 1000 + from_bob))):
        asked = [one.message for one in network.got[identity] if one.reply_to == 0]
        assert sorted(one.price_msat_per_gib for one in asked if isinstance(one, m.Accept)) == list(expected)
    if answers:
        replies = [one.reply_to for one in network.got[A] + network.got[B] if one.reply_to]
        assert len(replies) == from_alice + from_bob
        assert len({(one.sender, one.reply_to) for one in network.got[A] + network.got[B] if one.reply_to}) == len(
            replies
        )


@given(FATES, st.integers(1, 20))
@settings(max_examples=settings.default.max_examples // 3)
def test_at_most_once_and_told_when_it_never_heals(fates: list[tuple[float, ...]], count: int) -> None:
    alice, bob = pair()
    network = Network(alice, bob, fates, healed_at=float("inf"))
    for number in range(count):
        network.carry(alice, alice.send(B, TO_B, note(number), 0.0))
    network.run()
    got = [one.message for one in network.got[B]]
    lost = [one.message for one in network.undelivered]
    assert len(set(got)) == len(got) and len(set(lost)) == len(lost)
    assert {note(number) for number in range(count)} <= set(got) | set(lost)
    assert all(one.link == TO_B for one in network.undelivered)


def test_a_dead_link_is_given_up_after_the_stated_time() -> None:
    alice, bob = pair()
    network = Network(alice, bob, [()], healed_at=float("inf"))
    network.carry(alice, alice.send(B, TO_B, note(1), 0.0))
    network.run()
    assert network.now == pytest.approx(courier.GIVE_UP_S) and 14 < courier.GIVE_UP_S < 16
    assert network.sent == len(courier.RETRY_AFTER_S)
    assert alice.next_due() is None


def test_many_messages_wait_their_turn_and_all_arrive() -> None:
    alice, bob = pair(limits=Limits(in_flight=50, neighbour_rate=100_000))
    network = Network(alice, bob, [(0.0,)], healed_at=0)
    for number in range(500):
        network.carry(alice, alice.send(B, TO_B, note(number), 0.0))
    assert network.sent == 50
    network.run()
    assert [one.message for one in network.got[B]] == [note(number) for number in range(500)]
    assert network.sent <= 500 + 500 // 50 + 1  # each message once, one ack for each fifty


# --- acks -------------------------------------------------------------------------------------------------------------


def test_acks_are_gathered() -> None:
    alice, bob = pair()
    for number in range(250):
        received = bob.receive(only(alice.send(B, TO_B, note(number), 0.0)), TO_A, 0.0)
        assert received is not None
        bob.acknowledge(A, received.message_id, 0.0)
    assert bob.next_due() == courier.ACK_DELAY_S
    acks = bob.due(courier.ACK_DELAY_S)
    assert len(acks) == 3 and all(ack.link == TO_A for ack in acks)
    for ack in acks:
        assert alice.receive(ack.datagram, TO_B, 0.03) is None
    assert alice.due(100.0) == [] and not alice.outcomes()


def test_what_nobody_answers_is_acked_before_it_is_sent_again() -> None:
    alice, bob = pair()
    bob.receive(only(alice.send(B, TO_B, note(1), 0.0)), TO_A, 0.0)
    while (due_at := bob.next_due()) is not None:
        for out in bob.due(due_at):
            assert due_at < courier.RETRY_AFTER_S[0]
            alice.receive(out.datagram, TO_B, due_at)
    assert alice.due(100.0) == [] and not alice.outcomes()


def test_an_answer_acks_and_no_other_ack_is_sent() -> None:
    alice, bob = pair()
    asked = bob.receive(only(alice.send(B, TO_B, note(1), 0.0)), TO_A, 0.0)
    assert asked is not None
    answer = alice.receive(only(bob.send(A, TO_A, note(2), 0.0, asked.message_id)), TO_B, 0.0)
    assert answer is not None and answer.reply_to == asked.message_id
    alice.acknowledge(B, answer.message_id, 0.0)
    bob.receive(only(alice.due(0.02)), TO_A, 0.02)
    assert alice.due(100.0) == bob.due(100.0) == alice.outcomes() == bob.outcomes() == []


def test_a_duplicate_is_acked_again_and_not_delivered() -> None:
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    asked = bob.receive(datagram, TO_A, 0.0)
    assert asked is not None
    bob.send(A, TO_A, note(2), 0.0, asked.message_id)  # lost
    assert only(alice.due(0.2)) == datagram
    assert bob.receive(datagram, TO_A, 0.2) is None
    acks = [out for out in bob.due(0.3) if alice.receive(out.datagram, TO_B, 0.3) is None]
    assert len(acks) == 1
    alice.due(50.0)
    assert alice.outcomes() == []


def test_a_kind_that_we_do_not_know_is_acked_and_counted_and_not_delivered() -> None:
    """A later version may say more: nothing is sent again, and neither neighbour takes the other for dead."""
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    fields = msgpack.unpackb(datagram[: -wire.SIGNATURE_BYTES])
    fields[6], fields[7] = 200, ["what we can't read"]
    payload = msgpack.packb(fields)
    later = payload + ALICE.sign(wire.SIGNED_PREFIX + payload)
    for _ in range(2):
        assert bob.receive(later, TO_A, 0.0) is None
    assert bob.counters()["kind"] == 1
    alice.receive(only(bob.due(0.02)), TO_B, 0.02)
    assert alice.due(50.0) == [] and not alice.outcomes()


def test_somebody_elses_ack_counts_for_nothing() -> None:
    alice, _ = pair()
    mallory = Courier(MALLORY, 1)
    greet(alice, mallory, TO_M, TO_A)
    alice.send(B, TO_B, note(1), 0.0)
    ids = tuple((1 << 32) + count for count in range(1, 20))
    alice.receive(only(mallory.send(A, TO_A, m.Ack(ids), 0.0)), TO_M, 0.0)
    alice.receive(only(mallory.send(A, TO_A, note(5), 0.0, reply_to=ids[1])), TO_M, 0.0)
    assert [out for out in alice.due(0.2) if out.identity == B]
