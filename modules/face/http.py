"""HTTP: requests and replies of one connection, on top of h11, each bounded in size and time.

A client that sends slowly, or more than any request to this API needs, loses its connection, and no other client
notices.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import h11

from ngp.modules.face.door import Bounds
from ngp.modules.face.tls import TlsStream


@dataclass(frozen=True, slots=True)
class Request:
    """One complete request. `path` is as it was sent, without what follows a `?`."""

    method: str
    path: str
    body: bytes


class BadRequest(Exception):
    """A request that is answered with an error of this HTTP status; the connection then ends."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class HttpConnection:
    """The server's end of a connection. Requests are read one after the other."""

    def __init__(self, stream: TlsStream, bounds: Bounds) -> None:
        self._stream = stream
        self._bounds = bounds
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=bounds.head_bytes)
        self._is_first = True
        self._is_head = False

    async def next_request(self) -> Request | None:
        """Read a request; None: the client has closed the connection, or was silent for too long.

        Raises: BadRequest, OSError.
        """
        loop = asyncio.get_running_loop()
        wait_s = self._bounds.request_s if self._is_first or self._h11.trailing_data[0] else self._bounds.idle_s
        self._is_first = False
        began = False

        def begin() -> None:
            nonlocal began
            if not began:
                began = True
                timer.reschedule(loop.time() + self._bounds.request_s)

        try:
            async with asyncio.timeout(wait_s) as timer:
                return await self._read(begin)
        except TimeoutError:
            if began:
                raise BadRequest(408, "the request took too long") from None
            return None
        except h11.RemoteProtocolError as error:
            raise BadRequest(error.error_status_hint, str(error)) from None

    async def _read(self, begin: Callable[[], None]) -> Request | None:
        head: h11.Request | None = None
        body, taken_bytes = bytearray(), 0
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                data = await self._stream.read()
                begin()
                taken_bytes += len(data)
                await asyncio.sleep(0)  # other connections get their turn after every few kilobytes of this one
                self._h11.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
                self._is_head = event.method == b"HEAD"
            elif isinstance(event, h11.Data):
                body += event.data
                is_padded = taken_bytes > self._bounds.head_bytes + self._bounds.body_bytes  # by chunks of one byte
                if len(body) > self._bounds.body_bytes or is_padded:
                    raise BadRequest(413, f"the request is longer than {self._bounds.body_bytes} bytes")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                target = head.target.decode("ascii", "replace")
                return Request(head.method.decode("ascii", "replace"), target.partition("?")[0], bytes(body))
            else:
                return None

    async def reply(self, status: int, content: Mapping[str, object], is_last: bool = False) -> bool:
        """Send a reply in JSON. Returns whether the connection goes on. Raises: OSError."""
        body = json.dumps(content).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        if is_last:
            headers.append(("Connection", "close"))
        if not self._can_reply():
            return False
        sent = self._h11.send(h11.Response(status_code=status, headers=headers)) or b""
        if not self._is_head:  # a reply to HEAD has no body
            sent += self._h11.send(h11.Data(data=body)) or b""
        async with asyncio.timeout(self._bounds.reply_s):
            await self._stream.write(sent + (self._h11.send(h11.EndOfMessage()) or b""))
        if (self._h11.our_state, self._h11.their_state) != (h11.DONE, h11.DONE):
            return False
        self._h11.start_next_cycle()
        return True

    def _can_reply(self) -> bool:
        return self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE)
