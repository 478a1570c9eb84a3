"""TLS: the server's end of one connection, in a few kilobytes.

asyncio's own TLS has a buffer of 256 kB for each connection, so some hundred strangers would fill a router's memory.

What a client sends besides its data is bounded: TLS lets it ask for new keys (KeyUpdate, RFC 8446, 4.6.3) as often as
it likes. Each such message costs us more than it costs the client, and HTTP, which counts the data, never sees one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

_READ_BYTES = 4096
_MOST_BESIDES_BYTES = 6 * _READ_BYTES
"""For the handshake, and again after it: data counts only when its record has come, of up to 18 kB, and a read more."""
_BESIDES_BYTES_OF_ONE = 64
"""How many other bytes may come with each byte of data: TLS adds about these to a record of one byte."""


class TlsStream:
    """A connection that was accepted. Errors of the network and of TLS are OSErrors."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self._reader = reader
        self._writer = writer
        self._from_peer, self._to_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._from_peer, self._to_peer, server_side=True)
        self._besides_bytes = 0

    @classmethod
    async def over(cls, accepted: socket.socket, context: ssl.SSLContext) -> TlsStream:
        """Take over an accepted socket; no handshake yet."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_READ_BYTES, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop), context)

    async def begins(self) -> None:
        """Return when the client has sent its first bytes. Raises: OSError."""
        if not await self._receive():
            raise ConnectionResetError("the client closed the connection")

    async def handshake(self) -> None:
        """Agree on keys. Raises: OSError."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._send()
                if not await self._receive():
                    raise ConnectionResetError("the client closed the connection") from None
            except ssl.SSLError:
                await self._send()  # the alert, which tells the client why
                raise
        self._besides_bytes = 0
        await self._send()

    async def read(self) -> bytes:
        """Read some bytes; b"" if the client has closed the connection. Raises: OSError."""
        while True:
            try:
                data = self._tls.read(_READ_BYTES)
                self._besides_bytes = max(0, self._besides_bytes - _BESIDES_BYTES_OF_ONE * len(data))
                return data
            except ssl.SSLWantReadError:
                await self._send()
                if not await self._receive():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    async def write(self, data: bytes) -> None:
        """Send bytes; returns when few of them still wait to be sent. Raises: OSError."""
        self._tls.write(data)
        await self._send()

    async def close(self) -> None:
        """Tell the client that this is the end, and close the connection when all is sent. Raises: OSError."""
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._send()
        self._writer.close()
        await self._writer.wait_closed()

    def abort(self) -> None:
        """Close the connection at once; safe to call twice."""
        self._writer.transport.abort()

    async def _receive(self) -> bool:
        data = await self._reader.read(_READ_BYTES)
        self._besides_bytes += len(data)
        if self._besides_bytes > _MOST_BESIDES_BYTES:
            raise ConnectionAbortedError("the client sends TLS's own messages without end")
        self._from_peer.write(data)
        return bool(data)

    async def _send(self) -> None:
        if data := self._to_peer.read():
            self._writer.write(data)
            await self._writer.drain()
