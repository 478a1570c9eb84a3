"""HTTP/2: calls of one connection, as gRPC sends them, on top of h2, each bounded in size and time.

A call is one request message and one reply message ("unary"). Source: gRPC over HTTP2 (grpc.io), RFC 9113.

A client that sends slowly, or more than its calls need, loses its connection, and no other client notices. Headers,
pings, settings, streams that are reset at once, and calls of unknown methods cost work without being counted as
requests: each connection has a number of bytes for them, which grows only with calls that were answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h2.events
import h2.exceptions

from ngp.calls.grpc import CONTENT_TYPE, binary_text, connection, framed, read_binary, unframed
from ngp.modules.face.door import Bounds, Door
from ngp.modules.face.tls import TlsStream

MOST_CALLS = 4
"""The most calls of one connection at a time."""
REQUEST_BESIDES_BYTES = 1024
"""The bytes that a request may take besides its message: headers, acknowledgements, pings."""
OK, UNIMPLEMENTED = 0, 12


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """A complete call. Attributes: path: `/package.Service/Method`. binary: the headers that end with `-bin`."""

    path: str
    binary: dict[str, bytes]
    request: bytes


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """The answer. Attributes: status: gRPC's; only OK has a message. trailers: their names end with `-bin`."""

    message: bytes = b""
    trailers: tuple[tuple[str, bytes], ...] = ()
    status: int = OK
    why: str = ""


class _Broken(Exception):
    """The client took more than it may; its connection ends."""


@dataclass(slots=True)
class _Incomplete:
    """A call of which a part is still to come. Attributes: until: loop time when it must be complete."""

    headers: list[tuple[bytes, bytes]]
    until: float
    body: bytearray = field(default_factory=bytearray)


