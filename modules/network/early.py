"""Early bytes: what we sent to a seller before a contract of ours covered it.

A server holds the first packets to a destination, negotiates, and charges the held packets when it lets them go. Those
packets left our interface before our meter knew of a contract. So our kernel counts, for each destination, as many
first packets as a server holds. (Its table is bounded: the oldest entries make room for new ones.) A client's contract
begins with the early bytes that it covers, so the meters of client and server agree from the first packet on. The
contract is in our kernel before our accept leaves, so no answer can arrive before our meter counts answers.
"""

from __future__ import annotations

import time

from ngp.core.messages import Prefix
from ngp.modules.bpf import Table
from ngp.modules.network import layout

_MAX_AGE_NS = 3_000_000_000  # a server drops packets that it has held for longer
_LATELY_NS = 10_000_000_000  # a proposal may still be repeated some seconds after the packet


class EarlyBytes:
    """Reads the kernel's table of early bytes. Args: table: ngp_early."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def sent_lately(self, number: int, destination: Prefix) -> bool:
        """Say whether we sent a neighbour a packet to this host in the last 10 s, without a contract.

        False for a network: routes show where a network is reached (`Host.leads_to`).
        """
        if not layout.is_host(destination):
            return False
        value = self._table.get(_key(number, destination))
        return value is not None and layout.EARLY_VALUE.unpack(value)[1] >= time.monotonic_ns() - _LATELY_NS

    def take(self, number: int, destination: Prefix) -> int:
        """Return the bytes that a new contract covers and that we sent in the last 3 s, and forget them."""
        if layout.is_host(destination):
            key = _key(number, destination)
            value = self._table.get(key)
            found = [(key, value)] if value is not None else []
        else:
            found = [(key, value) for key, value in self._table.items() if _is_within(key, number, destination)]
        oldest_ns, total_bytes = time.monotonic_ns() - _MAX_AGE_NS, 0
        for key, value in found:
            _, since_ns, _, sent_bytes = layout.EARLY_VALUE.unpack(value)
            total_bytes += sent_bytes if since_ns >= oldest_ns else 0
            self._table.delete(key)
        return total_bytes


def _key(number: int, destination: Prefix) -> bytes:
    return layout.EARLY_KEY.pack(number, layout.address_bytes(destination).ljust(16, b"\0"))


def _is_within(key: bytes, number: int, destination: Prefix) -> bool:
    """Say whether an entry belongs to this neighbour and prefix. In its key, 12 zero bytes follow an IPv4 address."""
    whose, address = layout.EARLY_KEY.unpack(key)
    if whose != number or (destination.version == 4) != (address[4:] == bytes(12)):
        return False
    shift = destination.max_prefixlen - destination.prefixlen
    found = int.from_bytes(address[: destination.max_prefixlen // 8])
    return found >> shift == int(destination.network_address) >> shift
