"""Early bytes: what we sent to a seller before a contract of ours covered it.

A server holds the first packets to a destination, negotiates, and charges the held packets when it lets them go. Those
packets left our interface before our meter knew of a contract. So our kernel counts, for each destination, as many
first packets as a server holds. (Its table is bounded: the oldest entries make room for new ones.) A client's contract
begins with the early bytes that it covers, so the meters of client and server agree from the first packet on. The
contract is in our kernel before our accept leaves, so no answer can arrive before our meter counts answers.
"""

from __future__ import annotations

import time
from ipaddress import ip_address

from ngp.core.messages import Prefix
from ngp.core.prefixes import host_prefix
from ngp.modules.bpf import Table
from ngp.modules.network import layout

_MAX_AGE_NS = 3_000_000_000  # a server drops packets that it has held for longer
_LATELY_NS = 10_000_000_000  # a proposal may still be repeated some seconds after the packet


class EarlyBytes:
    """Reads the kernel's table of early bytes. Args: table: ngp_early."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def sent_lately(self, number: int, destination: Prefix) -> Prefix | None:
        """Return the host, within a destination, to which the latest packet went that we sent without a contract.

        None if there was no such packet in the last 10 s.
        """
        since_ns, host = time.monotonic_ns() - _LATELY_NS, None
        for key, value in self._entries(number, destination):
            sent_ns = layout.EARLY_VALUE.unpack(value)[1]
            if sent_ns >= since_ns:
                since_ns, host = sent_ns, _host_of(key, destination.version)
        return host

    def take(self, number: int, destination: Prefix) -> int:
        """Return the bytes that a new contract covers and that we sent in the last 3 s, and forget them."""
        oldest_ns, total_bytes = time.monotonic_ns() - _MAX_AGE_NS, 0
        for key, value in self._entries(number, destination):
            _, since_ns, _, sent_bytes = layout.EARLY_VALUE.unpack(value)
            total_bytes += sent_bytes if since_ns >= oldest_ns else 0
            self._table.delete(key)
        return total_bytes

    def _entries(self, number: int, destination: Prefix) -> list[tuple[bytes, bytes]]:
        if not layout.is_host(destination):
            return [(key, value) for key, value in self._table.items() if _is_within(key, number, destination)]
        key = _key(number, destination)
        value = self._table.get(key)
        return [(key, value)] if value is not None else []


def _key(number: int, destination: Prefix) -> bytes:
    return layout.EARLY_KEY.pack(number, layout.address_bytes(destination).ljust(16, b"\0"))


def _host_of(key: bytes, version: int) -> Prefix:
    address = layout.EARLY_KEY.unpack(key)[1]
    return host_prefix(ip_address(address[:4] if version == 4 else address))


def _is_within(key: bytes, number: int, destination: Prefix) -> bool:
    """Say whether an entry belongs to this neighbour and prefix. In its key, 12 zero bytes follow an IPv4 address."""
    whose, address = layout.EARLY_KEY.unpack(key)
    if whose != number or (destination.version == 4) != (address[4:] == bytes(12)):
        return False
    shift = destination.max_prefixlen - destination.prefixlen
    found = int.from_bytes(address[: destination.max_prefixlen // 8])
    return found >> shift == int(destination.network_address) >> shift
