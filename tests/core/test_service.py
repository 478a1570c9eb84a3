"""Service and reputation: a server that does nothing for our payments isn't paid any more, and is known for it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playbook import Sim, account, bought, settings, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.buying import service
from ngp.core.buying.account import Seen
from ngp.core.buying.purchase import Purchase
from ngp.core.buying.service import MOST_UNSEEN, TRY_AGAIN_S
from ngp.core.messages import Cancel, Invoice, Role, Statement
from ngp.core.pricing import amount_due_msat
from ngp.core.reputation import HALVING_S, STRANGERS_PPM, Reputation
from ngp.core.settings import FULL_PPM, PriceRule
from ngp.core.standing import reputation_ppm

HOST = "198.51.100.1"
TOP_UP_MSAT = 1000  # the price of 200 kB


def trade(**changes: object) -> Sim:
    """Return a gateway and a client that have traded well; the client prepays little."""
    small = {"payment_amount_msat": TOP_UP_MSAT, **changes}
    sim = Sim(settings(**small), settings(sells=False, **small))
    sim.flow(HOST, 20_000, 40)
    sim.run(10)
    assert bought(sim).paid_msat and not bought(sim).seen.unseen
    return sim


def send_only(sim: Sim, seconds: int) -> None:
    """Send 50 kB a second, of which nothing comes back."""
    for _ in range(10 * seconds):
        sim.up(HOST, 5000)
        sim.run(0.1)


def payments(sim: Sim) -> int:
    """Return how many payments the client has ordered."""
    return sum(isinstance(effect, fx.PayInvoice) for effect in sim.client.log)


def warnings(sim: Sim) -> list[str]:
    """Return what the client's log says about payments for which it saw nothing."""
    return [e.text for e in sim.client.log if isinstance(e, fx.Log) and "we saw nothing" in e.text]


def test_a_server_that_takes_money_and_carries_nothing_any_more_is_paid_no_more_than_it_was_trusted_with() -> None:
    sim = trade(trust_amount_msat=None)
    served_msat = bought(sim).served_msat
    send_only(sim, 120)
    assert bought(sim).paid_msat <= 2 * served_msat
    (warning,) = warnings(sim)
    assert "47474747" in warning and "last 2 payments" in warning and "ngp unblock 4747474747474747" in warning
    assert "nothing has come back" in warning and "we saw nothing" in bought(sim).why_not
    assert reputation_ppm(sim.client.world, sim.gateway.identity) < STRANGERS_PPM


def test_a_stranger_that_takes_money_and_carries_nothing_is_paid_no_more_than_the_grace() -> None:
    """As shipped: with TRUST_AMOUNT: auto and the usual PAYMENT_AMOUNT."""
    sim = Sim(settings(trust_amount_msat=None), settings(sells=False, trust_amount_msat=None))
    grace_msat = amount_due_msat(sim.client.settings.grace_data_bytes, ((0, sim.client.settings.buy_msat_per_gib),))
    sim.up(HOST)
    for _ in range(10):  # the payments of the first hour
        send_only(sim, 60)
    assert 0 < bought(sim).paid_msat <= grace_msat < sim.client.settings.payment_amount_msat
    (warning,) = warnings(sim)
    assert "nothing has come back" in warning and "last payment" in warning
    assert reputation_ppm(sim.client.world, sim.gateway.identity) < STRANGERS_PPM


