"""The courier under floods: they cost little, and keep no neighbour out."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from two_couriers import ALICE, BOB, HELLO, MALLORY, TO_A, TO_B, TO_M, A, B, M, greet, note, only, pair, refused

from ngp import courier, wire
from ngp.core import messages as m
from ngp.courier import Courier
from ngp.delivery import Limits
from ngp.errors import PeerError


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
    assert len(alice.outcomes()) == 75
    now = 0.0
    while (due_at := alice.next_due()) is not None:
        now = max(now, due_at)
        alice.due(now)
        alice.outcomes()
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
        sent += len(bob.due(2 + tick / 1000))
    assert 40 <= sent <= 51
