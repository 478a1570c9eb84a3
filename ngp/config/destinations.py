"""Destinations: parses the entries of FREE_DESTINATIONS, PAYMENT_SERVICES and TENANT_BESIDE, and prefixes.

A prefix with host bits is refused, not rounded: `10.0.0.1/8` may mean one host or sixteen million, and that decides
what a neighbour has to pay for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Network, ip_network

from ngp.config.document import Entries, Node, Scalar, refuse
from ngp.config.values import fields_of, one_or_list, scalar
from ngp.core.messages import Address, Prefix
from ngp.core.settings import FreeDestination
from ngp.core.tenant.way import Way

PROTOCOL_NUMBERS: Mapping[str, int] = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "ospf": 89,
    "sctp": 132, "udplite": 136,
}  # fmt: skip
_SERVICE_PROTOCOLS = ("tcp", "udp")
_WITH_PORT = re.compile(r"([0-9.]{7,15}|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", re.ASCII)
_PORT_PROTOCOLS = ("tcp", "udp", "sctp", "dccp", "udplite")


def prefix(node: Node) -> Prefix:
    """Parse a destination: an address, or a prefix without host bits. Raises Refused."""
    text = scalar(node, "a prefix").text
    try:
        return _no_scope(ip_network(text))
    except ValueError:
        pass
    try:
        wider = _no_scope(ip_network(text, strict=False))
    except ValueError as error:
        raise refuse(node, "is not a prefix: write for example 198.51.100.0/24, 2001:db8::/32 or an address") from error
    raise refuse(node, f"has host bits set: write {wider}, or the address alone")


def _no_scope(network: Prefix) -> Prefix:
    if isinstance(network, IPv6Network) and network.network_address.scope_id:
        raise ValueError("a destination has no interface")
    return network


# --- FREE_DESTINATIONS ------------------------------------------------------------------------------------------------


_NOUNS = {
    "prefix": ("a destination", "192.0.2.53 or 192.0.2.53 udp 53"),
    "address": ("a payment service", "192.0.2.7 9735 or 192.0.2.7 udp 9735"),
}


def free_destinations(node: Node) -> tuple[FreeDestination, ...]:
    """Read FREE_DESTINATIONS: prefixes, `PREFIX PROTOCOL PORT` or {prefix, protocol, port}. Raises Refused."""
    return one_or_list(node, _free_destination)


def _free_destination(node: Node) -> FreeDestination:
    if isinstance(node, Scalar) and (joined := _WITH_PORT.fullmatch(node.text)):
        raise refuse(node, f"has its port behind a colon: write {joined[1].strip('[]')} tcp {joined[2]}")
    entry = node if isinstance(node, Entries) else _from_words(scalar(node, "a prefix"))
    parsers = {"prefix": prefix, "protocol": _protocol, "port": _port}
    fields = fields_of(entry, parsers, has_names=entry is node)
    if "prefix" not in fields:
        raise refuse(node, "has no prefix: write {prefix: 192.0.2.53, protocol: udp, port: 53}")
    where: Prefix = fields["prefix"]
    protocol: str | None = fields.get("protocol")
    if "port" in fields and protocol not in _PORT_PROTOCOLS:
        raise refuse(node, f"has a port without its protocol: write one of {', '.join(_PORT_PROTOCOLS)} before it")
    if (protocol, where.version) in (("icmp", 6), ("icmpv6", 4)):
        raise refuse(node, f"is not of {protocol}'s IP version: write {'icmp' if where.version == 4 else 'icmpv6'}")
    return FreeDestination(where, protocol, fields.get("port"))


def _from_words(written: Scalar, where: str = "prefix", least: int = 1) -> Entries:
    words = written.text.split()
    names = (where, "port") if len(words) == 2 and words[1].isdigit() else (where, "protocol", "port")
    if not least <= len(words) <= len(names):
        noun, right = _NOUNS[where]
        raise refuse(written, f"is not {noun}: write {right}")
    parts = zip(names, words, strict=False)
    return Entries(
        tuple((Scalar(name, written.line), Scalar(word, written.line)) for name, word in parts), written.line
    )


def _protocol(node: Node) -> str:
    name = scalar(node, "a protocol").text
    if name not in PROTOCOL_NUMBERS:
        raise refuse(node, f"is not a protocol that ngp knows: write one of {', '.join(PROTOCOL_NUMBERS)}")
    return name


def _port(node: Node) -> int:
    text = scalar(node, "a port").text
    if re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII) is None or int(text) > 65535:
        raise refuse(node, "is not a port: write a whole number from 1 to 65535")
    return int(text)


# --- TENANT_BESIDE ----------------------------------------------------------------------------------------------------


def ways(node: Node) -> tuple[Way, ...]:
    """Read TENANT_BESIDE: as FREE_DESTINATIONS, but of protocols only tcp and udp. Raises Refused."""
    return one_or_list(node, _way)


def _way(node: Node) -> Way:
    found = _free_destination(node)
    if found.protocol not in (None, *_SERVICE_PROTOCOLS):
        raise refuse(node, f"has the protocol {found.protocol}: write tcp, udp, or none for all protocols")
    return Way(found.prefix, found.protocol or "", found.port or 0)


# --- PAYMENT_SERVICES -------------------------------------------------------------------------------------------------


def payment_services(node: Node) -> tuple[FreeDestination, ...]:
    """Read PAYMENT_SERVICES: `ADDRESS PORT`, `ADDRESS PROTOCOL PORT` or {address, port, protocol}. Raises Refused."""
    return one_or_list(node, _payment_service)


def _payment_service(node: Node) -> FreeDestination:
    """Read one port of one host. Nothing wider is allowed, since traffic to it is free."""
    entry = node if isinstance(node, Entries) else _from_words(scalar(node, "a payment service"), "address", 2)
    parsers = {"address": _host, "protocol": _service_protocol, "port": _port}
    fields = fields_of(entry, parsers, has_names=entry is node)
    protocol: str = fields.get("protocol", "tcp")
    if "address" not in fields or "port" not in fields:
        raise refuse(node, "is not a port of a host: write 192.0.2.7 9735 or {address: 192.0.2.7, port: 9735}")
    return FreeDestination(fields["address"], protocol, fields["port"])


def _service_protocol(node: Node) -> str:
    """Read a service's protocol. It must have ports, since only the port shows which packets are answers."""
    name = scalar(node, "a protocol").text
    if name not in _SERVICE_PROTOCOLS:
        raise refuse(node, "is not a payment service's protocol: write tcp or udp, and one port after it")
    return name


def _host(node: Node) -> Prefix:
    """Read the address of one host, this router or one behind it. Raises Refused."""
    try:
        where = _no_scope(ip_network(scalar(node, "an address").text))
    except ValueError as error:
        raise refuse(node, "is not an address: write for example 192.0.2.7; names aren't looked up") from error
    if where.prefixlen < where.max_prefixlen:
        raise refuse(node, "is not one host: write its own address, and an entry for each host and port")
    if not is_forwarded_to(where.network_address):
        raise refuse(node, "is an address that routers forward nothing to: write another address of the host")
    return where


def is_forwarded_to(address: Address) -> bool:
    """Say whether an address is of a kind that routers forward packets to."""
    return not (address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local)
