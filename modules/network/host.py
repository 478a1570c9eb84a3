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
from ngp.core.policy import LEAST_NETWORK_BITS
from ngp.errors import KernelError
from ngp.modules.network import layers
from ngp.modules.network.rtnetlink import (
    GATEWAYS,
    HEADER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    ROUTE,
    RTA_DST,
    RTA_OIF,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTN_UNICAST,
    attributes,
    exchange,
    open_socket,
    route_body,
    routes_out_of,
)

_RTM_F_FIB_MATCH = 0x2000
_ARPHRD_ETHER = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 addresses and routes, IPv6 addresses and routes
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
        self._socket = open_socket()
        self._interfaces: dict[str, Interface] = {}
        self._interfaces_at_s: float | None = None
        self._routes: OrderedDict[Address, tuple[float, Prefix | None]] = OrderedDict()
        self._bell: Bell | None = None

    def interfaces(self) -> dict[str, Interface]:
        """Return all interfaces by name, at most a second old. Raises KernelError."""
        now_s = self._now_s()
        if self._interfaces_at_s is None or now_s - self._interfaces_at_s > _INTERFACES_MAX_AGE_S:
            found = [_interface(message) for message in self._dump(RTM_GETLINK, ifinfmsg())]
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

    def default_route_interfaces(self, versions: Iterable[int] = (4, 6)) -> tuple[str, ...]:
        """Return the names of all interfaces that a default route, or a part of one, leads out of.

        Of these families and in any table.
        """
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
        for message in self._dump(RTM_GETADDR, ifaddrmsg()):
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
        for message in self._dump(RTM_GETADDR, ifaddrmsg()) if known else ():
            text = message.get_attr("IFA_ADDRESS")  # on point-to-point that is the other end
            if text and known and message["index"] == known.index:
                network = ip_network(f"{text}/{message['prefixlen']}", strict=False)
                if not (network.is_link_local or network.is_loopback):
                    found.add(network)
        return tuple(sorted(found, key=lambda network: (network.version, network)))

    def routed_networks(self, version: int, interfaces: Iterable[str]) -> tuple[Prefix, ...]:
        """Return the prefixes of a family that go to other routers out of these interfaces, default ones left out.

        Raises KernelError.
        """
        known = self.interfaces()
        indexes = {known[name].index for name in interfaces if name in known}
        network_class = IPv4Network if version == 4 else IPv6Network
        found = set()
        for answer in self._routes_of(version):
            _, prefix_length, _, _, _, _, _, kind, _ = ROUTE.unpack_from(answer, HEADER.size)
            if kind != RTN_UNICAST or prefix_length < LEAST_NETWORK_BITS[version]:
                continue
            said = dict(attributes(answer[HEADER.size + ROUTE.size :]))
            out = struct.unpack("=I", said.get(RTA_OIF, bytes(4)))[0]
            if out in indexes and GATEWAYS & said.keys():
                found.add(network_class((said[RTA_DST], prefix_length)))
        return tuple(sorted(found))

    def routes_beyond(self, interface: str, own: Sequence[Prefix], most: int) -> tuple[Prefix, ...]:
        """Return some routes out of an interface, `most` of each family, that aren't within its own networks.

        The kernel is asked for this interface's routes alone, in any table, and not to the end: there may be a million.
        Raises KernelError.
        """
        known = self.interfaces().get(interface)
        found: dict[Prefix, None] = {}
        for version in (4, 6) if known else ():
            for network in routes_out_of(version, known.index if known else 0):
                if not (network.is_link_local or network.is_multicast or _is_within(network, own)):
                    found[network] = None
                if sum(each.version == version for each in found) == most:
                    break
        return tuple(found)

    def interface_towards(self, destination: Address) -> str:
        """Return the name of the interface that a packet to a destination leaves by now, or "" when there is no route.

        Raises KernelError.
        """
        said = dict(attributes(self._get_route(destination, 0)[HEADER.size + ROUTE.size :]))
        index = struct.unpack("=I", said.get(RTA_OIF, bytes(4)))[0]
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
        _, prefix_length, _, _, _, _, _, kind, _ = ROUTE.unpack_from(answer, HEADER.size)
        if kind != RTN_UNICAST or not _has_gateway(answer[HEADER.size + ROUTE.size :]):
            return None
        network_class = IPv4Network if destination.version == 4 else IPv6Network
        return network_class((destination.packed, prefix_length), strict=False)

    def _get_route(self, destination: Address, flags: int) -> bytes:
        """Ask the kernel for a route; empty: none. By struct, as a gateway asks once a contract: six times faster."""
        attribute = struct.pack("=HH", 4 + destination.max_prefixlen // 8, RTA_DST) + destination.packed
        header = route_body(destination.version, destination.max_prefixlen, flags=flags)
        try:
            return next(self._exchange(RTM_GETROUTE, header + attribute, NLM_F_REQUEST))
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH):
                return b""
            raise KernelError(f"the kernel didn't say which route {destination} takes: {error}; try again") from error

    def _default_routes(self, version: int) -> list[Any]:
        """Dump routes and decode the widest only: decoding a full table would take minutes."""
        found = []
        for answer in self._routes_of(version):
            _, prefix_length, _, _, _, _, _, kind, _ = ROUTE.unpack_from(answer, HEADER.size)
            if prefix_length < LEAST_NETWORK_BITS[version] and kind == RTN_UNICAST:
                found.append(rtmsg(answer))
                found[-1].decode()
        return found

    def _routes_of(self, version: int) -> Iterator[bytes]:
        body = route_body(version)
        try:
            yield from self._exchange(RTM_GETROUTE, body, NLM_F_REQUEST | NLM_F_DUMP)
        except OSError as error:
            raise KernelError(f"routes can't be listed: {error}; run as root and try again") from error

    def _dump(self, kind: int, request: Any) -> list[Any]:
        try:
            return list(self._ask(kind, request, NLM_F_REQUEST | NLM_F_DUMP))
        except OSError as error:
            raise KernelError(f"rtnetlink request {kind} failed: {error}; run as root and try again") from error

    def _ask(self, kind: int, request: Any, flags: int) -> Iterator[Any]:
        """Send one request and yield its answers, decoded as the request's class."""
        request["header"]["type"], request["header"]["flags"] = kind, flags
        request.encode()
        for answer in self._exchange(kind, bytes(request.data[HEADER.size :]), flags):
            message = type(request)(answer)
            message.decode()
            yield message

    def _exchange(self, kind: int, body: bytes, flags: int) -> Iterator[bytes]:
        """Send one request and yield the messages that answer it. Raises OSError with the kernel's number."""
        self._sequence += 1
        return exchange(self._socket, self._sequence, kind, body, flags)


class Bell:
    """Rings when the kernel says that links, addresses or routes changed; at most once a pause.

    Args: loop: on_ring is called in it. pause_s: from the first change to the ring, collecting what else comes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_ring: Callable[[], None], pause_s: float) -> None:
        self._loop, self._on_ring, self._pause_s = loop, on_ring, pause_s
        self._timer: asyncio.TimerHandle | None = None
        self._socket = open_socket(_GROUPS)
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


def _has_gateway(data: bytes) -> bool:
    """Whether a route goes through another router, or through several."""
    return any(kind in GATEWAYS for kind, _ in attributes(data))


def _is_within(network: Prefix, networks: Iterable[Prefix]) -> bool:
    return any(
        network.version == each.version and network.prefixlen >= each.prefixlen and network.network_address in each
        for each in networks
    )
