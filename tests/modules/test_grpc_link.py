"""The gRPC link on the real kernel: calls between neighbours, and with gRPC's own implementation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from core_tests.namespaces import inside
from ngp.core.values import LinkPeer
from ngp.errors import KernelError
from ngp.modules.link.grpc import PORT, GrpcLink
from ngp.modules.link.grpc_call import PATH
from ngp.modules.link.grpc_connection import Limits
from tests.modules.test_links import (
    IPV4_A,
    IPV4_B,
    IPV6_A,
    IPV6_B,
    MAC_A,
    MAC_B,
    End,
    connect,
    ends,
    hosts,
    ip,
    tunnel,
    wired,
)

__all__ = ["hosts", "wired"]  # the fixtures

PEER_A, PEER_B = LinkPeer("mesh0", MAC_A, IPV4_A), LinkPeer("mesh0", MAC_B, IPV4_B)
QUICK = Limits(again_s=0.05, again_most_s=0.2)


def calls(*addresses: str, limits: Limits = QUICK) -> GrpcLink:
    return GrpcLink(neighbours=addresses, limits=limits)


def run_in_a(hosts: tuple[str, str], scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scene in A's namespace: A's link opens sockets whenever it calls."""
    with inside(hosts[0]):
        asyncio.run(scene())


@contextlib.asynccontextmanager
async def called(hosts: tuple[str, str], limits: Limits = QUICK) -> AsyncIterator[End]:
    """Open only B's link."""
    b = End(calls(limits=limits), hosts[1])
    with inside(hosts[1]):
        await b.link.open(("mesh0",), b.take)
    try:
        yield b
    finally:
        await b.link.close()


async def met(a: End, b: End) -> LinkPeer:
    """Wait until B, which is called, has A's hello; returns A."""
    a.broadcast("mesh0", b"hello")
    peer, datagram = await b.next()
    assert datagram == b"hello"
    return peer


@pytest.mark.parametrize("family", [4, 6])
def test_a_neighbour_is_called_and_both_send(wired: tuple[str, str], family: int) -> None:
    target, source = (IPV4_B, IPV4_A) if family == 4 else (f"{IPV6_B}%mesh0", f"{IPV6_A}%mesh0")

    async def scene() -> None:
        async with ends(wired, calls(target), calls()) as (a, b):
            peer = await met(a, b)
            assert (peer, peer.transport) == (PEER_A, source)
            b.link.send(peer, b"answer")
            answerer, answer = await a.next()
            assert (answerer, answerer.transport, answer) == (PEER_B, target, b"answer")
            b.link.trust(peer)
            whole = [bytes([number % 256]) * (number % 1232 + 1) for number in range(3000)]
            for datagram in whole:
                while not _sent(a, LinkPeer("mesh0", MAC_B, target), datagram):
                    await asyncio.sleep(0.01)
            assert [(await b.next())[1] for _ in whole] == whole
            b.broadcast("mesh0", b"to all")
            assert (await a.next())[1] == b"to all"

    run_in_a(wired, scene)


def _sent(end: End, peer: LinkPeer, datagram: bytes) -> bool:
    before = end.link.counters().get("unsent", 0)
    end.link.send(peer, datagram)
    return end.link.counters().get("unsent", 0) == before


def test_both_may_call_each_other_and_a_restarted_neighbour_is_called_again(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, calls(IPV4_B), calls()) as (a, b):
            await met(a, b)
            await b.link.close()
            again = End(calls(), wired[1])
            with inside(wired[1]):
                await again.link.open(("mesh0",), again.take)
            try:
                peer, datagram = await again.next()
                assert (peer.transport, datagram) == (IPV4_A, b"hello")  # the last one, sent at once
                again.link.send(peer, b"back")
                assert (await a.next())[1] == b"back"
                with inside(wired[0]):
                    await a.link.update(())
                    await a.link.update(("mesh0",))
                a.broadcast("mesh0", b"anew")
                assert (await again.next())[1] == b"anew"
            finally:
                await again.link.close()

    run_in_a(wired, scene)


def test_neighbours_are_named_while_it_is_open(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, calls("192.0.2.77"), calls()) as (a, b):
            a.broadcast("mesh0", b"hello")
            a.link.name_neighbours((IPV4_B,))
            peer, datagram = await b.next()
            assert (peer, datagram) == (PEER_A, b"hello")
            a.link.name_neighbours(())  # the open connection goes on
            a.link.send(PEER_B, b"still here")
            assert (await b.next())[1] == b"still here"
            (line,) = a.link.check(("mesh0",))
            assert "nobody is called" in line.found

    run_in_a(wired, scene)


