"""rtnetlink: ask the kernel for links, addresses and routes, parse its answers, and change links.

Source: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from ngp.core.messages import Address, Prefix
from ngp.errors import KernelError
from ngp.modules.netlink import (
    CREATE,
    EXCLUSIVE,
    REPLACE,
    Asker,
    attribute,
    attributes,
    nested,
    open_socket,
    text,
    text_attribute,
)

RTM_GETROUTE = 26
RTM_F_FIB_MATCH = 0x2000
_RTM_F_LOOKUP_TABLE = 0x1000
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_GETADDR, _RTM_GETNEIGH = 16, 17, 18, 22, 30
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_ARPHRD_ETHER = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_IFALIAS = 1, 3, 5, 10, 20
_IFLA_MTU, _IFLA_LINKINFO, _IFLA_STATS64, _IFLA_LINK_NETNSID = 4, 18, 23, 37
_STATISTICS = struct.Struct("=16xQQ")  # of struct rtnl_link_stats64: rx_bytes, tx_bytes
_SIOCETHTOOL, _ETHTOOL_GSET, _ETHTOOL_CMD_BYTES = 0x8946, 1, 44  # linux/ethtool.h
_UNKNOWN_SPEEDS = (0, 0xFFFF, 0xFFFFFFFF)
_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND = 1, 4
_ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ROUTE = struct.Struct("=8BI")  # struct rtmsg
_RTN_UNICAST = 1
_RTPROT_KERNEL = 2
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTNH_F_DEAD, _RTNH_F_ONLINK, _RTNH_F_LINKDOWN = 0x01, 0x04, 0x10
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = range(1, 9)
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 9, 15, 18
MAIN_TABLE = 254
_NOWHERE = 255  # RT_SCOPE_NOWHERE: a route of any scope
_HOP = struct.Struct("=HBBi")  # struct rtnexthop
_FAMILY_BYTES = 2  # the address family, which is before the address in struct rtvia
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_NDA_DST, _NDA_LLADDR = 1, 2
_RTM_NEWNEIGH, _NTF_USE = 28, 0x01
_NUD_FAILED, _NUD_UNRESOLVED = 0x20, 0x01 | 0x20  # incomplete or failed


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface.

    Attributes:
        link_address: its MAC, or empty.
        has_link_addresses: whether it has MACs, so that neighbours on it are told apart by MAC.
        kind: as `ip -d link` says (`veth`, `bridge`, `wireguard`, ... or "").
        master: index of its bridge or bond, or 0.
        port_of: the kind of that master, or "".
        lower: for a VLAN, macvlan, ...: index of the interface below it, if that is in this namespace; else 0.
        alias: a text that a program or the operator gave it (`ip link set dev NAME alias TEXT`).
    """

    index: int
    name: str
    link_address: bytes
    has_link_addresses: bool
    is_loopback: bool
    is_up: bool
    kind: str
    master: int
    port_of: str = ""
    lower: int = 0
    alias: str = ""


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """An address of this host.

    Attributes:
        index: the index of its interface.
        address: the other end's address on a point-to-point link; elsewhere the same as `local`.
    """

    index: int
    prefix_length: int
    local: Address
    address: Address


