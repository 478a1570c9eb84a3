"""Losses for clients that never paid: they are one, take nothing from those that pay, and can pay first."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from mesh import HOST, MB, PLENTY, Mesh, Node
from playbook import settings
from test_losses import ABOVE, bought_for_a, buy, lose, lost
from test_unsold import GRACE, KB, cancels, line, reasons

from ngp.core import events as ev
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.kernel import LARGEST_PACKET_BYTES, HeldPacket, Verdict
from ngp.core.losses import LEFT_S
from ngp.core.messages import Accept
from ngp.core.selling import metering
from ngp.core.selling.sale import Sale
from ngp.core.streams import LOSS_WINDOW_S, MOST_GRACES, NEWCOMERS
from ngp.core.unsold import FIRST_PAUSE_S


def shared() -> tuple[Mesh, Node, Purchase]:
    """Return a line whose b has bought HOST from c for a, which pays, and for z, which never did."""
    mesh, at, purchase = bought_for_a("z")
    at.world.clients[mesh["z"].identity].paid_msat = 0
    return mesh, at, purchase


def lost_too_much(mesh: Mesh) -> None:
    """Let b have lost for newcomers all that they may lose."""
    loss = mesh["b"].world.streams.of_client(NEWCOMERS, b"", mesh.now.monotonic_s)
    loss.counted_bytes = MOST_GRACES * GRACE + 1


def tries(mesh: Mesh, client: str, host: str = HOST) -> bool:
    """Let a client send a packet. Returns whether b sells it that then."""
    at = mesh["b"]
    at.step(HeldPacket(77, at.link(client), ip_address(host), at.onward))
    mesh.settle()
    sale = at.world.sales.find(mesh[client].identity, ip_address(host))
    return sale is not None and sale.running


def quoted(mesh: Mesh, client: str, host: str) -> Sale:
    """Let b quote a destination to a client that doesn't accept yet."""
    at = mesh["b"]
    mesh.lost.add(Accept)
    at.step(HeldPacket(78, at.link(client), ip_address(host), at.onward))
    mesh.settle()
    mesh.lost.discard(Accept)
    sale = at.world.sales.find(mesh[client].identity, ip_address(host))
    assert sale is not None and sale.state is State.QUOTED
    return sale


def accepts(mesh: Mesh, client: str, sale: Sale) -> None:
    accept = Accept(sale.id, sale.price_msat_per_gib, sale.data_limit_bytes)
    mesh["b"].step(ev.MessageReceived(mesh[client].identity, mesh["b"].link(client), 1, accept, 1 << 41))
    mesh.settle()


def test_a_newcomer_that_tries_again_at_once_makes_a_fast_stream_cost_no_more_than_once_more() -> None:
    mesh, at, purchase = shared()
    looks = 0
    while purchase.running:
        lose(mesh, 80 * MB, purchase.id)
        tries(mesh, "z")
        looks += 1
        assert looks <= 2
    assert not tries(mesh, "z") and not tries(mesh, "a")
    mesh.wait(FIRST_PAUSE_S + 1)
    assert tries(mesh, "z") and tries(mesh, "a")
    again = at.purchase("c")
    lose(mesh, 65 * KB, again.id)
    assert at.sale("a").running and not tries(mesh, "z"), "sent away for longer"
    lose(mesh, 65 * KB, again.id)
    assert not again.running


def test_one_destination_does_not_use_up_what_newcomers_may_lose() -> None:
    mesh, at, _ = shared()
    until = mesh.now.monotonic_s + LOSS_WINDOW_S
    ended = 0
    while mesh.now.monotonic_s < until:
        if tries(mesh, "z"):
            lose(mesh, ABOVE, at.purchase("c").id)
            ended += 1
        mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + 10)
        mesh.wait(1)
    assert 4 < ended < MOST_GRACES and buy(mesh, "z", ["203.0.113.1"])