def test_interfaces_come_and_go(hosts: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(hosts, calls(IPV4_B), calls()) as (a, b):
            a.broadcast("mesh0", b"into the void")
            assert a.link.counters() == {"unsent": 1}
            for number in range(2):  # the second time the pair is made anew: another interface of the same name
                connect(hosts)
                await a.update("mesh0")
                await b.update("mesh0", "absent0")
                a.broadcast("mesh0", b"round %d" % number)
                peer, datagram = await b.next()
                assert (peer.link_address, datagram) == (MAC_A, b"round %d" % number)
                if number == 0:
                    ip("-n", hosts[0], "link", "del", "mesh0")
                    await a.update("mesh0")
                    a.broadcast("mesh0", b"gone")
                    assert a.link.counters()["unsent"] == 2
            await a.update()
            a.broadcast("mesh0", b"no longer ours")
            assert a.link.counters()["unsent"] == 3

    run_in_a(hosts, scene)


def test_a_layer_3_interface_has_one_neighbour(hosts: tuple[str, str]) -> None:
    async def scene() -> None:
        async with tunnel(hosts), ends(hosts, calls(IPV4_B), calls(), "tun0") as (a, b):
            a.broadcast("tun0", b"hello")
            peer, _ = await b.next()
            assert (peer, peer.transport) == (LinkPeer("tun0", b""), IPV4_A)
            b.link.send(peer, b"answer")
            assert (await a.next())[1] == b"answer"

    run_in_a(hosts, scene)


@pytest.mark.parametrize("address", [IPV4_B, "0.0.0.0", "::"])
def test_a_port_that_another_program_has_is_found_before_the_start(wired: tuple[str, str], address: str) -> None:
    with inside(wired[1]):
        assert GrpcLink().taken(("mesh0", "gone0")) == []
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as other:
            other.bind((address, PORT))
            other.listen()
            (line,) = GrpcLink().taken(("mesh0",))
            assert not line.ok and "ss -ltnp" in line.found
            with pytest.raises(KernelError, match="ss -ltnp"):
                asyncio.run(GrpcLink().open(("mesh0",), lambda peer, datagram: None))
        assert GrpcLink().taken(("mesh0",)) == []


def test_too_large_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at most"):
        GrpcLink().send(PEER_B, bytes(1233))
    with pytest.raises(ValueError, match="at most"):
        GrpcLink().broadcast("mesh0", bytes(1233))


def test_check_says_whom_it_calls_and_who_answers(wired: tuple[str, str]) -> None:
    (line,) = GrpcLink().check(("mesh0",))
    assert line.ok and "nobody is called" in line.found and not line.remedy

    async def scene() -> None:
        link = calls(IPV4_B, "02:00:00:00:00:0b", f"{IPV6_B}%other0")
        async with ends(wired, link, calls()) as (a, b):
            await met(a, b)
            assert [each.found for each in link.check(("mesh0",))] == [
                "a gRPC connection on mesh0",
                f"called by gRPC (TCP port {PORT})",
            ]
            await b.link.close()
            async with asyncio.timeout(60):
                while link.check(("mesh0",))[0].ok:
                    await asyncio.sleep(0.01)
            (line, _) = link.check(("mesh0",))
            assert (
                line.found == "doesn't answer by gRPC: Connection refused on mesh0" and "TCP port 10325" in line.remedy
            )

    run_in_a(wired, scene)


# --- another implementation -------------------------------------------------------------------------------------------

GRPCIO = """
import asyncio, grpc, sys
from google.protobuf.wrappers_pb2 import BytesValue
READ, WRITTEN = BytesValue.FromString, BytesValue.SerializeToString
kind, place, path = sys.argv[1:]

async def call():
    async with grpc.aio.insecure_channel(place) as channel:
        carry = channel.stream_stream(path, request_serializer=WRITTEN, response_deserializer=READ)()
        for number in range(100):
            await carry.write(BytesValue(value=b"%d" % number))
        assert [(await carry.read()).value for _ in range(100)] == [b"%d" % number for number in range(100)]

async def refused():
    async with grpc.aio.insecure_channel(place) as channel:
        try:
            await channel.unary_unary("/ngp.Link/Steal")(b"")
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error

class Link(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(self.carry, READ, WRITTEN) if details.method == path else None

    async def carry(self, requests, context):
        async for request in requests:
            yield BytesValue(value=request.value.upper())

async def serve():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Link(),))
    server.add_insecure_port(place)
    await server.start()
    await server.wait_for_termination()

asyncio.run(globals()[kind]())
"""


@contextlib.asynccontextmanager
async def grpcio(host: str, kind: str, place: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run gRPC's own implementation in a namespace. Its segments need the hop limit, which it can't set."""
    ip("netns", "exec", host, "sysctl", "-qw", "net.ipv4.ip_default_ttl=255")
    command = ("ip", "netns", "exec", host, sys.executable, "-c", GRPCIO, kind, place, PATH.decode())
    process = await asyncio.create_subprocess_exec(*command)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def test_grpcs_own_client_is_understood(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with called(wired) as b:
            async with grpcio(wired[0], "call", f"{IPV4_B}:{PORT}") as client:
                heard = [await b.next() for _ in range(100)]
                assert [datagram for _, datagram in heard] == [b"%d" % number for number in range(100)]
                for peer, datagram in heard:
                    assert peer == PEER_A
                    b.link.send(peer, datagram)
                assert await client.wait() == 0
            async with grpcio(wired[0], "refused", f"{IPV4_B}:{PORT}") as client:
                assert await client.wait() == 0
            assert b.link.counters() == {"malformed": 1}

    run_in_a(wired, scene)


def test_grpcs_own_server_is_understood(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        a = End(calls(IPV4_B), wired[0])
        async with grpcio(wired[1], "serve", f"{IPV4_B}:{PORT}"):
            await a.link.open(("mesh0",), a.take)
            try:
                a.broadcast("mesh0", b"hello")
                peer, datagram = await a.next()
                assert (peer, datagram) == (PEER_B, b"HELLO")
            finally:
                await a.link.close()

    run_in_a(wired, scene)
