"""Invoices and payments stay within what the channels can carry; an account whose channel is empty says so,
and is topped up again when the channel has money."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playbook import Sim, account, bought, settings

from core_tests.simulate.simulation import UTC_AT_START_S
from core_tests.simulate.stand_ins import PAYEES
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.channels import Channel, ChannelEnd
from ngp.core.messages import Declined, DeclineReason
from ngp.core.pricing import SAT_MSAT
from ngp.core.reach import Reach, left_msat
from ngp.core.records import PaymentState

HOST = "198.51.100.1"
PEER = "02" + "11" * 32
OTHER = "03" + "22" * 32
LINE_SECONDS, ADAPTED_S = 45, 8


def channel(ours: ChannelEnd, theirs: ChannelEnd | None = None, peer: str = PEER, active: bool = True) -> Channel:
    theirs = theirs or ChannelEnd(0)
    size = (ours.balance_msat + theirs.balance_msat) // 1000
    return Channel(peer, "f:0", active, True, size, ours.least_htlc_msat, 144, ours, theirs, 144)


def end(sat: int, **more: int) -> ChannelEnd:
    return ChannelEnd(sat * SAT_MSAT, **more)


# --- what the channels say --------------------------------------------------------------------------------------------


amounts = st.integers(0, 1 << 40)
slots = st.integers(0, 483)
ends = st.builds(ChannelEnd, *[amounts] * 6, slots, slots)
channels = st.lists(st.builds(channel, ends, ends, st.sampled_from((PEER, OTHER)), st.booleans()), max_size=3)


@given(channels, st.booleans(), amounts)
def test_an_amount_within_the_bounds_is_whole_sat_and_can_be_sent(
    listed: list[Channel], ours: bool, wanted: int
) -> None:
    reach = Reach(listed)
    bounds = reach.bounds(PEER, "7f3a", ours)
    direct = [left_msat(one, ours) for one in listed if one.peer == PEER]
    others = [left_msat(one, ours) // SAT_MSAT * SAT_MSAT for one in listed if one.peer != PEER]
    least = [-(-max(1, (one.our_end if ours else one.their_end).least_htlc_msat) // SAT_MSAT) for one in listed]
    if bounds.why_not:
        assert not listed or max([*direct, sum(others)]) < max(least) * SAT_MSAT
        return
    amount = bounds.fit_msat(wanted * SAT_MSAT)
    assert amount % SAT_MSAT == 0 and bounds.least_msat <= amount <= bounds.most_msat
    assert min(least) * SAT_MSAT <= amount <= max([*direct, sum(others)])


def test_reserve_and_payments_on_their_way_and_full_channels_limit_what_can_be_sent() -> None:
    assert left_msat(channel(end(100, held_back_msat=30_000)), ours=True) == 70_000
    assert left_msat(channel(end(100, held_back_msat=130_000)), ours=True) == 0
    assert left_msat(channel(end(100, most_in_flight_msat=50_000, in_flight_msat=20_000)), ours=True) == 30_000
    assert left_msat(channel(end(100, most_htlc_msat=40_000)), ours=True) == 40_000
    assert left_msat(channel(end(100, most_htlcs=5, htlcs=5)), ours=True) == 0
    assert left_msat(channel(end(100), active=False), ours=True) == 0


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        ([], "no channel with 7f3a, and we have no other"),
        ([channel(end(0), peer=OTHER)], "no channel with 7f3a, and our other channels are empty on our side"),
        ([channel(end(9), active=False)], "the channel with 7f3a is not active"),
        ([channel(end(0))], "the channel with 7f3a is empty on our side"),
        ([channel(end(4, least_htlc_msat=5000))], "what is left is less than its smallest payment, 5000 msat"),
        ([channel(end(9, most_htlcs=1, htlcs=1))], "is full of payments on their way"),
    ],
)
def test_why_nothing_can_be_paid_is_named(listed: list[Channel], why: str) -> None:
    told = Reach(listed).bounds(PEER, "7f3a", ours=True).why_not
    assert why in told and told.endswith("; ngp lightning status")


def test_other_channels_count_where_the_direct_one_has_nothing() -> None:
    listed = [channel(end(0)), channel(end(30), peer=OTHER), channel(end(40), peer=OTHER)]
    assert Reach(listed).bounds(PEER, "7f3a", ours=True).most_msat == 70_000
    assert Reach([channel(end(20)), *listed]).bounds(PEER, "7f3a", ours=True).most_msat == 20_000


# --- what it means for the accounts -----------------------------------------------------------------------------------


def paying(sat: int, **terms: int) -> Sim:
    """Return two nodes with a channel between them, whose client's end has a balance of `sat`."""
    sim = Sim()
    see(sim, end(sat, **terms))
    return sim


