"""Two couriers that have met, a hostile third one, and their messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ngp.core import messages as m
from ngp.courier import Courier
from ngp.delivery import Limits, LinkKey, Outgoing
from ngp.errors import PeerError

ALICE = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
BOB = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
MALLORY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
A, B, M = (key.public_key().public_bytes_raw() for key in (ALICE, BOB, MALLORY))
TO_A: LinkKey = ("eth0", b"\x02AAAAA")
TO_B: LinkKey = ("eth1", b"\x02BBBBB")
TO_M: LinkKey = ("eth1", b"\x02MMMMM")
HELLO = m.Hello("sandbox", True, True, (), "ngp", False)


def note(number: int) -> m.Message:
    """Return a message that contains its number."""
    return m.Accept(number.to_bytes(16), number, 1 << 20)


def greet(one: Courier, other: Courier, to_other: LinkKey, to_one: LinkKey, now: float = 0.0) -> None:
    """Do what two daemons do when they meet: answer every hello that wants a reply."""
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
    """Return Alice and Bob, who have met."""
    alice, bob = Courier(ALICE, boot_a, limits=limits), Courier(BOB, boot_b, limits=limits)
    greet(alice, bob, TO_B, TO_A)
    return alice, bob


def only(outgoing: list[Outgoing]) -> bytes:
    """Return the only datagram to be sent."""
    (one,) = outgoing
    return one.datagram


def refused(receiver: Courier, datagram: bytes, link: LinkKey, now: float = 0.0) -> str:
    """Assert that a datagram is refused and counted; return the reason."""
    with pytest.raises(PeerError) as caught:
        receiver.receive(datagram, link, now)
    assert receiver.counters()[caught.value.reason] >= 1
    return caught.value.reason
