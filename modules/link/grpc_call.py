"""gRPC call: the one call on a connection that carries ngp's datagrams both ways, as bytes in and bytes out. Pure.

`rpc Carry(stream google.protobuf.BytesValue) returns (stream google.protobuf.BytesValue)` of the service `ngp.Link`,
over HTTP/2 without TLS. Each message of gRPC is one datagram, which is signed by itself: the connection adds no trust.
grpcio would do the same, but it neither binds its sockets to an interface nor shows them, and without that nobody can
say whose frames a message came in.

Hostile input ends here: a connection carries one call, and every buffer, header and window has a bound. What an
attacker can still cause is work. `receive` counts this work, and the link reads on only if the sender's allowance
covers it.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, RFC 9113
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BytesValue
from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from ngp.calls.grpc import CONTENT_TYPE, FRAME_HEAD, connection, framed
from ngp.errors import PeerError

PATH = b"/ngp.Link/Carry"
MAX_DATAGRAM_BYTES = 1232  # as over UDP: a message has the same limit on every link

_CONTENT_TYPE = CONTENT_TYPE.encode()
_UNIMPLEMENTED = b"12"
_MAX_MESSAGE_BYTES = MAX_DATAGRAM_BYTES + 3  # the field's tag and length
_MAX_HEADERS_BYTES = 4096
_PING = b"ngp ping"


class Call:
    """One end of a call. Whatever the other end sends, the methods return or raise PeerError.

    Args:
        authority: `host:port` that is called; empty: the other end calls.

    Attributes:
        is_open: datagrams can be sent. Whoever calls needn't wait for the answer: gRPC's own servers answer with the
            first message.
        is_answered: both ends take part in the call.
    """

    def __init__(self, authority: str = "") -> None:
        self.is_open = self.is_answered = False
        self._calls = bool(authority)
        self._stream = 0
        self._received = b""
        self._h2 = connection(is_client=self._calls, calls=1, headers_bytes=_MAX_HEADERS_BYTES)
        self._h2.initiate_connection()
        if self._calls:
            self._stream = self._h2.get_next_available_stream_id()
            asked = {":method": "POST", ":scheme": "http", ":path": PATH.decode(), ":authority": authority}
            asked |= {"te": "trailers", "content-type": CONTENT_TYPE, "user-agent": "ngp"}
            self._h2.send_headers(self._stream, list(asked.items()))
            self.is_open = True

    def receive(self, data: bytes) -> tuple[list[bytes], int]:
        """Take bytes of the connection in.

        Returns: the datagrams in them, and how much work that was: the number of frames, or of datagrams if that is
            higher; at least 1.
        Raises: PeerError if the call is over; what `to_send` still returns tells the other end why.
        """
        datagrams: list[bytes] = []
        try:
            happened = self._h2.receive_data(data)
        except ProtocolError as error:
            raise PeerError("malformed", f"HTTP/2: {error}") from error
        for event in happened:
            datagrams += self._handle(event)
        return datagrams, max(1, len(happened), len(datagrams))

    def send(self, datagram: bytes) -> bool:
        """Send a datagram; returns False if the other end takes nothing in at present."""
        frame = framed(BytesValue(value=datagram).SerializeToString())
        if not self.is_open or self._h2.local_flow_control_window(self._stream) < len(frame):
            return False
        self._h2.send_data(self._stream, frame)
        return True

    def ping(self) -> None:
        """Ask the other end for a sign of life."""
        self._h2.ping(_PING)

    def hang_up(self) -> None:
        """Tell the other end that we end the connection."""
        self.is_open = False
        self._h2.close_connection()

    def to_send(self) -> bytes:
        """Return the bytes that go out on the connection now."""
        return self._h2.data_to_send()

    def _handle(self, event: events.Event) -> list[bytes]:
        if isinstance(event, events.RequestReceived):
            self._answer(event)
        elif isinstance(event, events.ResponseReceived):
            self._answered(event)
        elif isinstance(event, events.DataReceived):
            if event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return self._read(event.data)
        elif isinstance(event, events.StreamEnded | events.StreamReset | events.ConnectionTerminated):
            raise PeerError("ended", "the other end ended the call")
        return []

    def _answer(self, event: events.RequestReceived) -> None:
        asked = dict(event.headers)
        if asked.get(b":path") != PATH or not _is_grpc(asked):
            refusal = [(b":status", b"200"), (b"content-type", _CONTENT_TYPE), (b"grpc-status", _UNIMPLEMENTED)]
            self._h2.send_headers(event.stream_id, refusal, end_stream=True)
            raise PeerError("malformed", f"a call that isn't {PATH.decode()} by gRPC")
        self._stream = event.stream_id
        self._h2.send_headers(self._stream, [(b":status", b"200"), (b"content-type", _CONTENT_TYPE)])
        self.is_open = self.is_answered = True

    def _answered(self, event: events.ResponseReceived) -> None:
        said = dict(event.headers)
        if said.get(b":status") != b"200" or b"grpc-status" in said or not _is_grpc(said):
            raise PeerError("malformed", "the other end refuses the call")
        self.is_answered = True

    def _read(self, data: bytes) -> list[bytes]:
        """Cut the call's bytes into messages, and return the datagrams of the complete messages."""
        datagrams, self._received = [], self._received + data
        while len(self._received) >= FRAME_HEAD.size:
            is_compressed, size = FRAME_HEAD.unpack_from(self._received)
            if size > _MAX_MESSAGE_BYTES:
                self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
                raise PeerError("oversized", f"a message of {size} bytes; at most {_MAX_MESSAGE_BYTES} are possible")
            end = FRAME_HEAD.size + size
            if len(self._received) < end:
                break
            message, self._received = self._received[FRAME_HEAD.size : end], self._received[end:]
            datagrams.append(_datagram(message, bool(is_compressed)))
        return datagrams


def _is_grpc(headers: dict[bytes, bytes]) -> bool:
    kind = headers.get(b"content-type", b"")
    return kind == _CONTENT_TYPE or kind.startswith((_CONTENT_TYPE + b"+proto", _CONTENT_TYPE + b";"))


def _datagram(message: bytes, is_compressed: bool) -> bytes:
    try:
        value = BytesValue.FromString(message).value
    except DecodeError as error:
        raise PeerError("malformed", f"not a BytesValue: {error}") from error
    if is_compressed or not 1 <= len(value) <= MAX_DATAGRAM_BYTES:
        raise PeerError("malformed", "a compressed message" if is_compressed else f"a datagram of {len(value)} bytes")
    return value
