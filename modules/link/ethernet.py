"""Ethernet link: EtherType 0x88B5 (IEEE 802 local experimental), for neighbours that have no IP addresses yet.

Frames don't pass routers, so the source MAC of a frame is the neighbour, without a table in between. Ethernet pads
frames to 60 bytes; the datagram's length goes before it, or the padding would break its signature. scapy describes the
frame (it takes half a second to import, so only here and only when an EthernetLink is made).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ngp.errors import KernelError
from ngp.ports import LinkPeer

ETHERTYPE = 0x88B5
EVERYBODY = "ff:ff:ff:ff:ff:ff"
MAX_DATAGRAM_BYTES = 1280

_LENGTH = struct.Struct("!H")
_HEADER_BYTES = 14
_ARPHRD_ETHER = 1
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_PACKET_OUTGOING, _PACKET_OTHERHOST = 4, 3
_READS_AT_ONCE = 64
_RECEIVE_BUFFER_BYTES = 1 << 20
_GONE = {errno.ENODEV, errno.ENXIO, errno.ENETDOWN}

Receive = Callable[[LinkPeer, bytes], None]


def _load_ether() -> Any:
    """Import scapy's frame; its start-up warnings are about features that ngp doesn't use."""
    logger = logging.getLogger("scapy.runtime")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        from scapy.layers.l2 import Ether
    finally:
        logger.setLevel(level)
    return Ether


def mac_text(mac: bytes) -> str:
    """Write a MAC as people do."""
    return mac.hex(":")


class _Port:
    """The socket on one interface."""

    def __init__(self, interface: str, ether: Any, receive: Receive, dropped: Counter[str]) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        self._ether = ether
        self._receive = receive
        self._dropped = dropped
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            with contextlib.suppress(OSError):  # Linux 4.20; without it they are passed over below
                self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.bind((interface, ETHERTYPE))
            _, _, _, hardware, self._mac = self._socket.getsockname()
            if hardware != _ARPHRD_ETHER:
                raise KernelError(
                    f"{interface} carries no Ethernet frames; list it in IGNORE_INTERFACE or use LINK_INTERFACE: udp"
                )
        except BaseException:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                frame, (_, _, kind, _, _) = self._socket.recvfrom(2048)
            except OSError:
                return
            if kind not in (_PACKET_OUTGOING, _PACKET_OTHERHOST):
                self._take(frame)

    def _take(self, frame: bytes) -> None:
        body = frame[_HEADER_BYTES:]
        if len(body) < _LENGTH.size:
            self._dropped["malformed"] += 1
            return
        (length,) = _LENGTH.unpack_from(body)
        if length > MAX_DATAGRAM_BYTES:
            self._dropped["oversized"] += 1
            return
        if length == 0 or length > len(body) - _LENGTH.size:
            self._dropped["malformed"] += 1
            return
        mac = frame[6:12]
        if mac[0] & 1:  # a group can't send
            self._dropped["malformed"] += 1
            return
        self._receive(LinkPeer(self.interface, mac, mac_text(mac)), body[_LENGTH.size : _LENGTH.size + length])

    def send(self, destination: str, datagram: bytes) -> bool:
        """Send a frame; False when the kernel refused (interface down or gone, no buffer)."""
        header = bytes(self._ether(dst=destination, src=mac_text(self._mac), type=ETHERTYPE))
        try:
            self._socket.send(header + _LENGTH.pack(len(datagram)) + datagram)
        except OSError:
            return False
        return True

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


class EthernetLink:
    """ngp in Ethernet frames; implements `ngp.ports.Link`."""

    max_datagram_bytes = MAX_DATAGRAM_BYTES

    def __init__(self) -> None:
        self._ether = _load_ether()
        self._ports: dict[str, _Port] = {}
        self._dropped: Counter[str] = Counter()
        self._receive: Receive | None = None

    async def open(self, interfaces: Sequence[str], receive: Receive) -> None:
        """Start on these interfaces; one that isn't there yet is tried again at `update`. Raises KernelError."""
        self._receive = receive
        try:
            await self.update(interfaces)
        except KernelError:
            await self.close()
            raise

    async def update(self, interfaces: Sequence[str]) -> None:
        """Follow a changed list; an interface made anew under its old name is opened anew. Raises KernelError."""
        assert self._receive is not None, "update before open"
        present = {name: index for index, name in socket.if_nameindex()}
        for name in list(self._ports):
            if name not in interfaces or present.get(name) != self._ports[name].index:
                self._ports.pop(name).close()
        for name in interfaces:
            if name in present and name not in self._ports:
                self._add(name, self._receive)

    def _add(self, name: str, receive: Receive) -> None:
        try:
            self._ports[name] = _Port(name, self._ether, receive, self._dropped)
        except OSError as error:
            if error.errno in _GONE:  # it went while we opened it
                return
            raise KernelError(f"Ethernet frames on {name}: {error.strerror}; ngp needs root (CAP_NET_RAW)") from error

    def send(self, peer: LinkPeer, datagram: bytes) -> None:
        """Send to one neighbour; losses are counted, never raised. Raises ValueError above max_datagram_bytes."""
        self._transmit(peer.interface, mac_text(peer.link_address), datagram)

    def broadcast(self, interface: str, datagram: bytes) -> None:
        """Send to every neighbour on an interface. Raises ValueError above max_datagram_bytes."""
        self._transmit(interface, EVERYBODY, datagram)

    def _transmit(self, interface: str, destination: str, datagram: bytes) -> None:
        if len(datagram) > self.max_datagram_bytes:
            raise ValueError(f"a datagram of {len(datagram)} bytes; a frame carries at most {self.max_datagram_bytes}")
        port = self._ports.get(interface)
        if port is None or not port.send(destination, datagram):
            self._dropped["unsent"] += 1

    def counters(self) -> dict[str, int]:
        """Frames refused or not sent, by reason."""
        return dict(self._dropped)

    async def close(self) -> None:
        """Release the sockets."""
        while self._ports:
            self._ports.popitem()[1].close()
