"""Payments that stay pending for ever, or whose outcome is never reported, hold up nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playbook import Sim, account, settings

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.messages import Declined, Invoice
from ngp.core.payment_node import DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.core.records import Direction, PaymentKind, PaymentState
from ngp.core.settings import Budgets

HOST = "198.51.100.1"
DAY_S = 86_400


def stick(sim: Sim, payments: int) -> set[bytes]:
    """Let the next payments stay pending for ever. Returns a set that will hold their hashes."""
    stuck: set[bytes] = set()
    pay, track = sim.payments.pay, sim.payments.track

    def pay_or_stick(payer: str, payment_hash: bytes, fee_limit_msat: int) -> PaymentOutcome:
        if len(stuck) < payments:
            stuck.add(payment_hash)
        if payment_hash in stuck:
            return PaymentOutcome(payment_hash, PaymentStatus.PENDING)
        return pay(payer, payment_hash, fee_limit_msat)

    def track_or_stick(payer: str, payment_hash: bytes) -> PaymentOutcome:
        if payment_hash in stuck:
            return PaymentOutcome(payment_hash, PaymentStatus.PENDING)
        return track(payer, payment_hash)

    sim.payments.pay, sim.payments.track = pay_or_stick, track_or_stick  # type: ignore[method-assign]
    return stuck


def paid_msat(sim: Sim) -> int:
    return sum(sim.payments.sent.get("client", {}).values())


def test_a_failure_that_the_server_missed_is_repeated_after_the_next_reminder() -> None:
    sim = Sim()
    sim.payments.outcomes = [PaymentStatus.FAILED]
    sim.silenced = {Declined}
    sim.flow(HOST, 50_000, 1)
    sim.crash(sim.client)
    sim.silenced = set()
    assert paid_msat(sim) == 0
    sim.flow(HOST, 50_000, 15)
    assert paid_msat(sim) > 0


def test_a_seller_whose_client_cant_pay_names_that_as_a_possible_cause() -> None:
    sim = Sim()
    sim.payments.outcomes = [PaymentStatus.FAILED] * 3
    sim.flow(HOST, 50_000, 3)
    assert "busy: its payments may be failing, or one to us is still on its way" in account(sim).why_not


def test_a_stuck_payment_stays_reserved_and_the_next_top_up_comes_when_its_invoice_is_withdrawn() -> None:
    sim = Sim()
    stuck = stick(sim, 1)
    sim.flow(HOST, 50_000, 110)
    tried = [effect for effect in sim.client.log if isinstance(effect, fx.PayInvoice)]
    assert len(tried) == len(stuck) == 1 and paid_msat(sim) == 0  # when the invoice comes again, it isn't paid again
    sim.flow(HOST, 50_000, 30)
    (payment,) = stuck
    assert paid_msat(sim) > 0
    assert sim.client.world.money.payments[payment].state is PaymentState.PENDING
    assert sim.client.world.money.spending.total_msat > paid_msat(sim)


def test_a_payment_that_is_stuck_for_long_is_asked_for_once_a_minute() -> None:
    sim = Sim()
    stick(sim, 1)

    def asked() -> int:
        return sum(isinstance(effect, fx.TrackPayment) for effect in sim.client.log)

    sim.flow(HOST, 50_000, 60)
    assert asked() >= 10
    sim.run(3600)
    before = asked()
    sim.run(600)
    assert asked() - before == 10


def test_payments_stuck_for_ever_do_not_end_the_trade_and_at_most_two_a_day_are_risked() -> None:
    sim = Sim(client=settings(sells=False))
    stuck = stick(sim, 3)

    def an_hour() -> None:
        for _ in range(20):
            for _ in range(2):  # the first packet is held, and its client's meter sees the second one only
                sim.up(HOST)
                sim.flow(HOST, 2000, 2)
            sim.run(180)

    an_hour()
    assert len(stuck) == 2 and paid_msat(sim) == 0
    sim.run(DAY_S)
    an_hour()
    assert len(stuck) == 3 and paid_msat(sim) > 0


def test_a_debt_above_what_one_payment_may_be_is_paid_step_by_step() -> None:
    tight = Budgets(20_000, None, 20_000_000, 200_000_000, None)
    sim = Sim(settings(grace_data_bytes=10 << 20), settings(sells=False, budgets=tight))
    sim.silenced = {Invoice}
    sim.flow(HOST, 4_000_000, 3)  # uses up the grace, which costs more than one payment may be
    sim.silenced = set()
    owed_msat = -sim.gateway.world.clients[sim.client.identity].balance_msat
    assert owed_msat > 50_000 and paid_msat(sim) == 0
    for _ in range(20):
        sim.flow(HOST, 1_000, 10)
    assert paid_msat(sim) > owed_msat


def test_a_client_whose_payments_are_small_is_asked_for_more_once_a_minute_only() -> None:
    tight = Budgets(20_000, None, 20_000_000, 200_000_000, None)
    sim = Sim(settings(), settings(sells=False, budgets=tight))
    for _ in range(180):
        sim.flow(HOST, 700_000, 1)
    declined = [one for one in sim.client.log if isinstance(one, fx.Log) and "declined: BUDGET_PAYMENT" in one.text]
    assert len(sim.payments.sent["client"]) > 30 and 1 < len(declined) < 10


@pytest.mark.parametrize(("wrong_s", "words"), [(-900, "have lapsed"), (DAY_S, "more than 12 hours")])
def test_a_wrong_clock_is_named_where_invoices_do_not_fit_it(wrong_s: int, words: str) -> None:
    sim = Sim(client=settings(sells=False))
    decode = sim.payments.decode

    def decode_late(bolt11: str) -> DecodedInvoice | None:
        right = decode(bolt11)
        return right and replace(right, expires_in_s=right.expires_in_s + wrong_s)

    sim.payments.decode = decode_late  # type: ignore[method-assign]
    sim.flow(HOST, 50_000, 10)
    told = [one.text for one in sim.client.log if isinstance(one, fx.Log) and "clock" in one.text]
    assert len(told) == 1 and words in told[0] and not paid_msat(sim)
    assert words in sim.client.world.servers[sim.gateway.identity].why_not


HALF_A_DAY_S = DAY_S // 2


def paid_invoice(sim: Sim) -> tuple[str, int]:
    """Let the client pay an invoice that is valid for half a day. Returns the invoice, and when it lapses."""
    sim.silenced = {Invoice}
    sim.up(HOST)
    sim.run(1)
    bolt11, made_s = sim.payments.invoice("gateway", 50_000).hex(), sim.clock().utc_s
    hand_in(sim, bolt11, made_s + HALF_A_DAY_S)
    sim.run(5)
    assert paid_msat(sim) == 50_000
    return bolt11, made_s + HALF_A_DAY_S


def hand_in(sim: Sim, bolt11: str, lapses_s: int) -> None:
    """Let the gateway send an invoice to the client, whose module computes its validity by the client's clock."""
    decoded = sim.payments.decode(bolt11)
    assert decoded is not None
    was_ordered = (Direction.OUT, decoded.payment_hash) in sim.client.ledger.payments  # the daemon asks its ledger
    decoded = replace(decoded, expires_in_s=lapses_s - sim.clock().utc_s, was_ordered=was_ordered)
    said = Invoice(bolt11, decoded.amount_msat)
    sim.happen(sim.client, ev.MessageReceived(sim.gateway.identity, sim.gateway.link, 1, said, 1 << 33, decoded))


