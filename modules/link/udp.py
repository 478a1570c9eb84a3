"""UDP link: port 10325, broadcast and ff02::1 to find neighbours, unicast after; one socket an interface and family.

Nothing from beyond the link is heard: hop limit 255 is sent and demanded (GTSM, RFC 5082), which a router can't forge.

Contracts hang on the neighbour's link address, so the question is whose frame a datagram came in. The kernel's
neighbour table answers "who last claimed this IP address", and one forged ARP or ND message changes that. So the frame
is asked: a packet socket with a classic BPF filter hears the same UDP port beside the bound socket and tells the source
MAC of each. What is delivered comes from the UDP socket alone, so the operator's INPUT rules and the kernel's checks
hold; the packet socket only lends the MAC, matched by source address and payload. Messages are signed and numbered, so
equal payloads are copies; if copies came from two MACs, one is a forgery and the datagram is dropped. Who forges the
MAC itself is on the wire as that neighbour; only a protected medium helps against that.

Layer-3 interfaces (tun, WireGuard, ipip) have no frame: link_address is empty and the interface is the neighbour. There
the peer is found by NGP_INTERFACE, the point-to-point address, or ff02::1 where multicast works.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import socket
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence

from ngp.errors import KernelError
from ngp.ports import LinkPeer

PORT = 10325
HOP_LIMIT = 255
MAX_DATAGRAM_BYTES = 1280 - 40 - 8  # IPv6's least MTU less IPv6 and UDP headers: never a fragment

_ARPHRD_ETHER, _SIOCGIFHWADDR, _SIOCGIFADDR, _SIOCGIFDSTADDR = 1, 0x8927, 0x8915, 0x8917
_ETH_P_ALL, _SOL_PACKET, _PACKET_IGNORE_OUTGOING, _SO_ATTACH_FILTER = 3, 263, 23, 26
_PACKET_OUTGOING, _PACKET_LOOPBACK = 4, 5
_IP_RECVTTL = 12
_IPV6_HEADER_BYTES, _UDP_HEADER_BYTES = 40, 8
_FRAMES_KEPT = 1024
_READS_AT_ONCE = 64
_RECEIVE_BUFFER_BYTES = 1 << 20
_GONE = {errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

Receive = Callable[[LinkPeer, bytes], None]


def _port_filter(port: int) -> bytes:
    """Classic BPF for a cooked packet socket: unfragmented UDP to this port, IPv4 or IPv6 without extension headers."""
    program = (
        (0x30, 0, 0, 0),  # version
        (0x54, 0, 0, 0xF0),
        (0x15, 0, 7, 0x40),  # IPv4, else to the IPv6 part
        (0x30, 0, 0, 9),
        (0x15, 0, 9, socket.IPPROTO_UDP),
        (0x28, 0, 0, 6),
        (0x45, 7, 0, 0x3FFF),  # a fragment
        (0xB1, 0, 0, 0),
        (0x48, 0, 0, 2),
        (0x15, 5, 4, port),
        (0x30, 0, 0, 6),
        (0x15, 0, 2, socket.IPPROTO_UDP),
        (0x28, 0, 0, 42),
        (0x15, 1, 0, port),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0xFFFF),
    )
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _attach(tap: socket.socket, program: bytes) -> None:
    code = ctypes.create_string_buffer(program)
    tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code)))


def _interface_fact(name: str, request: int) -> bytes:
    """Ask an ioctl about an interface; 16 bytes of sockaddr, empty when the kernel has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        try:
            return fcntl.ioctl(asker, request, struct.pack("16s24x", name.encode()))[16:32]
        except OSError:
            return b""