@dataclass(frozen=True, slots=True)
class Hop:
    """A next hop of a route.

    Attributes:
        index: the index of its interface.
        gateway: the next router; None if destinations are on the link itself.
        is_down: nothing can be sent there: the interface has no carrier.
        onlink: the router counts as on the link, whatever the addresses of the interface say.
    """

    index: int
    gateway: Address | None
    is_down: bool = False
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A route.

    Attributes:
        is_unicast: False for local, unreachable, blackhole, ... routes.
        of_own_address: whether the kernel made it for the network of an address of this host.
        hops: the next hops; several if traffic is shared among them.
        metric: of several routes to one destination in a table, the kernel takes the one with the lowest.
        table: the number of its routing table.
        settings: attributes, as the kernel wrote them, that a copy of the route should have: source address, MTU, ...
    """

    is_unicast: bool
    of_own_address: bool
    prefix_length: int
    destination: bytes
    hops: tuple[Hop, ...]
    metric: int = 0
    table: int = 0
    settings: bytes = b""

    @property
    def interfaces(self) -> tuple[int, ...]:
        """The indexes of the interfaces by which packets leave on this route."""
        return tuple(hop.index for hop in self.hops)

    @property
    def has_gateway(self) -> bool:
        """Whether the route goes through another router."""
        return any(hop.gateway is not None for hop in self.hops)


@contextmanager
def kernel_errors(what: str) -> Iterator[None]:
    """Turn OSErrors of a block into KernelErrors. Args: what: the failure, which begins the message."""
    try:
        yield
    except OSError as error:
        raise KernelError(f"{what}: {error}; run as root and try again") from error


def open_asker() -> Asker:
    """Open a socket for questions. Raises KernelError."""
    with kernel_errors("an rtnetlink socket can't be opened"):
        return Asker()


def open_notifications(groups: int) -> socket.socket:
    """Open a socket that receives the notifications of these groups. Raises KernelError."""
    with kernel_errors("an rtnetlink socket can't be opened"):
        return open_socket(socket.NETLINK_ROUTE, groups)


def interfaces(kernel: Asker) -> list[Interface]:
    """List all interfaces. Raises KernelError."""
    with kernel_errors("interfaces can't be listed"):
        return list(map(_interface, kernel.dump(_RTM_GETLINK, bytes(_LINK.size))))


def ask_link(kernel: Asker, index: int) -> Interface:
    """Return the interface with an index. Raises OSError, also if there is none."""
    return _interface(kernel.ask(_RTM_GETLINK, _LINK.pack(0, 0, index, 0, 0)))


def ask_traffic(kernel: Asker, index: int) -> tuple[int, int]:
    """Return how many bytes an interface received and sent since it was made. Raises OSError."""
    message = kernel.ask(_RTM_GETLINK, _LINK.pack(0, 0, index, 0, 0))
    received, sent = _STATISTICS.unpack_from(dict(attributes(message[_LINK.size :]))[_IFLA_STATS64])
    return received, sent


def ask_speed(name: str) -> int | None:
    """Return what an interface carries in one direction, bytes a second, as its driver says; None if it doesn't say."""
    answer = ctypes.create_string_buffer(_ETHTOOL_GSET.to_bytes(4, sys.byteorder), _ETHTOOL_CMD_BYTES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        try:
            fcntl.ioctl(asker, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(answer)))
        except OSError:
            return None
    low, high = struct.unpack_from("=H14xH", answer, 12)
    mbit_s = high << 16 | low
    return None if mbit_s in _UNKNOWN_SPEEDS else mbit_s * 125_000


def make_link(kernel: Asker, name: str, kind: str) -> None:
    """Make an interface of a kind that needs no further settings. Raises OSError."""
    body = text_attribute(_IFLA_IFNAME, name)
    body += nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode()))
    kernel.order(_RTM_NEWLINK, bytes(_LINK.size) + body, CREATE | EXCLUSIVE)


def change_link(kernel: Asker, index: int, mtu: int = 0, alias: str = "", up: bool = False) -> None:
    """Give an interface an MTU or an alias, or put it up. Raises OSError."""
    flags = _IFF_UP if up else 0
    body = attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu else b""
    body += attribute(_IFLA_IFALIAS, alias.encode()) if alias else b""
    kernel.order(_RTM_NEWLINK, _LINK.pack(0, 0, index, flags, flags) + body)


def delete_link(kernel: Asker, index: int) -> None:
    """Delete an interface. Raises OSError."""
    kernel.order(_RTM_DELLINK, _LINK.pack(0, 0, index, 0, 0))


def own_addresses(kernel: Asker) -> list[OwnAddress]:
    """List all addresses of this host. Raises KernelError."""
    with kernel_errors("addresses can't be listed"):
        found = map(_own_address, kernel.dump(_RTM_GETADDR, bytes(_ADDRESS.size)))
        return [each for each in found if each]


