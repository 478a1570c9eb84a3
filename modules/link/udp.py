"""UDP link: port 10325; broadcast and ff02::1 find neighbours, then unicast; one socket per interface and family.

Datagrams from beyond the link are refused: hop limit 255, the highest, is sent and required (GTSM, RFC 5082). Each
router on the way lowers it, so no sender behind a router can produce it.

Contracts belong to a neighbour's link address, so we must know in whose frame a datagram came. The kernel's neighbour
table only knows who last claimed an IP address, and one forged ARP or ND message changes that. So the inlet reads the
frame itself: it is a filter on the bound socket, which runs after the operator's INPUT rules and the kernel's checks,
when the frame's header can still be read. It passes the datagram on with the source MAC, and the socket's own queue
stays empty (the kernel counts datagrams that a filter drops as UDP InErrors). Frames with a forged MAC can't be told
from the neighbour's own; only a protected medium helps against that.

Layer-3 interfaces (tun, WireGuard, ipip) have no frames: link_address is empty, and each interface has one neighbour,
which is found by NGP_INTERFACE, or by the rules of `far_end`.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence

from ngp.core.values import Check, LinkPeer
from ngp.errors import KernelError
from ngp.modules.link.base import InletLink, InletPort
from ngp.modules.link.far_end import EVERYBODY_V4, EVERYBODY_V6, FarEnd, far_end
from ngp.modules.link.inlet import Arrival, Inlet

PORT = 10325
HOP_LIMIT = 255
MAX_DATAGRAM_BYTES = 1280 - 40 - 8  # IPv6's smallest MTU minus IPv6 and UDP headers: never fragmented

_ARPHRD_ETHER, _SIOCGIFHWADDR = 1, 0x8927
_GONE = {errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def _is_framed(name: str) -> bool:
    """Say whether an interface carries Ethernet frames."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        try:
            answer = fcntl.ioctl(asker, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
        except OSError:
            return False
    return bool(struct.unpack_from("H", answer, 16)[0] == _ARPHRD_ETHER)


class _UdpPort(InletPort):
    """The sockets on one interface."""

    def __init__(self, interface: str, port: int, neighbours: Sequence[str], inlet: Inlet | None) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        self._port = port
        self._neighbours = neighbours
        self._framed = _is_framed(interface)
        self._sockets: dict[int, socket.socket] = {}
        try:
            for family in (4, 6):
                self._open(family, inlet)
        except BaseException:
            self.close()
            raise

    def _open(self, family: int, inlet: Inlet | None) -> None:
        domain = socket.AF_INET if family == 4 else socket.AF_INET6
        try:
            one = socket.socket(domain, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6
                return
            raise
        self._sockets[family] = one
        if inlet is not None:  # before bind(), so that nothing is ever queued
            inlet.filter(one, "udp_framed" if self._framed else "udp_bare")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface.encode() + b"\0")
        if family == 4:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOP_LIMIT)
            one.bind(("", self._port))
        else:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOP_LIMIT)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOP_LIMIT)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.index)
            one.bind(("::", self._port))

    def peer(self, arrival: Arrival) -> LinkPeer:
        source = ipaddress.ip_address(arrival.source)
        transport = f"{source}%{self.interface}" if source.version == 6 and source.is_link_local else str(source)
        return LinkPeer(self.interface, arrival.mac if self._framed else b"", transport)

    def send(self, peer: LinkPeer, datagram: bytes) -> bool:
        return self._transmit(peer.transport, datagram)

    def broadcast(self, datagram: bytes) -> bool:
        return any([self._transmit(target, datagram) for target in self._neighbours or self._everybody()])

    def _transmit(self, address: str, datagram: bytes) -> bool:
        family = 6 if ":" in address else 4
        host = address.partition("%")[0]
        target = (host, self._port, 0, self.index) if family == 6 else (host, self._port)
        try:
            self._sockets[family].sendto(datagram, target)
        except (OSError, KeyError):  # no route, no buffer, interface down
            return False
        return True

    def _everybody(self) -> list[str]:
        try:
            far = far_end(self.interface)
        except (OSError, StopIteration):  # it has just vanished
            return []
        if not self._framed:
            return [str(address) for address in dict.fromkeys([*far.addresses(), *far.groups()])]
        # The neighbour answers the copy that is sent first. Without an IPv4 address on this interface, the IPv4 copy
        # would have another interface's address as its source, so the IPv6 copy goes first.
        both = [str(EVERYBODY_V4), str(EVERYBODY_V6)]
        return both if far.has_ipv4 else both[::-1]

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()
        self._sockets.clear()


