"""Channels of our payment node, and what each can carry.

Plain data from the payment port (`ngp.ports`). `ngp.core.reach` computes from the channels what payments are possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ngp.core.pricing import SAT_MSAT


class ChannelState(StrEnum):
    """Stages of a channel's life."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


NO_LIMIT_MSAT = 1 << 63


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    """One end of a channel, and what it may send (BOLT 2, open_channel and update_add_htlc).

    Attributes:
        balance_msat: this end's balance now, without payments on their way and without the commitment's fee.
        held_back_msat: the part of the balance that can't be sent: the reserve, and room for the fee to rise.
        least_htlc_msat, most_htlc_msat: smallest and largest payment that this end may send.
        most_in_flight_msat, in_flight_msat: the largest sum of payments on their way at a time, and the present sum.
        most_htlcs, htlcs: the largest number of payments on their way at a time, and the present number.
        dust_msat: a smaller payment has no output in the commitment: if the channel is closed while the payment is on
            its way, the miners get it.
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
    """A channel of our payment node. While it is opening or closing, values that the node doesn't report are 0.

    Attributes:
        peer: public key of the node at the other end, hex.
        point: funding transaction and output, `txid:index`.
        active: payments can go over it now.
        capacity_sat: size of the channel.
        least_htlc_msat: smallest payment that the channel carries.
        our_wait_blocks: blocks that we wait for our coins if we close the channel alone (BOLT 2, to_self_delay).
        our_end, their_end: what may be sent and received now.
        their_wait_blocks: blocks that the peer waits for its coins if it closes the channel alone. If it publishes an
            old state, we or a watchtower must answer within these blocks. 0: the node doesn't say.
        blocks_left: blocks until the channel is open, or until our coins are free; 0 if nobody knows yet.
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
        """The most that we can pay over the channel in all, while it is active."""
        return _left_sat(self, self.our_end)

    @property
    def can_receive_sat(self) -> int:
        """The most that we can be paid over the channel in all, while it is active."""
        return _left_sat(self, self.their_end)


def _left_sat(channel: Channel, end: ChannelEnd) -> int:
    return max(0, end.balance_msat - end.held_back_msat) // SAT_MSAT if channel.state is ChannelState.OPEN else 0