def routes(kernel: Asker, version: int) -> Iterator[Route]:
    """Yield the unicast routes of an IP version, in any routing table. Raises KernelError."""
    with kernel_errors("routes can't be listed"):
        for message in _dumped(kernel, version, _route_body(version)):
            if (found := route_of(message)).is_unicast:
                yield found


def routes_out_of(version: int, index: int) -> Iterator[Prefix]:
    """Yield the destinations of an interface's unicast routes, in any routing table. The caller may stop at any time.

    A full routing table has a million routes. So the kernel selects the interface's routes, and a new socket is opened
    for the answer: if the caller stops early, closing the socket drops the unread rest.

    Raises: KernelError.
    """
    yield from (prefix_of(version, message) for message in _routes_out_of(version, index))


def routers(version: int, index: int, most_routes: int) -> set[Address]:
    """Return the routers on an interface that its first routes lead to; the default route is one of the first.

    Raises: KernelError.
    """
    some = itertools.islice(_routes_out_of(version, index), most_routes)
    return {hop.gateway for message in some for hop in route_of(message).hops if hop.gateway is not None}


def _routes_out_of(version: int, index: int, table: int = 0) -> Iterator[bytes]:
    body = _route_body(version, kind=_RTN_UNICAST) + _number_attribute(_RTA_OIF, index)
    body += _number_attribute(_RTA_TABLE, table) if table else b""
    with kernel_errors("routes can't be listed"), Asker(strict=True) as kernel:
        yield from _dumped(kernel, version, body)


def _dumped(kernel: Asker, version: int, body: bytes) -> Iterator[bytes]:
    """Ask the kernel for routes, and yield those of an IP version.

    A kernel without that version (ipv6.disable=1) answers with the routes of all others (rtnl_dump_all).
    """
    return (message for message in kernel.dump(RTM_GETROUTE, body) if message[0] == _FAMILY[version])


def main_routes_out_of(version: int, index: int, most: int) -> Iterator[tuple[Prefix, Route]]:
    """Yield up to `most` unicast routes of the main table that have a hop on an interface. Raises KernelError."""
    for message in itertools.islice(_routes_out_of(version, index, MAIN_TABLE), most):
        yield prefix_of(version, message), route_of(message)


def routes_by(version: int, protocol: int) -> list[tuple[Prefix, Route]]:
    """List the routes that a program made, in any table. Args: protocol: the number that it gave them.

    Raises KernelError.
    """
    with kernel_errors("routes can't be listed"), Asker(strict=True) as kernel:
        listed = _dumped(kernel, version, _route_body(version, protocol=protocol))
        return [(prefix_of(version, message), route_of(message)) for message in listed]


def others_in(version: int, table: int, protocol: int) -> Prefix | None:
    """Return a destination in a table whose route another program made, or None. Raises KernelError.

    Args: protocol: the number of the program whose own routes don't count.
    """
    body = _route_body(version) + _number_attribute(_RTA_TABLE, table)
    with kernel_errors("routes can't be listed"), Asker(strict=True) as kernel:
        try:
            routes = _dumped(kernel, version, body)
            return next((prefix_of(version, one) for one in routes if _ROUTE.unpack_from(one)[5] != protocol), None)
        except FileNotFoundError:  # there is no such table yet
            return None


def set_route(kernel: Asker, destination: Prefix, hop: Hop, table: int, protocol: int, settings: bytes = b"") -> None:
    """Make a route with one next hop in a table; an older one to the destination is replaced. Raises OSError."""
    flags = _RTNH_F_ONLINK if hop.onlink else 0
    body = _route_body(destination.version, destination.prefixlen, _RTN_UNICAST, flags, protocol=protocol)
    body += attribute(_RTA_DST, destination.network_address.packed)
    body += _number_attribute(_RTA_TABLE, table) + _number_attribute(_RTA_OIF, hop.index) + settings
    if hop.gateway is not None and hop.gateway.version == destination.version:
        body += attribute(_RTA_GATEWAY, hop.gateway.packed)
    elif hop.gateway is not None:
        body += attribute(_RTA_VIA, struct.pack("=H", _FAMILY[hop.gateway.version]) + hop.gateway.packed)
    kernel.order(_RTM_NEWROUTE, body, CREATE | REPLACE)


