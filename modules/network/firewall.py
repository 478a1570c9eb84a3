"""Firewall: whether the operator's own rules drop what the gate sells, or the link's messages, before ngp sees them.

Many routers drop what they forward by default: Docker, ufw and firewalld set that up. Then no packet reaches the gate,
which comes after these rules, and nothing is sold. So this module follows a sample packet in each direction through
the rules. It does so for a landlord's tenants too, who would pay for a tunnel that carries nothing.
Rules that can't be judged (`verdicts`) cause no warning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import product

from ngp.core.values import Check
from ngp.modules.commands import find_command
from ngp.modules.network import onward, rights, verdicts, xtables
from ngp.modules.network.host import Host
from ngp.modules.network.verdicts import Chain, Packet
from ngp.ports.network import DesiredNetwork, LetTraffic

_INTERFACES_ASKED, _PORT = 4, 443
_ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED"


def check(desired: DesiredNetwork, host: Host, forwarded: frozenset[int]) -> Iterator[Check]:
    """Warn of rules that drop neighbours' packets, the answers to them, or messages of the link; or tenants' packets.

    Args: forwarded: the IP versions that this host forwards.
    """
    if not desired.mesh_interfaces and desired.let is None:
        return
    if not rights.holds(rights.NET_ADMIN):
        yield rights.not_tried("firewall")
        return
    chains = _chains()
    if desired.sells and desired.mesh_interfaces:
        for version in sorted(desired.families & forwarded):
            yield _forwarding(desired, host, chains, version)
    for protocol in desired.link_protocols:
        yield from _link(desired, host, chains, protocol)
    if desired.let is not None and desired.let.outside in host.interfaces():
        yield from _asked_by_tenants(desired.let, host, chains)
        for version in sorted({pool.version for pool in desired.let.pools}):
            yield _to_tenants(desired.let, desired.tunnel, chains, version)


def _chains() -> list[Chain]:
    found = [
        chain
        for version in (4, 6)
        for chain in verdicts.parse_saved(xtables.saved_rules(version), version, xtables.COMMAND[version])
    ]
    nft = find_command("nft")
    if nft:  # terse: lists of addresses may be long
        listed = xtables.run_or_nothing([nft, "-t", "-j", "list", "ruleset"])
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):  # words that we don't know
            found += verdicts.parse_ruleset(listed)
    return found


def _forwarding(desired: DesiredNetwork, host: Host, chains: list[Chain], version: int) -> Check:
    name = f"firewall IPv{version}"
    out = host.default_route_interfaces((version,))
    ways = [each for each in out if each in desired.upstream_interfaces] or list(out)
    mesh = desired.mesh_interfaces[:_INTERFACES_ASKED]
    for inside, outside in product(mesh, ways[:_INTERFACES_ASKED]):
        if inside == outside:
            continue
        there, here = ip_address(onward.SAMPLES[version][0]), onward.senders(desired, host, version).get(inside)
        for packet in (
            Packet(version, inside, outside, here, there, state="new"),
            Packet(version, outside, inside, there, here, state="established"),
        ):
            chain = _dropping(chains, packet, _drops)
            if chain is not None:
                return _dropped(name, chain, packet, inside)
    return Check(name, True, "no rule is known to drop what neighbours send, or the answers")


def _dropping(chains: list[Chain], packet: Packet, drops: Callable[[Chain, Packet], bool]) -> Chain | None:
    """Return the first chain in force that drops a packet, or None. Args: drops: says whether a chain does."""
    return next((each for each in chains if drops(each, packet) and _is_in_force(each)), None)


def _drops(chain: Chain, packet: Packet) -> bool:
    """Say whether a chain drops TCP and UDP to (or from) port 443 for certain.

    Before FORWARD, nobody knows by which interface a packet leaves, its state, or the final address of an answer that
    NAT translates.
    """
    asks = packet.state == "new"
    if chain.hook in ("prerouting", "ingress"):
        packet = replace(packet, outward="", destination=packet.destination if asks else None, state="")
    elif chain.hook != "forward":
        return False
    kinds = (replace(packet, protocol=each, port=_PORT if asks else 0) for each in ("tcp", "udp"))
    return all(verdicts.drops(chain, each) for each in kinds)


def _dropped(name: str, chain: Chain, packet: Packet, mesh: str) -> Check:
    answers = packet.inward != mesh
    what = f"answers to neighbours on {mesh}" if answers else f"what neighbours on {mesh} send"
    lost = "they pay for what is lost" if answers else "nothing is sold"
    found = f"{what} by {packet.outward if not answers else packet.inward} is dropped {_where(chain)}: {lost}"
    both = _accept(chain, inward=mesh), _accept(chain, outward=mesh, answers=True)
    return _not_forwarded(name, found, chain, packet, both)


def _not_forwarded(name: str, found: str, chain: Chain, packet: Packet, both: tuple[str, str]) -> Check:
    """Report a chain that drops what is forwarded.

    Args: both: the commands for the packet and for those the other way. A chain before FORWARD gets one of its own.
    """
    commands = both if chain.hook == "forward" else (_accept(chain, inward=packet.inward),)
    return Check(name, True, found, "; ".join(commands))


def _accept(
    chain: Chain, *, inward: str = "", outward: str = "", answers: bool = False, protocol: str = "", port: int = 0
) -> str:
    """Return the command that puts a rule first in a chain; the rule accepts packets that fit the arguments."""
    if chain.by_nft:
        tests = [f"iifname {inward}"] * bool(inward) + [f"oifname {outward}"] * bool(outward)
        tests += ["ct state established,related"] * answers + [f"{protocol} dport {port}"] * bool(port)
        return " ".join([f"nft insert rule {chain.table} {chain.name}", *tests, "accept"])
    into = "DOCKER-USER" if chain.name == "FORWARD" and "DOCKER-USER" in chain.others else chain.name
    tests = [f"-i {inward}"] * bool(inward) + [f"-o {outward}"] * bool(outward)
    tests += [_ESTABLISHED] * answers + [f"-p {protocol} --dport {port}"] * bool(port)
    return " ".join([f"{chain.table} -I {into}".replace(" -t filter", ""), *tests, "-j ACCEPT"])


def _is_in_force(chain: Chain) -> bool:
    """Say whether a chain's table isn't dormant, which older versions of nft don't show in JSON."""
    nft = find_command("nft") if chain.by_nft else None
    return not nft or "flags dormant" not in xtables.run_or_nothing([nft, "-t", "list", "table", *chain.table.split()])


