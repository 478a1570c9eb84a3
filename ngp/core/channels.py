"""Channels of our payment node: what can go over each, who watches the chain for us, and how far the node sees it.

Plain data; `ngp.ports` says who gives it, `ngp.core.reach` what follows for trade.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ngp.core.pricing import SAT_MSAT


class ChannelState(StrEnum):
    """Where a channel is in its life."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


NO_LIMIT_MSAT = 1 << 63


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    """One end of a channel and what it may send by it (BOLT 2, open_channel and update_add_htlc).

    Attributes:
        balance_msat: its part now; what is on its way, and the fee of the commitment, are taken off.
        held_back_msat: of that, what can't be sent: the reserve, and room for the commitment's fee to rise.
        least_htlc_msat, most_htlc_msat: smallest and largest payment that it may send.
        most_in_flight_msat, in_flight_msat: what may be on its way at a time, and what is.
        most_htlcs, htlcs: likewise, their number.
        dust_msat: a payment below it has no output in the commitment: closing the channel while it is on its way gives
            it to the miners.
    """

    balance_msat: int
    held_back_msat: int = 0
    least_htlc_msat: int = 0
    most_htlc_msat: int = NO_LIMIT_MSAT
    most_in_flight_msat: int = NO_LIMIT_MSAT
    in_flight_msat: int = 0
    most_htlcs: int = 483
    htlcs: int = 0
    dust_msat: int = 0


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel of our payment node. What an opening or closing one doesn't tell is 0.

    Attributes:
        peer: public key of the node at the other end, hex.
        point: funding transaction and output, `txid:index`.
        active: payments can go over it now.
        capacity_sat: its size.
        least_htlc_msat: smallest payment that goes over it.
        our_wait_blocks: our coins come free so many blocks after we closed it alone (BOLT 2, to_self_delay).
        our_end, their_end: what may be sent and received now.
        their_wait_blocks: the peer's come free so many blocks after it closed it alone; so long can we, or a
            watchtower, answer an old state. 0: the node doesn't say.
        blocks_left: until it is open, or until our coins are free; 0 where nobody knows yet.
    """

    peer: str
    point: str
    active: bool
    private: bool
    capacity_sat: int
    least_htlc_msat: int
    our_wait_blocks: int
    our_end: ChannelEnd
    their_end: ChannelEnd
    their_wait_blocks: int = 0
    state: ChannelState = ChannelState.OPEN
    blocks_left: int = 0

    @property
    def can_send_sat(self) -> int:
        """What we can pay over it in all, while it is active."""
        return _left_sat(self, self.our_end)

    @property
    def can_receive_sat(self) -> int:
        """What we can be paid over it in all, while it is active."""
        return _left_sat(self, self.their_end)


def _left_sat(channel: Channel, end: ChannelEnd) -> int:
    return max(0, end.balance_msat - end.held_back_msat) // SAT_MSAT if channel.state is ChannelState.OPEN else 0


@dataclass(frozen=True, slots=True)
class Tower:
    """A watchtower that our node knows.

    Attributes:
        key: its public key, hex.
        addresses: `host:port`.
        used: new sessions are made with it.
        sessions: agreed with it; a backup needs one.
        backups, pending_backups: states that it has, and that it was sent or waits to be sent.
    """

    key: str
    addresses: tuple[str, ...]
    used: bool
    sessions: int
    backups: int
    pending_backups: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Who watches the chain for us.

    Attributes:
        active: the node's watchtower client runs; without it no tower can be added.
        towers: those that it knows.
        backups, pending_backups: states handed to towers, and waiting for it, since the node's start.
        failed_backups: states that no tower can punish, since what it could take is too small.
        unknown: why none of this is known (a right that is missing), "" where it is.
    """

    active: bool = False
    towers: tuple[Tower, ...] = ()
    backups: int = 0
    pending_backups: int = 0
    failed_backups: int = 0
    unknown: str = ""

    @property
    def watched(self) -> bool:
        """Whether a tower takes our backups."""
        return any(tower.used and tower.sessions for tower in self.towers)


@dataclass(frozen=True, slots=True)
class ChainView:
    """What our payment node sees of the chain: its height, and whether that is the newest block."""

    height: int
    synced: bool
