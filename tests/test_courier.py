"""The courier: at most once, once if the link heals, nothing from before a restart, and floods cost little."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ngp import courier, wire
from ngp.core import messages as m
from ngp.courier import Courier
from ngp.delivery import Delivered, Due, Limits, LinkKey, Outgoing, Received, Undelivered
from ngp.errors import PeerError
from ngp.replay import WINDOW, ReplayWindow

ALICE = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
BOB = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
MALLORY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
A, B, M = (key.public_key().public_bytes_raw() for key in (ALICE, BOB, MALLORY))
TO_A: LinkKey = ("eth0", b"\x02AAAAA")
TO_B: LinkKey = ("eth1", b"\x02BBBBB")
TO_M: LinkKey = ("eth1", b"\x02MMMMM")
HELLO = m.Hello("sandbox", True, True, (), "ngp", False)


def note(number: int) -> m.Message:
    return m.Accept(number.to_bytes(16), number, 1 << 20)


def greet(one: Courier, other: Courier, to_other: LinkKey, to_one: LinkKey, now: float = 0.0) -> None:
    """What two daemons do when they meet: answer every hello that wants it."""
    (first,) = one.send(None, None, replace(HELLO, wants_reply=True), now)
    here, there, link, back = other, one, to_one, to_other
    datagram = first.datagram
    for _ in range(4):
        received = here.receive(datagram, link, now)
        assert received is not None and isinstance(received.message, m.Hello)
        if not received.message.wants_reply and received.proven:
            break
        (answer,) = here.send(received.sender, link, HELLO, now)
        datagram = answer.datagram
        here, there, link, back = there, here, back, link
    assert one.is_proven(other.identity, to_other) and other.is_proven(one.identity, to_one)


def pair(boot_a: int = 1, boot_b: int = 1, limits: Limits | None = None) -> tuple[Courier, Courier]:
    alice, bob = Courier(ALICE, boot_a, limits=limits), Courier(BOB, boot_b, limits=limits)
    greet(alice, bob, TO_B, TO_A)
    return alice, bob


def only(outgoing: list[Outgoing]) -> bytes:
    (one,) = outgoing
    return one.datagram


def refused(receiver: Courier, datagram: bytes, link: LinkKey, now: float = 0.0) -> str:
    with pytest.raises(PeerError) as caught:
        receiver.receive(datagram, link, now)
    assert receiver.counters()[caught.value.reason] >= 1
    return caught.value.reason


def bill(number: int) -> m.Message:
    return m.Statement(number, number, 0, ())


def test_a_bill_is_acked_when_it_is_stored_and_not_before() -> None:
    """A daemon too busy for a tenth of a second, and killed then, would have acked what it never stored."""
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, bill(1), 0.0))
    received = bob.receive(datagram, TO_A, 0.0)
    assert received is not None
    for now in (0.05, 0.2, 1.0, 5.0):
        assert bob.receive(datagram, TO_A, now) is None
        assert bob.due(now).outgoing == []
    assert alice.due(0.2).outgoing[0].datagram == datagram
    bob.acknowledge(A, received.message_id, 6.0)
    assert alice.receive(only(bob.due(6.1).outgoing), TO_B, 6.1) is None
    assert alice.due(6.1) == Due([], [], [Delivered(B, TO_B, bill(1))])


def test_a_bill_that_nobody_stores_is_undelivered_and_forgotten() -> None:
    alice, bob = pair()
    assert bob.receive(only(alice.send(B, TO_B, bill(1), 0.0)), TO_A, 0.0) is not None
    lost = [one for tenths in range(200) for one in alice.due(tenths / 10).undelivered]
    assert lost == [Undelivered(B, TO_B, bill(1), "timeout")]
    bob.due(courier.GIVE_UP_S)
    assert not bob._known[A].self_acks


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
                due = one.due(self.now)
                self.undelivered += due.undelivered
                self.carry(one, due.outgoing)

    def arrive(self, receiver: Courier, datagram: bytes) -> None:
        received = receiver.receive(datagram, TO_A if receiver is self.bob else TO_B, self.now)
        if received is None:
            return
        self.got[receiver.identity].append(received)
        if self.answers and received.reply_to == 0:
            answer = m.Reject(b"", m.RejectReason.BUSY, None, received.message_id)
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
    assert all(one.why == "timeout" and one.link == TO_B for one in network.undelivered)


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
    acks = bob.due(courier.ACK_DELAY_S).outgoing
    assert len(acks) == 3 and all(ack.link == TO_A for ack in acks)
    for ack in acks:
        assert alice.receive(ack.datagram, TO_B, 0.03) is None
    assert alice.due(100.0) == Due([], [])


def test_what_nobody_answers_is_acked_before_it_is_sent_again() -> None:
    alice, bob = pair()
    bob.receive(only(alice.send(B, TO_B, note(1), 0.0)), TO_A, 0.0)
    while (due_at := bob.next_due()) is not None:
        for out in bob.due(due_at).outgoing:
            assert due_at < courier.RETRY_AFTER_S[0]
            alice.receive(out.datagram, TO_B, due_at)
    assert alice.due(100.0) == Due([], [])


def test_an_answer_acks_and_no_other_ack_is_sent() -> None:
    alice, bob = pair()
    asked = bob.receive(only(alice.send(B, TO_B, note(1), 0.0)), TO_A, 0.0)
    assert asked is not None
    answer = alice.receive(only(bob.send(A, TO_A, note(2), 0.0, asked.message_id)), TO_B, 0.0)
    assert answer is not None and answer.reply_to == asked.message_id
    alice.acknowledge(B, answer.message_id, 0.0)
    bob.receive(only(alice.due(0.02).outgoing), TO_A, 0.02)
    assert alice.due(100.0) == bob.due(100.0) == Due([], [])


def test_a_duplicate_is_acked_again_and_not_delivered() -> None:
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    asked = bob.receive(datagram, TO_A, 0.0)
    assert asked is not None
    bob.send(A, TO_A, note(2), 0.0, asked.message_id)  # lost
    assert only(alice.due(0.2).outgoing) == datagram
    assert bob.receive(datagram, TO_A, 0.2) is None
    acks = [out for out in bob.due(0.3).outgoing if alice.receive(out.datagram, TO_B, 0.3) is None]
    assert len(acks) == 1
    assert alice.due(50.0).undelivered == []


def test_somebody_elses_ack_counts_for_nothing() -> None:
    alice, _ = pair()
    mallory = Courier(MALLORY, 1)
    greet(alice, mallory, TO_M, TO_A)
    alice.send(B, TO_B, note(1), 0.0)
    ids = tuple((1 << 32) + count for count in range(1, 20))
    alice.receive(only(mallory.send(A, TO_A, m.Ack(ids), 0.0)), TO_M, 0.0)
    alice.receive(only(mallory.send(A, TO_A, note(5), 0.0, reply_to=ids[1])), TO_M, 0.0)
    assert [out for out in alice.due(0.2).outgoing if out.identity == B]


# --- replays and restarts ---------------------------------------------------------------------------------------------


def test_a_replay_on_another_link_is_refused_and_the_first_copy_too() -> None:
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    assert refused(bob, datagram, TO_M) == "unknown"
    assert bob.receive(datagram, TO_A, 0.0) is not None
    assert refused(bob, datagram, TO_M) == "replayed"


def test_nothing_from_before_our_restart_is_taken() -> None:
    alice, bob = pair()
    recorded = [only(alice.send(B, TO_B, note(number), 0.0)) for number in range(3)]
    recorded.append(only(alice.send(B, TO_B, HELLO, 0.0)))
    broadcast = only(alice.send(None, None, HELLO, 0.0))
    bob = Courier(BOB, 2)
    assert {refused(bob, datagram, TO_M) for datagram in recorded} == {"stale"}
    played = bob.receive(broadcast, TO_M, 0.0)
    assert played is not None and not played.proven and not bob.is_proven(A, TO_M)
    assert refused(bob, broadcast, TO_M) == "replayed"
    assert {refused(bob, datagram, TO_M) for datagram in recorded} == {"stale"}
    greet(bob, alice, TO_A, TO_B)
    assert {refused(bob, datagram, TO_A) for datagram in recorded} == {"stale"}
    assert bob.receive(only(alice.send(B, TO_B, note(9), 0.0)), TO_A, 0.0) is not None


def test_a_neighbours_restart_resets_its_window_and_ends_what_was_under_way() -> None:
    alice, bob = pair(boot_a=5)
    old = [only(alice.send(B, TO_B, note(1), 0.0)), only(alice.send(None, None, HELLO, 0.0))]
    bob.send(A, TO_A, note(7), 0.0)
    reborn = Courier(ALICE, 6)
    greet(reborn, bob, TO_B, TO_A)
    assert bob.due(0.0).undelivered == [Undelivered(A, TO_A, note(7), "restarted")]
    assert [refused(bob, datagram, TO_A) for datagram in old] == ["stale", "stale"]
    assert bob.receive(only(reborn.send(B, TO_B, note(2), 0.0)), TO_A, 0.0) is not None


def test_a_new_life_begins_with_a_hello() -> None:
    """A later boot's message that comes before its hello is not let in by the lane of the former life."""
    _, bob = pair(boot_a=1)
    other = Courier(ALICE, 2)
    greet(other, Courier(BOB, 1), TO_B, TO_A)
    assert refused(bob, only(other.send(B, TO_B, note(1), 0.0)), TO_A) == "unknown"