def _where(chain: Chain) -> str:
    kind = "nft chain" if chain.by_nft else "chain"
    why = "by its policy, as no rule accepts it" if chain.policy == verdicts.DROP else "by a rule"
    return f"in {kind} {chain.name} ({chain.table}), {why}"


def _link(desired: DesiredNetwork, host: Host, chains: list[Chain], protocol: str) -> Iterator[Check]:
    """Warn of INPUT rules that drop the link's port, if they do so for every IP version that a mesh interface has."""
    port = desired.link_port
    for name in desired.mesh_interfaces[:_INTERFACES_ASKED]:
        by: dict[int, Chain | None] = {}
        for version in host.versions(name):
            packet = Packet(version, name, protocol=protocol, port=port, state="new")
            by[version] = _dropping(
                chains, packet, lambda chain, one: chain.hook == "input" and verdicts.drops(chain, one)
            )
        dropping = [chain for chain in by.values() if chain is not None]
        if not by or len(dropping) < len(by):
            continue
        found = f"neighbours' messages on {name} ({protocol.upper()} port {port}) are dropped {_where(dropping[0])}"
        commands = [_accept(chain, inward=name, protocol=protocol, port=port) for chain in dropping]
        yield Check(f"link on {name}", True, found, "; ".join(dict.fromkeys(commands)))


# --- tenants ----------------------------------------------------------------------------------------------------------


def _asked_by_tenants(let: LetTraffic, host: Host, chains: list[Chain]) -> Iterator[Check]:
    """Warn of rules that drop what tenants send to this host: into the tunnel, and to the faces where they ask."""
    here = host.networks(let.outside)
    versions = let.tunnel_versions or {network.version for network in here}
    asked = [(Packet(version, let.outside, protocol="udp", port=let.tunnel_port), "tunnel") for version in versions]
    for text, port in let.faces:
        address = ip_address(text)
        if address.is_loopback:
            continue  # a program on this host is in front of the face, and its port isn't known
        is_there = address.is_unspecified or any(address in network for network in here)
        packet = Packet(address.version, let.outside if is_there else "", protocol="tcp", port=port)
        asked.append((packet if address.is_unspecified else replace(packet, destination=address), "face"))
    for packet, what in sorted(asked, key=lambda one: (one[0].protocol != "udp", one[0].port, one[0].version)):
        chain = _dropping(chains, packet, _drops_here)
        if chain is not None:
            named = f"{packet.protocol.upper()} port {packet.port}"
            lost = "tenants' packets don't arrive" if what == "tunnel" else "no tenant can ask there"
            found = f"what tenants send to the {what}'s {named} is dropped {_where(chain)}: {lost}"
            remedy = _accept(chain, protocol=packet.protocol, port=packet.port)
            yield Check(f"firewall IPv{packet.version} {named}", True, found, remedy)


def _drops_here(chain: Chain, packet: Packet) -> bool:
    """Say whether a chain drops a packet to this host for certain."""
    if chain.hook == "input":
        return verdicts.drops(chain, replace(packet, state="new"))
    return chain.hook in ("prerouting", "ingress") and verdicts.drops(chain, packet)


def _to_tenants(let: LetTraffic, tunnel: str, chains: list[Chain], version: int) -> Check:
    """Warn of rules that drop what is forwarded to tenants or from them.

    Either end may begin: tenants' addresses are static.
    """
    name, there = f"firewall IPv{version} to tenants", ip_address(onward.SAMPLES[version][0])
    pools = [pool for pool in let.pools if pool.version == version]
    for pool, state in product(pools[:_INTERFACES_ASKED], ("new", "established")):
        for packet in (
            Packet(version, let.outside, tunnel, there, pool[0], state=state),
            Packet(version, tunnel, let.outside, pool[0], there, state=state),
        ):
            chain = _dropping(chains, packet, _drops)
            if chain is None:
                continue
            way = (packet.inward, packet.outward)
            found = f"what goes from {way[0]} to {way[1]} is dropped {_where(chain)}: tenants pay for what is lost"
            both = _accept(chain, inward=way[0], outward=way[1]), _accept(chain, inward=way[1], outward=way[0])
            return _not_forwarded(name, found, chain, packet, both)
    return Check(name, True, f"no rule is known to drop what passes between {let.outside} and {tunnel}")
