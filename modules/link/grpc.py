"""gRPC link: ngp's datagrams in one gRPC call with each neighbour, where UDP and broadcasts are lost; TCP port 10325.

This link finds nobody: we call a neighbour at the addresses in NGP_INTERFACE, or the neighbour calls us. As with other
links, the neighbour's traffic must come over a mesh interface, since contracts belong to the neighbour's link address
there; `streams` finds out the link address of a connection. Connections through routers are refused, so a host behind a
router can't buy traffic; it can rent addresses, by LANDLORD_GRPC or LANDLORD_HTTPS.

Anyone on the link may connect, so everything has a limit. A connection beyond the limit of its link address takes the
place of the oldest connection of that link address. If all places are taken, the oldest connection of a link address
that never proved itself makes room. What a connection sends is taken in at the rates of the UDP link (`inlet.bpf.c`);
what comes faster waits in the kernel, and then at the sender, so a flooding neighbour delays only itself. A neighbour
that doesn't read loses messages, like a neighbour that is away. A silent neighbour is pinged, and cut off if it gives
no sign of life.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any

from ngp.core.allowance import Allowance, SharedAllowance
from ngp.core.host_port import join_host_port
from ngp.core.values import Check, LinkPeer
from ngp.errors import KernelError, PeerError
from ngp.modules import rtnetlink
from ngp.modules.link import streams
from ngp.modules.link.base import Port, PortLink, Receive
from ngp.modules.link.grpc_call import MAX_DATAGRAM_BYTES, Call

PORT = 10325

_READ_BYTES = 2048  # read at a time: so little that even the smallest frames in it don't hold up the loop
_UNSENT_BYTES = 64 << 10
_MOST_LINKS = 4096
_ACCEPT_PAUSE_S = 1.0
_GONE = {errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL}
_log = logging.getLogger("ngp.link.grpc")

LinkKey = tuple[str, bytes]


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


class _Connection(asyncio.BufferedProtocol):
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
        opened: Callable[[_Connection], None],
        ended: Callable[[_Connection, str], None],
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


class _GrpcPort(Port):
    """The listening sockets on one interface, the connections there, and the neighbours that we call there."""

    def __init__(self, link: GrpcLink, interface: str, port: int) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        with rtnetlink.open_asker() as kernel:
            self.is_framed = rtnetlink.ask_link(kernel, self.index).has_link_addresses
        self.hello = b""
        self.connections: dict[_Connection, None] = {}  # the oldest first
        self._link = link
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._calling: dict[str, asyncio.Task[None]] = {}  # by address
        try:
            for version in (4, 6):
                listener = streams.listen(interface, version, port)
                if listener is not None:
                    self._listeners.append(listener)
        except BaseException:
            self.close()
            raise

    def serve(self) -> None:
        """Accept connections."""
        for listener in self._listeners:
            task = self._link.begin(self._link.accept(self, listener))
            task.add_done_callback(partial(_close, listener))  # not earlier: the loop may still wait for the socket
            self._accepting.append(task)

    def call(self, addresses: Sequence[str]) -> None:
        """Call the neighbours at these addresses, and at no other ones; open connections go on."""
        ours = [each for each in addresses if _is_ip(each) and _host(each)[1] in ("", self.interface)]
        for address in self._calling.keys() - ours:
            self._calling.pop(address).cancel()
        for address in ours:
            if address not in self._calling:
                self._calling[address] = self._link.begin(self._link.call(self, address))

    def send(self, peer: LinkPeer, datagram: bytes) -> bool:
        for connection in reversed(self.connections):  # an old one may be dead, and nobody noticed yet
            if connection.peer == peer and connection.peer.transport == peer.transport and connection.call.is_open:
                return connection.send(datagram)
        return False

    def broadcast(self, datagram: bytes) -> bool:
        self.hello = datagram  # also sent on connections that begin later
        return all([each.send(datagram) for each in self.connections if each.call.is_open])

    def with_address(self, transport: str) -> _Connection | None:
        """Return a connection with a neighbour's address, whoever opened it."""
        return next((each for each in list(self.connections) if each.peer.transport == transport), None)

    def close(self) -> None:
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # the port is free at once
            if not self._accepting:
                listener.close()
        for task in (*self._accepting, *self._calling.values()):
            task.cancel()
        for connection in list(self.connections):
            connection.call.hang_up()
            connection.end()