@pytest.mark.parametrize("bytes_a_second", [20_000, 2_000_000])
def test_what_is_prepaid_grows_with_what_is_carried_until_it_is_the_usual_top_up(bytes_a_second: int) -> None:
    sim = Sim(settings(trust_amount_msat=None), settings(sells=False, trust_amount_msat=None))
    grace_msat = amount_due_msat(sim.client.settings.grace_data_bytes, ((0, sim.client.settings.buy_msat_per_gib),))
    most_ahead_msat, passed, size = 0, sim.passed, bytes_a_second // 20
    for _ in range(20 * 40_000_000 // bytes_a_second // 20):
        sim.flow(HOST, bytes_a_second, 1, size)
        ours = bought(sim)
        carried_msat = ours.metered_msat
        assert ours.paid_msat - carried_msat <= max(grace_msat, carried_msat)
        most_ahead_msat = max(most_ahead_msat, ours.paid_msat - carried_msat)
    assert most_ahead_msat >= sim.client.settings.payment_amount_msat // 2
    assert payments(sim) < 40
    assert sim.passed - passed > 0.94 * 40_000_000


@pytest.mark.parametrize("pay_takes_s", [0.02, 1.0])
def test_a_client_that_pays_often_sees_each_payment_credited_at_once(pay_takes_s: float) -> None:
    """At 12 MB a second several top-ups are used up within the time between two statements of running contracts."""
    sim = Sim()
    sim.pay_takes_s, most = pay_takes_s, 0
    sim.up(HOST)
    sim.run(0.1)
    for number in range(6000):
        sim.down(HOST, 60_000)
        if number % 20 == 0:
            sim.up(HOST)
        sim.run(0.005)
        most = max(most, bought(sim).seen.unseen)
    assert payments(sim) > MOST_UNSEEN and most < 2
    assert not warnings(sim)


def test_it_is_paid_again_as_soon_as_something_comes_back() -> None:
    sim = trade()
    send_only(sim, 120)
    before = payments(sim)
    sim.client.kernel.carry(sim.number(sim.client), Role.CLIENT, HOST, 100, False, sim.now)
    sim.run(2)
    assert not bought(sim).seen.unseen
    assert [e.text for e in sim.client.log if isinstance(e, fx.Log) and "paid again" in e.text]
    sim.flow(HOST, 20_000, 120)
    assert payments(sim) > before and not bought(sim).why_not


def test_a_server_that_credits_nothing_is_paid_no_more_until_it_does() -> None:
    sim = trade()
    before = payments(sim)
    sim.silenced = {Statement}
    sim.flow(HOST, 50_000, 120)
    assert payments(sim) - before == MOST_UNSEEN
    (warning,) = warnings(sim)
    assert "its statements credit none of them" in warning
    sim.silenced = set()
    books = account(sim)
    tell(sim, sim.client, Statement(books.paid_msat, books.charged_msat, 0, ()))
    sim.flow(HOST, 20_000, 120)
    assert payments(sim) - before > MOST_UNSEEN and not bought(sim).why_not


def test_a_client_that_only_sends_asks_for_an_echo_and_pays_on_if_it_comes() -> None:
    sim = trade()
    before, asked = payments(sim), 0
    for _ in range(600):
        sim.up(HOST, 5000)
        sim.run(0.1)
        now_asked = [effect.destination for effect in sim.client.log if isinstance(effect, fx.AskEcho)]
        if len(now_asked) > asked:
            asked = len(now_asked)
            assert str(now_asked[-1]) == HOST
            sim.up(HOST, 62)
            sim.down(HOST, 62)
    assert asked and payments(sim) - before > MOST_UNSEEN
    assert not warnings(sim)


def test_echoes_are_asked_for_once_a_second_and_only_while_it_is_in_doubt() -> None:
    sim = trade()
    world, ours = sim.client.world, bought(sim)
    (purchase,) = [one for one in world.contracts.values() if isinstance(one, Purchase)]
    for unserved_msat, asked in ((TOP_UP_MSAT // 2 - 1, 0), (TOP_UP_MSAT // 2, 1)):  # of two top-ups
        ours.seen, world.effects = Seen(served_msat=ours.used_msat - unserved_msat), []
        for _ in range(3):
            service.only_sent(world, ours, purchase, 1000)
        assert sum(isinstance(one, fx.AskEcho) for one in world.effects) == asked


def test_an_echo_is_asked_for_before_too_many_payments_are_unseen_however_little_they_were() -> None:
    sim = trade(trust_amount_msat=1000 * TOP_UP_MSAT)
    world, ours = sim.client.world, bought(sim)
    (purchase,) = [one for one in world.contracts.values() if isinstance(one, Purchase)]
    for unseen, since_s, asked in ((0, 2.0, 0), (1, 2.0, 0), (2, 0.5, 0), (2, 2.0, 1)):
        since_mono_s = world.now.monotonic_s - since_s
        ours.seen = Seen(served_msat=ours.used_msat - 1, unseen=unseen, since_mono_s=since_mono_s)
        world.effects = []
        service.only_sent(world, ours, purchase, 1000)
        assert sum(isinstance(one, fx.AskEcho) for one in world.effects) == asked


def test_an_echo_that_nobody_answers_causes_no_further_one() -> None:
    sim = trade()
    bought(sim).seen.unseen, bought(sim).seen.came_back = MOST_UNSEEN - 1, False
    sim.up(HOST, 200)
    asked = 0
    for _ in range(60):
        sim.run(1)
        now_asked = sum(isinstance(effect, fx.AskEcho) for effect in sim.client.log)
        for _ in range(now_asked - asked):
            sim.up(HOST, 104)
        asked = now_asked
    assert asked == 1


def test_small_packets_are_asked_about_too() -> None:
    sim = trade()
    asked = 0
    for _ in range(200):
        sim.up(HOST, 100)
        sim.run(1)
        now_asked = sum(isinstance(effect, fx.AskEcho) for effect in sim.client.log)
        for _ in range(now_asked - asked):
            sim.up(HOST, 62)
            sim.down(HOST, 62)
        asked = now_asked
        if not asked:
            bought(sim).seen.unseen, bought(sim).seen.came_back = MOST_UNSEEN - 1, False
    assert asked and not warnings(sim)


def test_one_payment_an_hour_is_tried_also_by_a_daemon_that_is_killed_all_the_time() -> None:
    sim = trade()
    send_only(sim, 120)
    before = payments(sim)
    for _ in range(5):
        sim.crash(sim.client)
        sim.run(1)
        send_only(sim, 5)
    assert payments(sim) == before and bought(sim).seen.unseen
    sim.pay_takes_s = 40.0  # one that takes long is the only one, too
    for hours in (1, 2):
        sim.now += TRY_AGAIN_S + 1
        sim.run(30)
        send_only(sim, 60)
        assert payments(sim) <= before + hours
    assert payments(sim) > before


def test_the_operator_may_pay_on() -> None:
    sim = trade()
    send_only(sim, 120)
    before = payments(sim)
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, False))
    assert sim.client.ledger.accounts[sim.gateway.identity, bought(sim).role].unseen_payments == 0
    assert not bought(sim).seen.unseen
    send_only(sim, 120)
    assert 0 < payments(sim) - before <= MOST_UNSEEN


def test_a_dispute_costs_a_server_half_of_its_reputation_and_a_restart_does_not_give_it_back() -> None:
    sim = trade()
    before = reputation_ppm(sim.client.world, sim.gateway.identity)
    assert before > STRANGERS_PPM
    tell(sim, sim.client, Statement(0, 10**9, 0, ()))
    assert bought(sim).disputed
    sim.crash(sim.client)
    assert reputation_ppm(sim.client.world, sim.gateway.identity) == pytest.approx(before / 2, rel=0.01)


def test_a_client_that_leaves_its_credit_unpaid_is_known_for_it_until_it_pays_and_after() -> None:
    sim = trade(grace_time_s=5)
    before = reputation_ppm(sim.gateway.world, sim.client.identity)
    assert before > STRANGERS_PPM
    sim.silenced = {Invoice}
    sim.flow(HOST, 50_000, 20)
    sim.run(10)
    assert account(sim).debt_msat
    for _ in range(3):  # it isn't noted again by each start
        sim.crash(sim.gateway)
        sim.run(5)
        assert reputation_ppm(sim.gateway.world, sim.client.identity) == pytest.approx(before / 2, rel=0.01)
    sim.silenced = set()
    sim.crash(sim.gateway)  # it sends its invoice again to a client that is back
    sim.run(60)
    assert not account(sim).debt_msat
    assert reputation_ppm(sim.gateway.world, sim.client.identity) < before * 0.7


@given(st.lists(st.tuples(st.booleans(), st.integers(-HALVING_S, 12 * HALVING_S)), max_size=50))
def test_a_reputation_is_from_0_to_1_and_returns_to_a_strangers(deeds: list[tuple[bool, int]]) -> None:
    now_s, found = 1_700_000_000, Reputation()
    for kept, later_s in deeds:
        now_s += later_s
        before = found.ppm(now_s)
        found = found.kept(now_s) if kept else found.broken(now_s)
        assert 0 <= found.ppm(now_s) <= FULL_PPM
        assert found.ppm(now_s) >= before if kept else found.ppm(now_s) <= before
    assert abs(found.ppm(max(now_s, found.at_s) + 24 * HALVING_S) - STRANGERS_PPM) <= 1


def test_a_debt_that_is_paid_in_many_parts_is_paid_for_service_that_was_seen() -> None:
    """Nothing is carried before the last part is paid, so nothing comes back for the others."""
    sim = trade(grace_data_bytes=4 << 20, grace_time_s=60)
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 30)
    assert -account(sim).balance_msat > 8000
    before = payments(sim)
    for part in range(6):
        if part == 3:
            sim.crash(sim.client)
            sim.run(1)
        asked = sim.payments.invoice("gateway", 1000)
        tell(sim, sim.client, Invoice(asked.hex(), 1000), decoded=sim.payments.decode(asked.hex()))
        sim.run(5)
        tell(sim, sim.client, Statement(bought(sim).paid_msat, account(sim).charged_msat, 0, ()))
    assert payments(sim) - before == 6 and not warnings(sim)