def see(sim: Sim, clients: ChannelEnd, *, gateway_too: bool = True) -> None:
    """Tell both daemons the state of the channel between them."""
    gateways = ChannelEnd(0)
    if gateway_too:
        sim.happen(sim.gateway, ev.ChannelsSeen((channel(gateways, clients, PAYEES["client"].hex()),)))
    sim.happen(sim.client, ev.ChannelsSeen((channel(clients, gateways, PAYEES["gateway"].hex()),)))


def asked(sim: Sim) -> list[int]:
    return [effect.amount_msat for effect in sim.gateway.log if isinstance(effect, fx.MakeInvoice)]


def test_no_more_is_asked_for_than_can_be_received_and_nothing_from_an_empty_channel() -> None:
    sim = paying(60)
    sim.flow(HOST, 10_000, 2)
    assert asked(sim) == [60_000]
    see(sim, end(0))
    sim.flow(HOST, 100_000, 30)
    assert asked(sim) == [60_000] and "is empty on the side of" in account(sim).why_not
    told = [e.text for e in sim.gateway.log if isinstance(e, fx.Log) and "is empty" in e.text]
    assert len(told) == 1 and "ngp lightning status" in told[0]
    see(sim, end(500))
    sim.flow(HOST, 10_000, 3)
    assert asked(sim)[1:] and not account(sim).why_not
    assert account(sim).paid_msat > 60_000


def test_a_payment_that_the_client_cannot_send_is_not_tried_and_a_smaller_one_is_asked() -> None:
    sim = paying(1000)
    see(sim, end(30), gateway_too=False)
    sim.flow(HOST, 10_000, 3)
    tried = [effect for effect in sim.client.log if isinstance(effect, fx.PayInvoice)]
    assert [sim.payments.invoices[effect.payment_hash][1] for effect in tried][:1] == [30_000]
    assert not any(sim.payments.invoices[effect.payment_hash][1] > 30_000 for effect in tried)


def test_a_payment_through_other_nodes_leaves_room_for_the_fee() -> None:
    sim = Sim()
    sim.happen(sim.client, ev.ChannelsSeen((channel(end(51), peer=OTHER),)))
    sim.flow(HOST, 10_000, 3)
    assert set(sim.payments.sent["client"].values()) == {50_000}


def test_a_client_with_nothing_to_send_says_why_and_pays_when_it_has_something() -> None:
    sim = paying(1000)
    see(sim, end(0), gateway_too=False)
    sim.flow(HOST, 10_000, 5)
    assert not [effect for effect in sim.client.log if isinstance(effect, fx.PayInvoice)]
    assert "is empty on our side" in bought(sim).why_not
    assert "declines our invoices (amount: its payment node has no channel" in account(sim).why_not
    see(sim, end(500), gateway_too=False)
    assert not bought(sim).why_not
    sim.flow(HOST, 10_000, 70)
    assert account(sim).paid_msat > 0 and not account(sim).why_not


def test_a_client_with_an_empty_channel_that_changes_its_payment_node_is_asked_when_that_has_money() -> None:
    """Then there is another reason why it isn't asked, from one look at the channels to the next."""
    new = b"\2" + b"n" * 32
    sim = Sim(settings(payment_amount_msat=1000), settings(sells=False, payment_amount_msat=1000))

    def look(old_sat: int, new_sat: int = 0) -> None:
        theirs = [channel(end(0), end(old_sat), PAYEES["client"].hex())]
        if new_sat:
            theirs.append(channel(end(0), end(new_sat), new.hex()))
        sim.happen(sim.gateway, ev.ChannelsSeen(tuple(theirs)))
        ours = channel(end(old_sat + new_sat), end(0), PAYEES["gateway"].hex())
        sim.happen(sim.client, ev.ChannelsSeen((ours,)))

    look(500)
    sim.flow(HOST, 20_000, 30)
    look(0)
    while not account(sim).is_out:
        sim.flow(HOST, 50_000, 1)
    sim.run(15)
    for _ in range(150):  # until the invoice from before is withdrawn, and no other is made
        sim.up(HOST, 84)
        sim.run(1)
        look(0)
    sim.client.node = replace(sim.client.node, payee=new)
    sim.carry_out(sim.client, [fx.Greet("eth1")])
    sim.run(1)
    look(0)
    paid_msat = bought(sim).paid_msat
    for number in range(60):
        sim.up(HOST, 84)
        sim.run(1)
        if number % 10 == 5:
            look(0, 500)
    assert bought(sim).paid_msat > paid_msat