class Http2Connection:
    """The server's end of a connection, which `serve` serves.

    Args: answer: answers a call; several calls of one connection are answered at the same time.
    """

    def __init__(
        self, stream: TlsStream, bounds: Bounds, door: Door, answer: Callable[[RemoteCall], Awaitable[RemoteReply]]
    ) -> None:
        self._stream = stream
        self._bounds = bounds
        self._door = door
        self._answer = answer
        self._h2 = connection(is_client=False, calls=MOST_CALLS, headers_bytes=bounds.head_bytes)
        self._incomplete: dict[int, _Incomplete] = {}
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._most_besides = self._besides = bounds.head_bytes + bounds.body_bytes
        self._idle_until = asyncio.get_running_loop().time() + bounds.request_s
        self._timer: asyncio.Timeout | None = None
        self._room = asyncio.Event()
        """Set whenever the client takes more of a reply."""

    async def serve(self) -> None:
        """Answer calls until the client closes the connection, is slow or idle for too long, or breaks a rule."""
        task = asyncio.current_task()
        assert task is not None
        self._h2.initiate_connection()
        try:
            async with asyncio.timeout_at(self._idle_until) as self._timer, asyncio.TaskGroup() as group:
                await self._converse(group, task)
        except* OSError:  # an error of the network or TLS, or a time-out: the client may come again
            self._stream.abort()

    async def _converse(self, group: asyncio.TaskGroup, task: asyncio.Task[Any]) -> None:
        try:
            await self._send()
            while data := await self._stream.read():
                self._besides -= len(data)
                if self._besides < 0:
                    raise _Broken
                self._receive(data, group, task)
                await self._send()
                await asyncio.sleep(0)  # other connections get their turn after every few kilobytes of this one
        except (h2.exceptions.ProtocolError, _Broken):
            self._h2.close_connection()
            await self._send()
        finally:
            for one in self._answers.values():
                one.cancel()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _receive(self, data: bytes, group: asyncio.TaskGroup, task: asyncio.Task[Any]) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                until = asyncio.get_running_loop().time() + self._bounds.request_s
                self._incomplete[event.stream_id] = _Incomplete(list(event.headers), until)
            elif isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._take(event.stream_id, event.data)
            elif isinstance(event, h2.events.StreamEnded) and (whole := self._incomplete.pop(event.stream_id, None)):
                self._door.is_served(task)
                answering = group.create_task(self._serve_call(event.stream_id, whole))
                self._answers[event.stream_id] = answering
                answering.add_done_callback(partial(self._ended, event.stream_id, task))
            elif isinstance(event, h2.events.StreamReset):
                self._incomplete.pop(event.stream_id, None)
                if answer := self._answers.get(event.stream_id):
                    answer.cancel()
            elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                self._room.set()
        self._set_timer()

    def _take(self, number: int, data: bytes) -> None:
        incomplete = self._incomplete.get(number)
        if incomplete is not None:
            incomplete.body += data
            if len(incomplete.body) > self._bounds.body_bytes:
                raise _Broken

    def _ended(self, number: int, task: asyncio.Task[Any], _answering: asyncio.Task[None]) -> None:
        self._answers.pop(number, None)
        if not self._answers and not task.done():
            self._idle_until = asyncio.get_running_loop().time() + self._bounds.idle_s
            self._door.waits(task)
            self._set_timer()

    def _set_timer(self) -> None:
        """Give the client time to complete what it has begun, or to begin something; while we answer, no timer runs."""
        assert self._timer is not None
        if self._timer.expired():
            return
        untils = [one.until for one in self._incomplete.values()]
        self._timer.reschedule(min(untils) if untils else None if self._answers else self._idle_until)

    # --- replies ------------------------------------------------------------------------------------------------------

    async def _serve_call(self, number: int, whole: _Incomplete) -> None:
        call = _call_of(whole)
        reply = await self._answer(call) if isinstance(call, RemoteCall) else call
        try:
            with suppress(h2.exceptions.ProtocolError):  # the client doesn't want it any more
                async with asyncio.timeout(self._bounds.reply_s):
                    await self._reply(number, reply)
                if reply.status == OK:
                    self._besides = min(self._most_besides, self._besides + len(whole.body) + REQUEST_BESIDES_BYTES)
        except OSError:  # too slow, or away
            self._stream.abort()

    async def _reply(self, number: int, reply: RemoteReply) -> None:
        first = [(":status", "200"), ("content-type", CONTENT_TYPE)]
        last = [("grpc-status", str(reply.status)), *((name, binary_text(value)) for name, value in reply.trailers)]
        if reply.status != OK:
            self._h2.send_headers(number, [*first, *last, ("grpc-message", reply.why)], end_stream=True)
        else:
            self._h2.send_headers(number, first)
            left = framed(reply.message)
            while left:
                self._room.clear()
                size = max(0, min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size))
                if size:
                    self._h2.send_data(number, left[:size])
                    left = left[size:]
                else:
                    await self._send()
                    await self._room.wait()
            self._h2.send_headers(number, last, end_stream=True)
        await self._send()

    async def _send(self) -> None:
        if data := self._h2.data_to_send():
            async with asyncio.timeout(self._bounds.reply_s):
                await self._stream.write(data)


def _call_of(whole: _Incomplete) -> RemoteCall | RemoteReply:
    """Return the call that a complete request holds; if it isn't a gRPC call, the error to answer it with."""
    headers = {name.decode("ascii", "replace"): value for name, value in whole.headers}
    if headers.get(":method") != b"POST" or not headers.get("content-type", b"").startswith(CONTENT_TYPE.encode()):
        return RemoteReply(status=UNIMPLEMENTED, why="calls are sent by gRPC")
    message = unframed(bytes(whole.body))
    if message is None:
        return RemoteReply(status=UNIMPLEMENTED, why="a call has one message, which isn't compressed")
    binary = {name: read_binary(value) for name, value in headers.items() if name.endswith("-bin")}
    return RemoteCall(headers.get(":path", b"").decode("ascii", "replace"), binary, message)