def test_a_forgotten_neighbours_messages_stay_used_up() -> None:
    alice, bob = pair()
    hello = only(alice.send(B, TO_B, HELLO, 0.0))
    message = only(alice.send(B, TO_B, note(1), 0.0))
    bob.receive(hello, TO_A, 0.0)
    bob.receive(message, TO_A, 0.0)
    bob.forget(A)
    assert refused(bob, message, TO_A) == "unknown"
    bob.send(A, TO_A, HELLO, 0.0)  # remembers it again
    assert refused(bob, hello, TO_A) == "replayed"
    greet(alice, bob, TO_B, TO_A)
    assert bob.receive(only(alice.send(B, TO_B, note(2), 0.0)), TO_A, 0.0) is not None


def test_our_sequences_go_on_after_forgetting() -> None:
    alice, bob = pair()
    alice.forget(B)
    greet(alice, bob, TO_B, TO_A)
    assert bob.receive(only(alice.send(B, TO_B, note(2), 0.0)), TO_A, 0.0) is not None


def test_our_own_and_foreign_datagrams() -> None:
    alice, bob = pair()
    mallory = Courier(MALLORY, 1)
    assert refused(alice, only(alice.send(None, None, HELLO, 0.0)), TO_B) == "own"
    assert refused(mallory, only(alice.send(B, TO_B, note(1), 0.0)), TO_A) == "foreign"
    assert refused(bob, b"\0" * 1281, TO_A) == "oversized"


