"""Firewall: whether the operator's own rules drop what the gate sells, or the link's messages, before ngp sees them.

Many routers drop what they forward by default: Docker, ufw and firewalld set that up. Then no packet reaches the gate,
which comes after these rules, and nothing is sold. So a sample packet in either direction is led through the rules.
Rules that can't be judged (`verdicts`) cause no warning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import product

from ngp.core.values import Check, DesiredNetwork
from ngp.modules.commands import find_command
from ngp.modules.network import onward, rights, verdicts, xtables
from ngp.modules.network.host import Host
from ngp.modules.network.verdicts import Chain, Packet

_INTERFACES_ASKED, _PORT = 4, 443
_ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED"


def check(desired: DesiredNetwork, host: Host, forwarded: frozenset[int]) -> Iterator[Check]:
    """Warn of rules that drop neighbours' packets, the answers to them, or messages of the link.

    Args: forwarded: the IP versions that this host forwards.
    """
    if not desired.mesh_interfaces:
        return
    if not rights.holds(rights.NET_ADMIN):
        yield rights.not_tried("firewall")
        return
    chains = _chains()
    if desired.sells:
        for version in sorted(desired.families & forwarded):
            yield _forwarding(desired, host, chains, version)
    for protocol in desired.link_protocols:
        yield from _link(desired, host, chains, protocol)


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
            chain = next((each for each in chains if _drops(each, packet) and _is_in_force(each)), None)
            if chain is not None:
                return _dropped(name, chain, packet, inside)
    return Check(name, True, "no rule is known to drop what neighbours send, or the answers")


def _drops(chain: Chain, packet: Packet) -> bool:
    """Say whether a chain drops TCP and UDP to (or from) port 443 for certain.

    Before FORWARD a packet's way out and state aren't settled, nor is the address of an answer that NAT translates.
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
    if chain.by_nft:
        insert = f"nft insert rule {chain.table} {chain.name}"
        both = f"{insert} iifname {mesh} accept; {insert} oifname {mesh} ct state established,related accept"
        return Check(name, True, found, both if chain.hook == "forward" else f"{insert} iifname {packet.inward} accept")
    into = "DOCKER-USER" if chain.name == "FORWARD" and "DOCKER-USER" in chain.others else chain.name
    insert = f"{chain.table} -I {into}".replace(" -t filter", "")
    both = f"{insert} -i {mesh} -j ACCEPT; {insert} -o {mesh} {_ESTABLISHED} -j ACCEPT"
    return Check(name, True, found, both if chain.hook == "forward" else f"{insert} -i {packet.inward} -j ACCEPT")


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
            here = (each for each in chains if each.hook == "input" and verdicts.drops(each, packet))
            by[version] = next(filter(_is_in_force, here), None)
        dropping = [chain for chain in by.values() if chain is not None]
        if not by or len(dropping) < len(by):
            continue
        found = f"neighbours' messages on {name} ({protocol.upper()} port {port}) are dropped {_where(dropping[0])}"
        commands = [
            f"nft insert rule {chain.table} {chain.name} iifname {name} {protocol} dport {port} accept"
            if chain.by_nft
            else f"{chain.table} -I {chain.name} -i {name} -p {protocol} --dport {port} -j ACCEPT".replace(
                " -t filter", ""
            )
            for chain in dropping
        ]
        yield Check(f"link on {name}", True, found, "; ".join(dict.fromkeys(commands)))
