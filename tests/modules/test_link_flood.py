"""Floods on the real kernel: several MACs send invalid and forged messages; honest neighbours are still heard."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from core_tests.hostile import udp
from ngp.core.events import Event, MessageReceived, Undelivered
from ngp.core.messages import Accept, Hello
from ngp.courier import Courier
from ngp.daemon.post import Post
from ngp.modules.link.ethernet import ETHERTYPE, EthernetLink
from ngp.modules.link.udp import PORT, UdpLink
from ngp.ports import Payment
from tests.modules.test_links import IPV4_A, IPV4_B, MAC_B, connect, hosts, inside

__all__ = ["hosts"]  # the fixture `hosts`

MESSAGES = 300
FLOODERS = [bytes([2, 0, 0, 0, 1, number]) for number in range(8)]
# Sends the given frames again and again until it is killed. It is paced, since a test run has no core to spare.
FLOOD = """
import socket, sys, time
frames = [bytes.fromhex(line) for line in sys.stdin.read().split()]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("mesh0", 0))
pace, sent, began = int(sys.argv[1]), 0, time.monotonic()
while True:
    for frame in frames:
        try:
            s.send(frame)
        except OSError:
            pass
    sent += len(frames)
    ahead = sent / pace - (time.monotonic() - began)
    if ahead > 0:
        time.sleep(ahead)
    elif ahead < -1:
        began, sent = time.monotonic(), 0
"""


@dataclass
class Daemon:
    """The part of a daemon that talks to neighbours."""

    seed: bytes
    boot: int = 1
    got: list[bytes] = field(default_factory=list)
    lost: list[Event] = field(default_factory=list)
    met: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    way: tuple[str, bytes] = ("", b"")

    def __post_init__(self) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(self.seed * 32)
        self.courier = Courier(self.key, self.boot)

    def join(self, link: UdpLink | EthernetLink) -> None:
        ourselves = Hello("sandbox", True, True, (), "ngp", False)
        self.post = Post(self.courier, [link], cast(Payment, None), None, ourselves, self.take)  # type: ignore[arg-type]

    def take(self, event: Event) -> None:
        if isinstance(event, Undelivered):
            self.lost.append(event)
        elif isinstance(event, MessageReceived) and isinstance(event.message, Accept):
            self.got.append(event.message.contract)
            self.post.acknowledge(event.identity, event.message_id)
            if len(self.got) >= MESSAGES:
                self.done.set()
        elif isinstance(event, MessageReceived):
            self.way = event.link
            if isinstance(event.message, Hello) and event.message.wants_reply:
                self.post.send(event.identity, event.link, self.post.ourselves, event.message_id)
            self.met.set()


def flood_frames(a: Daemon, b: Daemon, kind: type[UdpLink | EthernetLink]) -> list[bytes]:
    """Invalid datagrams of every size, and hellos in A's name: those of A's next start, with one bit changed."""
    shadow = Courier(a.key, a.boot + 1)
    hello = shadow.send(None, None, Hello("sandbox", True, True, (), "ngp", True), 0.0)[0].datagram
    named = shadow.send(b.courier.identity, ("", b""), Hello("sandbox", True, True, (), "ngp", True), 0.0)[0].datagram
    forged = [one[:-1] + bytes([one[-1] ^ 1]) for one in (hello, named)]
    frames = []
    for mac in FLOODERS:
        for datagram in (*forged, b"", b"\x98", bytes(200), bytes(1232), bytes(1280), forged[0][:80]):
            if kind is UdpLink:
                frames.append(MAC_B + mac + b"\x08\x00" + udp(IPV4_A, IPV4_B, PORT, datagram, PORT))
            else:
                body = len(datagram).to_bytes(2) + datagram
                frames.append(MAC_B + mac + ETHERTYPE.to_bytes(2) + body.ljust(46, b"\0"))
    return frames


@contextlib.contextmanager
def flood(host: str, frames: list[bytes], pace: int) -> Iterator[None]:
    command = ["ip", "netns", "exec", host, sys.executable, "-c", FLOOD, str(pace)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as flooder:
        try:
            assert flooder.stdin is not None
            flooder.stdin.write("\n".join(frame.hex() for frame in frames))
            flooder.stdin.close()
            yield
        finally:
            flooder.kill()


@pytest.mark.parametrize("kind", [UdpLink, EthernetLink])
def test_a_flood_from_several_macs_loses_no_honest_message(
    hosts: tuple[str, str], kind: type[UdpLink | EthernetLink]
) -> None:
    """50,000 frames a second, from before the two daemons have met. Every message arrives once; none is given up."""
    connect(hosts)

    async def scene() -> dict[str, int]:
        a, b = Daemon(b"a"), Daemon(b"b")
        for one, host in ((a, hosts[0]), (b, hosts[1])):
            one.join(kind())
            with inside(host):
                await one.post.open(("mesh0",))
        try:
            with flood(hosts[0], flood_frames(a, b, kind), 50_000):
                while not b.post.counters().get("stranger_link_rate"):
                    await asyncio.sleep(0.01)
                await exchange(a, b, hosts)
            return b.post.counters()
        finally:
            await a.post.close()
            await b.post.close()

    counts = asyncio.run(scene())
    assert counts["stranger_link_rate"] and counts["signature"] and counts["malformed"]


async def exchange(a: Daemon, b: Daemon, hosts: tuple[str, str]) -> None:
    """Meet, then send messages both ways until all have arrived."""
    async with asyncio.timeout(200):
        while not (a.met.is_set() and b.met.is_set()):
            for one, host in ((a, hosts[0]), (b, hosts[1])):
                with inside(host):
                    one.post.broadcast("mesh0")
            await asyncio.sleep(0.2)
        for number in range(MESSAGES):
            for one, other in ((a, b), (b, a)):
                one.post.send(other.courier.identity, one.way, Accept(number.to_bytes(16), number, 1 << 20))
            await asyncio.sleep(0.001)
        await asyncio.gather(a.done.wait(), b.done.wait())
    for one in (a, b):
        assert sorted(one.got) == [number.to_bytes(16) for number in range(MESSAGES)]
        assert one.lost == []
