"""Prefixes: destinations as networks. They are made and compared as numbers; `ipaddress` would use text, slowly."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

from ngp.core.messages import Address, Prefix


def host_prefix(address: Address) -> Prefix:
    """Return the /32 or /128 of an address."""
    if isinstance(address, IPv4Address):
        return IPv4Network((address.packed, 32))
    return IPv6Network((address.packed, 128))


def covers(outer: Prefix, inner: Prefix) -> bool:
    """Say whether a prefix includes all addresses of another one."""
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    host_bits = outer.max_prefixlen - outer.prefixlen
    return int(inner.network_address) >> host_bits == int(outer.network_address) >> host_bits
