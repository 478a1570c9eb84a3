"""The call that carries datagrams, without a network: two ends, and an end that sends whatever it likes."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import given
from hypothesis import strategies as st

from ngp.errors import PeerError
from ngp.modules.link.grpc_call import MAX_DATAGRAM_BYTES, PATH, Call

ASKED = {
    ":method": "POST",
    ":scheme": "http",
    ":path": PATH.decode(),
    ":authority": "a",
    "te": "trailers",
    "content-type": "application/grpc",
}


def exchange(one: Call, other: Call) -> tuple[list[bytes], list[bytes]]:
    """Carry bytes both ways until both ends are silent; return what each end got."""
    got: tuple[list[bytes], list[bytes]] = ([], [])
    while (there := one.to_send()) or (back := other.to_send()):
        back = back if not there else b""
        for data, end, datagrams in ((there, other, got[1]), (back, one, got[0])):
            if data:
                datagrams += end.receive(data)[0]
    return got


def pair() -> tuple[Call, Call]:
    one, other = Call("192.0.2.2:10325"), Call()
    exchange(one, other)
    assert one.is_answered and other.is_answered and one.is_open and other.is_open
    return one, other


class Hostile:
    """A peer that speaks HTTP/2 with no scruples."""

    def __init__(self, **changes: str) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.stream = self.call(**changes)

    def call(self, **changes: str) -> int:
        stream = self.h2.get_next_available_stream_id()
        headers = {**ASKED, **{name.replace("_", ":", 1): value for name, value in changes.items()}}
        self.h2.send_headers(stream, list(headers.items()))
        return stream

    def data(self, data: bytes) -> None:
        self.h2.send_data(self.stream, data)

    def bytes(self) -> bytes:
        return self.h2.data_to_send()


def message(datagram: bytes, compressed: int = 0) -> bytes:
    whole = BytesValue(value=datagram).SerializeToString()
    return struct.pack("!BI", compressed, len(whole)) + whole


def test_datagrams_go_both_ways_whole_and_in_order() -> None:
    one, other = pair()
    whole = [bytes([size % 256]) * size for size in (1, 2, 127, 128, MAX_DATAGRAM_BYTES)]
    for datagram in whole:
        assert one.send(datagram) and other.send(datagram)
    assert exchange(one, other) == (whole, whole)


def test_whoever_calls_may_send_at_once() -> None:
    one, other = Call("192.0.2.2:10325"), Call()
    assert one.send(b"hello") and not one.is_answered and not other.send(b"no call yet")
    assert exchange(one, other) == ([], [b"hello"])


def test_an_end_that_does_not_read_takes_no_more_than_a_window() -> None:
    one, other = pair()
    sent = 0
    while one.send(bytes(1000)):
        sent += 1
    assert 60 < sent < 66  # 65,535 bytes
    exchange(one, other)
    assert one.send(bytes(1000))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_bytes_may_come_in_any_pieces(size: int) -> None:
    one, other = Call("192.0.2.2:10325"), Call()
    assert one.send(b"first") and one.send(b"second")
    data, got = one.to_send(), list[bytes]()
    for start in range(0, len(data), size):
        got += other.receive(data[start : start + size])[0]
    assert got == [b"first", b"second"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda peer: peer.data(message(bytes(MAX_DATAGRAM_BYTES + 1))), "oversized"),
        (lambda peer: peer.data(struct.pack("!BI", 0, 1 << 30)), "oversized"),
        (lambda peer: peer.data(message(b"x", compressed=1)), "malformed"),
        (lambda peer: peer.data(message(b"")), "malformed"),
        (lambda peer: peer.data(struct.pack("!BI", 0, 3) + b"\x0a\x05a"), "malformed"),
        (lambda peer: peer.call(), "malformed"),  # a second call beside the first
        (lambda peer: peer.h2.reset_stream(peer.stream), "ended"),
        (lambda peer: peer.h2.end_stream(peer.stream), "ended"),
        (lambda peer: peer.h2.close_connection(), "ended"),
    ],
    ids=["too long", "endless", "compressed", "empty", "no value", "two calls", "reset", "end", "goodbye"],
)
def test_what_ends_a_call(spoil: Callable[[Hostile], object], reason: str) -> None:
    peer, call = Hostile(), Call()
    assert call.receive(peer.bytes())[0] == [] and call.is_open
    spoil(peer)
    with pytest.raises(PeerError) as refused:
        call.receive(peer.bytes())
    assert refused.value.reason == reason


@pytest.mark.parametrize("changes", [{"_path": "/ngp.Link/Steal"}, {"content-type": "text/html"}])
def test_another_call_is_answered_with_unimplemented(changes: dict[str, str]) -> None:
    peer, call = Hostile(**changes), Call()
    with pytest.raises(PeerError):
        call.receive(peer.bytes())
    (answer,) = [each for each in peer.h2.receive_data(call.to_send()) if hasattr(each, "headers")]
    assert dict(answer.headers)[b"grpc-status"] == b"12" and not call.is_open


def test_headers_are_bounded() -> None:
    peer, call = Hostile(**{"x-long": "x" * 5000}), Call()
    with pytest.raises(PeerError):
        call.receive(peer.bytes())


def test_each_frame_is_counted_as_work() -> None:
    peer, call = Hostile(), Call()
    call.receive(peer.bytes())
    for _ in range(100):
        peer.h2.ping(b"12345678")
    assert call.receive(peer.bytes()) == ([], 100)
    peer.data(message(b"a") * 50)
    assert call.receive(peer.bytes()) == ([b"a"] * 50, 50)


def test_a_refused_call_ends() -> None:
    call = Call("192.0.2.2:10325")
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(call.to_send())
    server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")])
    with pytest.raises(PeerError):
        call.receive(server.data_to_send())


@st.composite
def traffic(draw: st.DrawFn) -> bytes:
    """Bytes that a caller might send, with a few of them changed, cut or put in."""
    peer = Hostile()
    for datagram in draw(st.lists(st.binary(max_size=40), max_size=4)):
        peer.data(message(datagram))
        peer.h2.ping(b"12345678")
    data = bytearray(peer.bytes())
    for at, new in draw(st.lists(st.tuples(st.integers(0, len(data)), st.binary(max_size=12)), max_size=4)):
        data[at : at + draw(st.integers(0, 12))] = new
    return bytes(data)


@given(st.one_of(st.binary(max_size=300), traffic()), st.booleans(), st.integers(1, 200))
def test_any_bytes_are_datagrams_or_a_peer_error(data: bytes, calls: bool, size: int) -> None:
    call = Call("192.0.2.2:10325") if calls else Call()
    try:
        for start in range(0, len(data), size):
            call.receive(data[start : start + size])
    except PeerError:
        pass
    call.to_send()
