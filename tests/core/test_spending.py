"""A node pays only the neighbours that it buys from, never its own invoices, and within its budgets and fee limit."""

from __future__ import annotations

from playbook import Node, Sim, account, settings, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.messages import Declined, DeclineReason, Invoice, Refund, Statement, StatementLine
from ngp.core.payment_node import PaymentStatus
from ngp.core.records import PaymentKind
from ngp.core.settings import Budgets, FeeLimit

HOST = "198.51.100.1"


def test_messages_about_money_open_no_account_in_a_role_that_the_node_does_not_have() -> None:
    sim = Sim(settings(buys=False), settings(sells=False))
    bolt11 = sim.payments.invoice("client", 5000).hex()
    tell(sim, sim.gateway, Refund(5000))
    tell(sim, sim.gateway, Refund(0))
    tell(sim, sim.gateway, Statement(0, 5000, 0, (StatementLine(b"c" * 16, 1000, 0, 5000),)))
    effects = tell(sim, sim.gateway, Invoice(bolt11, 5000), decoded=sim.payments.decode(bolt11))
    declined = Declined(bytes.fromhex(bolt11), DeclineReason.NOT_BUYING)
    assert declined in [effect.message for effect in effects if isinstance(effect, fx.Send)]
    bolt11 = sim.payments.invoice("gateway", 5000).hex()
    tell(sim, sim.client, Refund(5000, bolt11), decoded=sim.payments.decode(bolt11))
    assert not sim.gateway.world.accounts and not sim.client.world.accounts


def test_nobody_is_paid_by_an_invoice_of_our_own() -> None:
    """If a node paid its own invoice, it would credit both the neighbour that sent it and the one it was made for."""
    sim = Sim()
    sim.flow(HOST, 100_000, 2)

    def own(node: Node, amount_msat: int) -> str:
        made = sim.payments.invoice(node.name, amount_msat)
        event = ev.InvoiceMade(sim.peer(node).identity, PaymentKind.MANUAL, made.hex(), made, amount_msat, 600)
        node.gatekeeper.step(event, sim.clock())
        return made.hex()

    sim.gateway.gatekeeper.step(ev.RefundNeighbour(sim.client.identity), sim.clock())
    offered = account(sim).refund.offered_msat
    bolt11 = own(sim.gateway, offered)
    tell(sim, sim.gateway, Refund(offered, bolt11), decoded=sim.payments.decode(bolt11))
    assert offered and not sim.gateway.world.money.payments
    bolt11 = own(sim.client, 1000)
    effects = tell(sim, sim.client, Invoice(bolt11, 1000), decoded=sim.payments.decode(bolt11))
    assert not [effect for effect in effects if isinstance(effect, fx.PayInvoice)]


def test_invoice_above_what_the_client_risks_is_asked_smaller() -> None:
    sim = Sim(settings(payment_amount_msat=1_000_000), settings(sells=False, payment_amount_msat=10_000))
    sim.flow(HOST, 50_000, 3)
    assert 0 < account(sim).paid_msat <= 40_000


def test_budget_holds_and_is_named() -> None:
    tight = Budgets(20_000_000, None, 150_000, 200_000_000, None)
    sim = Sim(client=settings(sells=False, budgets=tight))
    for _ in range(3):
        sim.flow(HOST, 2_000_000, 5)
        sim.crash(sim.client)
    spent = sum(sim.payments.sent["client"].values())
    assert 0 < spent <= 150_000
    assert any("BUDGET_HOUR" in e.text for e in sim.client.log if isinstance(e, fx.Log))


def test_a_raised_budget_is_paid_from_at_once() -> None:
    """The server would wait for up to a minute before its next invoice."""
    tight = Budgets(20_000_000, None, 15_000, 200_000_000, None)
    sim = Sim(settings(payment_amount_msat=10_000), settings(sells=False, payment_amount_msat=10_000, budgets=tight))
    sim.flow(HOST, 50_000, 180)
    spent_msat = account(sim).paid_msat
    assert account(sim).balance_msat <= 1000 <= spent_msat
    sim.happen(sim.client, ev.SettingsChanged(settings(sells=False, payment_amount_msat=10_000)))
    sim.run(1)
    assert account(sim).paid_msat > spent_msat
    delivered = sim.passed
    sim.flow(HOST, 20_000, 3)
    assert sim.passed - delivered >= 55_000


def test_an_invoice_for_a_client_that_would_pay_now_is_not_made_often() -> None:
    sim = Sim(client=settings(sells=False, budgets=Budgets(20_000_000, None, 0, 200_000_000, None)))
    sim.flow(HOST, 50_000, 60)
    declined = list(sim.gateway.world.money.invoices)[-1]
    sim.gateway.log.clear()
    for _ in range(200):
        tell(sim, sim.gateway, Declined(declined, DeclineReason.AMOUNT, 5000))
        sim.run(0.1)
    assert len([one for one in sim.gateway.log if isinstance(one, fx.MakeInvoice)]) <= 3


def test_a_fee_above_the_limit_is_not_paid_and_a_reload_raises_it() -> None:
    sim = Sim(client=settings(sells=False, fee_limit=FeeLimit(10_000, 1000)))
    sim.payments.fee_msat = 1500
    sim.flow(HOST, 50_000, 3)
    tried = [effect for effect in sim.client.log if isinstance(effect, fx.PayInvoice)]
    assert tried and {effect.fee_limit_msat for effect in tried} == {1000}
    assert not sim.payments.sent and sim.client.world.money.spending.total_msat == 0
    sim.happen(sim.client, ev.SettingsChanged(settings(sells=False, fee_limit=FeeLimit(0, 1500))))
    sim.flow(HOST, 50_000, 60)
    paid = sim.payments.sent["client"]
    assert sim.client.world.money.spending.total_msat == sum(paid.values()) + 1500 * len(paid) > 0


def test_a_budget_leaves_room_for_the_fee() -> None:
    sim = Sim(client=settings(sells=False, fee_limit=FeeLimit(0, 60_000), budgets=Budgets(*[130_000] * 5)))
    sim.flow(HOST, 50_000, 3)
    tried = [effect for effect in sim.client.log if isinstance(effect, fx.PayInvoice)]
    assert [sim.payments.sent["client"][effect.payment_hash] for effect in tried] == [70_000]


def test_a_failed_payment_gives_no_room_for_more_than_the_hour() -> None:
    sim = Sim(client=settings(sells=False, budgets=Budgets(20_000_000, None, 150_000, 200_000_000, None)))
    sim.payments.outcomes = [PaymentStatus.FAILED] * 3
    sim.flow(HOST, 100_000, 3)
    spending = sim.client.world.money.spending
    sim.run(3700)
    assert spending.within_msat(3600, sim.clock()) >= 0


def test_a_clock_that_is_set_ahead_and_back_gives_no_budget_out_again() -> None:
    sim = Sim(client=settings(sells=False, budgets=Budgets(20_000_000, None, 150_000, 150_000, None)))
    for ahead_s in (0, 2 * 86_400, 0, 2 * 86_400):
        sim.utc_ahead_s = ahead_s
        sim.flow(HOST, 2_000_000, 5)
        assert 0 < sum(sim.payments.sent["client"].values()) <= 150_000
    sim.crash(sim.client)  # a start can't know that the clock is ahead; the day counts when the clock is right again
    sim.utc_ahead_s = 0
    sim.flow(HOST, 2_000_000, 5)
    assert sum(sim.payments.sent["client"].values()) <= 150_000