def test_a_new_channel_is_used_within_seconds_however_often_invoices_were_declined_before() -> None:
    sim = Sim()
    sim.happen(sim.gateway, ev.ChannelsSeen((channel(end(0), end(500)),)))  # with a node that may forward payments
    sim.happen(sim.client, ev.ChannelsSeen(()))
    sim.flow(HOST, 10_000, 60)
    assert len(asked(sim)) > 3 and not account(sim).paid_msat
    see(sim, end(500))
    sim.flow(HOST, 10_000, 3)
    assert account(sim).paid_msat > 0 and not account(sim).why_not


def test_nothing_below_the_smallest_htlc_is_asked_and_none_above_what_is_trusted() -> None:
    sim = paying(1000, least_htlc_msat=150_000)
    sim.flow(HOST, 1_000, 5)
    assert asked(sim) == [150_000] and account(sim).paid_msat == 150_000
    sim = paying(100_000, least_htlc_msat=50_000_000)
    sim.flow(HOST, 1_000, 5)
    assert not account(sim).paid_msat
    assert "raise PAYMENT_AMOUNT" in bought(sim).why_not


def test_top_ups_that_are_used_up_within_a_minute_are_no_dust() -> None:
    sim = paying(100_000, dust_msat=354_000)
    sim.flow(HOST, 5_000, 10)
    assert set(asked(sim)) == {100_000}
    sim.flow(HOST, 2_000_000, 60, size=4000)
    assert asked(sim)[-1] == 354_000
    assert not [e for e in sim.client.log if isinstance(e, fx.Send) and isinstance(e.message, Declined)]


def test_a_slow_client_is_asked_for_no_more_than_the_chunk() -> None:
    sim = Sim()
    sim.flow(HOST, 1024, 120, size=128)
    assert set(asked(sim)) == {100_000}
    assert account(sim).paid_msat == 100_000


def test_a_client_that_was_fast_is_asked_for_little_when_it_is_slow() -> None:
    sim = Sim()
    sim.flow(HOST, 20_000_000, 20, size=20_000)
    assert max(asked(sim)) > 500_000
    before = len(asked(sim))
    sim.run(30)
    sim.flow(HOST, 1024, 120, size=512)
    assert len(asked(sim)) == before and account(sim).balance_msat > 100_000


def test_at_line_rate_a_client_pays_once_in_several_seconds() -> None:
    line_rate = 1_250_000_000  # 10 Gbit/s at 5 msat a kilobyte: 6,104 sat a second
    rich = settings().budgets
    rich = replace(rich, payment_msat=10**12, hour_msat=10**12, day_msat=10**12)
    sim = Sim(settings(trust_amount_msat=10**12), settings(sells=False, budgets=rich, trust_amount_msat=10**12))
    while sim.now < 1000 + LINE_SECONDS:
        size = 65_000 if sim.now < 1003 else 1_000_000  # larger packets, to save time, once top-ups are large
        for _ in range(line_rate // 100 // size):
            sim.down(HOST, size)
        sim.up(HOST, 1000)
        sim.run(1 / 100)
        if sim.now < 1000 + ADAPTED_S:
            sim.client.log.clear()
    paid = [
        record
        for record in sim.client.ledger.payments.values()
        if record.created_at_s >= UTC_AT_START_S + 1000 + ADAPTED_S
    ]
    assert len(paid) in (3, 4)  # in 37 s
    assert {record.state for record in paid} == {PaymentState.SUCCEEDED}
    assert min(record.amount_msat for record in paid) > 5 * 6_000_000
    assert sim.passed > 0.85 * LINE_SECONDS * line_rate
    assert not [e for e in sim.client.log if isinstance(e, fx.Send) and isinstance(e.message, Declined)]


def test_remainders_stay_in_the_balance() -> None:
    sim = Sim()
    sim.flow(HOST, 10_240, 30, size=333)
    ours = account(sim)
    assert ours.paid_msat % SAT_MSAT == 0 and ours.charged_msat % SAT_MSAT
    assert ours.balance_msat == ours.paid_msat - ours.charged_msat


def test_without_known_channels_payments_are_unbounded() -> None:
    large = {"payment_amount_msat": 10**9, "trust_amount_msat": 2 * 10**9}
    sim = Sim(settings(**large), settings(sells=False, **large))
    sim.flow(HOST, 1_000, 2)
    assert asked(sim)[0] == 10**9
    declined = [e.message for e in sim.client.log if isinstance(e, fx.Send) and isinstance(e.message, Declined)]
    assert [message.reason for message in declined][:1] == [DeclineReason.BUDGET]
