"""Routing rules: list, make and delete what `ip rule` shows, over rtnetlink.

Source: linux/fib_rules.h; fib6_rule_match in net/ipv6/fib6_rules.c
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from ipaddress import ip_address

from ngp.core.messages import Address
from ngp.modules.netlink import CREATE, EXCLUSIVE, Asker, attribute, attributes, text
from ngp.modules.rtnetlink import MAIN_TABLE, kernel_errors

KERNELS_TABLES = frozenset({0, 253, MAIN_TABLE, 255})
"""The tables that every host has: the default, main and local one. 0: a rule that names no table."""
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER = struct.Struct("=BxB4xBI")  # struct fib_rule_hdr: family, bits of the source, action, flags
_TO_TABLE = 1
_FIND_SADDR = 0x00010000  # of IPv6: a packet without a source matches if the route would give it this one
_SRC, _IIFNAME, _PRIORITY, _FWMARK, _SUPPRESS_PREFIXLEN, _TABLE, _PROTOCOL = 2, 3, 6, 10, 14, 15, 21
_IP_PROTO, _SPORT_RANGE, _DPORT_RANGE = 22, 23, 24
_PORTS = struct.Struct("=HH")  # struct fib_rule_port_range
_LOCAL = "lo"  # where packets of this host's own seem to come from
_NONE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule that has packets looked up in a table.

    Attributes:
        priority: rules are asked in this order.
        most_ignored: a route of this prefix length, or of a shorter one, isn't taken from the table; None: every route
            is taken.
        port, source: if given, the rule is for this host's own UDP packets from this port that have no source yet, and
            only for those. An IPv6 packet has to get this source by the route; for IPv4 the source is 0.0.0.0.
    """

    version: int
    priority: int
    table: int
    most_ignored: int | None = None
    port: int = 0
    source: Address | None = None


def rules_by(kernel: Asker, protocol: int) -> set[Rule]:
    """List the rules that a program made. Args: protocol: the number that it gave them. Raises KernelError."""
    return {_rule(version, said) for version, said in _listed(kernel) if _maker(said) == protocol}


def rules_by_others(kernel: Asker, protocol: int) -> list[Rule]:
    """List the rules of other programs for what comes from outside, or from anywhere. Raises KernelError."""
    return [_rule(version, said) for version, said in _listed(kernel) if _maker(said) != protocol and not _local(said)]


def rules_test_more(kernel: Asker, version: int) -> bool:
    """Say whether a rule tests a mark, a protocol or ports, which the question of `rtnetlink.ask_way` doesn't name.

    Rules for this host's own packets (`iif lo`) don't count. Raises KernelError.
    """
    tests = {_FWMARK, _IP_PROTO, _SPORT_RANGE, _DPORT_RANGE}
    return any(of == version and not _local(said) and not tests.isdisjoint(said) for of, said in _listed(kernel))


def bring(kernel: Asker, standing: Set[Rule], wanted: Set[Rule], protocol: int) -> None:
    """Make the rules that stand exactly as wanted: first add, in the order in which they are asked; then delete.

    Raises OSError.
    """
    for rule in sorted(wanted - standing, key=_order):
        kernel.order(_NEWRULE, _body(rule, protocol), CREATE | EXCLUSIVE)
    for rule in sorted(standing - wanted, key=_order, reverse=True):
        try:
            kernel.order(_DELRULE, _body(rule, protocol))
        except OSError as error:
            if error.errno != errno.ENOENT:  # it is gone already
                raise


def _order(rule: Rule) -> tuple[int, int]:
    return rule.priority, rule.version


def _listed(kernel: Asker) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield the attributes of all rules, with their IP version."""
    with kernel_errors("routing rules can't be listed"):
        for version, family in _FAMILY.items():
            for message in kernel.dump(_GETRULE, _HEADER.pack(family, 0, 0, 0)):
                yield version, dict(attributes(message[_HEADER.size :]))


def _maker(said: Mapping[int, bytes]) -> int:
    return said.get(_PROTOCOL, b"\0")[0]


def _local(said: Mapping[int, bytes]) -> bool:
    return text(said.get(_IIFNAME, b"")) == _LOCAL


def _rule(version: int, said: Mapping[int, bytes]) -> Rule:
    ignored = _number(said, _SUPPRESS_PREFIXLEN, _NONE)
    port = _PORTS.unpack(said.get(_SPORT_RANGE, bytes(_PORTS.size)))[0] if _local(said) else 0
    return Rule(
        version,
        _number(said, _PRIORITY),
        _number(said, _TABLE),
        None if ignored == _NONE else ignored,
        port,
        ip_address(said[_SRC]) if port and _SRC in said else None,
    )


def _body(rule: Rule, protocol: int) -> bytes:
    source, flags, more = b"", 0, b""
    if rule.source is not None:
        source, flags = rule.source.packed, _FIND_SADDR if rule.version == 6 else 0
        more = attribute(_SRC, source) + attribute(_IIFNAME, _LOCAL.encode() + b"\0")
        more += attribute(_IP_PROTO, bytes([socket.IPPROTO_UDP]))
        more += attribute(_SPORT_RANGE, _PORTS.pack(rule.port, rule.port))
    if rule.most_ignored is not None:
        more += _number_attribute(_SUPPRESS_PREFIXLEN, rule.most_ignored)
    body = _HEADER.pack(_FAMILY[rule.version], 8 * len(source), _TO_TABLE, flags)
    body += _number_attribute(_PRIORITY, rule.priority) + _number_attribute(_TABLE, rule.table)
    return body + attribute(_PROTOCOL, bytes([protocol])) + more


def _number(said: Mapping[int, bytes], kind: int, otherwise: int = 0) -> int:
    found: int = struct.unpack("=I", said[kind])[0] if kind in said else otherwise
    return found


def _number_attribute(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))
