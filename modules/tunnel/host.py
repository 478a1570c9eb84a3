"""Host: the interface, routes and proxy entries of the tunnel, over rtnetlink.

Routes and entries of ours have a protocol number of our own, and the interface a text (its alias). So they are found
without a record, after a kill too, and the operator's own are never touched.

Source: linux/rtnetlink.h, linux/neighbour.h
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TypeVar

from ngp.core.messages import Address, Prefix
from ngp.errors import KernelError, MomentError
from ngp.modules import netlink, rtnetlink
from ngp.modules.netlink import Asker, attribute, attributes
from ngp.modules.rtnetlink import MAIN_TABLE, Interface

ALIAS = "ngp: tunnel to tenants"
PROTOCOL = 110
"""Of our routes, entries and rules: above those that rt_protos names, below those of routing daemons."""
_UNREACHABLE_METRIC = 0xFFFF0000  # of our routes that refuse; anybody else's route to the same network goes first
_NEWROUTE, _DELROUTE, _GETROUTE, _NEWNEIGH, _DELNEIGH, _GETNEIGH = 24, 25, 26, 28, 29, 30
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_ROUTE = struct.Struct("=8BI")  # struct rtmsg
_UNICAST, _UNREACHABLE, _LINK_SCOPE = 1, 7, 253
_REFUSING = (6, _UNREACHABLE, 8)  # blackhole, unreachable, prohibit
_DST, _OIF, _PRIORITY = 1, 4, 6
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_PROXY, _NDA_DST, _NDA_PROTOCOL = 0x08, 1, 12
_ROUTES_LOOKED_AT = 1000
_SYSCTL = Path("/proc/sys/net")
FORWARDING = {4: "ipv4/conf/{}/forwarding", 6: "ipv6/conf/all/forwarding"}
"""By IP version: the kernel parameter that lets packets of an interface be forwarded; IPv6 has one for all of them."""
FREE_IT = "free it, or set LANDLORD_PORT"
# Nothing is sent there: addresses that everybody routes, of two root name servers.
SAMPLE = {4: ip_address("198.41.0.4"), 6: ip_address("2001:503:ba3e::2:30")}
_STRANGER = {4: ip_address("192.5.5.241"), 6: ip_address("2001:500:2f::f")}

# A network, and the index of the interface to which it is routed; None: its packets are refused.
Route = tuple[Prefix, int | None]
Entry = tuple[int, Address]
_Thing = TypeVar("_Thing", Route, Entry)


class Host:
    """Changes this network namespace. Every method raises OSError or KernelError."""

    def __init__(self) -> None:
        self.kernel = rtnetlink.open_asker()
        self._strict = Asker(strict=True)

    def interfaces(self) -> dict[str, Interface]:
        """Return all interfaces by name."""
        return {each.name: each for each in rtnetlink.interfaces(self.kernel)}

    def ours(self) -> list[Interface]:
        """Return the interfaces that this port made."""
        return [each for each in rtnetlink.interfaces(self.kernel) if each.alias.startswith(ALIAS)]

    def is_up(self, index: int) -> bool:
        """Say whether an interface exists, is up, and is one that this port made."""
        try:
            link = rtnetlink.ask_link(self.kernel, index)
            return link.is_up and link.alias.startswith(ALIAS)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return False

    def addresses(self, interface: str) -> list[rtnetlink.OwnAddress]:
        """Return an interface's own addresses. Raises KernelError if it doesn't exist."""
        index = self.index(interface)
        return [each for each in rtnetlink.own_addresses(self.kernel) if each.index == index]

    def inhabitants(self, pool: Prefix, interface: str) -> dict[Address, str]:
        """Return the addresses in a pool that can't be let, and whose they are.

        These are this host's own addresses on an interface, and the addresses of the routers there.
        """
        found = {own.local: "this host's own address" for own in self.addresses(interface) if own.local in pool}
        for router in rtnetlink.routers(pool.version, self.index(interface), _ROUTES_LOOKED_AT):
            if router in pool:
                found.setdefault(router, f"the router at {interface}")
        return found

    def ways_out(self, pool: Prefix, tunnel: int) -> set[int]:
        """Return the numbers of the interfaces by which a pool's packets leave; empty if they find no route.

        Args: tunnel: the number of the interface by which the packets arrive.
        """
        try:
            route = rtnetlink.route_of(rtnetlink.ask_way(self.kernel, SAMPLE[pool.version], pool[-1], tunnel))
        except OSError:
            return set()
        return set(route.interfaces)

    def sends_back(self, version: int, outside: int) -> bool:
        """Say whether packets of strangers to addresses that no other route knows are forwarded by a default route.

        Args: outside: the number of the interface where the packets arrive.
        """
        if version == 6 and read_sysctl(FORWARDING[6]) == "0":  # unlike IPv4's, the answer ignores it
            return False
        try:
            rtnetlink.ask_way(self.kernel, SAMPLE[version], _STRANGER[version], outside)
        except OSError:
            return False
        return True

    def refused_by_others(self, version: int) -> list[Prefix]:
        """Return the prefixes that routes of other programs or the operator refuse; these routes stay when ngp stops.

        A default route that refuses isn't among them: another default route is used before it.
        """
        found = []
        for kind in _REFUSING:
            for message in self._strict.dump(
                _GETROUTE, _ROUTE.pack(_FAMILY[version], 0, 0, 0, MAIN_TABLE, 0, 0, kind, 0)
            ):
                _, bits, _, _, _, protocol, _, _, _ = _ROUTE.unpack_from(message)
                said = dict(attributes(message[_ROUTE.size :]))
                if protocol != PROTOCOL and _DST in said:
                    found.append(ip_network((said[_DST], bits)))
        return found

    def index(self, interface: str) -> int:
        """Return an interface's number. Raises KernelError if it doesn't exist."""
        found = self.interfaces().get(interface)
        if found is None:
            raise KernelError(f"interface {interface}: doesn't exist; ip link shows what there is")
        return found.index

    def bring_routes(self, index: int | None, wanted: Iterable[Route]) -> None:
        """Make our routes exactly these; those that are right stay. Args: index: of the tunnel, if there is one."""
        standing = {route for route in self._routes() if route[1] in (index, None)}
        _bring(standing, set(wanted), self.add_route, self.remove_route)

    def bring_entries(self, wanted: Iterable[Entry]) -> None:
        """Make our proxy entries exactly these; those that are right stay."""
        _bring(self._entries(), set(wanted), self.add_entry, self.remove_entry)

    def add_route(self, route: Route) -> None:
        """Add a route. Raises KernelError if somebody else has the same one."""
        try:
            self.kernel.order(_NEWROUTE, _route_body(route), netlink.CREATE | netlink.EXCLUSIVE)
        except FileExistsError as error:
            if route not in self._routes():
                raise KernelError(
                    f"a route to {route[0]} exists that isn't ngp's; remove it (ip route show {route[0]}), or take the "
                    "network out of LANDLORD_POOLS (`except`)"
                ) from error

    def remove_route(self, route: Route) -> None:
        """Remove a route; no error if it is gone."""
        _or_gone(lambda: self.kernel.order(_DELROUTE, _route_body(route)))

    def add_entry(self, entry: Entry) -> None:
        """Answer for an address on an interface, by ARP or NDP."""
        self.kernel.order(_NEWNEIGH, _entry_body(entry), netlink.CREATE)

    def remove_entry(self, entry: Entry) -> None:
        """Answer no longer for an address."""
        _or_gone(lambda: self.kernel.order(_DELNEIGH, _entry_body(entry)))

    def _routes(self) -> set[Route]:
        found: set[Route] = set()
        for version in _FAMILY:
            for network, route in rtnetlink.routes_by(version, PROTOCOL):  # the kernel selects: there may be a million
                if route.table == MAIN_TABLE and not route.is_unicast and route.metric == _UNREACHABLE_METRIC:
                    found.add((network, None))
                elif route.table == MAIN_TABLE and route.is_unicast and route.hops:
                    found.add((network, route.hops[0].index))
        return found

    def _entries(self) -> set[Entry]:
        found = set()
        for family in _FAMILY.values():
            for message in self.kernel.dump(_GETNEIGH, _NEIGHBOUR.pack(family, 0, 0, _PROXY, 0)):
                _, index, _, _, _ = _NEIGHBOUR.unpack_from(message)
                said = dict(attributes(message[_NEIGHBOUR.size :]))
                if said.get(_NDA_PROTOCOL) == bytes([PROTOCOL]):
                    found.add((index, ip_address(said[_NDA_DST])))
        return found

    def close(self) -> None:
        """Release the sockets."""
        self.kernel.close()
        self._strict.close()


def _bring(
    standing: set[_Thing], wanted: set[_Thing], add: Callable[[_Thing], None], remove: Callable[[_Thing], None]
) -> None:
    """Make a set of things exactly as wanted.

    A refusal doesn't stop the other changes; the first one is raised at the end.
    """
    refusals = []
    for thing in wanted - standing:
        try:
            add(thing)
        except KernelError as error:
            refusals.append(error)
    for thing in standing - wanted:
        remove(thing)
    if refusals:
        raise refusals[0]


def _or_gone(deed: Callable[[], None]) -> None:
    try:
        deed()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
            raise


def _route_body(route: Route) -> bytes:
    network, index = route
    family, bits = _FAMILY[network.version], network.prefixlen
    destination = attribute(_DST, network.network_address.packed)
    if index is None:
        priority = attribute(_PRIORITY, struct.pack("=I", _UNREACHABLE_METRIC))
        return _ROUTE.pack(family, bits, 0, 0, MAIN_TABLE, PROTOCOL, 0, _UNREACHABLE, 0) + destination + priority
    scope = _LINK_SCOPE if network.version == 4 else 0
    out = attribute(_OIF, struct.pack("=i", index))
    return _ROUTE.pack(family, bits, 0, 0, MAIN_TABLE, PROTOCOL, scope, _UNICAST, 0) + destination + out


def _entry_body(entry: Entry) -> bytes:
    index, address = entry
    body = _NEIGHBOUR.pack(_FAMILY[address.version], index, 0, _PROXY, 0)
    return body + attribute(_NDA_DST, address.packed) + attribute(_NDA_PROTOCOL, bytes([PROTOCOL]))


def read_sysctl(key: str) -> str:
    """Return a kernel parameter below net, as `ipv4/conf/eth0/forwarding`; "" if there is none."""
    try:
        return (_SYSCTL / key).read_text().strip()
    except OSError:
        return ""


def write_sysctl(key: str, value: str) -> None:
    """Set a kernel parameter below net. Raises OSError."""
    (_SYSCTL / key).write_text(value)


def refuse_taken_port(port: int) -> None:
    """Raise MomentError if another program uses this UDP port."""
    if not is_free(port):
        raise MomentError(f"{taken(port)}; {FREE_IT}")


def taken(port: int) -> str:
    """Say that another program uses a UDP port, and how to see which program."""
    return f"UDP port {port}: is taken (ss -lnup sport = :{port})"


def is_free(port: int) -> bool:
    """Say whether no program uses this UDP port, by IPv4 or by IPv6."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as tried:
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if family == socket.AF_INET:  # a host may have no IPv6
                raise
    return True
