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
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

from ngp.core.allowance import Allowance, SharedAllowance
from ngp.core.host_port import join_host_port
from ngp.core.newest import Newest
from ngp.core.values import Check, LinkPeer
from ngp.errors import KernelError
from ngp.modules import rtnetlink
from ngp.modules.link import streams
from ngp.modules.link.base import Port, PortLink, Receive
from ngp.modules.link.grpc_call import MAX_DATAGRAM_BYTES, Call
from ngp.modules.link.grpc_connection import Connection, Limits

PORT = 10325

_MOST_LINKS = 4096
_ACCEPT_PAUSE_S = 1.0
_GONE = {errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL}
_log = logging.getLogger("ngp.link.grpc")


class _GrpcPort(Port):
    """The listening sockets on one interface, the connections there, and the neighbours that we call there."""

    def __init__(self, link: GrpcLink, interface: str, port: int) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        with rtnetlink.open_asker() as kernel:
            self.is_framed = rtnetlink.ask_link(kernel, self.index).has_link_addresses
        self.hello = b""
        self.connections: dict[Connection, None] = {}  # the oldest first
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

    def with_address(self, transport: str) -> Connection | None:
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
        self._trusted: Newest[LinkPeer, Allowance] = Newest(_MOST_LINKS)
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
        known = self._trusted.get(peer) or Allowance(self._limits.trusted_s, self._limits.trusted_burst)
        self._trusted.note(peer, known)

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
        mac = streams.caller(accepted) if port.is_framed else b""
        peer = LinkPeer(port.interface, mac, _transport(_host(address)[0], port.interface))
        if not self._accepts_of_one.take(peer, asyncio.get_running_loop().time()) or not self._make_room(peer):
            raise OSError(errno.EUSERS, "too many connections")
        await self._converse(port, accepted, peer, Call())

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

    async def _connect(self, port: _GrpcPort, host: str) -> Connection:
        version = 6 if ":" in host else 4
        connection = streams.open_socket(port.interface, version)
        if connection is None:
            raise OSError(errno.EAFNOSUPPORT, "this kernel has no IPv6")
        try:
            target: Any = (host, self._port) if version == 4 else (host, self._port, 0, port.index)
            await asyncio.get_running_loop().sock_connect(connection, target)
            mac = streams.called(port.index, host) if port.is_framed else b""
            peer = LinkPeer(port.interface, mac, _transport(host, port.interface))
            if not self._make_room(peer):
                raise OSError(errno.EUSERS, "too many connections")
            return await self._converse(port, connection, peer, Call(join_host_port(host, self._port)))
        except BaseException:
            connection.close()
            raise

    async def _converse(self, port: _GrpcPort, connected: socket.socket, peer: LinkPeer, call: Call) -> Connection:
        streams.keep_to(connected, peer.link_address)
        assert self._receive is not None
        conversation = Connection(
            peer,
            call,
            self._limits,
            self._receive,
            partial(self._may, peer),
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

    def _opened(self, port: _GrpcPort, connection: Connection) -> None:
        if port.hello:
            connection.send(port.hello)

    def _ended(self, port: _GrpcPort, connection: Connection, reason: str) -> None:
        port.connections.pop(connection, None)
        if reason:
            self._counts[reason] += 1

    def _make_room(self, peer: LinkPeer) -> bool:
        """Make room for a connection with a link address; returns False if there is none."""
        limits, everybody = self._limits, [each for port in self._ports.values() for each in port.connections]
        same = [each for each in everybody if each.peer == peer]
        if len(same) >= limits.connections_of_one:
            same[0].end("connections_refused")
            return True
        if len(everybody) < limits.connections:
            return True
        strangers = [each for each in everybody if each.peer not in self._trusted]
        if strangers:
            min(strangers, key=lambda each: each.began_at).end("connections_refused")
        return bool(strangers)

    def _may(self, peer: LinkPeer, work: int) -> int:
        """Take work out of a link address's allowance; returns how much of it the allowance didn't cover."""
        now, trusted = asyncio.get_running_loop().time(), self._trusted.get(peer)
        while work and (trusted.take(now) if trusted is not None else self._strangers.take(peer, now)):
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
