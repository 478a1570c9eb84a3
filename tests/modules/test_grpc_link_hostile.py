"""The gRPC link on the real kernel: what neighbours on the same link might try."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from ngp.core.values import LinkPeer
from ngp.modules.link import streams
from ngp.modules.link.grpc import PORT
from ngp.modules.link.grpc_call import PATH
from ngp.modules.link.grpc_connection import Limits
from tests.modules.test_grpc_link import PEER_A, PEER_B, called, calls, met, run_in_a
from tests.modules.test_links import (
    IPV4_A,
    IPV4_B,
    IPV6_B,
    MAC_B,
    counted,
    ends,
    hosts,
    ip,
    wired,
)

__all__ = ["hosts", "wired"]  # the fixtures


@contextlib.asynccontextmanager
async def plain(target: str, ttl: int = 255) -> AsyncIterator[socket.socket]:
    """Connect to a link as any program on the same link can, from A's namespace."""
    one = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET)
    one.setblocking(False)
    if ":" in target:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    try:
        await asyncio.get_running_loop().sock_connect(one, (target, PORT))
        yield one
    finally:
        one.close()


async def ended(one: socket.socket) -> None:
    """Wait until the other end has ended a connection."""
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(asyncio.get_running_loop().sock_recv(one, 65536), 60):
            pass


@pytest.mark.parametrize("target", [IPV4_B, f"{IPV6_B}%mesh0"])
def test_nobody_behind_a_router_can_connect(wired: tuple[str, str], target: str) -> None:
    async def scene() -> None:
        async with called(wired) as b:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5), plain(target, ttl=254):
                    pass
            async with plain(target) as one:
                await asyncio.get_running_loop().sock_sendall(one, b"GET / HTTP/1.1\r\n\r\n" * 3)
                await ended(one)
            assert b.link.counters() == {"malformed": 1}

    run_in_a(wired, scene)


def test_frames_under_another_mac_are_not_the_neighbours(wired: tuple[str, str]) -> None:
    """A's MAC changes under an open connection, as if another host took over: B hears nothing more on it."""
    new = b"\x02\x00\x00\x00\x00\x77"

    async def scene() -> None:
        limits = Limits(again_s=0.05, again_most_s=0.2, ping_s=0.5, dead_s=4, watch_s=0.5)
        async with ends(wired, calls(IPV4_B, limits=limits), calls(limits=limits)) as (a, b):
            assert await met(a, b) == PEER_A
            ip("-n", wired[0], "link", "set", "mesh0", "address", new.hex(":"))
            ip("-n", wired[1], "neigh", "replace", IPV4_A, "lladdr", new.hex(":"), "dev", "mesh0")
            a.link.send(PEER_B, b"under another MAC")
            peer, datagram = await b.next()  # by a new connection
            assert (peer.link_address, datagram) == (new, b"hello")
            a.link.send(PEER_B, b"last")
            assert await b.next() == (LinkPeer("mesh0", new, IPV4_A), b"last")

    run_in_a(wired, scene)


def test_the_caller_keeps_to_the_mac_that_it_reports(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with called(wired) as b, plain(IPV4_B) as one:
            assert streams.called(socket.if_nametoindex("mesh0"), IPV4_B) == MAC_B
            streams.keep_to(one, MAC_B)
            assert await asyncio.get_running_loop().sock_recv(one, 9)  # B's settings
            streams.keep_to(one, b"\x02\x00\x00\x00\x00\x66")
            await asyncio.get_running_loop().sock_sendall(one, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50))
            await counted(b, "malformed")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await ended(one)
            with pytest.raises(OSError, match="isn't known"):
                streams.called(socket.if_nametoindex("mesh0"), "192.0.2.77")

    run_in_a(wired, scene)


class Caller:
    """A program that makes a call by hand."""

    def __init__(self, one: socket.socket) -> None:
        self.socket = one
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.initiate_connection()
        asked = {":method": "POST", ":scheme": "http", ":path": PATH.decode(), ":authority": "b"}
        self.h2.send_headers(1, list({**asked, "te": "trailers", "content-type": "application/grpc"}.items()))

    async def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            body = b"\x0a" + _varint(len(datagram)) + datagram
            self.h2.send_data(1, struct.pack("!BI", 0, len(body)) + body)
        await asyncio.get_running_loop().sock_sendall(self.socket, self.h2.data_to_send())


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