@pytest.mark.parametrize("seconds", [30, 45, 70])
def test_a_server_whose_invoices_were_declined_for_long_is_paid_within_a_minute_after_unblock(seconds: int) -> None:
    """The client was killed meanwhile. It answers the next invoice with a smaller sum, which is asked for at once."""
    keys = {"trust_amount_msat": None}
    sim = Sim(settings(**keys), settings(sells=False, **keys))
    for _ in range(50 * seconds):
        sim.up(HOST)
        sim.run(0.02)
    sim.crash(sim.client)
    sim.run(3)
    paid_msat = bought(sim).paid_msat
    assert 0 < paid_msat < 1280
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, False))
    for _ in range(62):
        sim.up(HOST)
        sim.run(1)
    assert bought(sim).paid_msat > paid_msat


WAITED = [(8, 0.2, 1, 0.3), (6, 1, 0, 0.3), (6, 0.2, 0, 1), (5, 1, 0.5, 3)]


@pytest.mark.parametrize(("streamed_s", "away_s", "went_on_s", "quiet_s"), WAITED)
def test_a_client_that_was_refused_while_no_invoice_was_due_is_asked_later(
    streamed_s: float, away_s: float, went_on_s: float, quiet_s: float
) -> None:
    """The kernel tells a refusal once for each limit. The few small packets before it cost less than a msat each."""
    sim = refused(streamed_s)
    sim.crash(sim.client)
    sim.run(away_s)
    stream_up(sim, went_on_s)
    sim.run(quiet_s)
    paid_msat = bought(sim).paid_msat
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, False))
    seldom(sim, 62)
    assert bought(sim).paid_msat > paid_msat


