"""Host facts: interfaces, addresses and routes of this network namespace, and a bell that rings when they change.

Everything is read over rtnetlink, nothing from /sys: inside `ip netns exec` and in containers, /sys may show another
network namespace than the one that forwards our packets.

The bell only says that something changed. Notifications that arrive between two rings are thrown away unread, so a
router with a large routing table that keeps changing costs a few wake-ups a second. If notifications were lost
(ENOBUFS), the bell rings too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from ngp.core.kernel import Onward, Router
from ngp.core.messages import Address, Prefix
from ngp.core.newest import Newest
from ngp.core.policy import LEAST_NETWORK_BITS
from ngp.core.prefixes import EVERYWHERE, sample
from ngp.errors import KernelError
from ngp.modules import routing_rules, rtnetlink
from ngp.modules.network import layers
from ngp.modules.rtnetlink import Interface, OwnAddress
from ngp.ports.network import InterfaceTraffic

_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
"""Notifications of links, of IPv4 addresses, routes and rules, and of IPv6 addresses, routes and rules."""

_ROUTES_MAX = 8192
_ROUTE_MAX_AGE_S = 5.0
_FACTS_MAX_AGE_S = 1.0
_RESOLVED_AGAIN_S = 0.02
ALL_INTERFACES = "all"


def expand_interfaces(names: Iterable[str], patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a list of names and patterns (`wlan*`) matches, sorted; ignored ones never. Pure.

    Args:
        names: those of all existing interfaces; the pattern `all` matches every one of them but `lo`.
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
    """Answers questions about this network namespace; open and use it in one and the same thread.

    Args: monotonic_s: a clock; it tells how old remembered answers are.
    Attributes: forgotten: how often remembered answers were forgotten, as after each change.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.forgotten = 0
        self._now_s = monotonic_s
        self._kernel = rtnetlink.open_asker()
        self._interfaces: dict[str, Interface] = {}
        self._interfaces_at_s: float | None = None
        self._addresses: list[OwnAddress] = []
        self._addresses_at_s: float | None = None
        self._routes: Newest[Address, tuple[float, rtnetlink.Route | None]] = Newest(_ROUTES_MAX)
        self._bell: Bell | None = None

    def interfaces(self) -> dict[str, Interface]:
        """Return all interfaces by name, at most a second old. Raises KernelError."""
        now_s = self._now_s()
        if self._interfaces_at_s is None or now_s - self._interfaces_at_s > _FACTS_MAX_AGE_S:
            self._interfaces = {each.name: each for each in rtnetlink.interfaces(self._kernel)}
            self._interfaces_at_s = now_s
        return self._interfaces

    def mesh_interfaces(self, patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the existing interfaces that MESH_INTERFACES matches, except those that can't be mesh interfaces.

        An interface that net.conf names may become unsuitable while ngp runs, for example as a bridge's port. (A start
        would refuse it.) Then the interface on which its packets arrive now takes its place: else that interface would
        be a way round the gate.
        """
        known, without = self.interfaces(), self._without(patterns)
        names = (each.name for each in known.values() if not each.is_loopback and each.name not in without)
        instead = {each for name in without if name in patterns for each in layers.in_place_of(name, known)}
        means = {*expand_interfaces(names, patterns, ignored), *expand_interfaces(instead, ["*"], ignored)}
        return tuple(sorted(means))

    def left_out(self, patterns: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return interfaces that MESH_INTERFACES matches but that can't be mesh: by name, the reason and the remedy.

        The remedy is "" (nothing has to be done) if net.conf doesn't name the interface, so that only a pattern matches
        it, and if its packets arrive on an interface that is mesh or ignored. `layers.is_elsewhere` has the two cases
        in which it receives no packets of ours at all.
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
        """Return the interfaces that can't be mesh interfaces with these patterns, with the reason for each.

        An idle fallback tunnel can be a mesh interface only if one of the patterns is its name.
        """
        known = self.interfaces()
        fallbacks = {name: why for name, why in layers.idle_fallbacks(known).items() if name not in patterns}
        return {**fallbacks, **layers.left_out(known)}

    def default_route_interfaces(self, versions: Iterable[int] = (4, 6), whole: bool = False) -> tuple[str, ...]:
        """Return the names of all interfaces that have a default route, or a part of one (like 0.0.0.0/1).

        Routes of these IP versions count, in any routing table.

        Args: whole: parts don't count.
        """
        names = {each.index: each.name for each in self.interfaces().values()}
        found: set[str] = set()
        for version in versions:
            for route in rtnetlink.routes(self._kernel, version):
                if route.prefix_length < (1 if whole else LEAST_NETWORK_BITS[version]):
                    found.update(names[index] for index in route.interfaces if index in names)
        found.discard("lo")
        return tuple(sorted(found))

    def traffic(self, names: Iterable[str]) -> dict[str, InterfaceTraffic]:
        """Return what each of these interfaces carried so far, and its speed; one that doesn't exist is left out."""
        found, known = dict[str, InterfaceTraffic](), self.interfaces()
        for name in names:
            if name in known:
                with contextlib.suppress(OSError):  # it went just now
                    received, sent = rtnetlink.ask_traffic(self._kernel, known[name].index)
                    found[name] = InterfaceTraffic(received, sent, rtnetlink.ask_speed(name))
        return found

    def has_link_addresses(self, interface: str) -> bool:
        """Say whether neighbours on an interface have MACs; False if it doesn't exist."""
        known = self.interfaces().get(interface)
        return known is not None and known.has_link_addresses

    def local_addresses(self) -> tuple[Address, ...]:
        """Return this host's own addresses, IPv4 and IPv6, except loopback and link-local ones. Raises KernelError."""
        self._addresses_at_s = None  # read anew: this is asked seldom, and neighbours are told the answer
        return tuple(address for address in self.all_addresses() if not (address.is_loopback or address.is_link_local))

    def all_addresses(self) -> tuple[Address, ...]:
        """Return the addresses of all interfaces, at most a second old, loopback and link-local ones included.

        Raises KernelError.
        """
        found = {each.local for each in self._all_addresses() if not each.local.is_unspecified}
        return tuple(sorted(found, key=lambda address: (address.version, int(address))))

    def networks(self, interface: str) -> tuple[Prefix, ...]:
        """Return the networks of an interface's own addresses, at most a second old, except link-local ones.

        For a point-to-point address, the network is the other end's address. Raises KernelError.
        """
        known = self.interfaces().get(interface)
        found = set()
        for each in self._all_addresses() if known else ():
            if known and each.index == known.index:
                network = ip_network((each.address, each.prefix_length), strict=False)
                if not (network.is_link_local or network.is_loopback):
                    found.add(network)
        return tuple(sorted(found, key=lambda network: (network.version, network)))

    def versions(self, interface: str) -> tuple[int, ...]:
        """Return the IP versions of which an interface has an address, link-local ones included. Raises KernelError."""
        known = self.interfaces().get(interface)
        found = {each.local.version for each in self._all_addresses() if known and each.index == known.index}
        return tuple(sorted(found))

    def _all_addresses(self) -> list[OwnAddress]:
        """Return all addresses, at most a second old, as a check asks for them hundreds of times."""
        now_s = self._now_s()
        if self._addresses_at_s is None or now_s - self._addresses_at_s > _FACTS_MAX_AGE_S:
            self._addresses, self._addresses_at_s = rtnetlink.own_addresses(self._kernel), now_s
        return self._addresses

    def routed_networks(self, version: int, interfaces: Iterable[str]) -> tuple[Prefix, ...]:
        """Return the prefixes that are routed through other routers on these interfaces, except default routes.

        Raises KernelError.
        """
        known = self.interfaces()
        indexes = {known[name].index for name in interfaces if name in known}
        network_class = IPv4Network if version == 4 else IPv6Network
        found = set()
        for route in rtnetlink.routes(self._kernel, version):
            if route.prefix_length < LEAST_NETWORK_BITS[version]:
                continue
            if route.has_gateway and not indexes.isdisjoint(route.interfaces):
                found.add(network_class((route.destination, route.prefix_length)))
        return tuple(sorted(found))

    def routes_beyond(self, interface: str, own: Sequence[Prefix], most: int) -> tuple[Prefix, ...]:
        """Return up to `most` routes of each IP version on an interface that aren't within its own networks.

        The kernel is asked for this interface's routes only, in any routing table. There may be a million, so we stop
        reading when we have `most`. Raises KernelError.
        """
        known = self.interfaces().get(interface)
        found: dict[Prefix, None] = {}
        for version in (4, 6) if known else ():
            for network in rtnetlink.routes_out_of(version, known.index if known else 0):
                if not (network.is_link_local or network.is_multicast or _is_within(network, own)):
                    found[network] = None
                if sum(each.version == version for each in found) == most:
                    break
        return tuple(found)

    def interface_towards(self, destination: Address) -> str:
        """Return the name of the interface by which a packet to a destination leaves now; "" if there is no route.

        Raises KernelError.
        """
        route = self._get_route(destination)
        indexes = route.interfaces if route is not None else ()
        return next((each.name for each in self.interfaces().values() if each.index in indexes), "")

    def why_not_onward(self, destination: Address, source: Address, interface: str) -> int:
        """Return the errno with which routes or rules drop a packet that arrives on an interface; 0 if they don't.

        Raises KernelError.
        """
        known = self.interfaces().get(interface)
        try:
            rtnetlink.ask_way(self._kernel, destination, source, known.index if known else 0)
        except TimeoutError as error:
            raise KernelError(f"the kernel didn't say how packets to {destination} are routed; try again") from error
        except OSError as error:
            return error.errno or errno.EINVAL
        return 0

    def rules_test_more(self, version: int) -> bool:
        """Say whether a routing rule tests what `why_not_onward` doesn't name: a mark, a protocol, ports."""
        return routing_rules.rules_test_more(self._kernel, version)

    def leads_to(self, destination: Prefix, links: Collection[tuple[str, bytes]]) -> bool | None:
        """Say whether this host's routes lead to a destination through a neighbour.

        Args:
            links: interface and link address of each link of the neighbour.

        Returns:
            True if one route covers all of the destination and has the neighbour as its next router. False if the
            destination is directly on one of these links, so that no router is needed. None in all other cases: policy
            rules or another routing table may still lead to the neighbour.

        Raises: KernelError if the kernel doesn't answer.
        """
        route = self._get_route(sample(destination), rtnetlink.RTM_F_FIB_MATCH)
        if route is None or not route.is_unicast:
            return None
        known, leads = self.interfaces(), None
        for hop in route.hops:
            there = {address for name, address in links if name in known and known[name].index == hop.index}
            if there and hop.gateway is None and (any(there) or route.of_own_address):
                return False
            if there and route.prefix_length <= destination.prefixlen and self._is_at(hop, there):
                leads = True
        return leads

    def next_hops(self, interfaces: Collection[str], versions: Iterable[int]) -> list[tuple[str, Address]]:
        """Return the routers to which default routes, or parts of one, lead on these interfaces. Raises KernelError."""
        names = {each.index: each.name for each in self.interfaces().values() if each.name in interfaces}
        found: dict[tuple[str, Address], None] = {}
        for version in versions:
            for route in rtnetlink.routes(self._kernel, version):
                for hop in route.hops if route.prefix_length < LEAST_NETWORK_BITS[version] else ():
                    if hop.index in names and hop.gateway is not None:
                        found[names[hop.index], hop.gateway] = None
        return list(found)

    def link_address_of(self, interface: str, address: Address) -> bytes:
        """Return the MAC that the kernel knows for an address on a link; b"" if it knows none."""
        known = self.interfaces().get(interface)
        try:
            return rtnetlink.ask_link_address(self._kernel, known.index if known else 0, address)
        except OSError:
            return b""

    def silent(self, hops: Sequence[tuple[str, Address]], most_s: float) -> list[tuple[str, Address]]:
        """Have the kernel ask for the MACs of routers on links, and return the routers that it gave up on.

        An answer takes a moment, and the kernel gives up after three seconds. A router for which it is still asking
        after `most_s` isn't returned, nor is one on an interface without MACs.
        """
        waiting = [hop for hop in hops if self.has_link_addresses(hop[0])]
        for interface, address in waiting:
            with contextlib.suppress(OSError):
                rtnetlink.resolve(self._kernel, self.interfaces()[interface].index, address)
        until, found = self._now_s() + most_s, list[tuple[str, Address]]()
        while waiting and self._now_s() < until:
            known = {hop: self._is_resolved(*hop) for hop in waiting}
            found += [hop for hop, is_resolved in known.items() if is_resolved is False]
            waiting = [hop for hop, is_resolved in known.items() if is_resolved is None]
            if waiting:
                time.sleep(_RESOLVED_AGAIN_S)
        return found

    def _is_resolved(self, interface: str, address: Address) -> bool | None:
        known = self.interfaces().get(interface)
        try:
            return rtnetlink.is_resolved(self._kernel, known.index if known else 0, address)
        except OSError:  # the kernel has forgotten the address, or we have no right to have it resolved
            return True

    def _is_at(self, hop: rtnetlink.Hop, link_addresses: Collection[bytes]) -> bool:
        """Say whether a hop's router has one of these link addresses; an empty one fits every router on its link."""
        if b"" in link_addresses:
            return True
        try:
            if hop.gateway is None:
                return False
            return rtnetlink.ask_link_address(self._kernel, hop.index, hop.gateway) in link_addresses
        except OSError:  # nothing was sent to this router lately
            return False

    def onward(self, destination: Address, mesh: Collection[str], anew: bool = False) -> Onward:
        """Say where packets to a destination go on from here.

        A network behind another router is one route to us, so it can be sold as a whole. A host on one of our own links
        is sold alone: then no route is returned.

        Strangers choose the destinations. So routes are remembered for some seconds, to ask the kernel less often, and
        only a limited number of routes.

        If traffic is shared among several routers, the first one on a mesh interface counts. The kernel is asked to
        find out a link address that it doesn't know yet: a packet that went there would wait for it, too.

        Args: mesh: names of the mesh interfaces. anew: ask the kernel, whatever is remembered.

        Raises: KernelError if the kernel doesn't answer.
        """
        if anew:
            self._routes.pop(destination, None)
        route = self._route(destination)
        if route is None:
            return Onward()
        prefix = _prefix(destination, route)
        for hop in route.hops:
            name = _name(hop.index)
            if name not in mesh:
                continue
            if hop.gateway is not None or not (route.of_own_address or self.has_link_addresses(name)):
                return Onward(prefix, Router(name, self.router_at(name, hop), hop.gateway))
        return Onward(prefix if route.has_gateway else None)

    def default_router(self, version: int, mesh: Collection[str]) -> Router | None:
        """Return the router in the mesh to which the default route alone leads; None: there is no such router.

        Raises KernelError if the kernel doesn't answer.
        """
        everywhere = EVERYWHERE[version]
        route = self._route(everywhere)
        is_one = route is not None and not route.prefix_length and len(route.hops) == 1
        return self.onward(everywhere, mesh).router if is_one else None

    def router_at(self, interface: str, hop: rtnetlink.Hop) -> bytes | None:
        """Return the link address of the router at a hop; empty if the hop has no router or its link no addresses.

        None if the kernel doesn't know it yet: this call asks the kernel to find it out.
        """
        if hop.gateway is None or not self.has_link_addresses(interface):
            return b""
        found = self.link_address_of(interface, hop.gateway)
        if not found:
            with contextlib.suppress(OSError):
                rtnetlink.resolve(self._kernel, hop.index, hop.gateway)
        return found or None

    def _route(self, destination: Address) -> rtnetlink.Route | None:
        """Return the unicast route that a destination takes, remembered for some seconds; None if there is none."""
        now_s = self._now_s()
        known = self._routes.get(destination)
        if known is not None and now_s - known[0] <= _ROUTE_MAX_AGE_S:
            self._routes.note(destination, known)
            return known[1]
        route = self._get_route(destination, rtnetlink.RTM_F_FIB_MATCH)
        found = route if route is not None and route.is_unicast else None
        self._routes.note(destination, (now_s, found))
        return found

    def watch(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], pause_s: float = 0.2) -> None:
        """Call on_change in the loop after links, addresses or routes changed, at most once in each pause.

        Remembered facts are forgotten before the call.
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
        """Forget remembered interfaces, addresses and routes."""
        self.forgotten += 1
        self._interfaces_at_s = self._addresses_at_s = None
        self._routes.clear()

    def close(self) -> None:
        """Release the sockets; safe to call twice."""
        self.stop_watching()
        self._kernel.close()

    def _get_route(self, destination: Address, flags: int = 0) -> rtnetlink.Route | None:
        """Ask the kernel which route a destination takes; None if there is none."""
        try:
            return rtnetlink.route_of(rtnetlink.ask_route(self._kernel, destination, flags))
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH):
                return None
            raise KernelError(f"the kernel didn't say which route {destination} takes: {error}; try again") from error


def _prefix(destination: Address, route: rtnetlink.Route) -> Prefix:
    network_class = IPv4Network if destination.version == 4 else IPv6Network
    return network_class((destination.packed, route.prefix_length), strict=False)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it is gone
        return ""


class Bell:
    """Rings when the kernel announces that links, addresses or routes changed, at most once in each pause.

    Args:
        loop: on_ring is called in it.
        pause_s: seconds from a change to the ring; all changes in this time are one ring.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_ring: Callable[[], None], pause_s: float) -> None:
        self._loop, self._on_ring, self._pause_s = loop, on_ring, pause_s
        self._timer: asyncio.TimerHandle | None = None
        self._socket = rtnetlink.open_notifications(_GROUPS)
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
        for _ in range(4096):  # not without end; notifications that are left cause another ring
            try:
                self._socket.recv(1)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        self._loop.add_reader(self._socket.fileno(), self._heard)
        self._on_ring()


def _is_within(network: Prefix, networks: Iterable[Prefix]) -> bool:
    return any(
        network.version == each.version and network.prefixlen >= each.prefixlen and network.network_address in each
        for each in networks
    )