class _Frames:
    """Source MACs of frames lately heard, by source address and payload."""

    def __init__(self, interface: str, port: int) -> None:
        self._macs: OrderedDict[tuple[bytes, bytes], set[bytes]] = OrderedDict()
        self.tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            _attach(self.tap, _port_filter(port))  # before it is bound: nothing else is ever queued
            self.tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * _RECEIVE_BUFFER_BYTES)
            with contextlib.suppress(OSError):  # Linux 4.20; without it they are passed over below
                self.tap.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self.tap.bind((interface, _ETH_P_ALL))
        except OSError:
            self.tap.close()
            raise

    def drain(self) -> None:
        """Take in what the packet socket heard; it hears a frame before the UDP socket does."""
        for _ in range(_FRAMES_KEPT):
            try:
                packet, (_, _, kind, _, mac) = self.tap.recvfrom(2048)
            except OSError:
                return
            if kind not in (_PACKET_OUTGOING, _PACKET_LOOPBACK):
                self._remember(packet, mac)

    def _remember(self, packet: bytes, mac: bytes) -> None:
        if packet[0] >> 4 == 4:
            start, source = (packet[0] & 15) * 4, packet[12:16]
        else:
            start, source = _IPV6_HEADER_BYTES, packet[8:24]
        length = int.from_bytes(packet[start + 4 : start + 6])
        key = source, packet[start + _UDP_HEADER_BYTES : start + length]
        self._macs.setdefault(key, set()).add(mac)
        if len(self._macs) > _FRAMES_KEPT:
            self._macs.popitem(last=False)

    def take(self, source: bytes, payload: bytes) -> set[bytes]:
        """Return the MACs that this datagram came from; once."""
        return self._macs.pop((source, payload), set())


