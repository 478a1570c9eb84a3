"""Answers: the tunnel's own packets leave by LANDLORD_OUTSIDE, wherever the default route leads.

A tenant calls an address of LANDLORD_OUTSIDE. Who answers from the address that was called follows the routing rules
for it: the kernel's WireGuard does, and wireguard-go did before its version 0.0.20231211. Later ones forget the address
when the kernel has joined UDP packets, and leave the source to the routing, so their answers would leave by the main
table's default route, from whatever address that gives. Hence a rule of ours: packets from the tunnel's port that have
no source yet use the table that packets from LANDLORD_OUTSIDE's own address use. If that is the main one, no rule is
needed. Packets with a source, and what is forwarded, aren't touched.

Our rules have a priority and a protocol number of their own, so they are found without a record, after a kill too.
"""

from __future__ import annotations

from collections.abc import Set
from ipaddress import ip_address

from ngp.core.messages import Address
from ngp.modules import routing_rules, rtnetlink
from ngp.modules.routing_rules import Rule
from ngp.modules.rtnetlink import MAIN_TABLE
from ngp.modules.tunnel.host import PROTOCOL, SAMPLE, Host

PRIORITY = 32765
"""Of our rules: just before the main table's, and behind all others. `ip rule del` removes the first rule that fits its
words, so a rule of the operator's that leads packets to the same table must come before ours."""


def bring_rules(here: Host, outside: str, port: int) -> None:
    """Make our rules right for the addresses and routes of now; those that are right already stay. Raises OSError.

    Args: outside: the interface at whose addresses tenants call. port: the tunnel's UDP port.
    """
    _bring(here, _wanted(here, outside, port))


def remove_rules(here: Host) -> None:
    """Remove all rules of ours. Raises OSError."""
    _bring(here, set())


def _bring(here: Host, wanted: Set[Rule]) -> None:
    # `ngp rent up` has the same protocol number and other priorities.
    standing = {rule for rule in routing_rules.rules_by(here.kernel, PROTOCOL) if rule.priority == PRIORITY}
    routing_rules.bring(here.kernel, standing, wanted, PROTOCOL)


def _wanted(here: Host, outside: str, port: int) -> set[Rule]:
    found: set[Rule] = set()
    interface = here.interfaces().get(outside)
    if interface is None:
        return found
    for own in rtnetlink.own_addresses(here.kernel):
        if own.index != interface.index or own.local.is_link_local:
            continue
        version = own.local.version
        try:
            table, route = rtnetlink.ask_table(here.kernel, SAMPLE[version], own.local)
        except OSError:
            continue  # nothing leaves from there
        if table != MAIN_TABLE and interface.index in route.interfaces:
            found.add(Rule(version, PRIORITY, table, port=port, source=_any_before(own.local)))
    return found


def _any_before(own: Address) -> Address:
    """Return what a packet that may get this source has before: IPv4 then has 0.0.0.0 there; IPv6 rules look ahead."""
    return ip_address("0.0.0.0") if own.version == 4 else own
