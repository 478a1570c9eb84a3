"""Coverage: which contract covers an address, per role and neighbour. The same answer as the kernel's tables give."""

from __future__ import annotations

from ngp.core.contract import Contract
from ngp.core.messages import Address, Prefix, Role

Key = tuple[Role, int, int, int, int]  # role, neighbour, version, prefix length, network


class Coverage:
    """Longest-prefix match over contracts; one dictionary probe for each prefix length that a neighbour uses."""

    def __init__(self) -> None:
        self._contracts: dict[Key, Contract] = {}
        self._lengths: dict[tuple[Role, int, int], dict[int, int]] = {}

    @staticmethod
    def _key(contract: Contract) -> Key:
        prefix = contract.destination
        return (
            contract.role,
            contract.neighbour,
            prefix.version,
            prefix.prefixlen,
            int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen),
        )

    def add(self, contract: Contract) -> None:
        """Enter a contract; it takes the place of one for the same neighbour and prefix."""
        key = self._key(contract)
        if key not in self._contracts:
            lengths = self._lengths.setdefault(key[:3], {})
            lengths[key[3]] = lengths.get(key[3], 0) + 1
        self._contracts[key] = contract

    def remove(self, contract: Contract) -> None:
        """Take a contract out, unless another one took its place."""
        key = self._key(contract)
        if self._contracts.get(key) is not contract:
            return
        del self._contracts[key]
        lengths = self._lengths[key[:3]]
        lengths[key[3]] -= 1
        if not lengths[key[3]]:
            del lengths[key[3]]
            if not lengths:
                del self._lengths[key[:3]]

    def exact(self, role: Role, neighbour: int, prefix: Prefix) -> Contract | None:
        """Find the contract for exactly this prefix."""
        network = int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)
        return self._contracts.get((role, neighbour, prefix.version, prefix.prefixlen, network))

    def find(self, role: Role, neighbour: int, address: Address) -> Contract | None:
        """Find the contract with the longest prefix that covers an address."""
        version, value, bits = address.version, int(address), address.max_prefixlen
        for length in sorted(self._lengths.get((role, neighbour, version), ()), reverse=True):
            contract = self._contracts.get((role, neighbour, version, length, value >> (bits - length)))
            if contract is not None:
                return contract
        return None
