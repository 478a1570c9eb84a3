"""Openings: limit how many contracts a neighbour may open that are then not used.

A contract costs us a row and two lines in the ledger and a slot in the kernel. For the neighbour a contract that it
cancels at once costs only signatures, whether it buys from us or sells to us. So we count each contract that is opened,
until the contract is used: a sale when it carried bytes that were paid for, a purchase when we sent something by it.
It isn't enough that the neighbour has a balance or has accepted: it can cancel the contract, and has lost nothing.
An honest neighbour can open thousands of contracts at once: each reading of the counters shows which contracts are
used, and these are taken off its count. The count of contracts that stay unused falls slowly with time.

A neighbour must not be able to escape its count by changing its key or link address, which cost nothing. So the count
is kept by identity only if money has passed between us. Other neighbours are counted by link address, and all of an
interface's other neighbours also together.

What we buy for a client counts against the server, which counts it against us. So each client that paid, and all that
never paid together, may fill only a quarter of a server's count with what we buy for them: one client doesn't keep the
others, or us, from buying there. What the server itself buys for us is a quarter of its own count. So of that a client
may fill half; what has one seller more, again half of that, and so on.
"""

from __future__ import annotations

from typing import NamedTuple

from ngp.core.messages import Role

# How many unused contracts may be open at a time: by a neighbour that has paid us or that we have paid, by any other
# neighbour, and by all those other neighbours of one interface together.
MOST_OF_TRADER = 4096
MOST_OF_STRANGER = 1024
MOST_OF_STRANGERS = 4096
SHARES = 4  # parts of what may be open at a server, of which a client may fill one
FORGIVEN_AN_HOUR = 1024
_FORGIVEN_A_SECOND = FORGIVEN_AN_HOUR / 3600


class Pool(NamedTuple):
    """A count of openings and its limit.

    `holder`: an identity, a link address, or None for the whole interface. `client`: for whom we bought; None: for
    anybody or ourselves; b"": for those that never paid.

    It is a tuple since that is hashed fast: a negotiation looks into the pools some thirty times.
    """

    role: Role
    interface: str
    holder: bytes | None
    most: int
    client: bytes | None = None


Pools = tuple[Pool, ...]


def pools_of(role: Role, identity: bytes, link: tuple[str, bytes], trades: bool) -> Pools:
    """Return the pools in which a neighbour's openings count.

    Args:
        role: our role in the contract.
        trades: whether money has passed between us and the neighbour in this role.
    """
    if trades:
        return (Pool(role, "", identity, MOST_OF_TRADER),)
    interface, link_address = link
    return (
        Pool(role, interface, link_address, MOST_OF_STRANGER),
        Pool(role, interface, None, MOST_OF_STRANGERS),
    )


def share_of(pool: Pool, client: bytes) -> Pool:
    """Return the part of a server's pool that a client may fill. Args: client: b"": those that never paid."""
    return pool._replace(most=pool.most // SHARES, client=client)


class Openings:
    """All counts of openings. The methods' `now_mono_s` is monotonic seconds."""

    def __init__(self) -> None:
        self._levels: dict[Pool, tuple[float, float]] = {}  # (count, when it was last changed); the oldest first

    def __len__(self) -> int:
        return len(self._levels)

    def level(self, pool: Pool, now_mono_s: float) -> float:
        """Return the count of a pool, >= 0."""
        level, then = self._levels.get(pool, (0.0, now_mono_s))
        forgiven_a_second = _FORGIVEN_A_SECOND / (1 if pool.client is None else SHARES)
        return max(0.0, level - (now_mono_s - then) * forgiven_a_second)

    def full(self, pools: Pools, now_mono_s: float, sellers: int = 1) -> Pool | None:
        """Return the first pool in which no more contract may be opened; None: one may be opened.

        Args: sellers: how many nodes sell it to each other, >= 1: the server, the one from which it buys, and so on.
        """
        for pool in pools:
            most = pool.most if pool.client is None else max(1, pool.most >> (sellers - 1))
            if self.level(pool, now_mono_s) + 1 > most:
                return pool
        return None

    def count(self, pools: Pools, now_mono_s: float, by: int = 1) -> None:
        """Add openings to the counts of some pools; a negative number takes them off."""
        for pool in pools:
            level = self.level(pool, now_mono_s) + by
            self._levels.pop(pool, None)
            if level > 0:
                self._levels[pool] = (level, now_mono_s)
        while self._levels:
            oldest = next(iter(self._levels))
            if self.level(oldest, now_mono_s) > 0:
                break
            del self._levels[oldest]
