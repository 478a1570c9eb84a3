"""Onward: whether this host's routes and rules carry on what neighbours send, and lead answers back into the mesh.

Packets that the routing drops never reach FORWARD: no contract is made for them, and nothing is counted. So the kernel
is asked about a sample: a packet of a neighbour, by its interface, to an address that everybody routes.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from ngp.core.kernel import Router
from ngp.core.messages import Address, Prefix
from ngp.core.prefixes import EVERYWHERE, covers, sample
from ngp.core.values import Check
from ngp.modules.network.host import Host
from ngp.ports.network import DesiredNetwork

# Addresses of root name servers (a and m): no documentation addresses, since routers with a list of networks that don't
# exist drop those on purpose.
SAMPLES = {4: (str(EVERYWHERE[4]), "202.12.27.33"), 6: (str(EVERYWHERE[6]), "2001:dc3::35")}
_INTERFACES_ASKED = 20
_PARTS_ASKED = 20  # routes to parts of one destination
_HOPS_ASKED, _HOPS_S = 20, 4.0  # routers that are asked for their MAC, and the wait; the kernel gives up after 3 s
_WHY = {
    errno.EACCES: "a rule or route `prohibit`",
    errno.EINVAL: "a route `blackhole`",
    errno.EHOSTUNREACH: "a route `unreachable`",
    errno.ENETUNREACH: "no route",
    errno.EXDEV: "the reverse path filter (rp_filter)",
}


def check(desired: DesiredNetwork, host: Host, forwarded: frozenset[int]) -> Iterator[Check]:
    """Warn of each IP version in which neighbours' packets aren't carried on, or answers don't find the mesh.

    Args: forwarded: the versions that this host forwards. Another line of `ngp check` reports those that aren't
    forwarded.
    """
    if not desired.sells or not desired.mesh_interfaces:
        return
    leading = {version: host.default_route_interfaces((version,)) for version in desired.families}
    for version in sorted(desired.families & forwarded):
        sending = senders(desired, host, version)
        without = "no mesh interface has an address of this version, or a route"
        if leading[version] and not any(_has_route(host, name, version) for name in desired.mesh_interfaces):
            found = f"{without}: answers to neighbours find no way, so nothing is sold"
            name = desired.mesh_interfaces[0]
            add = f"ip address add ADDRESS/LENGTH dev {name}"
            yield Check(f"way back IPv{version}", True, found, f"{add}{or_other_version(version)}")
        elif not leading[version] and sending and any(leading.values()):
            found = f"no default route, but IPv{10 - version} has one: neighbours reach nothing by IPv{version}"
            found += " except networks with routes of their own"
            add = f"ip {'-6 ' * (version == 6)}route add default via ADDRESS dev UPLINK"
            yield Check(f"way out IPv{version}", True, found, f"{add}{or_other_version(version)}")
        elif leading[version]:
            yield from _dropped(host, version, sending)


def _dropped(host: Host, version: int, senders: dict[str, Address]) -> Iterator[Check]:
    """Ask the kernel about a sample packet for each interface, and warn of the first one that is dropped.

    If no route is found, and a routing rule tests what the question doesn't name (a mark, ports), there is no warning.
    """
    for name, source in itertools.islice(senders.items(), _INTERFACES_ASKED):
        for text in SAMPLES[version]:
            number = host.why_not_onward(ip_address(text), source, name)
            if number and not (number == errno.ENETUNREACH and host.rules_test_more(version)):
                why = _WHY.get(number, os.strerror(number))
                found = f"what neighbours on {name} send to {text}, for example, is dropped: {why}"
                asking = f"ip route get {text} from {source} iif {name}"
                remedy = f"`{asking}`, `ip rule` and `ip route` show it; remove that rule or route"
                yield Check(f"way out IPv{version}", True, found, remedy)
                return


def next_hops(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Warn a buyer of routers that nobody answers for, although default routes into the mesh lead to them."""
    hops = host.next_hops(desired.mesh_interfaces, sorted(desired.families)) if desired.buys else []
    for name, address in host.silent(hops[:_HOPS_ASKED], _HOPS_S):
        found = f"a default route leads to {address} on {name}, and nobody there answers to that address"
        remedy = f"correct the route (ip{' -6' * (address.version == 6)} route), or the address of the router there"
        yield Check(f"next hop {address}", True, found, remedy)


def routers_towards(
    desired: DesiredNetwork, host: Host, destinations: Iterable[Prefix]
) -> Iterator[tuple[Prefix, Router]]:
    """Yield the routers in the mesh to which our routes lead for each destination, or for a part of it."""
    routed = {
        version: host.routed_networks(version, desired.mesh_interfaces) if desired.mesh_interfaces else ()
        for version in desired.families
    }
    for destination in destinations:
        inside = (network for network in routed.get(destination.version, ()) if covers(destination, network))
        asked = (sample(destination), *map(sample, itertools.islice(inside, _PARTS_ASKED)))
        ways = (host.onward(address, desired.mesh_interfaces).router for address in asked)
        yield from dict.fromkeys((destination, way) for way in ways if way is not None)


def senders(desired: DesiredNetwork, host: Host, version: int) -> dict[str, Address]:
    """Return an address that a neighbour could have on each mesh interface."""
    own, found = set(host.local_addresses()), dict[str, Address]()
    for name in desired.mesh_interfaces:
        for network in host.networks(name):
            other = other_address(network, own)
            if network.version == version and other is not None:
                found.setdefault(name, other)
    return found


def other_address(network: Prefix, own: set[Address]) -> Address | None:
    """Return one of a network's first addresses that isn't our own, or None. Pure."""
    candidates: Iterator[Address] = itertools.islice(network.hosts(), 4)
    return next((each for each in candidates if each not in own), None)


def _has_route(host: Host, interface: str, version: int) -> bool:
    return any(network.version == version for network in host.routes_beyond(interface, (), 1))


def or_other_version(version: int) -> str:
    """Return the other remedy if an IP version lacks something: to sell the other version alone."""
    return f"; or NETWORK_INTERFACE: ip{10 - version}, if IPv{version} isn't for sale"
