"""Reach: how small or large one payment between our node and a neighbour's can be, by the present channels.

A payment that can't arrive costs both sides time, and nobody learns the cause. So the seller asks for no more than it
can receive, and the buyer doesn't begin a payment that it can't send. If nothing can be sent, the account says which
channel is empty. The bounds may be out of date. They only avoid attempts that would fail; whether a payment succeeds,
the payment node says.

If a channel to the neighbour has money left, its bounds are used, as payments over it cost no fee. Otherwise the bounds
are those of all other channels together. How much of that can reach the neighbour, we can't know: it depends on the
channels between the nodes on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ngp.core.channels import NO_LIMIT_MSAT, Channel, ChannelEnd
from ngp.core.pricing import SAT_MSAT, ceil_to_sat_msat, floor_to_sat_msat

_REMEDY = "; ngp lightning status"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest and largest amount of one payment: whole sat, in msat.

    Attributes:
        dust_msat: a payment of this size or more is safe even if the channel is closed while it is on its way.
        routed: other nodes forward the payment, for a fee that comes on top.
        why_not: why nothing can be paid, or "". If it is set, the amounts mean nothing.
    """

    least_msat: int = SAT_MSAT
    most_msat: int = floor_to_sat_msat(NO_LIMIT_MSAT)
    dust_msat: int = 0
    routed: bool = False
    why_not: str = ""

    def fit_msat(self, amount_msat: int) -> int:
        """Return the nearest amount that can be paid."""
        return min(max(amount_msat, self.least_msat), self.most_msat)


UNBOUNDED = Bounds()


class Reach:
    """The channels of our node, by peer.

    Args:
        channels: all open channels, active or not.
    """

    def __init__(self, channels: Iterable[Channel]) -> None:
        self._by_peer: dict[str, list[Channel]] = {}
        self._all = list(channels)
        for channel in self._all:
            self._by_peer.setdefault(channel.peer, []).append(channel)

    def bounds(self, peer: str, who: str, ours: bool) -> Bounds:
        """Return the bounds of a payment between us and a node.

        Args:
            peer: the node's public key, hex; empty if it isn't known.
            who: the neighbour that owns the node, as messages name it.
            ours: True: we pay; False: we are paid.
        """
        direct = self._by_peer.get(peer, [])
        best = max((_of_channel(one, ours) for one in direct), key=lambda one: one.most_msat, default=None)
        if best is not None and best.least_msat <= best.most_msat:
            return best
        others = [_of_channel(one, ours) for one in self._all if one.peer != peer]
        least = min((one.least_msat for one in others), default=SAT_MSAT)
        most = sum(one.most_msat for one in others)
        if least <= most:
            return Bounds(least, most, routed=True)
        return Bounds(0, 0, why_not=_why_not(direct, who, ours, bool(others)) + _REMEDY)


def left_msat(channel: Channel, ours: bool) -> int:
    """Return the largest payment that one end of a channel (ours or the peer's) can send now."""
    end = channel.our_end if ours else channel.their_end
    if not channel.active or end.htlcs >= end.most_htlcs:
        return 0
    fits = min(end.most_htlc_msat, end.most_in_flight_msat - end.in_flight_msat)
    return max(0, min(end.balance_msat - end.held_back_msat, fits))


def _of_channel(channel: Channel, ours: bool) -> Bounds:
    end: ChannelEnd = channel.our_end if ours else channel.their_end
    least = max(SAT_MSAT, ceil_to_sat_msat(end.least_htlc_msat))
    dust = max(channel.our_end.dust_msat, channel.their_end.dust_msat)
    return Bounds(least, floor_to_sat_msat(left_msat(channel, ours)), dust)


def _why_not(direct: Sequence[Channel], who: str, ours: bool, others: bool) -> str:
    side = "our side" if ours else f"the side of {who}"
    if not direct:
        whose = "our" if ours else "their"
        rest = f"and our other channels are empty on {whose} side" if others else "and we have no other"
        return f"no channel with {who}, {rest}"
    active = [one for one in direct if one.active]
    if not active:
        return f"the channel with {who} is not active"
    ends = [one.our_end if ours else one.their_end for one in active]
    if all(end.htlcs >= end.most_htlcs or end.in_flight_msat >= end.most_in_flight_msat for end in ends):
        return f"the channel with {who} is full of payments on their way"
    least = min(end.least_htlc_msat for end in ends)
    smallest = f" (what is left is less than its smallest payment, {least} msat)" if least > SAT_MSAT else ""
    return f"the channel with {who} is empty on {side}{smallest}"
