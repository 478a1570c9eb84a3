"""Openings: how many contracts may be opened that come to nothing.

A contract costs the other side a row and two lines in its ledger and a slot in its kernel, and a neighbour that accepts
and cancels in turn, or proposes and cuts, nothing but signatures. So every opening is counted until the contract shows
its worth: to a server, bytes that stand on paid money; to a client, something that it sent itself. Neither a balance
nor an accept is enough, since both are there again after the contract was cancelled. Who trades can open as many at
once as it likes: the count goes down as fast as the counters are read. What came to nothing is forgiven slowly.

Counted where it can't be shed: for somebody that money has passed to or from, by identity; for all others by link
address, and together by interface, since keys and link addresses cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Role

MOST_OF_TRADER = 4096
MOST_OF_STRANGER = 1024
MOST_OF_STRANGERS = 4096
FORGIVEN_AN_HOUR = 1024
TOLD_EVERY_S = 60.0
_FORGIVEN_A_SECOND = FORGIVEN_AN_HOUR / 3600


@dataclass(frozen=True, slots=True)
class Pool:
    """Where openings are counted, with the most that it takes; `holder` is an identity, a link address, or everybody"""

    role: Role
    interface: str
    holder: bytes | None
    most: int


Pools = tuple[Pool, ...]


def pools_of(role: Role, identity: bytes, link: tuple[str, bytes], trades: bool) -> Pools:
    """Say where the openings of a neighbour count.

    Args:
        role: ours in the contract.
        trades: money has passed between us in this role.
    """
    if trades:
        return (Pool(role, "", identity, MOST_OF_TRADER),)
    interface, link_address = link
    return (
        Pool(role, interface, link_address, MOST_OF_STRANGER),
        Pool(role, interface, None, MOST_OF_STRANGERS),
    )


class Openings:
    """The counts. Args of its methods: now_mono_s: monotonic seconds."""

    def __init__(self) -> None:
        self._levels: dict[Pool, tuple[float, float]] = {}  # how many, at what time; longest untouched first
        self._told_mono_s = float("-inf")

    def __len__(self) -> int:
        return len(self._levels)

    def level(self, pool: Pool, now_mono_s: float) -> float:
        """Return how many count in a pool, >= 0."""
        level, then = self._levels.get(pool, (0.0, now_mono_s))
        return max(0.0, level - (now_mono_s - then) * _FORGIVEN_A_SECOND)

    def has_room(self, pools: Pools, now_mono_s: float) -> bool:
        """Say whether one more may be opened."""
        return all(self.level(pool, now_mono_s) + 1 <= pool.most for pool in pools)

    def count(self, pools: Pools, now_mono_s: float, by: int = 1) -> None:
        """Count openings, or (negative) give them back."""
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

    def should_tell(self, now_mono_s: float) -> bool:
        """Say whether it is time for another word to the operator about a full pool."""
        tells = now_mono_s - self._told_mono_s >= TOLD_EVERY_S
        if tells:
            self._told_mono_s = now_mono_s
        return tells