class UdpLink(InletLink):
    """ngp over UDP; implements `ngp.ports.Link`.

    Args:
        port: UDP port of both ends.
        neighbours: the addresses in NGP_INTERFACE; hellos go only to them. If there are none, hellos go to everybody.
    """

    max_datagram_bytes = MAX_DATAGRAM_BYTES

    def __init__(self, port: int = PORT, neighbours: Sequence[str] = ()) -> None:
        super().__init__()
        self._port = port
        self._neighbours = list(neighbours)  # the ports' too

    def name_neighbours(self, addresses: Sequence[str]) -> None:
        self._neighbours[:] = addresses

    def open_port(self, interface: str, on_trial: bool) -> InletPort | None:
        try:
            return _UdpPort(interface, self._port, self._neighbours, None if on_trial else self._inlet)
        except OSError as error:
            if error.errno is None or error.errno in _GONE:  # the interface vanished; if_nametoindex gives no errno
                return None
            raise KernelError(
                f"UDP port {self._port} on {interface}: {error.strerror}; ngp needs root (CAP_NET_RAW) and this port; "
                f"see which program has it: ss -ulpn 'sport = :{self._port}'"
            ) from error

    def check(self, interfaces: Sequence[str]) -> list[Check]:
        found = [_check_far_end(name, self._neighbours) for name in interfaces if not _is_framed(name)]
        return [*super().check(interfaces), *(each for each in found if each is not None)]


def _check_far_end(interface: str, named: Sequence[str]) -> Check | None:
    """Say how the neighbour on an interface without frames is found; None if the interface doesn't exist."""
    label = f"neighbour on {interface}"
    if named:
        return Check(label, True, f"asked at {', '.join(named)} (NGP_INTERFACE)")
    try:
        far = far_end(interface)
    except OSError:
        return None
    addresses, groups = far.addresses(), far.groups()
    remedy = f"NGP_INTERFACE: ADDRESS (the neighbour's on {interface})"
    if far.allowed is not None and len(far.allowed) > 1:
        found = (
            f"ngp takes the {len(far.allowed)} WireGuard peers of this interface for one neighbour: what one of them "
            "buys, all can use"
        )
        remedy = f"give each peer that is a neighbour its own interface; otherwise {remedy}"
        return Check(label, bool(addresses), found, remedy)
    if addresses:
        return Check(label, True, f"asked at {_text(addresses)}")
    if groups and far.kind == "tun":
        found = f"asked by {_text(groups)} only, which the program behind a tun may not carry"
        return Check(label, True, found, f"if the neighbours don't find each other: {remedy}")
    if groups:
        return Check(label, True, f"asked by {_text(groups)}")
    return Check(label, False, _why_unreachable(far), f"{remedy}, or: ip address add OURS peer THEIRS dev {interface}")


def _why_unreachable(far: FarEnd) -> str:
    if far.allowed is not None:
        return "can't be found: no WireGuard peer there has allowed-ips with an address that could be the neighbour's"
    if not far.to_one:
        return f"can't be found: this {far.kind or 'interface'} has several other ends; no address says which is meant"
    return "can't be found: the interface has no address of its own"


def _text(addresses: Iterable[object]) -> str:
    return ", ".join(map(str, addresses))