@pytest.mark.parametrize("streamed_s", [6, 20, 40])
def test_a_server_that_was_killed_asks_a_client_that_waits_for_money(streamed_s: float) -> None:
    sim = refused(streamed_s)
    sim.run(1)
    sim.crash(sim.gateway)
    sim.run(1)
    paid_msat = bought(sim).paid_msat
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, False))
    seldom(sim, 10)
    assert bought(sim).paid_msat > paid_msat


def test_a_client_that_is_out_of_money_is_not_asked_for_what_costs_nothing() -> None:
    free = "203.0.113.7"
    rule = PriceRule(prefix=ip_network(f"{free}/32"), sell_msat_per_gib=0, sell_min_msat_per_gib=0)
    sim = Sim(
        settings(trust_amount_msat=None, prices=(rule,), grace_data_bytes=0),
        settings(sells=False, trust_amount_msat=20_000, payment_amount_msat=3000),
    )
    sim.up(free)
    sim.run(1)
    stream_up(sim, 15)
    assert account(sim).is_out and account(sim).balance_msat >= 0
    for sale in sim.gateway.world.sold_to(sim.client.identity):
        if sale.price_msat_per_gib:
            tell(sim, sim.gateway, Cancel(sale.id, "cancelled"))
    sim.run(2)
    before = len(sim.sent(sim.gateway, Invoice))
    for _ in range(300):
        sim.up(free)
        sim.run(1)
    assert account(sim).running and len(sim.sent(sim.gateway, Invoice)) == before


def refused(streamed_s: float) -> Sim:
    """Return a client whose grace and first payment are used up, and to which nothing came back."""
    sim = Sim(settings(trust_amount_msat=None), settings(sells=False, trust_amount_msat=None))
    stream_up(sim, streamed_s)
    return sim


def stream_up(sim: Sim, seconds: float) -> None:
    """Send a hundred kilobytes a second."""
    for _ in range(int(100 * seconds)):
        sim.up(HOST)
        sim.run(0.01)


def seldom(sim: Sim, seconds: int) -> None:
    """Send a small packet each second."""
    for _ in range(seconds):
        sim.up(HOST, 84)
        sim.run(1)
