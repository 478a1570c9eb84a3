"""Door: lets strangers' TLS connections in, each step bounded before it costs anything.

Anyone on the internet may connect, and the daemon that gates traffic has only one loop. So connections and handshakes
have limits that apply before a handshake, one for all senders and one for each address. After it, each request is
limited in size and time, and the numbers of requests and of invoices are limited too. An address that has used up its
share hinders no other address. If all places are taken, the connection that has been without a request for longest
makes room.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

from ngp.core.allowance import Allowance, SharedAllowance
from ngp.core.host_port import join_host_port
from ngp.errors import KernelError, refused
from ngp.modules.face.tls import TlsStream

PAUSE_S = 1.0
_MOST_ADDRESSES = 4096
_NO_LIMIT = 1e9
_BACKLOG = 1024

_log = logging.getLogger("ngp")

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may take.

    Attributes:
        head_bytes: the most bytes of its first line and headers. body_bytes: the most bytes of its body.
        idle_s: seconds until a further request must begin.
        request_s: seconds in which a request that has begun, or the first one of a connection, must be complete.
        reply_s: seconds in which the client must take the reply.
    """

    head_bytes: int = 8192
    body_bytes: int = 8192
    idle_s: float = 60.0
    request_s: float = 10.0
    reply_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the world may ask of a face at a time.

    `of_one` is the limit for one IPv4 address, or one IPv6 /64; `of_site` for one IPv6 /48, which has 65,536 such /64.

    Attributes:
        accepts_s: connections a second that we take from the kernel, if only to close them.
        handshakes_s, requests_s, invoices_s: how many a second. As many as come in burst_s seconds (invoices: in
            invoices_burst_s) may come at once, after a pause.
        first_invoices_of_one: new rentals that may wait for their first payment at a time.
        holding: requests that may wait for a payment at a time. hold_s: how many seconds each may wait.
    """

    connections: int = 1024
    connections_of_one: int = 32
    accepts_s: float = 500
    handshakes_s: float = 50
    handshakes_of_one_s: float = 5
    handshakes_of_site_s: float = 20
    requests_s: float = 200
    requests_of_one_s: float = 20
    invoices_s: float = 5
    invoices_of_one_s: float = 0.5
    first_invoices_of_one: int = 5
    burst_s: float = 10
    invoices_burst_s: float = 40
    holding: int = 512
    hold_s: float = 20
    handshake_s: float = 10
    bounds: Bounds = field(default_factory=Bounds)


class Requests:
    """Counts what senders ask."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._holding = 0
        self._requests, self._invoices = (
            SharedAllowance(rate, of_one, _MOST_ADDRESSES, rate * burst_s, of_one * burst_s)
            for rate, of_one, burst_s in (
                (limits.requests_s, limits.requests_of_one_s, limits.burst_s),
                (limits.invoices_s, limits.invoices_of_one_s, limits.invoices_burst_s),
            )
        )

    async def refusal(self, who: Hashable, wants_invoice: bool) -> str:
        """Count a request. Returns why it isn't served; "" if it is."""
        now = asyncio.get_running_loop().time()
        if not self._requests.take(who, now):
            await asyncio.sleep(PAUSE_S)  # a connection that doesn't stop asking gets one such answer a second
            return "too many requests: ask again in some seconds"
        if wants_invoice and not self._invoices.take(who, now):
            return "too many invoices were asked for: ask again in some seconds"
        return ""

    @contextmanager
    def holding(self) -> Iterator[float]:
        """Count a request while it is served; yields how long its reply may wait for a payment, in seconds."""
        hold_s = self._limits.hold_s if self._holding < self._limits.holding else 0.0
        self._holding += 1
        try:
            yield hold_s
        finally:
            self._holding -= 1