def delete_route(kernel: Asker, destination: Prefix, table: int, protocol: int) -> None:
    """Delete a program's route from a table. Raises OSError, also if there is none."""
    body = _route_body(destination.version, destination.prefixlen, _RTN_UNICAST, protocol=protocol, scope=_NOWHERE)
    body += attribute(_RTA_DST, destination.network_address.packed) + _number_attribute(_RTA_TABLE, table)
    kernel.order(_RTM_DELROUTE, body)


def _number_attribute(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def ask_route(kernel: Asker, destination: Address, flags: int = 0) -> bytes:
    """Ask which route a destination takes. Raises OSError, also if there is none."""
    body = _route_body(destination.version, destination.max_prefixlen, flags=flags)
    return kernel.ask(RTM_GETROUTE, body + attribute(_RTA_DST, destination.packed))


def ask_way(kernel: Asker, destination: Address, source: Address, index: int) -> bytes:
    """Ask which route a packet takes that arrives on an interface.

    Raises OSError if the packet would be dropped: EACCES (prohibit), EINVAL (blackhole), EHOSTUNREACH (unreachable, or
    forwarding is off there), EXDEV (the reverse path filter), ENETUNREACH (no route).
    """
    body = _route_body(destination.version, destination.max_prefixlen, source_bits=source.max_prefixlen)
    body += attribute(_RTA_DST, destination.packed) + attribute(_RTA_SRC, source.packed)
    return kernel.ask(RTM_GETROUTE, body + attribute(_RTA_IIF, struct.pack("=I", index)))


def ask_table(kernel: Asker, destination: Address, source: Address) -> tuple[int, Route]:
    """Ask by which table and route a packet of this host's own leaves. Raises OSError, also if there is no route."""
    bits = destination.max_prefixlen
    body = _route_body(destination.version, bits, flags=_RTM_F_LOOKUP_TABLE, source_bits=bits)
    body += attribute(_RTA_DST, destination.packed) + attribute(_RTA_SRC, source.packed)
    message = kernel.ask(RTM_GETROUTE, body)
    return _number(dict(attributes(message[_ROUTE.size :])), _RTA_TABLE), route_of(message)


def prefix_of(version: int, message: bytes) -> Prefix:
    """Return the destination of a route. Pure."""
    network_class = IPv4Network if version == 4 else IPv6Network
    for kind, value in attributes(message[_ROUTE.size :]):
        if kind == _RTA_DST:
            return network_class((value, message[1]))
    return network_class((0, message[1]))


def ask_link_address(kernel: Asker, index: int, address: Address) -> bytes:
    """Ask which MAC an address on a link has; b"" if none is known yet. Raises OSError if the address isn't known."""
    body = _NEIGHBOUR.pack(_FAMILY[address.version], index, 0, 0, 0) + attribute(_NDA_DST, address.packed)
    said = dict(attributes(kernel.ask(_RTM_GETNEIGH, body)[_NEIGHBOUR.size :]))
    return said.get(_NDA_LLADDR, b"")


def resolve(kernel: Asker, index: int, address: Address) -> None:
    """Have the kernel find out the MAC of an address on a link, as if a packet were sent there. Raises OSError."""
    body = _NEIGHBOUR.pack(_FAMILY[address.version], index, 0, _NTF_USE, 0)
    kernel.order(_RTM_NEWNEIGH, body + attribute(_NDA_DST, address.packed), CREATE)


def is_resolved(kernel: Asker, index: int, address: Address) -> bool | None:
    """Say whether an address on a link has a MAC; False if nobody answered; None as long as that isn't known.

    Raises OSError if the address isn't known to the kernel.
    """
    body = _NEIGHBOUR.pack(_FAMILY[address.version], index, 0, 0, 0) + attribute(_NDA_DST, address.packed)
    state = _NEIGHBOUR.unpack_from(kernel.ask(_RTM_GETNEIGH, body))[2]
    if state & _NUD_UNRESOLVED:
        return False if state & _NUD_FAILED else None
    return bool(state)


def route_of(message: bytes) -> Route:
    """Read a route. Pure."""
    _, prefix_length, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(message)
    said = dict(attributes(message[_ROUTE.size :]))
    hops = _hops(said.get(_RTA_MULTIPATH, b""))
    if _RTA_OIF in said:
        hops = (_hop(_number(said, _RTA_OIF), flags, said),)
    return Route(
        is_unicast=kind == _RTN_UNICAST,
        of_own_address=protocol == _RTPROT_KERNEL,
        prefix_length=prefix_length,
        destination=said.get(_RTA_DST, b""),
        hops=hops,
        metric=_number(said, _RTA_PRIORITY),
        table=_number(said, _RTA_TABLE) or table,
        settings=b"".join(attribute(each, said[each]) for each in (_RTA_PREFSRC, _RTA_METRICS) if each in said),
    )


def _route_body(
    version: int,
    bits: int = 0,
    kind: int = 0,
    flags: int = 0,
    source_bits: int = 0,
    protocol: int = 0,
    scope: int = 0,
) -> bytes:
    return _ROUTE.pack(_FAMILY[version], bits, source_bits, 0, 0, protocol, scope, kind, flags)


def _hop(index: int, flags: int, said: Mapping[int, bytes]) -> Hop:
    gateway = said.get(_RTA_GATEWAY) or said.get(_RTA_VIA, b"")[_FAMILY_BYTES:]
    is_down = bool(flags & (_RTNH_F_DEAD | _RTNH_F_LINKDOWN))
    return Hop(index, ip_address(gateway) if gateway else None, is_down, bool(flags & _RTNH_F_ONLINK))


def _hops(data: bytes) -> tuple[Hop, ...]:
    found, at = [], 0
    while at + _HOP.size <= len(data):
        length, flags, _, index = _HOP.unpack_from(data, at)
        found.append(_hop(index, flags, dict(attributes(data[at + _HOP.size : at + length]))))
        at += max((length + 3) & ~3, _HOP.size)
    return tuple(found)


def _interface(message: bytes) -> Interface:
    _, hardware, index, flags, _ = _LINK.unpack_from(message)
    said = dict(attributes(message[_LINK.size :]))
    info = dict(attributes(said.get(_IFLA_LINKINFO, b"")))
    return Interface(
        index=index,
        name=text(said[_IFLA_IFNAME]),
        link_address=said.get(_IFLA_ADDRESS, b"") if hardware == _ARPHRD_ETHER else b"",
        has_link_addresses=hardware == _ARPHRD_ETHER,
        is_loopback=bool(flags & _IFF_LOOPBACK),
        is_up=bool(flags & _IFF_UP),
        kind=text(info.get(_IFLA_INFO_KIND, b"")),
        master=_number(said, _IFLA_MASTER),
        port_of=text(info.get(_IFLA_INFO_SLAVE_KIND, b"")),
        lower=0 if _IFLA_LINK_NETNSID in said else _number(said, _IFLA_LINK),
        alias=text(said.get(_IFLA_IFALIAS, b"")),
    )


def _number(said: Mapping[int, bytes], kind: int) -> int:
    found: int = struct.unpack("=I", said.get(kind, bytes(4)))[0]
    return found


def _own_address(message: bytes) -> OwnAddress | None:
    _, prefix_length, _, _, index = _ADDRESS.unpack_from(message)
    said = dict(attributes(message[_ADDRESS.size :]))
    # On a point-to-point link LOCAL is our address, and ADDRESS is the other end's; elsewhere there may be no LOCAL.
    either = said.get(_IFA_LOCAL) or said.get(_IFA_ADDRESS)
    if not either:
        return None
    return OwnAddress(index, prefix_length, ip_address(either), ip_address(said.get(_IFA_ADDRESS) or either))