class GrpcLink(PortLink[_GrpcPort]):
    """ngp in gRPC calls; implements `ngp.ports.Link`.

    Args:
        port: TCP port of both ends.
        neighbours: the addresses in NGP_INTERFACE, which are called.
    """

    max_datagram_bytes = MAX_DATAGRAM_BYTES

    def __init__(self, port: int = PORT, neighbours: Sequence[str] = (), limits: Limits | None = None) -> None:
        super().__init__()
        self._port = port
        self._neighbours = tuple(neighbours)
        self._limits = limits = limits or Limits()
        self._trusted: OrderedDict[LinkKey, Allowance] = OrderedDict()
        self._strangers = SharedAllowance(
            limits.strangers_s, limits.stranger_s, _MOST_LINKS, limits.strangers_burst, limits.stranger_burst
        )
        self._accepts = Allowance(limits.accepts_s)
        self._accepts_of_one = SharedAllowance(
            limits.accepts_s, limits.accepts_of_one_s, _MOST_LINKS, part_burst=limits.accepts_of_one_burst
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._failures: dict[tuple[str, str], str] = {}
        """Why the last call failed, by interface and address."""

    # --- the port -----------------------------------------------------------------------------------------------------

    def check(self, interfaces: Sequence[str]) -> list[Check]:
        """Say whom we call, and whether they answer. May be called in another thread, so it copies what it reads."""
        if not self._neighbours:
            return [Check("link grpc", True, "nobody is called: neighbours call us, or are named in NGP_INTERFACE")]
        return [self._check(address) for address in self._neighbours if _is_ip(address)]

    def _check(self, address: str) -> Check:
        name, (host, _) = f"neighbour {address}", _host(address)
        for port in list(self._ports.values()):
            if port.with_address(_transport(host, port.interface)) is not None:
                return Check(name, True, f"a gRPC connection on {port.interface}")
        tried = list(self._failures.items())
        failures = [f"{why} on {interface}" for (interface, called), why in tried if called == address]
        if not failures:
            return Check(name, True, f"called by gRPC (TCP port {self._port})")
        remedy = f"at that neighbour: grpc in LINK_INTERFACE, and TCP port {self._port} open to us, no router between"
        return Check(name, False, f"doesn't answer by gRPC: {', '.join(failures)}", remedy)

    def open_port(self, interface: str, on_trial: bool) -> _GrpcPort | None:
        try:
            port = _GrpcPort(self, interface, self._port)
        except OSError as error:
            if error.errno is None or error.errno in _GONE:  # the interface vanished; if_nametoindex gives no errno
                return None
            raise KernelError(
                f"TCP port {self._port} on {interface}: {error.strerror}; ngp needs root (CAP_NET_RAW) and this port; "
                f"see which program has it: ss -ltnp 'sport = :{self._port}'"
            ) from error
        if not on_trial:
            port.serve()
            port.call(self._neighbours)
        return port

    def name_neighbours(self, addresses: Sequence[str]) -> None:
        self._neighbours = tuple(addresses)
        self._failures = {place: why for place, why in self._failures.items() if place[1] in addresses}
        for port in self._ports.values():
            port.call(addresses)

    async def open(self, interfaces: Sequence[str], receive: Receive) -> None:
        await super().open(interfaces, receive)
        self._watch_all()

    def trust(self, peer: LinkPeer) -> None:
        """From now on take in more from this link address, and let no stranger take the place of its connections."""
        link = (peer.interface, peer.link_address)
        if link not in self._trusted:
            self._trusted[link] = Allowance(self._limits.trusted_s, self._limits.trusted_burst)
            if len(self._trusted) > _MOST_LINKS:
                self._trusted.popitem(last=False)
        self._trusted.move_to_end(link)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task; `close` waits for its end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a fault of ngp ends a part of the gRPC link: %r", error, exc_info=error)

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- connections --------------------------------------------------------------------------------------------------

    async def accept(self, port: _GrpcPort, listener: socket.socket) -> None:
        """Accept neighbours' connections on a port, as long as they are within the limits."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._accepts.take(loop.time()):
                await asyncio.sleep(1 / self._limits.accepts_s)
            try:
                accepted, (address, *_) = await loop.sock_accept(listener)
            except OSError as error:
                _log.warning("no connection can be accepted on %s (%s): it is tried again", port.interface, error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            try:
                await self._welcome(port, accepted, address)
            except OSError as error:
                _log.debug("from %s on %s: %s", address, port.interface, error)
                self._counts["connections_refused"] += 1
                accepted.close()

    async def _welcome(self, port: _GrpcPort, accepted: socket.socket, address: str) -> None:
        link = (port.interface, streams.caller(accepted) if port.is_framed else b"")
        if not self._accepts_of_one.take(link, asyncio.get_running_loop().time()) or not self._make_room(link):
            raise OSError(errno.EUSERS, "too many connections")
        await self._converse(port, accepted, LinkPeer(*link, _transport(_host(address)[0], port.interface)), Call())

    async def call(self, port: _GrpcPort, address: str) -> None:
        """Keep a connection with a neighbour on a port, whichever of the two opens it."""
        host, _ = _host(address)
        pause_s = self._limits.again_s
        while True:
            connection = port.with_address(_transport(host, port.interface))
            if connection is None:
                try:
                    async with asyncio.timeout(self._limits.connect_s):
                        connection = await self._connect(port, host)
                except OSError as error:
                    self._failures[port.interface, address] = os.strerror(error.errno) if error.errno else "no answer"
            if connection is not None:
                self._failures.pop((port.interface, address), None)
                await connection.done.wait()
                if connection.call.is_answered:
                    pause_s = self._limits.again_s
                else:
                    self._failures[port.interface, address] = "it ended the call"
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, self._limits.again_most_s)

    async def _connect(self, port: _GrpcPort, host: str) -> _Connection:
        version = 6 if ":" in host else 4
        connection = streams.open_socket(port.interface, version)
        if connection is None:
            raise OSError(errno.EAFNOSUPPORT, "this kernel has no IPv6")
        try:
            target: Any = (host, self._port) if version == 4 else (host, self._port, 0, port.index)
            await asyncio.get_running_loop().sock_connect(connection, target)
            mac = streams.called(port.index, host) if port.is_framed else b""
            if not self._make_room((port.interface, mac)):
                raise OSError(errno.EUSERS, "too many connections")
            peer = LinkPeer(port.interface, mac, _transport(host, port.interface))
            return await self._converse(port, connection, peer, Call(join_host_port(host, self._port)))
        except BaseException:
            connection.close()
            raise

    async def _converse(self, port: _GrpcPort, connected: socket.socket, peer: LinkPeer, call: Call) -> _Connection:
        streams.keep_to(connected, peer.link_address)
        assert self._receive is not None
        conversation = _Connection(
            peer,
            call,
            self._limits,
            self._receive,
            partial(self._may, (peer.interface, peer.link_address)),
            partial(self._opened, port),
            partial(self._ended, port),
        )
        port.connections[conversation] = None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: conversation, connected)
        except BaseException:
            conversation.end()
            raise
        return conversation

    def _opened(self, port: _GrpcPort, connection: _Connection) -> None:
        if port.hello:
            connection.send(port.hello)

    def _ended(self, port: _GrpcPort, connection: _Connection, reason: str) -> None:
        port.connections.pop(connection, None)
        if reason:
            self._counts[reason] += 1

    def _make_room(self, link: LinkKey) -> bool:
        """Make room for a connection with a link address; returns False if there is none."""
        limits, everybody = self._limits, [each for port in self._ports.values() for each in port.connections]
        same = [each for each in everybody if (each.peer.interface, each.peer.link_address) == link]
        if len(same) >= limits.connections_of_one:
            same[0].end("connections_refused")
            return True
        if len(everybody) < limits.connections:
            return True
        strangers = [each for each in everybody if (each.peer.interface, each.peer.link_address) not in self._trusted]
        if strangers:
            min(strangers, key=lambda each: each.began_at).end("connections_refused")
        return bool(strangers)

    def _may(self, link: LinkKey, work: int) -> int:
        """Take work out of a link address's allowance; returns how much of it the allowance didn't cover."""
        now, trusted = asyncio.get_running_loop().time(), self._trusted.get(link)
        while work and (trusted.take(now) if trusted is not None else self._strangers.take(link, now)):
            work -= 1
        return work

    def _watch_all(self) -> None:
        loop = asyncio.get_running_loop()
        for port in self._ports.values():
            for connection in list(port.connections):
                connection.watch(loop.time())
        self._watch = loop.call_later(self._limits.watch_s, self._watch_all)


def _is_ip(address: str) -> bool:
    """Say whether an address in NGP_INTERFACE isn't a MAC."""
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


def _host(address: str) -> tuple[str, str]:
    """Split `ADDRESS%INTERFACE` into both; the interface is "" if there is none."""
    host, _, interface = address.partition("%")
    return host, interface


def _transport(host: str, interface: str) -> str:
    return f"{host}%{interface}" if ip_address(host).version == 6 and ip_address(host).is_link_local else host


def _close(listener: socket.socket, _task: asyncio.Task[None]) -> None:
    listener.close()
