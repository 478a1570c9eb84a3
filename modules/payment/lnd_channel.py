"""LND's channels as values of the core: both balances, and what each end may send now."""

from __future__ import annotations

from ngp.core.channels import NO_LIMIT_MSAT, Channel, ChannelEnd, ChannelState
from ngp.core.pricing import SAT_MSAT
from ngp.modules.payment import lnd_pb2 as pb

HTLC_WEIGHT = 172
"""BOLT 3: weight of one more output in the commitment transaction."""
WEIGHT_MARGIN = 16
"""LND calculates with the commitment's largest weight, but lists the transaction's actual weight."""


USUAL_LEAST_MSAT = 1_000
"""LND's default for the smallest HTLC (bitcoin.minhtlcout)."""


def channel(told: pb.Channel, policies: pb.ChannelEdge | None = None) -> Channel:
    """Read one of the channels that LND lists.

    Args:
        policies: what the ends announced as their smallest and largest payment; either may be unknown.
    """
    ours = theirs = pb.RoutingPolicy()
    if policies is not None:
        ours, theirs = policies.node1_policy, policies.node2_policy
        if policies.node1_pub == told.remote_pubkey:
            ours, theirs = theirs, ours
    our_end, their_end = _end(told, ours, ours=True), _end(told, theirs, ours=False)
    return Channel(
        peer=told.remote_pubkey,
        point=told.channel_point,
        active=told.active,
        private=told.private,
        capacity_sat=told.capacity,
        least_htlc_msat=max(our_end.least_htlc_msat, their_end.least_htlc_msat),
        our_wait_blocks=told.local_constraints.csv_delay,
        our_end=our_end,
        their_end=their_end,
        their_wait_blocks=told.remote_constraints.csv_delay,
    )


def pending(told: pb.PendingChannelsResponse) -> list[Channel]:
    """Read the channels that are being opened or closed."""
    opening, closing = ChannelState.OPENING, ChannelState.CLOSING
    return [
        *(_unready(one.channel, opening, one.confirmations_until_active) for one in told.pending_open_channels),
        *(_unready(one.channel, closing, one.blocks_til_close_confirmed) for one in told.waiting_close_channels),
        *(_unready(one.channel, closing, one.blocks_til_maturity) for one in told.pending_force_closing_channels),
    ]


def _unready(told: pb.PendingChannelsResponse.PendingChannel, state: ChannelState, blocks_left: int) -> Channel:
    return Channel(
        peer=told.remote_node_pub,
        point=told.channel_point,
        active=False,
        private=told.private,
        capacity_sat=told.capacity,
        least_htlc_msat=0,
        our_wait_blocks=0,
        our_end=ChannelEnd(0),
        their_end=ChannelEnd(0),
        state=state,
        blocks_left=max(0, blocks_left),
    )


def _end(told: pb.Channel, policy: pb.RoutingPolicy, ours: bool) -> ChannelEnd:
    """Read what one end may send. The constraints that LND lists for an end limit what that end sends (channeldb).

    The end that opened the channel pays the commitment's fee. LND lets this end send only so much that it could still
    pay the fee at twice the rate, for a commitment with two more HTLCs: this payment and another one (lnwallet:
    availableCommitmentBalance, CalcFeeBuffer).
    """
    constraints = told.local_constraints if ours else told.remote_constraints
    held_back_sat = constraints.chan_reserve_sat
    if told.initiator == ours:
        weight = told.commit_weight + 2 * HTLC_WEIGHT + WEIGHT_MARGIN
        later_fee_sat = 2 * told.fee_per_kw * weight // 1000
        held_back_sat += max(0, later_fee_sat - told.commit_fee)
    on_its_way = [one.amount for one in told.pending_htlcs if one.incoming != ours]
    return ChannelEnd(
        balance_msat=(told.local_balance if ours else told.remote_balance) * SAT_MSAT,
        held_back_msat=held_back_sat * SAT_MSAT,
        least_htlc_msat=max(policy.min_htlc or USUAL_LEAST_MSAT, constraints.min_htlc_msat),
        most_htlc_msat=policy.max_htlc_msat or NO_LIMIT_MSAT,
        most_in_flight_msat=constraints.max_pending_amt_msat,
        in_flight_msat=sum(on_its_way) * SAT_MSAT,
        most_htlcs=constraints.max_accepted_htlcs,
        htlcs=len(on_its_way),
        dust_msat=constraints.dust_limit_sat * SAT_MSAT,
    )
