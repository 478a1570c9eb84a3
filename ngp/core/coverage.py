"""Coverage: find the contract that covers an address, among our sales or our purchases. The kernel finds the same one.

A contract belongs to an identity, not to a link: for one destination there is one contract, whichever of the
neighbour's links a packet comes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from ngp.core.contract import Contract
from ngp.core.messages import Address, Prefix
from ngp.core.prefixes import PackedPrefix

OneSide = TypeVar("OneSide", bound=Contract)


class Coverage(Generic[OneSide]):
    """Longest-prefix match over contracts; one dictionary probe for each prefix length that a neighbour uses."""

    def __init__(self) -> None:
        # By (identity, version), by prefix length, by the network's first address. The address is packed, as the hash
        # of bytes can't be foreseen: a client could choose a hundred thousand IPv6 addresses that have one hash as
        # numbers, and each look-up would go through all of them.
        self._contracts: dict[tuple[bytes, int], dict[int, dict[bytes, OneSide]]] = {}

    def add(self, contract: OneSide) -> None:
        """Enter a contract; it replaces another one for the same neighbour and prefix."""
        version, bits, address = contract.destination
        lengths = self._contracts.setdefault((contract.identity, version), {})
        lengths.setdefault(bits, {})[address] = contract

    def remove(self, contract: OneSide) -> None:
        """Take a contract out, unless another one has replaced it."""
        version, bits, address = contract.destination
        lengths = self._contracts.get((contract.identity, version), {})
        of_length = lengths.get(bits, {})
        if of_length.get(address) is not contract:
            return
        del of_length[address]
        if not of_length:
            del lengths[bits]
            if not lengths:
                del self._contracts[contract.identity, version]

    def exact(self, identity: bytes, prefix: Prefix) -> OneSide | None:
        """Find the contract for exactly this prefix."""
        lengths = self._contracts.get((identity, prefix.version), {})
        return lengths.get(prefix.prefixlen, {}).get(prefix.network_address.packed)

    def find(self, identity: bytes, address: Address) -> OneSide | None:
        """Find the contract with the longest prefix that covers an address."""
        return next(self._covering(identity, address, address.max_prefixlen), None)

    def covering(self, identity: bytes, prefix: Prefix) -> OneSide | None:
        """Find the contract with the longest prefix that covers all of a prefix."""
        return next(self.all_covering(identity, prefix), None)

    def all_covering(self, identity: bytes, prefix: Prefix) -> Iterator[OneSide]:
        """Yield a neighbour's contracts that cover all of a prefix, the one with the longest prefix first."""
        return self._covering(identity, prefix.network_address, prefix.prefixlen)

    def within(self, identity: bytes, prefix: PackedPrefix) -> Iterator[OneSide]:
        """Yield the contracts for narrower prefixes inside one."""
        first, last = prefix.address, prefix.last_address
        for length, contracts in self._contracts.get((identity, prefix.version), {}).items():
            if length > prefix.bits:  # a neighbour may have tens of thousands, so each is only compared
                yield from [one for address, one in contracts.items() if first <= address <= last]

    def _covering(self, identity: bytes, address: Address, most_bits: int) -> Iterator[OneSide]:
        lengths = self._contracts.get((identity, address.version), {})
        value, bits = int(address), address.max_prefixlen
        for length in sorted(lengths, reverse=True):
            if length > most_bits:
                continue
            network = value >> (bits - length) << (bits - length)
            contract = lengths[length].get(network.to_bytes(bits // 8, "big"))
            if contract is not None:
                yield contract