def test_an_invoice_with_the_hash_of_a_payment_of_long_ago_is_not_paid() -> None:
    sim = Sim(client=settings(sells=False))
    bolt11, _ = paid_invoice(sim)
    sim.run(3 * DAY_S)
    assert not sim.client.world.money.payments
    hand_in(sim, bolt11, sim.clock().utc_s + 600)  # a new invoice with the old hash
    assert paid_msat(sim) == 50_000 and not sim.client.world.money.payments


def test_a_paid_invoice_that_comes_again_is_not_paid_if_the_clock_went_back_since_we_forgot_it() -> None:
    sim = Sim(client=settings(sells=False))
    bolt11, lapses_s = paid_invoice(sim)
    sim.run(25 * 3600)
    sim.utc_ahead_s = -14 * 3600
    hand_in(sim, bolt11, lapses_s)  # the ledger would refuse to store it as pending again
    sim.crash(sim.client)
    hand_in(sim, bolt11, lapses_s)
    sim.run(5)
    assert paid_msat(sim) == 50_000


def test_a_paid_invoice_that_comes_again_is_not_paid_if_we_started_with_the_clock_ahead() -> None:
    sim = Sim(client=settings(sells=False))
    bolt11, lapses_s = paid_invoice(sim)
    sim.run(5 * 3600)
    sim.utc_ahead_s = 20 * 3600
    sim.crash(sim.client)
    sim.run(60)
    sim.utc_ahead_s = 0
    hand_in(sim, bolt11, lapses_s)
    sim.run(5)
    assert paid_msat(sim) == 50_000
    fresh = sim.payments.invoice("gateway", 50_000).hex()
    hand_in(sim, fresh, sim.clock().utc_s + 600)  # what was paid is still known, so nothing is in doubt
    assert not sim.client.world.servers[sim.gateway.identity].why_not


def test_a_node_that_makes_no_invoice_is_warned_of_once() -> None:
    sim = Sim()
    for _ in range(5):
        sim.happen(sim.gateway, ev.InvoiceFailed(sim.client.identity, PaymentKind.TOP_UP, "LND is locked"))
        sim.run(6)
    told = [one.text for one in sim.gateway.log if isinstance(one, fx.Log) and "locked" in one.text]
    assert len(told) == 1 and told[0].startswith("no invoice for ")


def test_one_payment_that_stays_pending_keeps_a_newcomer_from_trading_for_an_hour_only() -> None:
    sim = Sim(settings(trust_amount_msat=None), settings(sells=False, trust_amount_msat=None))
    assert stick(sim, 1) is not None
    sim.flow(HOST, 50_000, 60)
    assert not paid_msat(sim)
    sim.now += 3600
    sim.flow(HOST, 50_000, 120)
    assert paid_msat(sim) > 10_000