class Door:
    """Listens, and hands each connection over after its handshake.

    Args:
        key: the key of net.conf that errors name.
        converse: serves a connection until its end. If it raises an OSError, only that connection ends.
    """

    def __init__(self, key: str, limits: Limits, converse: Callable[[TlsStream, Hashable], Awaitable[None]]) -> None:
        self._key = key
        self._limits = limits
        self._converse = converse
        self._listeners: dict[Place, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._context: ssl.SSLContext | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._of_one: Counter[Hashable] = Counter()
        self._waiting: dict[asyncio.Task[Any], None] = {}
        """Connections without a complete request, the longest first."""
        self._accepts = Allowance(limits.accepts_s, limits.accepts_s / 10)
        self._handshakes = Allowance(limits.handshakes_s, limits.handshakes_s * limits.burst_s)
        self._handshakes_of_one, self._handshakes_of_site = (
            SharedAllowance(_NO_LIMIT, rate, _MOST_ADDRESSES, None, rate * limits.burst_s)
            for rate in (limits.handshakes_of_one_s, limits.handshakes_of_site_s)
        )

    async def open(self, places: Iterable[Place], context: ssl.SSLContext) -> bool:
        """Listen at these places and no others. Returns whether one of the places is new.

        Raises: KernelError; then nothing has changed.
        """
        wanted = list(dict.fromkeys(places))
        added: dict[Place, socket.socket] = {}
        try:
            for place in wanted:
                if place not in self._listeners:
                    added[place] = self._listen(place)
        except BaseException:
            for one in added.values():
                one.close()
            raise
        self._context = context
        await self._stop_listening([one for one in self._listeners if one not in wanted])
        for place, listener in added.items():
            self._listeners[place] = listener, asyncio.create_task(self._accept(listener))
        return bool(added)

    async def close(self) -> None:
        """Stop listening, and end all connections; safe to call twice."""
        await self._stop_listening(list(self._listeners))
        connections = list(self._connections)
        for one in connections:
            one.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def waits(self, task: asyncio.Task[Any]) -> None:
        """Note that a task's connection has no request now, so that it may have to make room."""
        self._waiting[task] = None

    def is_served(self, task: asyncio.Task[Any]) -> None:
        """Note that a task's connection has a complete request."""
        self._waiting.pop(task, None)

    # --- connections --------------------------------------------------------------------------------------------------

    async def _stop_listening(self, places: list[Place]) -> None:
        for place in places:
            listener, task = self._listeners.pop(place)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections as long as they are within the limits. Those that come faster wait in the kernel."""
        loop = asyncio.get_running_loop()
        while True:
            await self._turn(self._accepts, 1 / self._limits.accepts_s)
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:
                why = refused("no connection can be accepted", error, "it is tried again")
                _log.warning("%s: %s", self._key, why)
                await asyncio.sleep(PAUSE_S)
                continue
            who = who_is(address[0])
            if not self._admits(who, loop.time()):
                accepted.close()
                continue
            task = asyncio.create_task(self._serve(accepted, who))
            self._connections.add(task)
            self._of_one[who] += 1
            self._waiting[task] = None
            task.add_done_callback(partial(self._ended, who))

    async def _turn(self, allowance: Allowance, pause_s: float) -> None:
        while not allowance.take(asyncio.get_running_loop().time()):
            await asyncio.sleep(pause_s)

    def _admits(self, who: Hashable, now: float) -> bool:
        limits = self._limits
        if self._of_one[who] >= limits.connections_of_one or not self._handshakes_of_one.take(who, now):
            return False
        if (site := _site(who)) and not self._handshakes_of_site.take(site, now):
            return False
        if len(self._connections) < limits.connections:
            return True
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.cancel()
        return True

    def _ended(self, who: Hashable, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._waiting.pop(task, None)
        self._of_one[who] -= 1
        if not self._of_one[who]:
            del self._of_one[who]
        if not task.cancelled() and (error := task.exception()):
            _log.error("%s: a request ended with a fault of ngp: %r", self._key, error, exc_info=error)

    async def _serve(self, accepted: socket.socket, who: Hashable) -> None:
        assert self._context is not None
        stream = await TlsStream.over(accepted, self._context)
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                await stream.begins()  # a silent client doesn't take another client's turn
                await self._turn(self._handshakes, 1 / self._limits.handshakes_s)
                await stream.handshake()
            await self._converse(stream, who)
            async with asyncio.timeout(self._limits.bounds.reply_s):
                await stream.close()
        except OSError:
            pass  # an error of the network or of TLS, or a time-out: the other end may come again
        finally:
            stream.abort()

    def check(self, places: Iterable[Place]) -> str:
        """Say why a start couldn't listen at one of these places; "" if it could.

        If our own daemon listens at a place, a start could too. Whether we have the right to use the port is another
        check.
        """
        for place in places:
            try:
                self._bound(place).close()
            except KernelError as error:
                if not isinstance(error.__cause__, PermissionError):
                    return str(error)
        return ""

    def _listen(self, place: Place) -> socket.socket:
        listener = self._bound(place)
        try:
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise self._refused(place, error) from error
        return listener

    def _bound(self, place: Place) -> socket.socket:
        host, port = place
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Without the protocol's number asyncio doesn't know TCP, and leaves Nagle's algorithm on.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # A reload may replace 0.0.0.0 by one address of this host: both are open for a moment.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if ":" in host:  # IPv4 has a socket of its own
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise self._refused(place, error) from error
        return listener

    def _refused(self, place: Place, error: OSError) -> KernelError:
        remedy = "give an address of this host and a free port (`ss -ltnp` shows who listens)"
        return refused(f"{self._key} {join_host_port(*place)}", error, remedy)


def who_is(address: str) -> Hashable:
    """Return what tells senders apart: an IPv4 address, or an IPv6 /64, since anyone has a whole /64 of addresses."""
    packed = ip_address(address.partition("%")[0]).packed
    return packed[:8] if len(packed) == 16 else packed


def _site(who: Hashable) -> bytes:
    """Return the IPv6 /48 of a sender; b"" for IPv4."""
    return who[:6] if isinstance(who, bytes) and len(who) == 8 else b""


def shown(places: Iterable[Place]) -> str:
    """Write places for people."""
    return ", ".join(join_host_port(*place) for place in places)
