"""gRPC connection: one neighbour's TCP connection with its call: what is read and sent on it, and when it ends.

What a connection sends beyond its link address's allowance isn't read, so it waits in the kernel, and then at the
sender.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ngp.core.values import LinkPeer
from ngp.errors import PeerError
from ngp.modules.link.grpc_call import Call

_READ_BYTES = 2048  # read at a time: so little that even the smallest frames in it don't hold up the loop
_UNSENT_BYTES = 64 << 10
_log = logging.getLogger("ngp.link.grpc")


@dataclass(frozen=True, slots=True)
class Limits:
    """What neighbours may ask of us. `of_one` is the limit for one link address; a `_burst` may come at once.

    Attributes:
        connections, connections_of_one: open connections.
        accepts_s: connections a second that we take from the kernel, if only to close them.
        accepts_of_one_s, accepts_of_one_burst: new connections a second that we serve.
        trusted_s, trusted_burst: frames and datagrams a second of a link address that proved itself.
        stranger_s, stranger_burst: frames and datagrams a second of any other link address.
        strangers_s, strangers_burst: frames and datagrams a second of all those other link addresses together.
        pause_s: how many seconds we don't read a connection that sent too much.
        open_s: seconds that a connection may take until its call.
        ping_s, dead_s: seconds of silence until we ping, and until we hang up.
        watch_s: seconds between our looks at the connections.
        connect_s: how many seconds we wait when we open a connection.
        again_s, again_most_s: the shortest and the longest pause between our attempts, in seconds.
    """

    connections: int = 512
    connections_of_one: int = 4
    accepts_s: float = 200
    accepts_of_one_s: float = 1
    accepts_of_one_burst: float = 10
    trusted_s: float = 2500
    trusted_burst: float = 2048
    stranger_s: float = 50
    stranger_burst: float = 50
    strangers_s: float = 1000
    strangers_burst: float = 250
    pause_s: float = 0.25
    open_s: float = 10
    ping_s: float = 10
    dead_s: float = 30
    watch_s: float = 2
    connect_s: float = 4
    again_s: float = 1
    again_most_s: float = 30


class Connection(asyncio.BufferedProtocol):
    """A connection with a neighbour, and the call on it.

    Args:
        take: hands over datagrams.
        may: takes an amount of work out of the link address's allowance; returns how much of it the allowance didn't
            cover.
        opened: called once, when datagrams can be sent.
        ended: called once, with the reason if it is to be counted, else "".

    Attributes:
        done: set when the connection is over. began_at: when it began, by the loop's clock.
    """

    def __init__(
        self,
        peer: LinkPeer,
        call: Call,
        limits: Limits,
        take: Callable[[LinkPeer, bytes], None],
        may: Callable[[int], int],
        opened: Callable[[Connection], None],
        ended: Callable[[Connection, str], None],
    ) -> None:
        self.peer, self.call = peer, call
        self.done = asyncio.Event()
        self._is_told = False
        self._limits, self._take, self._may, self._opened, self._ended = limits, take, may, opened, ended
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_READ_BYTES)
        self._transport: asyncio.Transport | None = None
        self._owed = 0
        self._is_full = False
        self._payment: asyncio.TimerHandle | None = None
        self.began_at = self._heard_at = self._loop.time()

    # --- asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.done.is_set():
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_UNSENT_BYTES // 2)
        self._flush()
        self._tell()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_at = self._loop.time()
        try:
            datagrams, work = self.call.receive(bytes(self._buffer[:nbytes]))
        except PeerError as error:
            _log.debug("from %s on %s: %s", self.peer.transport, self.peer.interface, error)
            self.end(error.reason if error.reason != "ended" else "")
            return
        self._flush()
        self._tell()
        for datagram in datagrams:
            self._take(self.peer, datagram)
        self._owed += work
        self._pay()

    def pause_writing(self) -> None:
        self._is_full = True
        self._pay()

    def resume_writing(self) -> None:
        self._is_full = False
        self._pay()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()

    # --- for the link -------------------------------------------------------------------------------------------------

    def send(self, datagram: bytes) -> bool:
        """Send a datagram; returns False if the neighbour doesn't read what it has got."""
        if self._transport is None or self._transport.get_write_buffer_size() > _UNSENT_BYTES:
            return False
        if not self.call.send(datagram):
            return False
        self._flush()
        return True

    def watch(self, now: float) -> None:
        """Ping the neighbour if it is silent; hang up if it stays silent, or didn't make its call."""
        silent_s = now - self._heard_at
        if silent_s > self._limits.dead_s or (not self.call.is_answered and now - self.began_at > self._limits.open_s):
            self.end()
        elif self.call.is_answered and silent_s > self._limits.ping_s and not self._is_full:
            self.call.ping()
            self._flush()

    def end(self, reason: str = "") -> None:
        """Hang up; safe to call twice."""
        if self.done.is_set():
            return
        self.done.set()
        if self._transport is not None:
            self._flush()  # tells the other end what it did wrong
            self._transport.abort()
        self._ended(self, reason)

    def _tell(self) -> None:
        """Call `opened` once, as soon as datagrams can be sent."""
        if self.call.is_open and not self._is_told:
            self._is_told = True
            self._opened(self)

    def _flush(self) -> None:
        if self._transport is not None and (data := self.call.to_send()):
            self._transport.write(data)

    def _pay(self) -> None:
        """Go on reading if the allowance covers what came, and the neighbour reads; else look again later."""
        if self.done.is_set() or self._transport is None:
            return
        self._owed = self._may(self._owed)
        if not self._owed and not self._is_full:
            self._transport.resume_reading()
            return
        self._transport.pause_reading()
        if self._owed and self._payment is None:
            self._payment = self._loop.call_later(self._limits.pause_s, self._pay_late)

    def _pay_late(self) -> None:
        self._payment = None
        self._pay()
