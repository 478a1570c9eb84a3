"""Check: what the landlord's tunnel needs on this host, and whether packets from outside find the pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network

from ngp.core.listing import listed
from ngp.core.messages import Address, Prefix
from ngp.core.prefixes import covers
from ngp.core.values import Check
from ngp.modules.commands import find_command
from ngp.modules.rtnetlink import Interface, OwnAddress
from ngp.modules.tunnel import host, rules
from ngp.modules.tunnel.device import Device
from ngp.modules.tunnel.host import FORWARDING, FREE_IT, Host, is_free, read_sysctl, taken
from ngp.ports.letting import DesiredTunnel

_KIND = "kernel"
_LAST_METRIC = 0xFFFFFFFF  # of a route that comes after ours to the same network
_TOLD = 4


def look(
    desired: DesiredTunnel, here: Host, devices: Sequence[Device], answered_max: Mapping[int, int]
) -> Iterator[Check]:
    """Make all checks. Args: devices: those that may be used, the best first. Raises KernelError, OSError."""
    yield _implementation(desired, devices)
    yield Check("nft", find_command("nft") is not None, "needed for the tunnel's rules", _unless_nft(), _KIND)
    interfaces = here.interfaces()
    tunnel = interfaces.get(desired.interface)
    if tunnel is None or not tunnel.alias.startswith(host.ALIAS):
        yield _port(desired)
    if tunnel is not None and not tunnel.alias.startswith(host.ALIAS):
        found = f"{desired.interface}: exists and isn't ngp's"
        yield Check("tunnel interface", False, found, "delete it, or name another one in LANDLORD_INTERFACE", _KIND)
    yield from _forwarding(desired)
    if desired.outside not in interfaces:
        return  # `ngp.daemon.desired.missing_names` says so
    yield from _pools(desired, here, answered_max)
    yield from _when_stopped(desired, here, interfaces[desired.outside])
    if tunnel is not None and tunnel.alias.startswith(host.ALIAS):
        yield from _ways_out(desired, here, interfaces, tunnel)


def _implementation(desired: DesiredTunnel, devices: Sequence[Device]) -> Check:
    lacks: list[str] = []
    remedy = ""
    for device in devices:
        why_not, remedy = device.why_not()
        if not why_not:
            return Check("tunnel", True, f"WireGuard by {device.implementation}{''.join(f'; {one}' for one in lacks)}")
        lacks.append(why_not)
    return Check("tunnel", False, f"LANDLORD_TUNNEL: {desired.kind}: {'; '.join(lacks)}", remedy, _KIND)


def _unless_nft() -> str:
    return "" if find_command("nft") else rules.INSTALL


def _port(desired: DesiredTunnel) -> Check:
    if not is_free(desired.port):
        return Check("tunnel port", False, taken(desired.port), FREE_IT, _KIND)
    found = f"UDP {desired.port} is free; your INPUT rules must accept it on {desired.outside}"
    return Check("tunnel port", True, found)


def _forwarding(desired: DesiredTunnel) -> Iterator[Check]:
    for version in sorted({pool.version for pool in desired.pools}):
        key = FORWARDING[version].format(desired.outside)
        is_off = read_sysctl(key) == "0"
        found = f"forwarding is {'off' if is_off else 'on'}: net/{key}"
        yield Check(f"IPv{version} to tenants", not is_off, found, f"sysctl -w net/{key}=1" if is_off else "", _KIND)


def _pools(desired: DesiredTunnel, here: Host, answered_max: Mapping[int, int]) -> Iterator[Check]:
    """Check the pools.

    Pools with the same result share a line: a pool of net.conf that leaves parts out becomes many.
    """
    alike: dict[Check, list[Prefix]] = {}
    own = here.addresses(desired.outside)
    for pool in desired.pools:
        inside = here.inhabitants(pool, desired.outside)
        line = _inhabited(inside) if inside else _pool(desired, pool, own, answered_max)
        alike.setdefault(line, []).append(pool)
    for line, pools in alike.items():
        yield replace(line, name=f"pool {listed(map(str, pools))}")


def _inhabited(inside: Mapping[Address, str]) -> Check:
    """Report addresses that can't be let.

    A start refuses them too, when it looks at the host; so the kind of this check is that of such an error.
    """
    found = "; ".join(f"contains {address}, {whose}" for address, whose in inside.items())
    remedy = f"add to that pool's list `except` in LANDLORD_POOLS: {', '.join(map(str, inside))}"
    return Check("", False, found, remedy, _KIND)


def _pool(desired: DesiredTunnel, pool: Prefix, own: Sequence[OwnAddress], answered_max: Mapping[int, int]) -> Check:
    """Say how packets to a pool come to this host: routed, or as we answer for its addresses. The line has no name."""
    outside = desired.outside
    on_link = next((net for each in own if covers(net := _network(each), pool)), None)
    via = ", ".join(
        str(each.local) for each in own if each.local.version == pool.version and not each.local.is_link_local
    )
    if on_link is None:
        found = f"isn't on the link at {outside} ({via or 'no address'}): the router there must route it to this host"
        remedy = "LANDLORD_ROUTING: routed" if desired.proxy else ""
        return Check("", True, found, remedy)
    if not desired.proxy:
        found = f"is on the link at {outside} ({on_link}): the router there asks for each address, and nobody answers"
        return Check("", False, found, "LANDLORD_ROUTING: proxy", "configuration")
    found = f"is on the link at {outside}: this host answers for addresses that are let"
    most = answered_max[pool.version]
    if pool.num_addresses > most:
        found += f", but for the first {most} of each network at most"
        return Check("", True, found, "let the router there route the pool to this host, and LANDLORD_ROUTING: routed")
    return Check("", True, found)


def _when_stopped(desired: DesiredTunnel, here: Host, outside: Interface) -> Iterator[Check]:
    """Warn of routed pools for which no route refuses packets when ngp has stopped: the default route sends them back.

    The router that sends us such a packet gets it back, and so on until the packet's hop limit ends: one packet of a
    stranger becomes hundreds on the uplink. With LANDLORD_ROUTING: proxy nobody answers for the addresses when ngp has
    stopped, so no packet comes.
    """
    if desired.proxy:
        return
    back: list[Prefix] = []
    for version in (4, 6):
        pools = [pool for pool in desired.pools if pool.version == version]
        if pools and here.sends_back(version, outside.index):
            refused = here.refused_by_others(version)
            back += [pool for pool in pools if not any(covers(each, pool) for each in refused)]
    if not back:
        return
    found = f"when ngp has stopped, this host sends packets to {listed(map(str, back))} back by its default route"
    keep = [f"ip {'-6 ' * (each.version == 6)}route add unreachable {each} metric {_LAST_METRIC}" for each in back]
    more = f" (and so on for {len(keep) - _TOLD} more)" if len(keep) > _TOLD else ""
    yield Check("pools when stopped", True, found, f"at each boot: {'; '.join(keep[:_TOLD])}{more}")


def _ways_out(
    desired: DesiredTunnel, here: Host, interfaces: Mapping[str, Interface], tunnel: Interface
) -> Iterator[Check]:
    """Say by which interface packets from the pools leave.

    Behind any interface but LANDLORD_OUTSIDE, perhaps nobody knows a way back to the pools' addresses.
    A host without a route to the internet has no such line.
    """
    names = {each.index: each.name for each in interfaces.values()}
    for pool in desired.pools:
        used = here.ways_out(pool, tunnel.index)
        others = sorted(names.get(each, f"interface {each}") for each in used - {interfaces[desired.outside].index})
        if others:
            found = f"packets from {pool} leave by {listed(others)}, not by {desired.outside}"
            remedy = f"lead them to {desired.outside} (ip rule add from {pool} ...); if rented: ngp rent up RENTAL"
            yield Check(f"way out of {pool}", True, found, remedy)
        elif used:
            yield Check(f"way out of {pool}", True, f"packets from it leave by {desired.outside}")


def _network(own: OwnAddress) -> Prefix:
    return ip_network((own.local, own.prefix_length), strict=False)
