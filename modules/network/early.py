"""Early bytes: what we sent to a seller before a contract of ours covered it.

A server holds the first packets to a destination, negotiates, and charges the held packets when it lets them go. Those
packets left our interface before our meter knew of a contract. So our kernel counts, for each destination, as many
first packets as a server holds. (Its table is bounded: the oldest entries make room for new ones.) A client's contract
begins with the early bytes that it covers, so the meters of client and server agree from the first packet on. The
contract is in our kernel before our accept leaves, so no answer can arrive before our meter counts answers.

Anybody can propose contracts for networks, thousands a second, and for each we must know what we sent into the network.
So the table is read in one system call, and searched as one string of bytes, in half a millisecond when it is full.
Contents that were read earlier wouldn't do: the packet that an honest server proposes for was sent a moment ago.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from ngp.core.messages import Address, Prefix
from ngp.core.prefixes import host_prefix
from ngp.modules.bpf import Table
from ngp.modules.network import layout

_MAX_AGE_NS = 3_000_000_000  # older entries don't count, as a server drops packets that it has held for longer
_NUMBER_BYTES = 4
_LATELY_NS = 10_000_000_000  # a packet counts as lately sent for this time, as a proposal for it may be repeated


class EarlyBytes:
    """Reads the kernel's table of early bytes. Args: table: ngp_early."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._batches: list[tuple[bytes, bytes]] | None = None

    @contextmanager
    def read_once(self) -> Iterator[None]:
        """Read the whole table at most once for all calls of `take` in a `with`. The contracts must be in force."""
        self._batches = []
        try:
            yield
        finally:
            self._batches = None

    def sent_lately(self, number: int, destination: Prefix) -> Prefix | None:
        """Return the host, within a destination, to which the latest packet went that we sent without a contract.

        None if there was no such packet in the last 10 s.
        """
        since_ns, latest = time.monotonic_ns() - _LATELY_NS, b""
        for key, value in self._entries(number, destination):
            sent_ns = layout.EARLY_VALUE.unpack(value)[1]
            if sent_ns >= since_ns:
                since_ns, latest = sent_ns, key
        return _host_of(latest, destination.version) if latest else None

    def uncovered(self) -> list[tuple[int, Address, float]]:
        """Return all entries: the number of the neighbour's first link, the host, and an age in seconds.

        The age is that of the entry's first packet. The first packet after 3 s begins the entry anew.
        """
        now_ns, found = time.monotonic_ns(), list[tuple[int, Address, float]]()
        for key, value in self._table.items():
            number, address = layout.EARLY_KEY.unpack(key)
            age_s = (now_ns - layout.EARLY_VALUE.unpack(value)[0]) / 1e9
            found.append((number, ip_address(address if any(address[4:]) else address[:4]), age_s))
        return found

    def take(self, number: int, destination: Prefix) -> int:
        """Return the bytes that a new contract covers and that we sent in the last 3 s, and forget them."""
        oldest_ns, total_bytes = time.monotonic_ns() - _MAX_AGE_NS, 0
        for key, value in self._entries(number, destination):
            _, since_ns, _, sent_bytes = layout.EARLY_VALUE.unpack(value)
            if self._table.delete(key) and since_ns >= oldest_ns:  # else another contract has taken it already
                total_bytes += sent_bytes
        return total_bytes

    def _entries(self, number: int, destination: Prefix) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries of a neighbour whose hosts are within a destination."""
        if layout.is_host(destination):
            key = _key(number, destination)
            value = self._table.get(key)
            if value is not None:
                yield key, value
            return
        begin = _key(number, destination)[: _NUMBER_BYTES + destination.prefixlen // 8]
        is_within = _test_of(destination)
        for keys, values in self._read():
            at = keys.find(begin)
            while at >= 0:
                index, within = divmod(at, layout.EARLY_KEY.size)
                key = keys[at : at + layout.EARLY_KEY.size]
                if not within and is_within(key):
                    first = index * layout.EARLY_VALUE.size
                    yield key, values[first : first + layout.EARLY_VALUE.size]
                at = keys.find(begin, at + 1)

    def _read(self) -> Iterable[tuple[bytes, bytes]]:
        if self._batches is None:
            return self._table.batches()
        if not self._batches:
            self._batches.extend(self._table.batches())
        return self._batches


def _key(number: int, destination: Prefix) -> bytes:
    return layout.EARLY_KEY.pack(number, layout.address_bytes(destination).ljust(16, b"\0"))


def _host_of(key: bytes, version: int) -> Prefix:
    address = layout.EARLY_KEY.unpack(key)[1]
    return host_prefix(ip_address(address[:4] if version == 4 else address))


def _test_of(destination: Prefix) -> Callable[[bytes], bool]:
    """Return a test whether an entry's key is of a host within a prefix. 12 zero bytes follow an IPv4 address."""
    end = _NUMBER_BYTES + destination.max_prefixlen // 8
    shift = destination.max_prefixlen - destination.prefixlen
    wanted, is_ipv4 = int(destination.network_address) >> shift, destination.version == 4
    return lambda key: (
        int.from_bytes(key[_NUMBER_BYTES:end]) >> shift == wanted and is_ipv4 is (key[8:] == bytes(12))
    )