class _Port:
    """The sockets on one interface."""

    def __init__(self, interface: str, port: int, receive: Receive, dropped: Counter[str]) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        self._port = port
        self._receive = receive
        self._dropped = dropped
        self._own: deque[bytes] = deque(maxlen=4)
        hardware = _interface_fact(interface, _SIOCGIFHWADDR)
        self._frames = (
            (_Frames(interface, port) if struct.unpack("H14x", hardware)[0] == _ARPHRD_ETHER else None)
            if hardware
            else None
        )
        self.sockets: dict[int, socket.socket] = {}
        try:
            for family in (4, 6):
                self._open(family)
        except OSError:
            self.close()
            raise
        for one in self.sockets.values():
            asyncio.get_running_loop().add_reader(one, self._readable, one)

    def _open(self, family: int) -> None:
        domain = socket.AF_INET if family == 4 else socket.AF_INET6
        try:
            one = socket.socket(domain, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6
                return
            raise
        self.sockets[family] = one
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface.encode() + b"\0")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        if family == 4:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOP_LIMIT)
            one.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
            one.bind(("", self._port))
        else:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOP_LIMIT)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOP_LIMIT)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.index)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            one.bind(("::", self._port))

    def _readable(self, one: socket.socket) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                datagram, extra, flags, source = one.recvmsg(MAX_DATAGRAM_BYTES, socket.CMSG_SPACE(4))
            except OSError:  # nothing left, or an error of an earlier send, or the interface went
                return
            reason = self._refusal(datagram, extra, flags)
            if not reason:
                reason = self._take(datagram, ipaddress.ip_address(source[0].partition("%")[0]))
            if reason:
                self._dropped[reason] += 1

    def _refusal(self, datagram: bytes, extra: list[tuple[int, int, bytes]], flags: int) -> str:
        if flags & socket.MSG_TRUNC:
            return "oversized"
        hops = [struct.unpack("i", value)[0] for _, _, value in extra if len(value) == 4]
        if hops != [HOP_LIMIT]:
            return "not_from_link"
        return "own" if datagram in self._own else ""  # Linux loops broadcasts back

    def _take(self, datagram: bytes, source: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        mac = b""
        if self._frames is not None:
            self._frames.drain()
            macs = self._frames.take(source.packed, datagram)
            if len(macs) != 1:
                return "ambiguous_frame" if macs else "no_frame"
            (mac,) = macs
        transport = f"{source}%{self.interface}" if source.version == 6 and source.is_link_local else str(source)
        self._receive(LinkPeer(self.interface, mac, transport), datagram)
        return ""

    def send(self, address: str, datagram: bytes) -> bool:
        """Send to an address; False when the kernel refused (no route, no buffer, interface down)."""
        family = 6 if ":" in address else 4
        host = address.partition("%")[0]
        target = (host, self._port, 0, self.index) if family == 6 else (host, self._port)
        try:
            self.sockets[family].sendto(datagram, target)
        except (OSError, KeyError):
            return False
        return True

    def announce(self, datagram: bytes, neighbours: Sequence[str]) -> None:
        """Send to whoever may be there."""
        if neighbours:
            targets = list(neighbours)
        else:
            self._own.append(datagram)
            targets = ["255.255.255.255", "ff02::1"] if self._frames is not None else [*self._far_end(), "ff02::1"]
        if not any([self.send(target, datagram) for target in targets]):
            self._dropped["unsent"] += 1

    def _far_end(self) -> list[str]:
        far, near = (_interface_fact(self.interface, request) for request in (_SIOCGIFDSTADDR, _SIOCGIFADDR))
        return [socket.inet_ntoa(far[4:8])] if far and far != near else []

    def close(self) -> None:
        for one in self.sockets.values():
            asyncio.get_running_loop().remove_reader(one)
            one.close()
        self.sockets.clear()
        if self._frames is not None:
            self._frames.tap.close()


class UdpLink:
    """ngp over UDP; implements `ngp.ports.Link`.

    Args:
        port: UDP port, both ends.
        neighbours: NGP_INTERFACE addresses, asked instead of everybody; empty: find them.
    """

    max_datagram_bytes = MAX_DATAGRAM_BYTES

    def __init__(self, port: int = PORT, neighbours: Sequence[str] = ()) -> None:
        self._port = port
        self._neighbours = tuple(neighbours)
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
        for name in [name for name, port in self._ports.items() if present.get(name) != port.index]:
            self._ports.pop(name).close()
        for name in set(self._ports) - set(interfaces):
            self._ports.pop(name).close()
        for name in interfaces:
            if name in present and name not in self._ports:
                self._add(name, self._receive)

    def _add(self, name: str, receive: Receive) -> None:
        try:
            self._ports[name] = _Port(name, self._port, receive, self._dropped)
        except OSError as error:
            if error.errno in _GONE:  # it went while we opened it
                return
            raise KernelError(
                f"UDP port {self._port} on {name}: {error.strerror}; ngp needs root (CAP_NET_RAW) and the port for "
                f"itself, see who has it: ss -ulpn 'sport = :{self._port}'"
            ) from error

    def send(self, peer: LinkPeer, datagram: bytes) -> None:
        """Send to one neighbour; losses are counted, never raised. Raises ValueError above max_datagram_bytes."""
        self._check(datagram)
        port = self._ports.get(peer.interface)
        if port is None or not port.send(peer.transport, datagram):
            self._dropped["unsent"] += 1

    def broadcast(self, interface: str, datagram: bytes) -> None:
        """Send to all neighbours on an interface, or to those of NGP_INTERFACE. Raises ValueError as `send`."""
        self._check(datagram)
        port = self._ports.get(interface)
        if port is None:
            self._dropped["unsent"] += 1
        else:
            port.announce(datagram, self._neighbours)

    def _check(self, datagram: bytes) -> None:
        if len(datagram) > self.max_datagram_bytes:
            raise ValueError(f"a datagram of {len(datagram)} bytes; UDP carries at most {self.max_datagram_bytes}")

    def counters(self) -> dict[str, int]:
        """Datagrams refused or not sent, by reason."""
        return dict(self._dropped)

    async def close(self) -> None:
        """Release the sockets."""
        while self._ports:
            self._ports.popitem()[1].close()
