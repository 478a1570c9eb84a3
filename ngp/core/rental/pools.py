"""Pools: which networks are free, and which one a tenant gets. No network is given out twice.

The free part of a pool is kept as the fewest blocks that cover it. A network is cut from the smallest block that holds
it, the lowest first, so large blocks stay whole as long as possible; what is given back joins its neighbours again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from ngp.core.messages import Prefix
from ngp.core.rental.terms import Pool


class FreeNetworks:
    """What is free in some pools.

    Args:
        pools: they must not overlap.
        taken: networks that are let or held already; those outside the pools are ignored. They may be wider than a pool
            that was part of a wider one when they were let.
    """

    def __init__(self, pools: Sequence[Pool], taken: Iterable[Prefix] = ()) -> None:
        self._pools = tuple(pools)
        self._free: list[dict[int, set[Prefix]]] = [{} for _ in pools]
        for number in range(len(self._pools)):
            self._give_back_whole(number)
        for network in taken:
            self.take(network)

    def find(self, version: int, bits: int, among: Sequence[int] = ()) -> Prefix | None:
        """Return the free network that a tenant should get, without taking it; None if there is none.

        Args:
            version: 4 or 6. bits: the network's prefix length.
            among: numbers of pools; empty: all.
        """
        found = [
            (size, -number, -int(block.network_address), block)
            for number, pool in enumerate(self._pools)
            if pool.prefix.version == version and (not among or number in among)
            for size, blocks in self._free[number].items()
            if size <= bits
            for block in blocks
        ]
        return ip_network((max(found)[3].network_address, bits)) if found else None

    def is_free(self, network: Prefix) -> bool:
        """Say whether all of a network is free."""
        number = self._pool_of(network)
        if number is None:
            return False
        sizes = range(network.prefixlen, self._pools[number].prefix.prefixlen - 1, -1)
        return any(network.supernet(new_prefix=size) in self._free[number].get(size, ()) for size in sizes)

    def take(self, network: Prefix) -> None:
        """Take what is free of a network, so that nobody gets any part of it."""
        number = self._pool_of(network)
        if number is None:
            for inside in self._pools_in(network):
                self._free[inside].clear()
            return
        blocks = self._free[number]
        for size in range(network.prefixlen, self._pools[number].prefix.prefixlen - 1, -1):
            block = network.supernet(new_prefix=size)
            if block in blocks.get(size, ()):
                blocks[size].remove(block)
                while block != network:
                    low, high = block.subnets()
                    block, rest = (low, high) if network.subnet_of(low) else (high, low)  # type: ignore[arg-type]
                    blocks.setdefault(rest.prefixlen, set()).add(rest)
                return
        for each in blocks.values():  # parts of it are taken: take the rest
            each -= {one for one in each if one.subnet_of(network)}  # type: ignore[arg-type]

    def give_back(self, network: Prefix) -> None:
        """Make a network free that was taken before, and join it with what is free beside it."""
        number = self._pool_of(network)
        if number is None:
            for inside in self._pools_in(network):
                self._give_back_whole(inside)
            return
        if any(one.overlaps(network) for one in self._pools[number].excluded):
            return  # net.conf no longer lets it
        blocks, block = self._free[number], network
        while block != self._pools[number].prefix:
            above = block.supernet()
            low, high = above.subnets()
            other = high if block == low else low
            if other not in blocks.get(other.prefixlen, ()):
                break
            blocks[other.prefixlen].remove(other)
            block = above
        blocks.setdefault(block.prefixlen, set()).add(block)

    def count(self, version: int, bits: int, among: Sequence[int] = ()) -> int:
        """Return how many networks of a size are free."""
        return sum(
            len(blocks) << (bits - size)
            for number, pool in enumerate(self._pools)
            if pool.prefix.version == version and (not among or number in among)
            for size, blocks in self._free[number].items()
            if size <= bits
        )

    def blocks(self) -> tuple[Prefix, ...]:
        """Return the fewest networks that cover what is free, IPv4 first."""
        found = (block for by_size in self._free for blocks in by_size.values() for block in blocks)
        return tuple(sorted(found, key=lambda one: (one.version, one)))

    def _give_back_whole(self, number: int) -> None:
        pool = self._pools[number]
        self._free[number] = {pool.prefix.prefixlen: {pool.prefix}}
        for part in pool.excluded:
            self.take(part)

    def _pools_in(self, network: Prefix) -> list[int]:
        pools = enumerate(self._pools)
        return [
            number
            for number, pool in pools
            if pool.prefix.version == network.version and pool.prefix.subnet_of(network)  # type: ignore[arg-type]
        ]

    def _pool_of(self, network: Prefix) -> int | None:
        for number, pool in enumerate(self._pools):
            if pool.prefix.version == network.version and network.subnet_of(pool.prefix):  # type: ignore[arg-type]
                return number
        return None


def networks_text(networks: Iterable[Prefix]) -> str:
    """Write networks as the ledger has them, IPv4 first."""
    return " ".join(map(str, sorted(networks, key=lambda one: (one.version, one))))


def networks_of(text: str) -> tuple[Prefix, ...]:
    """Read what `networks_text` wrote."""
    return tuple(map(ip_network, text.split()))
