"""Answers: the tunnel's own packets leave by LANDLORD_OUTSIDE, wherever the default route leads.

A tenant calls an address of LANDLORD_OUTSIDE. Who answers from the address that was called follows the routing rules
for it: the kernel's WireGuard does, and wireguard-go did before its version 0.0.20231211. Later ones forget the address
when the kernel has joined UDP packets, and leave the source to the routing, so their answers would leave by the main
table's default route, from whatever address that gives. Hence a rule of ours: packets from the tunnel's port that have
no source yet use the table that packets from LANDLORD_OUTSIDE's own address use. If that is the main one, no rule is
needed. Packets with a source, and what is forwarded, aren't touched.

Our rules have a priority and a protocol number of their own, so they are found without a record, after a kill too.

Source: linux/fib_rules.h; fib6_rule_match in net/ipv6/fib6_rules.c
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from ngp.core.messages import Address
from ngp.modules import netlink, rtnetlink
from ngp.modules.netlink import Asker, attribute, attributes
from ngp.modules.tunnel.host import PROTOCOL, SAMPLE, Host, or_gone

PRIORITY = 32765
"""Of our rules: just before the main table's, and behind all others. `ip rule del` removes the first rule that fits its
words, so a rule of the operator's that leads packets to the same table must come before ours."""
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_RULE = struct.Struct("=BxB4xBI")  # struct fib_rule_hdr: family, bits of the source, action, flags
_TO_TABLE = 1
_FIND_SADDR = 0x00010000  # of IPv6: a packet without a source matches if the route would give it this one
_SRC, _IIFNAME, _PRIORITY, _TABLE, _PROTOCOL, _IP_PROTO, _SPORT_RANGE = 2, 3, 6, 15, 21, 22, 23
_LOCAL = b"lo\0"  # where packets of this host's own seem to come from
_MAIN = 254


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets from a UDP port of this host's that have no source yet, and may get this one, use a table."""

    source: Address
    port: int
    table: int


def bring_rules(here: Host, outside: str, port: int) -> None:
    """Make our rules right for the addresses and routes of now; those that are right already stay. Raises OSError.

    Args: outside: the interface at whose addresses tenants call. port: the tunnel's UDP port.
    """
    _bring(here.kernel, _wanted(here, outside, port))


def remove_rules(here: Host) -> None:
    """Remove all rules of ours. Raises OSError."""
    _bring(here.kernel, set())


def _bring(kernel: Asker, wanted: set[Rule]) -> None:
    standing = set(_standing(kernel))
    for rule in wanted - standing:
        kernel.order(_NEWRULE, _body(rule), netlink.CREATE | netlink.EXCLUSIVE)
    for rule in standing - wanted:
        or_gone(partial(kernel.order, _DELRULE, _body(rule)))


def _wanted(here: Host, outside: str, port: int) -> set[Rule]:
    found: set[Rule] = set()
    interface = here.interfaces().get(outside)
    if interface is None:
        return found
    for own in rtnetlink.own_addresses(here.kernel):
        if own.index != interface.index or own.local.is_link_local:
            continue
        try:
            table, route = rtnetlink.ask_table(here.kernel, SAMPLE[own.local.version], own.local)
        except OSError:
            continue  # nothing leaves from there
        if table != _MAIN and interface.index in route.interfaces:
            found.add(Rule(_any_before(own.local), port, table))
    return found


def _any_before(own: Address) -> Address:
    """Return what a packet that may get this source has before: IPv4 then has 0.0.0.0 there; IPv6 rules look ahead."""
    return ip_address("0.0.0.0") if own.version == 4 else own


def _standing(kernel: Asker) -> Iterable[Rule]:
    for family in _FAMILY.values():
        for message in kernel.dump(_GETRULE, _RULE.pack(family, 0, 0, 0)):
            said = dict(attributes(message[_RULE.size :]))
            if (said.get(_PROTOCOL), said.get(_PRIORITY)) != (bytes([PROTOCOL]), struct.pack("=I", PRIORITY)):
                continue
            port = struct.unpack("=HH", said.get(_SPORT_RANGE, bytes(4)))[0]
            yield Rule(ip_address(said[_SRC]), port, struct.unpack("=I", said[_TABLE])[0])


def _body(rule: Rule) -> bytes:
    version = rule.source.version
    flags = _FIND_SADDR if version == 6 else 0
    header = _RULE.pack(_FAMILY[version], rule.source.max_prefixlen, _TO_TABLE, flags)
    return header + b"".join([
        attribute(_SRC, rule.source.packed),
        attribute(_IIFNAME, _LOCAL),
        attribute(_PRIORITY, struct.pack("=I", PRIORITY)),
        attribute(_TABLE, struct.pack("=I", rule.table)),
        attribute(_PROTOCOL, bytes([PROTOCOL])),
        attribute(_IP_PROTO, bytes([socket.IPPROTO_UDP])),
        attribute(_SPORT_RANGE, struct.pack("=HH", rule.port, rule.port)),
    ])  # fmt: skip