def test_a_malformed_message_leaves_its_sequence_unused() -> None:
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    junk = datagram[:-1] + bytes([datagram[-1] ^ 1])
    assert refused(bob, junk, TO_A) == "signature"
    assert bob.receive(datagram, TO_A, 0.0) is not None


def test_sending_to_the_unknown_is_undelivered() -> None:
    alice, _ = pair()
    assert alice.send(M, TO_M, note(1), 0.0) == []
    assert alice.send(B, TO_M, note(2), 0.0) == []
    assert alice.next_due() == 0.0
    assert [(u.message, u.why) for u in alice.due(0.0).undelivered] == [(note(1), "unknown"), (note(2), "unknown")]


# --- floods -----------------------------------------------------------------------------------------------------------


def test_junk_never_starves_a_known_neighbour() -> None:
    alice, bob = pair()
    hello = Courier(MALLORY, 1).send(None, None, HELLO, 0.0)[0].datagram
    rates = 0
    for number in range(2000):
        forged = bytearray(hello)
        forged[-1 - number % 64] ^= 1 + number % 255
        rates += refused(bob, bytes(forged), TO_M) == "rate"
        posing = bytearray(only(alice.send(B, TO_B, HELLO, 0.0)))  # under Alice's name, from another link
        posing[-1] ^= 1
        assert refused(bob, bytes(posing), TO_M) in {"signature", "rate"}
    assert rates > 1700
    assert bob.receive(only(alice.send(B, TO_B, note(1), 0.0)), TO_A, 0.0) is not None


def test_checks_of_strangers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bob = Courier(BOB, 1)
    hello = Courier(MALLORY, 1).send(None, None, HELLO, 0.0)[0].datagram
    checked = 0
    real = wire.Sealed.open

    def counting(sealed: wire.Sealed, key: object = None) -> m.Message:
        nonlocal checked
        checked += 1
        return real(sealed)

    monkeypatch.setattr(wire.Sealed, "open", counting)
    for number in range(3000):
        refused(bob, hello[:-1] + bytes([hello[-1] ^ (1 + number % 255)]), TO_M, number / 1000)
    assert checked <= 20 + 3 * 20
    for number in range(3000):
        link = "eth1", b"\x02" + number.to_bytes(5)
        refused(bob, hello[:-1] + bytes([hello[-1] ^ (1 + number % 255)]), link, 3 + number / 1000)
    assert checked <= 20 + 3 * 20 + 400 + 3 * 400


def forge(datagram: bytes) -> bytes:
    return datagram[:-1] + bytes([datagram[-1] ^ 1])


def test_forged_hellos_of_a_neighbour_do_not_keep_it_out() -> None:
    """After our restart it has no proven link yet; the forger has several link addresses, and never pauses."""
    alice, bob = pair()
    bob = Courier(BOB, 2)
    for number in range(5000):
        link = "eth1", bytes([2, 0, 0, 0, 0, number % 12])
        refused(bob, forge(only(alice.send(None, None, HELLO, 0.0))), link, 0.0)
    assert bob.counters()["rate"] > 4000
    greet(alice, bob, TO_B, TO_A)
    assert bob.receive(only(alice.send(B, TO_B, note(1), 0.0)), TO_A, 0.0) is not None


