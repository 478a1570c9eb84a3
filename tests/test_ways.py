"""Ways: a neighbour is answered where it can hear, and nobody else can divert its messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from two_couriers import TO_A, TO_B, A, B, note, pair

from ngp.core.events import Event, MessageReceived
from ngp.core.messages import Accept, Hello
from ngp.core.values import LinkPeer
from ngp.courier import RETRY_AFTER_S, Courier
from ngp.daemon import ways
from ngp.daemon.post import Post
from ngp.daemon.ways import Ways

MAC_A, MAC_B, MAC_M = (b"\2\0\0\0\0" + letter for letter in (b"a", b"b", b"m"))
AT_A, AT_M = ("mesh0", MAC_A), ("mesh0", MAC_M)
ACCEPT = Accept(b"c" * 16, 1, 1 << 20)
TIMEOUT_S = 30.0


class Medium:
    """A cable. What is sent by a carrier (a family, or a frame) arrives, unless that way leads nowhere."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()
        self.nowhere: set[tuple[str, str]] = set()  # carrier, and receiver

    def deliver(self) -> None:
        while self.waiting:
            self.waiting.popleft()()


class Carrier:
    """A link module with several carriers. Broadcasts are heard in their order, as with udp: IPv4, then ff02::1."""

    max_datagram_bytes = 1232

    def __init__(self, medium: Medium, own_mac: bytes, carriers: tuple[str, ...]) -> None:
        self.medium, self.own_mac, self.carriers = medium, own_mac, carriers
        self.other: Carrier
        self.sent: list[tuple[str, bytes]] = []
        self.trusted: list[str] = []

    async def open(self, _interfaces: object, receive: Callable[[LinkPeer, bytes], None]) -> None:
        self.receive = receive

    def hear(self, carrier: str, mac: bytes, datagram: bytes) -> None:
        self.receive(LinkPeer("mesh0", mac, carrier), datagram)

    def broadcast(self, _interface: str, datagram: bytes) -> None:
        for carrier in self.carriers:
            self.medium.waiting.append(lambda carrier=carrier: self.other.hear(carrier, self.own_mac, datagram))  # type: ignore[misc]

    def send(self, peer: LinkPeer, datagram: bytes) -> None:
        self.sent.append((peer.transport, datagram))
        carrier = peer.transport
        if carrier in self.carriers and (carrier, self.other.own_mac.hex()) not in self.medium.nowhere:
            self.medium.waiting.append(lambda: self.other.hear(carrier, self.own_mac, datagram))

    def trust(self, peer: LinkPeer) -> None:
        self.trusted.append(peer.transport)

    def counters(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        pass


class House:
    """A daemon's post, with its link modules."""

    def __init__(self, letter: bytes, links: list[Carrier]) -> None:
        self.links, self.told = links, list[Event]()
        self.courier = Courier(Ed25519PrivateKey.from_private_bytes(letter * 32), 1)
        ourselves = Hello("sandbox", True, True, (), "ngp", False)
        self.post = Post(self.courier, links, None, None, ourselves, self.tell)  # type: ignore[arg-type]

    def tell(self, event: Event) -> None:
        """Keep the events, and greet as the core does."""
        self.told.append(event)
        if isinstance(event, MessageReceived) and isinstance(event.message, Hello) and event.message.wants_reply:
            self.post.send(event.identity, event.link, self.post.ourselves, event.message_id)

    def heard(self, kind: type) -> list[MessageReceived]:
        return [one for one in self.told if isinstance(one, MessageReceived) and isinstance(one.message, kind)]


async def neighbours(medium: Medium, *links: tuple[str, ...]) -> tuple[House, House]:
    """Return two neighbours that haven't met. Args: links: the carriers of each link module."""
    ours = [Carrier(medium, MAC_A, carriers) for carriers in links]
    theirs = [Carrier(medium, MAC_B, carriers) for carriers in links]
    for one, other in zip(ours, theirs, strict=True):
        one.other, other.other = other, one
    houses = House(b"a", ours), House(b"b", theirs)
    for house in houses:
        await house.post.open(["mesh0"])
    return houses


async def until(medium: Medium, happened: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not happened():
            medium.deliver()
            await asyncio.sleep(0.01)


def nowhere(medium: Medium, carrier: str) -> None:
    """From now on this way leads nowhere in both directions; broadcasts still arrive."""
    medium.nowhere |= {(carrier, MAC_A.hex()), (carrier, MAC_B.hex())}


@pytest.mark.parametrize("links", [[("4", "6")], [("4",), ("frame",)], [("4", "6"), ("frame",)]])
@pytest.mark.parametrize("living", [0, 1])
def test_neighbours_meet_by_the_way_that_leads_to_the_other(links: list[tuple[str, ...]], living: int) -> None:
    """IPv4 comes from another interface's address; or IPv6 is filtered instead."""

    async def scene() -> None:
        medium = Medium()
        us, them = await neighbours(medium, *links)
        carriers = [carrier for each in links for carrier in each]
        for dead in carriers[: -1 if living else 0] or carriers[1:]:
            nowhere(medium, dead)
        us.post.broadcast("mesh0")  # one hello is enough
        await until(medium, lambda: us.courier.is_proven(them.courier.identity, ("mesh0", MAC_B)))
        await until(medium, lambda: them.courier.is_proven(us.courier.identity, AT_A))
        for here, there, at in ((us, them, ("mesh0", MAC_B)), (them, us, AT_A)):
            here.post.send(there.courier.identity, at, ACCEPT)
            await until(medium, lambda there=there: there.heard(Accept))  # type: ignore[misc]
        for house in (us, them):
            await house.post.close()

    asyncio.run(scene())


def test_what_was_answered_is_the_way_of_what_follows() -> None:
    alice, bob = pair()
    (first,) = alice.send(B, TO_B, note(1), 0.0)
    (again,) = alice.due(RETRY_AFTER_S[0])
    assert (first.attempt, again.attempt, again.datagram) == (0, 1, first.datagram)
    received = bob.receive(again.datagram, TO_A, 1.0)
    assert received is not None
    (answer,) = bob.send(A, TO_A, note(2), 1.0, reply_to=received.message_id)
    alice.receive(answer.datagram, TO_B, 1.0)
    (following,) = alice.send(B, TO_B, note(3), 1.0)
    (repeated,) = alice.due(1.0 + RETRY_AFTER_S[0])
    assert (following.attempt, repeated.attempt) == (1, 2)


def test_each_attempt_goes_by_the_next_way_and_what_is_sent_once_by_all() -> None:
    known, link = Ways(), Carrier(Medium(), MAC_A, ())
    for number in (1, 2):
        known.learn(AT_A, link, peer(number), True)
    used = [way.peer.transport for attempt in range(3) if (way := known.pick(AT_A, attempt))]
    assert used == ["192.0.2.1", "192.0.2.2", "192.0.2.1"] and known.transport(AT_A) == "192.0.2.1"
    assert known.transports(AT_A) == ["192.0.2.1", "192.0.2.2"] and known.transports(AT_M) == []
    assert [way.peer.transport for way in known.every(AT_A)] == ["192.0.2.1", "192.0.2.2"]
    assert known.pick(AT_M, 0) is None


def test_an_ack_that_is_lost_is_repeated_by_all_ways() -> None:
    """Otherwise a node that only sends acks would never notice that its acks lead nowhere."""

    async def scene() -> None:
        medium = Medium()
        us, them = await neighbours(medium, ("4", "6"))
        us.post.broadcast("mesh0")
        await until(medium, lambda: them.courier.is_proven(us.courier.identity, AT_A))
        them.post.send(us.courier.identity, AT_A, ACCEPT)  # they were answered by IPv4 before
        await until(medium, lambda: not them.courier._known[us.courier.identity].flights)
        medium.nowhere.add(("4", MAC_A.hex()))
        us.post.send(them.courier.identity, ("mesh0", MAC_B), ACCEPT)
        await until(medium, lambda: them.heard(Accept))
        await until(medium, lambda: not us.courier._known[them.courier.identity].flights)
        for house in (us, them):
            await house.post.close()

    asyncio.run(scene())


def test_a_copy_from_another_place_turns_nothing_away() -> None:
    """A recorded hello under another MAC teaches nothing.

    Under the same MAC it teaches a way that isn't used while another works.
    """

    async def scene() -> None:
        medium = Medium()
        us, them = await neighbours(medium, ("4",))
        us.post.broadcast("mesh0")
        await until(medium, lambda: them.courier.is_proven(us.courier.identity, AT_A))
        recorded = [datagram for _, datagram in us.links[0].sent]
        us.post.send(them.courier.identity, ("mesh0", MAC_B), ACCEPT)
        recorded += [datagram for _, datagram in us.links[0].sent]
        medium.deliver()
        (link,) = them.links
        link.sent.clear()
        for datagram in recorded:
            link.hear("198.51.100.66", MAC_M, datagram)
        assert them.post.transport(AT_M) == "" and not link.sent
        for datagram in recorded:
            link.hear("198.51.100.66", MAC_A, datagram)
        link.sent.clear()
        them.post.send(us.courier.identity, AT_A, ACCEPT)
        await until(medium, lambda: us.heard(Accept))
        assert [way for way, _ in link.sent if way != "4"] == []
        assert them.post.transport(AT_A) == "4"
        for house in (us, them):
            await house.post.close()

    asyncio.run(scene())


def peer(number: int) -> LinkPeer:
    return LinkPeer("mesh0", MAC_A, f"192.0.2.{number}")


def test_only_the_very_hello_that_was_taken_last_teaches_a_way() -> None:
    known, link = Ways(), Carrier(Medium(), MAC_A, ())
    known.learn(AT_A, link, peer(1), True, b"old")
    known.learn(AT_A, link, peer(1), True, b"new")
    assert known.learn_copy(AT_A, link, peer(2), b"old") is None
    assert known.learn_copy(AT_A, link, peer(2), b"forged") is None
    assert known.learn_copy(AT_M, link, peer(2), b"new") is None
    assert [way.peer.transport for way in known.every(AT_A)] == ["192.0.2.1"]
    assert known.learn_copy(AT_A, link, peer(2), b"new") is not None
    assert known.learn_copy(AT_A, link, peer(2), b"new") is None  # it is answered only once


def test_copies_and_unproven_senders_take_no_proven_ways_place() -> None:
    known, link = Ways(), Carrier(Medium(), MAC_A, ())
    known.learn(AT_A, link, peer(1), True, b"hello")
    for number in range(2, 20):
        known.learn_copy(AT_A, link, peer(number), b"hello")
        known.learn(AT_A, link, peer(100 + number), False)
    found = [way.peer.transport for way in known.every(AT_A)]
    assert found[0] == "192.0.2.1" and len(found) == ways.MOST_WAYS
    known.learn(AT_A, link, peer(200), True)  # now it has another address
    assert {"192.0.2.1", "192.0.2.200"} <= {way.peer.transport for way in known.every(AT_A)}


def test_ways_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "MOST_LINKS", 3)
    known, link = Ways(), Carrier(Medium(), MAC_A, ())
    for number in range(5):
        known.learn(("mesh0", bytes([number])), link, peer(number), True)
    assert [bool(known.every(("mesh0", bytes([number])))) for number in range(5)] == [False, False, True, True, True]
