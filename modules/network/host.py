"""Host facts: interfaces, addresses and routes of this network namespace, and a bell that rings when they change.

Everything comes over rtnetlink. /sys is never read: inside `ip netns exec` and containers it shows another namespace
than the one that forwards our packets. pyroute2 encodes and decodes the messages; the socket is our own, because the
library's blocking interface can't be used inside a running event loop and these facts are wanted there.

The bell says only that something changed. What arrives during the pause between two rings is thrown away unread, so a
router with a flapping full table costs a few wake-ups a second, and a lost notification (ENOBUFS) is a ring like any.
"""

from __future__ import annotations

import asyncio
import errno
import fnmatch
import os
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ngp.core.messages import Address, Prefix
from ngp.errors import KernelError
from ngp.modules.network import layers

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE = 18, 22, 26
_RTM_F_FIB_MATCH = 0x2000
_RTN_UNICAST = 1
_ARPHRD_ETHER = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 addresses and routes, IPv6 addresses and routes
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")  # struct rtmsg
_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 5, 9, 18  # linux/rtnetlink.h
_GATEWAYS = frozenset({_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA})
_RTA_DST, _RTA_OIF = 1, 4
_RECEIVE_BYTES = 64 << 10
_ANSWER_TIMEOUT_S = 5
_ROUTES_MAX = 8192
_ROUTE_MAX_AGE_S = 5.0
_INTERFACES_MAX_AGE_S = 1.0
ALL_INTERFACES = "all"


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface.

    Attributes:
        link_address: its MAC, or empty.
        has_link_addresses: neighbours on it are told apart by MAC.
        kind: as `ip -d link` says (`veth`, `bridge`, `wireguard`, ... or "").
        master: index of its bridge or bond, or 0.
        port_of: the kind of that one, or "".
        lower: index of the interface that it stands on (VLAN, macvlan, ...), in this namespace, or 0.
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


