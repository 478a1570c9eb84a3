"""How LND's channels are read: each end's smallest payment, and which side's delay is which."""

from __future__ import annotations

import pytest

from ngp.core.channels import ChannelState
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd_channel import channel, pending

PEER, OURSELVES = "03" + "ab" * 32, "02" + "cd" * 32
TOLD = pb.Channel(
    remote_pubkey=PEER,
    local_constraints=pb.ChannelConstraints(min_htlc_msat=1, csv_delay=144),
    remote_constraints=pb.ChannelConstraints(min_htlc_msat=5_000, csv_delay=1_008),
)


@pytest.mark.parametrize(
    ("edge", "ours_msat", "theirs_msat"),
    [
        (None, 1_000, 5_000),
        (pb.ChannelEdge(node1_pub=OURSELVES), 1_000, 5_000),  # the graph has the channel, and no policies yet
        (pb.ChannelEdge(node1_pub=OURSELVES, node1_policy=pb.RoutingPolicy(min_htlc=7_000)), 7_000, 5_000),
        (pb.ChannelEdge(node1_pub=PEER, node1_policy=pb.RoutingPolicy(min_htlc=7_000)), 1_000, 7_000),
        (pb.ChannelEdge(node1_pub=PEER, node2_policy=pb.RoutingPolicy(min_htlc=1)), 1, 5_000),
    ],
)
def test_each_end_has_its_own_smallest_payment(edge: pb.ChannelEdge | None, ours_msat: int, theirs_msat: int) -> None:
    found = channel(TOLD, edge)
    assert (found.our_end.least_htlc_msat, found.their_end.least_htlc_msat) == (ours_msat, theirs_msat)
    assert found.least_htlc_msat == max(ours_msat, theirs_msat)


def test_each_end_has_its_own_largest_payment() -> None:
    edge = pb.ChannelEdge(node1_pub=PEER, node1_policy=pb.RoutingPolicy(max_htlc_msat=9_000))
    found = channel(TOLD, edge)
    assert found.their_end.most_htlc_msat == 9_000 < found.our_end.most_htlc_msat


def test_local_constraints_are_what_binds_us() -> None:
    found = channel(TOLD)
    assert (found.our_wait_blocks, found.their_wait_blocks) == (144, 1_008)


def test_pending_ones_tell_how_long() -> None:
    kinds = pb.PendingChannelsResponse
    one = kinds.PendingChannel(remote_node_pub=PEER, capacity=7)
    told = pb.PendingChannelsResponse(
        pending_open_channels=[kinds.PendingOpenChannel(channel=one, confirmations_until_active=3)],
        waiting_close_channels=[kinds.WaitingCloseChannel(channel=one, blocks_til_close_confirmed=2)],
        pending_force_closing_channels=[kinds.ForceClosedChannel(channel=one, blocks_til_maturity=-5)],
    )
    opening, closing = ChannelState.OPENING, ChannelState.CLOSING
    assert [(one.state, one.blocks_left) for one in pending(told)] == [(opening, 3), (closing, 2), (closing, 0)]
