"""Prefixes: destinations as networks. They are made and compared as numbers; `ipaddress` would use text, slowly."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, Self

from ngp.core.messages import Address, Prefix

MOST_UNPACKED = 4096  # a negotiation asks for its prefix some twenty times in a few milliseconds


class PackedPrefix(NamedTuple):
    """A prefix as contracts keep it: there may be a million of them, and an `IPv4Network` takes 500 bytes and 2 us.

    Attributes: version: 4 or 6. bits: the prefix's length. address: its first address, 4 or 16 bytes.
    """

    version: int
    bits: int
    address: bytes

    @classmethod
    def of(cls, prefix: Prefix) -> Self:
        """Pack a prefix."""
        return cls(prefix.version, prefix.prefixlen, prefix.network_address.packed)

    @property
    def is_default(self) -> bool:
        """True for 0.0.0.0/0 and ::/0, the prefixes of a default route."""
        return self.bits == 0

    @property
    def is_host(self) -> bool:
        """True for a single address."""
        return self.bits == 8 * len(self.address)

    @property
    def is_network(self) -> bool:
        """True for several addresses that are no default route."""
        return 0 < self.bits < 8 * len(self.address)

    def covers(self, other: PackedPrefix) -> bool:
        """Say whether all of another prefix is in this one."""
        if self.version != other.version or self.bits > other.bits:
            return False
        outside = 8 * len(self.address) - self.bits
        return int.from_bytes(self.address, "big") >> outside == int.from_bytes(other.address, "big") >> outside

    @property
    def last_address(self) -> bytes:
        """Its last address, 4 or 16 bytes."""
        rest = (1 << 8 * len(self.address) - self.bits) - 1
        return (int.from_bytes(self.address, "big") | rest).to_bytes(len(self.address), "big")

    @property
    def prefix(self) -> Prefix:
        """The prefix, for those who compute with it or send it."""
        return _unpacked(self)

    def __str__(self) -> str:
        return f"{(IPv4Address if self.version == 4 else IPv6Address)(self.address)}/{self.bits}"


@lru_cache(MOST_UNPACKED)
def _unpacked(packed: PackedPrefix) -> Prefix:
    return (IPv4Network if packed.version == 4 else IPv6Network)((packed.address, packed.bits))


EVERYWHERE: dict[int, Address] = {4: IPv4Address("198.41.0.4"), 6: IPv6Address("2001:503:ba3e::2:30")}
"""By IP version: an address that everybody routes (of a root name server). Nothing is sent there."""


def default_prefix(version: int) -> Prefix:
    """Return the prefix of a default route."""
    return IPv4Network((0, 0)) if version == 4 else IPv6Network((0, 0))


def sample(prefix: Prefix) -> Address:
    """Return an address by which the kernel is asked for the route to a prefix.

    Of a default route that is none of the first ones: no packet can go to 0.0.0.0 or ::.
    """
    return prefix.network_address if prefix.prefixlen else EVERYWHERE[prefix.version]


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
