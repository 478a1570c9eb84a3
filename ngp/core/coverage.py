"""Coverage: find the contract that covers an address, among our sales or our purchases. The kernel finds the same one.

A contract belongs to an identity, not to a link: for one destination there is one contract, whichever of the
neighbour's links a packet comes on.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ngp.core.contract import Contract
from ngp.core.messages import Address, Prefix

Key = tuple[bytes, int, int, int]  # identity, version, prefix length, network
OneSide = TypeVar("OneSide", bound=Contract)


class Coverage(Generic[OneSide]):
    """Longest-prefix match over contracts; one dictionary probe for each prefix length that a neighbour uses."""

    def __init__(self) -> None:
        self._contracts: dict[Key, OneSide] = {}
        self._lengths: dict[tuple[bytes, int], dict[int, int]] = {}

    @staticmethod
    def _key(identity: bytes, prefix: Prefix) -> Key:
        network = int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)
        return (identity, prefix.version, prefix.prefixlen, network)

    def add(self, contract: OneSide) -> None:
        """Enter a contract; it replaces another one for the same neighbour and prefix."""
        key = self._key(contract.identity, contract.destination)
        if key not in self._contracts:
            lengths = self._lengths.setdefault(key[:2], {})
            lengths[key[2]] = lengths.get(key[2], 0) + 1
        self._contracts[key] = contract

    def remove(self, contract: OneSide) -> None:
        """Take a contract out, unless another one has replaced it."""
        key = self._key(contract.identity, contract.destination)
        if self._contracts.get(key) is not contract:
            return
        del self._contracts[key]
        lengths = self._lengths[key[:2]]
        lengths[key[2]] -= 1
        if not lengths[key[2]]:
            del lengths[key[2]]
            if not lengths:
                del self._lengths[key[:2]]

    def exact(self, identity: bytes, prefix: Prefix) -> OneSide | None:
        """Find the contract for exactly this prefix."""
        return self._contracts.get(self._key(identity, prefix))

    def find(self, identity: bytes, address: Address) -> OneSide | None:
        """Find the contract with the longest prefix that covers an address."""
        version, value, bits = address.version, int(address), address.max_prefixlen
        for length in sorted(self._lengths.get((identity, version), ()), reverse=True):
            contract = self._contracts.get((identity, version, length, value >> (bits - length)))
            if contract is not None:
                return contract
        return None