def test_what_newcomers_lost_does_not_make_the_pause_of_those_that_pay_longer() -> None:
    mesh, at, purchase = shared()
    for _ in range(2):
        lose(mesh, ABOVE, purchase.id)
    assert not purchase.running
    assert [one.times for one in at.world.streams.withheld.values()] == [1, 1]
    assert sorted(about.newcomers for about in at.world.streams.withheld) == [False, True]


@pytest.mark.parametrize("client", ["z", "a"])
def test_a_newcomer_gets_no_credit_when_too_much_was_lost_for_newcomers_but_can_pay_first(client: str) -> None:
    mesh, at, _ = shared()
    assert tries(mesh, "z", "203.0.113.9"), "on credit"
    lost_too_much(mesh)
    account = at.world.clients[mesh[client].identity]
    if client == "z":
        assert not tries(mesh, "z", "203.0.113.8"), "it has credit left from before"
        assert account.credit is not None
        account.credit.until_mono_s = mesh.now.monotonic_s
    assert tries(mesh, client, "203.0.113.1")
    sale = at.world.sales.find(mesh[client].identity, ip_address("203.0.113.1"))
    assert sale is not None and sale.state is (State.ACCEPTED if client == "z" else State.ACTIVE)
    assert (at.world.running_purchase(sale.rests_on) is None) is (client == "z"), "nothing is bought for it on credit"
    account.paid_msat = 1_000_000_000
    at.world.effects = []
    metering.paid_for(at.world, account)
    at.carry_out(at.world.effects)
    mesh.settle()
    assert sale.state is State.ACTIVE and at.world.running_purchase(sale.rests_on) is not None
    assert tries(mesh, client, "203.0.113.2"), "what others lost doesn't count for it"


def test_newcomers_are_one_at_all_servers() -> None:
    mesh, at, _ = shared()
    lost_too_much(mesh)
    assert at.world.streams.is_far_above(NEWCOMERS, mesh["z"].identity, mesh.now.monotonic_s, GRACE)


def test_the_log_says_once_from_when_on_newcomers_must_pay_first_and_for_whom_nothing_is_bought() -> None:
    mesh, at, _ = shared()
    for client, what in (("z", "clients that never paid that"), ("a", mesh["a"].identity.hex()[:8])):
        for number in range(1, MOST_GRACES + 3):
            for one in buy(mesh, client, [f"203.0.113.{number + 20 * (client == 'a')}"]):
                lose(mesh, ABOVE, one.id)
        (line,) = (text for text in at.logged if "times GRACE_DATA came for" in text and what in text)
        assert line.endswith("for at most 60 minutes")
        assert ("they have to pay first" in line) is (client == "z")


@pytest.mark.parametrize("seconds", [LEFT_S - 2, LEFT_S + 2])
def test_who_left_long_ago_is_not_blamed(seconds: float) -> None:
    mesh, at, purchase = shared()
    cancels(mesh, "z", at.sale("z").id)
    mesh.settle()
    mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + seconds)
    lose(mesh, GRACE, purchase.id)
    assert lost(mesh, "") == (GRACE if seconds < LEFT_S else 0) and lost(mesh, "a") == GRACE - lost(mesh, "")


def test_what_comes_late_by_a_purchase_that_ended_sends_newcomers_away_from_the_next_one() -> None:
    mesh, at, purchase = shared()
    lose(mesh, GRACE, purchase.id)
    mesh["c"].end("b")
    assert tries(mesh, "a") and tries(mesh, "z")
    again, sale = at.purchase("c"), at.sale("z")
    assert again is not purchase and again.running
    lose(mesh, 1, purchase.id)
    assert reasons(mesh, "b", sale.id) == ["upstream"] and again.running and at.sale("a").running
    lose(mesh, GRACE, again.id)
    assert lost(mesh, "a") == GRACE and again.running


