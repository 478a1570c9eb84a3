"""Desired network: what the kernel should look like, from net.conf and the host's present interfaces."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

from ngp.config import PROTOCOL_NUMBERS, is_forwarded_to
from ngp.core.host_port import split_host_port
from ngp.core.rental.pools import FreeNetworks
from ngp.core.rental.terms import LettingSettings
from ngp.core.settings import FreeDestination, Settings
from ngp.core.values import Check
from ngp.errors import ConfigError
from ngp.ports import Network
from ngp.ports.network import DesiredNetwork, FreeRule, LetTraffic

ALL_INTERFACES = "all"
FAMILIES = {"ip": frozenset({4, 6}), "ip4": frozenset({4}), "ip6": frozenset({6})}
LINK_PORT = 10325
STRANGER_RATE, STRANGER_BURST = 200, 50
NEIGHBOUR_RATE, NEIGHBOUR_BURST = 500, 200
"""How many first packets the kernel hands to the daemon in a second, and at once: of all strangers together, and of
each known neighbour. One CPU core can handle that many beside its other work."""
UNPAID_BURST_S = 2
LEAST_UNPAID_BURST_BYTES = 128 << 10  # two packets of 64 kB, to which the kernel joins small ones
LANE_BURST_S = 60
LEAST_LANE_BURST_BYTES = 256 << 10
"""The burst of a lane to payment services, in seconds of the lane's rate: enough for a Lightning node's first look at
the chain; at least LEAST_LANE_BURST_BYTES: four packets of 64 kB, to which the kernel joins small ones."""


def look_at_host(settings: Settings, network: Network, node_addresses: Iterable[str] = ()) -> DesiredNetwork:
    """Return what the kernel should look like on this host now.

    Args: node_addresses: where our payment node is reached, `host:port`. The node is treated as a payment service,
        whether it runs on this machine or on another one.
    Raises: KernelError.
    """
    mesh = network.mesh_interfaces(settings.mesh_interfaces, settings.never_mesh)
    desired = desired_network(settings, mesh, *network.other_interfaces(mesh, settings.lan_interfaces))
    services = dict.fromkeys((*desired.services, *node_services(node_addresses)))
    own = set(network.local_addresses())
    return replace(
        desired,
        services=tuple(each for each in services if each.prefix.network_address not in own),
        own_services=tuple(each for each in services if each.prefix.network_address in own),
    )


def node_services(addresses: Iterable[str]) -> tuple[FreeRule, ...]:
    """Return the free rules that let a neighbour reach our payment node; names and onion addresses are left out."""
    found = []
    for text in addresses:
        host, port = split_host_port(text)
        with suppress(ValueError):
            where = ip_address(host)
            if is_forwarded_to(where) and 0 < int(port) < 65536:
                found.append(FreeRule(ip_network(where), PROTOCOL_NUMBERS["tcp"], int(port)))
    return tuple(found)


def left_out(settings: Settings, network: Network) -> list[Check]:
    """Return a line for each interface that MESH_INTERFACES matches but that can't be a mesh interface.

    If net.conf gives the interface's own name, the line is a failure. If only a pattern matches the name, the line is
    ok. An ok line with a remedy is a warning. It has no remedy if nothing has to be done, usually because the packets
    arrive on another interface that is mesh or ignored, such as the bridge that this interface is a port of.

    Raises: KernelError.
    """
    found = []
    for name, (why, remedy) in network.left_out(settings.mesh_interfaces, settings.never_mesh).items():
        by_name = name in settings.mesh_interfaces
        said = f"MESH_INTERFACES: {why}" if by_name else f"left out of MESH_INTERFACES: {why}"
        found.append(Check(f"interface {name}", not by_name, said, remedy, "configuration" if by_name else ""))
    return found


def named_interfaces(settings: Settings, network: Network, mesh: Sequence[str]) -> list[Check]:
    """Check the interfaces that net.conf names, and whether there is a mesh interface at all.

    Args: mesh: existing interfaces that MESH_INTERFACES matches. Raises: KernelError.
    """
    present = existing(network)
    found = [*missing_names(settings, present), *left_out(settings, network)]
    told = {line.name for line in found if not line.ok}
    wanted = settings.mesh_interfaces
    if wanted and not mesh and not any(f"interface {name}" in told for name in wanted):
        remedy = "name one in MESH_INTERFACES: ip -brief link lists the interfaces"
        found.append(Check("mesh interfaces", False, "none", remedy))
    return [*found, *_without_effect(settings, present, mesh), *_outside_in_mesh(settings, mesh)]


def _outside_in_mesh(settings: Settings, mesh: Sequence[str]) -> list[Check]:
    """Warn if LANDLORD_OUTSIDE is a mesh interface: packets from the internet to tenants come from no neighbour."""
    outside = _outside(settings)
    if outside not in mesh:
        return []
    found = "is LANDLORD_OUTSIDE, but also a mesh interface: packets that come there for tenants wait for a contract"
    remedy = f"IGNORE_INTERFACE: {outside}, or another LANDLORD_OUTSIDE"
    return [Check(f"interface {outside}", True, found, remedy)]


def _outside(settings: Settings) -> str:
    """Return LANDLORD_OUTSIDE; "" if nothing is let."""
    return settings.letting.tunnel.outside if settings.letting is not None and settings.letting.tunnel else ""


def existing(network: Network) -> frozenset[str]:
    """Return the names of all interfaces except loopback, in one query, as there may be hundreds.

    Raises: KernelError.
    """
    everything = (ALL_INTERFACES,)
    return frozenset((*network.mesh_interfaces(everything, ()), *network.left_out(everything, ())))


def _without_effect(settings: Settings, present: frozenset[str], mesh: Sequence[str]) -> list[Check]:
    """Warn of entries for a single interface that is no mesh interface: they have no effect. Perhaps a typing error."""
    named = [(f"PRICES: the entry for {rule.prefix} is", rule.interface) for rule in settings.prices]
    named += [(f"NGP_INTERFACE: {one} is", one.partition("%")[2]) for one in settings.ngp_addresses]
    found = []
    for what, name in named:
        if name and not name.isdigit() and name not in mesh:
            why = "it is no mesh interface" if name in present else "no interface has this name"
            said = f"{what} for this interface only, and {why}"
            remedy = f"correct {what.partition(':')[0]}: ip -brief link lists the interfaces"
            found.append(Check(f"interface {name}", True, said, remedy))
    return found


def refuse(settings: Settings, network: Network, desired: DesiredNetwork) -> None:
    """Refuse to start where traffic could go round the meter, or where a mesh interface is a port of a bridge or bond.

    Raises: ConfigError, KernelError.
    """
    for line in left_out(settings, network):
        if not line.ok:
            raise ConfigError(f"{line.name}: {line.found}; {line.remedy}")
    network.refuse(desired)


def missing_names(settings: Settings, present: frozenset[str]) -> list[Check]:
    """Return a line for each name in net.conf that no interface has. Pure.

    A typing error leaves an interface ungated, or LANDLORD_OUTSIDE without the addresses that are let.

    Args: present: names of the existing interfaces.
    """
    keys = {
        "MESH_INTERFACES": settings.mesh_interfaces,
        "IGNORE_INTERFACE": settings.ignore_interfaces,
        "LAN_INTERFACE": settings.lan_interfaces or (),
        "LANDLORD_OUTSIDE": (outside,) if (outside := _outside(settings)) else (),
    }
    found = []
    for key, names in keys.items():
        for name in names:
            if name in (ALL_INTERFACES, "lo") or name in present:
                continue
            if not fnmatch.filter(present, name):
                is_pattern = any(letter in name for letter in "*?[")
                said = f"{key}: no interface " + ("matches it at present" if is_pattern else "has this name")
                remedy = "" if is_pattern else f"correct {key}: ip -brief link lists the interfaces"
                found.append(Check(f"interface {name}", is_pattern, said, remedy))
    return found


def desired_network(
    settings: Settings, mesh: Sequence[str], lan: Sequence[str], upstream: Sequence[str]
) -> DesiredNetwork:
    """Combine settings with the interfaces that exist.

    Args:
        mesh: existing interfaces that MESH_INTERFACES matches.
        lan: our LAN interfaces. upstream: all other interfaces that have a route.
    """
    return DesiredNetwork(
        mesh_interfaces=tuple(mesh),
        lan_interfaces=tuple(lan),
        upstream_interfaces=tuple(upstream),
        families=FAMILIES[settings.network_module],
        sells=settings.sells,
        buys=settings.buys,
        free=_rules(settings.free_destinations),
        services=_rules(settings.payment_services),
        own_services=(),
        lane_bytes_s=settings.payment_services_bytes_s,
        lane_burst_bytes=max(LEAST_LANE_BURST_BYTES, LANE_BURST_S * settings.payment_services_bytes_s),
        queue_number=settings.queue_number,
        link_port=LINK_PORT,
        link_protocols=_link_protocols(settings),
        contracts_max=settings.contracts_max,
        stranger_rate=STRANGER_RATE,
        stranger_burst=STRANGER_BURST,
        neighbour_rate=NEIGHBOUR_RATE,
        neighbour_burst=NEIGHBOUR_BURST,
        tunnel=settings.tunnel_interface,
        let=_let_traffic(settings.letting),
        unpaid_bytes_s=settings.unpaid_bytes_s,
        unpaid_burst_bytes=max(LEAST_UNPAID_BURST_BYTES, UNPAID_BURST_S * settings.unpaid_bytes_s),
        buys_default_route=settings.buys_default_route,
    )


def _let_traffic(letting: LettingSettings | None) -> LetTraffic | None:
    """Return what must pass this host's firewall for tenants. Pure."""
    if letting is None or letting.tunnel is None:
        return None
    told = [_version(host) for host, _ in letting.endpoints]
    return LetTraffic(
        outside=letting.tunnel.outside,
        tunnel_port=letting.tunnel.port,
        tunnel_versions=frozenset() if None in told else frozenset(filter(None, told)),
        faces=(*letting.grpc, *letting.https),
        pools=FreeNetworks(letting.pools).blocks(),
    )


def _version(host: str) -> int | None:
    """Return the IP version of an address, None for a name."""
    try:
        return ip_address(host).version
    except ValueError:
        return None


def _link_protocols(settings: Settings) -> tuple[str, ...]:
    """Return the protocols by which neighbours reach us. If NGP_INTERFACE names neighbours, only we call by gRPC."""
    modules, calls = settings.link_modules, bool(settings.ngp_addresses)
    return ("udp",) * ("udp" in modules) + ("tcp",) * ("grpc" in modules and not calls)


def _rules(entries: Iterable[FreeDestination]) -> tuple[FreeRule, ...]:
    return tuple(
        FreeRule(one.prefix, None if one.protocol is None else PROTOCOL_NUMBERS[one.protocol], one.port)
        for one in entries
    )
