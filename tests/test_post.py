"""The post: which events the core gets, and in which order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ngp import wire
from ngp.core.events import Delivered, Event, MessageReceived, Undelivered
from ngp.core.messages import Hello, Invoice, Statement
from ngp.core.payment_node import DecodedInvoice
from ngp.core.values import LinkPeer
from ngp.courier import Courier
from ngp.daemon.post import VERSIONS_TOLD, Post
from ngp.errors import LedgerError

OURS = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
THEIRS = Ed25519PrivateKey.from_private_bytes(b"t" * 32)
PEER = LinkPeer("mesh0", b"\2\0\0\0\0\1", "192.0.2.1")
WAY = ("mesh0", PEER.link_address)
HELLO = Hello("sandbox", True, True, (), "ngp", False)
BILL = Statement(1, 1, 0, ())


class Wire:
    """A link that keeps everything that is sent."""

    max_datagram_bytes = 1232

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, _peer: LinkPeer, datagram: bytes) -> None:
        self.sent.append(datagram)

    def broadcast(self, _interface: str, datagram: bytes) -> None:
        self.sent.append(datagram)

    def trust(self, _peer: LinkPeer) -> None:
        pass

    async def close(self) -> None:
        pass


class Desk:
    """Our post, and a neighbour's courier at the other end of the link."""

    def __init__(self, decode: Callable[[str], DecodedInvoice] | None = None) -> None:
        self.wire, self.told = Wire(), list[Event]()
        self.ours = Courier(OURS, 1)
        ourselves = Hello("sandbox", True, True, (), "ngp", False)
        self.post = Post(self.ours, [self.wire], None, decode, ourselves, self.told.append)  # type: ignore[arg-type, list-item]

    def take(self, datagram: bytes, peer: LinkPeer = PEER) -> None:
        self.post._received(self.wire, peer, datagram)  # type: ignore[arg-type]

    def hear_our_hello(self, theirs: Courier) -> None:
        self.post.broadcast("mesh0")
        theirs.receive(self.wire.sent[-1], WAY, 0.0)

    def greeting(self, theirs: Courier) -> bytes:
        (hello,) = theirs.send(self.ours.identity, WAY, HELLO, 0.0)
        return hello.datagram

    def acquaint(self, theirs: Courier) -> None:
        self.hear_our_hello(theirs)
        self.take(self.greeting(theirs))
        self.post.send(theirs.identity, WAY, replace(HELLO, wants_reply=False))
        theirs.receive(self.wire.sent[-1], WAY, 0.0)


def test_a_neighbours_former_life_ends_before_its_new_one_begins() -> None:
    """Otherwise its old messages would be given up after its hello, and it would count as away though it is back."""

    async def scene() -> None:
        desk, theirs = Desk(), Courier(THEIRS, 1)
        desk.acquaint(theirs)
        desk.post.send(theirs.identity, WAY, BILL)
        desk.told.clear()
        reborn = Courier(THEIRS, 2)
        desk.hear_our_hello(reborn)
        desk.take(desk.greeting(reborn))
        assert [type(event) for event in desk.told] == [Undelivered, MessageReceived]
        await desk.post.close()

    asyncio.run(scene())


def test_a_neighbour_of_another_version_is_named_once_on_each_interface(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise two routers of different versions would say nothing about each other, as if nobody were there."""

    async def scene() -> None:
        desk = Desk()
        fields = msgpack.unpackb(desk.greeting(Courier(THEIRS, 1))[: -wire.SIGNATURE_BYTES])
        other = msgpack.packb([1, *fields[1:]]) + bytes(wire.SIGNATURE_BYTES)
        with caplog.at_level(logging.WARNING, "ngp.post"):
            for _ in range(50):
                desk.take(other)
        mac = WAY[1].hex(":")
        why = f"version: its messages have 1, ours {wire.VERSION}"
        assert caplog.messages == [
            f"the neighbour {mac} on mesh0 can't be understood ({why}); update whichever router has the older ngp"
        ]
        assert desk.ours.counters()["version"] == 50 and not desk.told
        for number in range(100):  # link addresses cost nothing
            desk.take(other, replace(PEER, link_address=number.to_bytes(6)))
        assert len(caplog.messages) == VERSIONS_TOLD
        await desk.post.close()

    asyncio.run(scene())


def test_an_invoice_is_ignored_if_the_ledger_cant_say_whether_we_paid_it_before() -> None:
    def decode(_bolt11: str) -> DecodedInvoice:
        raise LedgerError("the database is away")

    async def scene() -> None:
        desk, theirs = Desk(decode), Courier(THEIRS, 1)
        desk.acquaint(theirs)
        desk.told.clear()
        (invoice,) = theirs.send(desk.ours.identity, WAY, Invoice("lnx1", 1000), 0.0)
        desk.take(invoice.datagram)
        assert not desk.told and desk.post._dropped == {"invoices_unchecked": 1}
        await desk.post.close()

    asyncio.run(scene())


def test_a_receipt_for_a_bill_is_told() -> None:
    async def scene() -> None:
        desk, theirs = Desk(), Courier(THEIRS, 1)
        desk.acquaint(theirs)
        desk.post.send(theirs.identity, WAY, BILL)
        received = theirs.receive(desk.wire.sent[-1], WAY, 0.0)
        assert received is not None and received.message == BILL
        theirs.acknowledge(desk.ours.identity, received.message_id, 0.0)
        (ack,) = theirs.due(1.0)
        desk.told.clear()
        desk.take(ack.datagram)
        await asyncio.sleep(0)
        while not desk.told:
            await asyncio.sleep(0)
        assert desk.told == [Delivered(theirs.identity, WAY, BILL)]
        await desk.post.close()

    asyncio.run(scene())