def test_a_connection_without_a_call_ends(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with called(wired, Limits(open_s=0.5, dead_s=1000, watch_s=0.1)), plain(IPV4_B) as mute:
            await ended(mute)

    run_in_a(wired, scene)


def test_silent_and_half_open_connections_end(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with called(wired, Limits(open_s=1000, ping_s=0.1, dead_s=4, watch_s=0.5)) as b, plain(IPV4_B) as dead:
            caller = Caller(dead)
            await caller.send(b"hello")
            assert (await b.next())[1] == b"hello"
            for _ in range(4):  # its answers to pings keep it
                caller.h2.receive_data(await asyncio.get_running_loop().sock_recv(dead, 65536))
                await caller.send()
            b.link.send(PEER_A, b"still here")
            assert b.link.counters() == {}
            ip("link", "set", "mesh0", "down")
            async with asyncio.timeout(60):
                while b.link.counters().get("unsent", 0) == 0:
                    b.link.send(PEER_A, b"into the void")
                    await asyncio.sleep(0.05)

    run_in_a(wired, scene)


def test_one_address_has_few_connections_and_the_newest_are_kept(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        limits = Limits(connections_of_one=3, accepts_of_one_burst=20)
        async with called(wired, limits) as b, contextlib.AsyncExitStack() as stack:
            opened = []
            for number in range(6):
                opened.append(await stack.enter_async_context(plain(IPV4_B)))
                await Caller(opened[-1]).send(b"%d" % number)
                assert (await b.next())[1] == b"%d" % number
            for one in opened[:3]:
                await ended(one)
            b.link.send(PEER_A, b"to the newest")
            assert b.link.counters() == {"connections_refused": 3}
            while b"to the newest" not in await asyncio.get_running_loop().sock_recv(opened[-1], 65536):
                pass

    run_in_a(wired, scene)


def test_connections_that_come_too_fast_are_refused(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with (
            called(wired, Limits(accepts_of_one_s=0.01, accepts_of_one_burst=2)) as b,
            plain(IPV4_B) as first,
            plain(IPV4_B),
            plain(IPV4_B) as third,
        ):
            await ended(third)
            await Caller(first).send(b"still here")
            assert (await b.next())[1] == b"still here"
            assert b.link.counters() == {"connections_refused": 1}

    run_in_a(wired, scene)


def test_a_stranger_never_takes_a_proven_neighbours_place(wired: tuple[str, str]) -> None:
    """Two places in all; one is the neighbour's, and strangers under ever new MACs push each other out of the other."""

    async def scene() -> None:
        crowded = calls(limits=Limits(connections=2))
        async with contextlib.AsyncExitStack() as stack, ends(wired, calls(IPV4_B), crowded) as (a, b):
            b.link.trust(await met(a, b))
            for number in range(5):
                mac = f"02:00:00:00:01:{number:02x}"
                name, address = f"m{number}", f"192.0.2.{100 + number}"
                ip("link", "add", "link", "mesh0", "name", name, "address", mac, "type", "macvlan", "mode", "bridge")
                ip("link", "set", name, "up")
                ip("address", "add", f"{address}/32", "dev", name)
                ip("route", "add", IPV4_B, "dev", name, "src", address, "table", str(100 + number))
                ip("rule", "add", "from", address, "table", str(100 + number))
                ip("-n", wired[1], "neigh", "replace", address, "lladdr", mac, "dev", "mesh0")
                one = socket.socket()
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode() + b"\0")
                stack.enter_context(one)
                one.bind((address, 0))
                await asyncio.get_running_loop().sock_connect(one, (IPV4_B, PORT))
                await Caller(one).send(b"%d" % number)
                peer, _ = await b.next()
                assert peer.link_address.hex(":") == mac
            a.link.send(PEER_B, b"still here")
            assert await b.next() == (PEER_A, b"still here")

    run_in_a(wired, scene)


def test_what_comes_too_fast_waits_and_is_not_lost(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with called(wired) as b, plain(IPV4_B) as one:
            caller = Caller(one)
            await caller.send(*(b"%d" % number for number in range(1500)))
            peer, _ = await b.next()
            await asyncio.sleep(1)
            assert b.heard.qsize() < 300  # of a stranger: 50 at once, then 50 a second; a part of them in one read
            b.link.trust(peer)
            assert [(await b.next())[1] for _ in range(1499)] == [b"%d" % number for number in range(1, 1500)]

    run_in_a(wired, scene)


def test_a_flood_whose_answers_nobody_reads_waits_and_delays_only_itself(wired: tuple[str, str]) -> None:
    """Pings without end, at any rate, beside a neighbour that has proven itself."""

    async def scene() -> None:
        any_rate = calls(limits=Limits(stranger_s=1e9, strangers_s=1e9, stranger_burst=1e9, strangers_burst=1e9))
        async with ends(wired, calls(f"{IPV6_B}%mesh0"), any_rate) as (a, b):
            a.broadcast("mesh0", b"hello")
            peer, _ = await b.next()
            ip("link", "add", "link", "mesh0", "name", "m1", "address", "02:00:00:00:00:77", "type", "macvlan")
            ip("link", "set", "m1", "up")
            ip("address", "add", "192.0.2.77/24", "dev", "m1")
            ip("route", "replace", IPV4_B, "dev", "m1", "src", "192.0.2.77")
            b.link.trust(peer)
            async with plain(IPV4_B) as flooder:
                await Caller(flooder).send(b"flood")
                assert (await b.next())[0].link_address == b"\x02\x00\x00\x00\x00\x77"
                pings, taken, refused = (bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678") * 1000, 0, 0
                while taken < 24 << 20 and refused < 100:  # the kernel's queues for both directions take less
                    try:
                        taken += flooder.send(pings[taken % len(pings) :])
                        refused = 0
                    except BlockingIOError:
                        refused += 1
                    await asyncio.sleep(0.001)
                assert refused
                for number in range(500):
                    a.link.send(LinkPeer("mesh0", MAC_B, f"{IPV6_B}%mesh0"), b"%d" % number)
                    assert await b.next() == (PEER_A, b"%d" % number)

    run_in_a(wired, scene)


def test_a_neighbour_that_does_not_read_loses_messages_and_fills_no_memory(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with called(wired) as b, plain(IPV4_B) as one:
            caller = Caller(one)
            caller.h2.increment_flow_control_window(1 << 30)
            caller.h2.increment_flow_control_window(1 << 30, 1)
            await caller.send(b"hello")
            peer, _ = await b.next()
            for _ in range(20_000):  # 24 MB
                b.link.send(peer, bytes(1232))
            await asyncio.sleep(0)
            assert b.link.counters()["unsent"] > 5_000

    run_in_a(wired, scene)