def expand_interfaces(names: Iterable[str], patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a list of names and patterns (`wlan*`) means, sorted; IGNORE_INTERFACE always wins. Pure.

    Args: names: existing ones; `all` in patterns means every one of them but `lo`.
    """
    wanted = ["*"] if ALL_INTERFACES in patterns else list(patterns)
    return tuple(
        sorted(
            name
            for name in set(names)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
            and name != "lo"
        )
    )


class Host:
    """Answers questions about this network namespace; open and use it in one thread.

    Args: monotonic_s: the clock, for the age of remembered answers.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = monotonic_s
        self._sequence = 0
        self._socket = _open_route_socket(0)
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        self._interfaces: dict[str, Interface] = {}
        self._interfaces_at_s: float | None = None
        self._routes: OrderedDict[Address, tuple[float, Prefix | None]] = OrderedDict()
        self._bell: Bell | None = None

    def interfaces(self) -> dict[str, Interface]:
        """Return all interfaces by name, at most a second old. Raises KernelError."""
        now_s = self._now_s()
        if self._interfaces_at_s is None or now_s - self._interfaces_at_s > _INTERFACES_MAX_AGE_S:
            found = [_interface(message) for message in self._dump(_RTM_GETLINK, ifinfmsg())]
            self._interfaces, self._interfaces_at_s = {each.name: each for each in found}, now_s
        return self._interfaces

    def mesh_interfaces(self, patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the existing interfaces that MESH_INTERFACES means, but for those that can't be mesh interfaces."""
        without = self._without(patterns)
        names = (each.name for each in self.interfaces().values() if not each.is_loopback and each.name not in without)
        return expand_interfaces(names, patterns, ignored)

    def left_out(self, patterns: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return those that MESH_INTERFACES means and that can't be mesh interfaces: why, and what to do, by name.

        Nothing is to be done where a pattern means one whose packets arrive on a mesh interface, or an ignored one.
        """
        known = self.interfaces()
        without = self._without(patterns)
        seen_to = {*self.mesh_interfaces(patterns, ignored), *expand_interfaces(known, ignored, ())}
        return {
            name: (without[name], "" if name not in patterns and layers.is_elsewhere(name, known, seen_to) else remedy)
            for name in expand_interfaces(without, patterns, ignored)
            for remedy in [layers.remedy(name, known)]
        }

    def _without(self, patterns: Sequence[str]) -> dict[str, str]:
        """Return those that these patterns don't mean, with the reason; a fallback tunnel may be named."""
        known = self.interfaces()
        fallbacks = {name: why for name, why in layers.idle_fallbacks(known).items() if name not in patterns}
        return {**fallbacks, **layers.left_out(known)}

    def upstream_interfaces(self, ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the interfaces of IGNORE_INTERFACE that carry a default route."""
        return expand_interfaces(self.default_route_interfaces(), ignored, ())

    def default_route_interfaces(self, versions: Iterable[int] = (4, 6)) -> tuple[str, ...]:
        """Return the names of all interfaces that a default route, of these families and any table, leads out of."""
        names = {each.index: each.name for each in self.interfaces().values()}
        found: set[str] = set()
        for version in versions:
            for route in self._default_routes(version):
                hops = route.get_attr("RTA_MULTIPATH") or []
                indexes = [route.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)]
                found.update(names[index] for index in indexes if index in names)
        found.discard("lo")
        return tuple(sorted(found))

    def has_link_addresses(self, interface: str) -> bool:
        """Say whether neighbours on an interface have MACs; False for one that doesn't exist."""
        known = self.interfaces().get(interface)
        return known is not None and known.has_link_addresses

    def local_addresses(self) -> tuple[Address, ...]:
        """Return this host's own addresses, both families; no loopback and no link-local ones. Raises KernelError."""
        found = set()
        for message in self._dump(_RTM_GETADDR, ifaddrmsg()):
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")  # LOCAL is ours on point-to-point
            if text:
                address = ip_address(text)
                if not (address.is_loopback or address.is_link_local or address.is_unspecified):
                    found.add(address)
        return tuple(sorted(found, key=lambda address: (address.version, int(address))))

    def networks(self, interface: str) -> tuple[Prefix, ...]:
        """Return the networks that an interface's own addresses are of, both families; no link-local ones.

        On a point-to-point link that is the other end's address. Raises KernelError.
        """
        known = self.interfaces().get(interface)
        found = set()
        for message in self._dump(_RTM_GETADDR, ifaddrmsg()) if known else ():
            text = message.get_attr("IFA_ADDRESS")  # on point-to-point that is the other end
            if text and known and message["index"] == known.index:
                network = ip_network(f"{text}/{message['prefixlen']}", strict=False)
                if not (network.is_link_local or network.is_loopback):
                    found.add(network)
        return tuple(sorted(found, key=lambda network: (network.version, network)))

    def routed_networks(self, version: int, interfaces: Iterable[str]) -> tuple[Prefix, ...]:
        """Return the prefixes of a family, default ones left out, that go to other routers out of these interfaces.

        Raises KernelError.
        """
        known = self.interfaces()
        indexes = {known[name].index for name in interfaces if name in known}
        network_class = IPv4Network if version == 4 else IPv6Network
        found = set()
        for answer in self._routes_of(version):
            _, prefix_length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(answer, _HEADER.size)
            attributes = dict(_attributes(answer[_HEADER.size + _ROUTE.size :]))
            out = struct.unpack("=I", attributes.get(_RTA_OIF, bytes(4)))[0]
            if kind == _RTN_UNICAST and prefix_length and out in indexes and _GATEWAYS & attributes.keys():
                found.add(network_class((attributes[_RTA_DST], prefix_length)))
        return tuple(sorted(found))

    def interface_towards(self, destination: Address) -> str:
        """Return the name of the interface that a packet to a destination leaves by now, or "" when there is no route.

        Raises KernelError.
        """
        attributes = dict(_attributes(self._get_route(destination, 0)[_HEADER.size + _ROUTE.size :]))
        index = struct.unpack("=I", attributes.get(_RTA_OIF, bytes(4)))[0]
        return next((each.name for each in self.interfaces().values() if each.index == index), "")

    def route_prefix(self, destination: Address) -> Prefix | None:
        """Return the prefix of the route through another router that a destination takes, or None.

        None too where the destination is on a link of ours: such hosts are each their own, a network behind a router
        is known to us as a whole.

        Remembered for some seconds and bounded, as strangers choose the destinations.
        Raises: KernelError when the kernel doesn't answer.
        """
        now_s = self._now_s()
        known = self._routes.get(destination)
        if known is not None and now_s - known[0] <= _ROUTE_MAX_AGE_S:
            self._routes.move_to_end(destination)
            return known[1]
        prefix = self._look_up(destination)
        self._routes[destination] = (now_s, prefix)
        self._routes.move_to_end(destination)
        if len(self._routes) > _ROUTES_MAX:
            self._routes.popitem(last=False)
        return prefix

    def watch(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], pause_s: float = 0.2) -> None:
        """Call on_change in the loop after links, addresses or routes changed, at most once a pause.

        What was remembered is forgotten first.
        """

        def forget_and_tell() -> None:
            self.forget()
            on_change()

        self.stop_watching()
        self._bell = Bell(loop, forget_and_tell, pause_s)

    def stop_watching(self) -> None:
        """End `watch`; safe to call twice."""
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    def forget(self) -> None:
        """Forget remembered interfaces and routes."""
        self._interfaces_at_s = None
        self._routes.clear()

    def close(self) -> None:
        """Release the sockets; safe to call twice."""
        self.stop_watching()
        self._socket.close()

    def _look_up(self, destination: Address) -> Prefix | None:
        """Ask the kernel for the matching route."""
        answer = self._get_route(destination, _RTM_F_FIB_MATCH)
        if not answer:
            return None
        _, prefix_length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(answer, _HEADER.size)
        if kind != _RTN_UNICAST or not _has_gateway(answer[_HEADER.size + _ROUTE.size :]):
            return None
        network_class = IPv4Network if destination.version == 4 else IPv6Network
        return network_class((destination.packed, prefix_length), strict=False)

    def _get_route(self, destination: Address, flags: int) -> bytes:
        """Ask the kernel for a route; empty: none. By struct, as a gateway asks once a contract: six times faster."""
        attribute = struct.pack("=HH", 4 + destination.max_prefixlen // 8, _RTA_DST) + destination.packed
        header = _ROUTE.pack(_FAMILY[destination.version], destination.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
        try:
            return next(self._exchange(_RTM_GETROUTE, header + attribute, _NLM_F_REQUEST))
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH):
                return b""
            raise KernelError(f"the kernel didn't say which route {destination} takes: {error}; try again") from error

    def _default_routes(self, version: int) -> list[Any]:
        """Dump routes and decode those of length 0 only: decoding a full table would take minutes."""
        found = []
        for answer in self._routes_of(version):
            _, prefix_length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(answer, _HEADER.size)
            if prefix_length == 0 and kind == _RTN_UNICAST:
                found.append(rtmsg(answer))
                found[-1].decode()
        return found

    def _routes_of(self, version: int) -> Iterator[bytes]:
        body = _ROUTE.pack(_FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
        try:
            yield from self._exchange(_RTM_GETROUTE, body, _NLM_F_REQUEST | _NLM_F_DUMP)
        except OSError as error:
            raise KernelError(f"routes can't be listed: {error}; run as root and try again") from error

    def _dump(self, kind: int, request: Any) -> list[Any]:
        try:
            return list(self._ask(kind, request, _NLM_F_REQUEST | _NLM_F_DUMP))
        except OSError as error:
            raise KernelError(f"rtnetlink request {kind} failed: {error}; run as root and try again") from error

    def _ask(self, kind: int, request: Any, flags: int) -> Iterator[Any]:
        """Send one request and yield its answers, decoded as the request's class."""
        request["header"]["type"], request["header"]["flags"] = kind, flags
        request.encode()
        for answer in self._exchange(kind, bytes(request.data[_HEADER.size :]), flags):
            message = type(request)(answer)
            message.decode()
            yield message

    def _exchange(self, kind: int, body: bytes, flags: int) -> Iterator[bytes]:
        """Send one request and yield the messages that answer it. Raises OSError with the kernel's number."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            at = 0
            while at + _HEADER.size <= len(data):
                length, answer, _, sequence, _ = _HEADER.unpack_from(data, at)
                message, at = data[at : at + length], at + max((length + 3) & ~3, _HEADER.size)
                if sequence != self._sequence:  # what a request that timed out left behind
                    continue
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", message, _HEADER.size)[0]
                    raise OSError(number, os.strerror(number))
                yield message
                if not flags & _NLM_F_DUMP:
                    return


class Bell:
    """Rings when the kernel says that links, addresses or routes changed; at most once a pause.

    Args: loop: on_ring is called in it. pause_s: from the first change to the ring, collecting what else comes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_ring: Callable[[], None], pause_s: float) -> None:
        self._loop, self._on_ring, self._pause_s = loop, on_ring, pause_s
        self._timer: asyncio.TimerHandle | None = None
        self._socket = _open_route_socket(_GROUPS)
        self._socket.setblocking(False)
        loop.add_reader(self._socket.fileno(), self._heard)

    def close(self) -> None:
        """Stop ringing; safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _heard(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._timer = self._loop.call_later(self._pause_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        for _ in range(4096):  # bounded; what is left rings again
            try:
                self._socket.recv(1)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        self._loop.add_reader(self._socket.fileno(), self._heard)
        self._on_ring()


def _open_route_socket(groups: int) -> socket.socket:
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        made.bind((0, groups))
    except OSError as error:
        raise KernelError(f"a rtnetlink socket can't be opened: {error}; run as root") from error
    return made


def _interface(message: Any) -> Interface:
    info = message.get_attr("IFLA_LINKINFO")
    text = message.get_attr("IFLA_ADDRESS") or ""
    is_ethernet = message["ifi_type"] == _ARPHRD_ETHER
    return Interface(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        link_address=bytes.fromhex(text.replace(":", "")) if is_ethernet else b"",
        has_link_addresses=is_ethernet,
        is_loopback=bool(message["flags"] & _IFF_LOOPBACK),
        is_up=bool(message["flags"] & _IFF_UP),
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        master=message.get_attr("IFLA_MASTER") or 0,
        port_of=(info.get_attr("IFLA_INFO_SLAVE_KIND") or "") if info else "",
        lower=0 if message.get_attr("IFLA_LINK_NETNSID") is not None else message.get_attr("IFLA_LINK") or 0,
    )


def _has_gateway(attributes: bytes) -> bool:
    """Whether a route goes through another router, or through several."""
    return any(kind in _GATEWAYS for kind, _ in _attributes(attributes))


def _attributes(attributes: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each (struct rtattr, rtnetlink(7))."""
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        yield kind & 0x3FFF, attributes[4:length]
        attributes = attributes[max(4, length + 3 & ~3) :]