def test_forged_messages_of_a_neighbour_do_not_use_up_its_allowance() -> None:
    alice, bob = pair(limits=Limits(neighbour_rate=100))
    for number in range(100):
        honest = only(alice.send(B, TO_B, note(number), 0.0))
        hello = forge(only(alice.send(B, TO_B, HELLO, 0.0)))
        for mac in range(12):
            link = "eth1", bytes([2, 0, 0, 0, 0, mac])
            assert refused(bob, forge(honest), link) == "unknown"
            assert refused(bob, hello, link) in {"signature", "rate"}
        if number < 99:  # the first of the hundred was its hello
            assert bob.receive(honest, TO_A, 0.0) is not None


def test_hellos_caught_and_brought_in_elsewhere_do_not_drive_out_the_link_in_use() -> None:
    alice, bob = pair()
    for number in range(10):
        hello = only(alice.send(B, TO_B, HELLO, 0.0))
        bob.receive(hello, ("eth1", bytes([2, 0, 0, 0, 0, number])), 0.0)
        assert bob.receive(only(alice.send(B, TO_B, note(number), 0.0)), TO_A, 0.0) is not None


def test_strangers_neither_grow_nor_evict_known_neighbours() -> None:
    limits = Limits(neighbours=2, strangers=8, stranger_rate=100_000, stranger_link_rate=100_000)
    alice, bob = pair(limits=limits)
    for number in range(50):
        stranger = Courier(Ed25519PrivateKey.from_private_bytes(number.to_bytes(32)), 1)
        bob.receive(only(stranger.send(None, None, HELLO, 0.0)), TO_M, 0.0)
    assert len(bob._strangers) == 8
    assert bob.is_proven(A, TO_A)
    greet(bob, Courier(MALLORY, 1), TO_M, TO_B)
    third = Courier(Ed25519PrivateKey.from_private_bytes(b"t" * 32), 1)
    with pytest.raises(PeerError, match="busy"):
        greet(third, bob, TO_B, TO_A)
    assert bob.is_proven(A, TO_A) and bob.is_proven(M, TO_M)
    alice_now = courier.IDLE_S + 1
    assert bob.receive(only(alice.send(B, TO_B, note(1), alice_now)), TO_A, alice_now) is not None
    fourth = Courier(Ed25519PrivateKey.from_private_bytes(b"f" * 32), 1)
    greet(fourth, bob, TO_B, TO_A, alice_now)  # the silent one gave way
    assert bob.is_proven(A, TO_A) and not bob.is_proven(M, TO_M)


def test_one_link_address_holds_few_identities() -> None:
    bob = Courier(BOB, 1, limits=Limits(identities_per_link=3))
    for number in range(3):
        greet(Courier(Ed25519PrivateKey.from_private_bytes(number.to_bytes(32)), 1), bob, TO_B, TO_M)
    with pytest.raises(PeerError, match="busy"):
        greet(Courier(MALLORY, 1), bob, TO_B, TO_M)
    greet(Courier(ALICE, 1), bob, TO_B, TO_A)


def test_a_neighbour_that_never_acks_holds_a_bounded_amount() -> None:
    limits = Limits(in_flight=10, waiting=20, total=25)
    alice, _ = pair(limits=limits)
    for number in range(100):
        alice.send(B, TO_B, note(number), 0.0)
    assert alice._outstanding == 25
    assert {one.why for one in alice.due(0.0).undelivered} == {"full"}
    now = 0.0
    while (due_at := alice.next_due()) is not None:
        now = max(now, due_at)
        alice.due(now)
    assert alice._outstanding == 0


def test_a_replay_flood_costs_one_ack_in_twenty_milliseconds() -> None:
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    bob.receive(datagram, TO_A, 0.0)
    bob.due(1.0)
    bob.due(2.0)
    sent = 0
    for tick in range(1000):
        assert bob.receive(datagram, TO_A, 2 + tick / 1000) is None
        sent += len(bob.due(2 + tick / 1000).outgoing)
    assert 40 <= sent <= 51


# --- replay window ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=300))
def test_window_against_a_set(counts: list[int]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), 0
    for count in counts:
        assert window.is_stale(count) == (count <= highest - WINDOW)
        if not window.is_stale(count):
            assert window.has(count) == (count in seen)
            if count not in seen:
                window.add(count)
                seen.add(count)
                highest = max(highest, count)


def test_limits_keep_a_message_under_way_inside_the_window() -> None:
    assert Limits().in_flight <= WINDOW // 2