def test_newcomers_that_were_sent_away_lose_nothing_more_and_what_only_they_had_ends() -> None:
    mesh, at, _ = shared()
    (own,) = buy(mesh, "z", ["203.0.113.1"])
    lose(mesh, ABOVE, own.id)
    assert not own.running and lost(mesh, "") == GRACE
    lose(mesh, MB, own.id)
    assert lost(mesh, "") == GRACE and at.verdicts[-1] is not Verdict.PROHIBIT
    assert tries(mesh, "a", "203.0.113.1") and not tries(mesh, "z", "203.0.113.1")


def test_a_quote_from_before_the_pause_is_not_sold_within_it() -> None:
    mesh, at, purchase = shared()
    cancels(mesh, "z", at.sale("z").id)
    mesh.settle()
    sale = quoted(mesh, "z", HOST)
    lose(mesh, ABOVE, purchase.id)
    accepts(mesh, "z", sale)
    assert not sale.running and purchase.running


def test_when_all_have_left_those_that_had_it_are_blamed_however_long_ago_that_was() -> None:
    mesh, at, _ = shared()
    (own,) = buy(mesh, "z", ["203.0.113.1"])
    quoted(mesh, "a", "203.0.113.1")  # keeps it
    sale = at.world.sales.find(mesh["z"].identity, ip_address("203.0.113.1"))
    assert sale is not None
    cancels(mesh, "z", sale.id)
    mesh.settle()
    mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + LEFT_S + 2)
    assert own.running
    lose(mesh, ABOVE, own.id)
    assert lost(mesh, "") == GRACE and not own.running


def test_what_only_newcomers_have_is_withheld_from_them_alone_also_when_they_lost_too_much() -> None:
    mesh, _, _ = shared()
    (own,) = buy(mesh, "z", ["203.0.113.1"])
    lost_too_much(mesh)
    lose(mesh, 1, own.id)
    assert not own.running and tries(mesh, "a", "203.0.113.1")


def test_without_grace_what_a_client_loses_in_packets_counts() -> None:
    mesh = Mesh("abc", b=settings(**{**PLENTY, "grace_data_bytes": 0, "grace_time_s": 10}))
    at = mesh["b"]
    at.world.client(mesh["a"].identity).paid_msat = 1_000_000_000
    ended = 0
    for number in range(60):
        for one in buy(mesh, "a", [f"203.0.113.{number}"]):
            lose(mesh, MB, one.id)
            ended += not one.running
    assert ended == MOST_GRACES + 1 and lost(mesh, "a") == ended * LARGEST_PACKET_BYTES


@pytest.mark.parametrize("lacks_bytes", [0, 1])
def test_new_keys_on_one_link_open_no_credit_that_could_not_let_each_packet_pass(lacks_bytes: int) -> None:
    mesh = line()
    mesh.add_client("z", "b")
    at, host = mesh["b"], "203.0.113.1"
    at.world.credit.outstanding[at.link("z")] = GRACE - LARGEST_PACKET_BYTES + lacks_bytes
    sale = quoted(mesh, "z", host)
    accepts(mesh, "z", sale)
    account = at.world.clients[mesh["z"].identity]
    assert (account.credit is None) is at.granted[sale.id].blocked is bool(lacks_bytes)


@pytest.mark.parametrize("grace_kb", [20, 64, 128])
def test_a_packet_that_is_owed_takes_no_credit_from_another_key_on_the_link(grace_kb: int) -> None:
    mesh = Mesh("abc", b=settings(**{**PLENTY, "grace_data_bytes": grace_kb * KB}))
    mesh.add_client("z", "b")
    at = mesh["b"]
    at.world.credit.outstanding[at.link("z")] = 1500
    accepts(mesh, "z", quoted(mesh, "z", "203.0.113.1"))
    credit = at.world.clients[mesh["z"].identity].credit
    assert credit is not None and credit.data_bytes == grace_kb * KB - 1500
