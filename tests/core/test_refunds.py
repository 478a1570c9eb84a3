"""Refunds: money goes back once, to its owner, however often anybody asks and whatever crashes in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import Node, Sim, account, bought, settings, tell
from test_money import OFTEN
from test_reach import channel, end

from core_tests.simulate.stand_ins import PAYEES
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.buying.refunds import INVOICE_PAUSE_S, why_not_ask
from ngp.core.messages import Declined, DeclineReason, Message, Refund
from ngp.core.orders import REFUND_PAUSE_S
from ngp.core.payment_node import PaymentOutcome, PaymentStatus, Settlement
from ngp.core.pricing import SAT_MSAT
from ngp.core.records import Direction, PaymentKind, PaymentState
from ngp.core.selling import metering
from ngp.core.selling.refunds import ASK_PAUSE_S, why_no_refund
from ngp.core.settings import Budgets, FeeLimit

HOST = "198.51.100.1"
GENEROUS = settings(refund_when_asked=True, contract_time_s=5)


def prepaid(gateway: object = GENEROUS, seconds: float = 60.0) -> Sim:
    """Return a simulation whose client used a little of what it prepaid, and whose contracts are over."""
    sim = Sim(gateway)  # type: ignore[arg-type]
    sim.flow(HOST, 50_000, 2)
    sim.run(seconds)
    assert not account(sim).running and account(sim).balance_msat > 10_000
    return sim


def ask(sim: Sim) -> None:
    sim.happen(sim.client, ev.AskRefund(sim.gateway.identity))
    sim.run(2)


def offer(sim: Sim) -> None:
    sim.happen(sim.gateway, ev.RefundNeighbour(sim.client.identity))
    sim.run(2)


def say(sim: Sim, message: Message) -> list[object]:
    """Send a message to the gateway in the client's name; return the gateway's answers."""
    invoice = getattr(message, "bolt11", "")
    decoded = sim.payments.decode(invoice) if invoice else None
    if decoded is not None:  # the daemon asks its ledger
        was_ordered = (Direction.OUT, decoded.payment_hash) in sim.gateway.ledger.payments
        decoded = replace(decoded, was_ordered=was_ordered)
    told = ev.MessageReceived(sim.client.identity, sim.client.link, sim.client.boot, message, 9 << 32, decoded)
    effects = sim.gateway.gatekeeper.step(told, sim.clock())
    sim.carry_out(sim.gateway, [effect for effect in effects if not isinstance(effect, fx.Send)])
    return [effect.message for effect in effects if isinstance(effect, fx.Send)]


def refunds(node: Node) -> list[int]:
    """Return the refunds that a node paid, from its ledger."""
    kept = node.ledger.payments.values()
    ours = [one for one in kept if one.kind is PaymentKind.REFUND and one.direction is Direction.OUT]
    return [one.amount_msat for one in ours if one.state is PaymentState.SUCCEEDED]


def logged(node: Node, words: str) -> int:
    return sum(isinstance(effect, fx.Log) and words in effect.text for effect in node.log)


def test_a_client_that_asks_gets_what_is_free() -> None:
    sim = prepaid()
    free_msat = account(sim).balance_msat // SAT_MSAT * SAT_MSAT
    ask(sim)
    assert refunds(sim.gateway) == [free_msat]
    assert account(sim).refunded_msat == bought(sim).refunded_msat == free_msat
    assert 0 <= account(sim).balance_msat < SAT_MSAT
    lines = [line for line in sim.gateway.ledger.journal if line.kind == "refund"]
    assert [line.amount_msat for line in lines] == [-free_msat]


def test_by_default_the_operator_decides_and_the_log_says_so_once_in_a_while() -> None:
    sim = prepaid(settings(contract_time_s=5))
    for _ in range(5):
        ask(sim)
        sim.run(ASK_PAUSE_S)
    assert not refunds(sim.gateway) and logged(sim.gateway, "of its balance: to pay it, run ngp refund") == 1
    assert logged(sim.client, "its operator decides") == 5
    offer(sim)
    assert refunds(sim.gateway)
    sim.flow(HOST, 50_000, 2)
    sim.run(30)
    ask(sim)
    assert logged(sim.client, "its operator decides") == 6, "to ask again later wouldn't help"


def test_asking_in_a_loop_gets_one_refund_an_hour() -> None:
    sim = prepaid()
    for _ in range(50):
        say(sim, Refund(0))
    assert sim.gateway.world.counters["refund_asks_ignored"] == 49
    ask(sim)
    sim.run(ASK_PAUSE_S)
    ask(sim)
    assert len(refunds(sim.gateway)) == 1
    sim.flow(HOST, 50_000, 2)
    sim.run(30)
    assert account(sim).balance_msat > 10_000
    ask(sim)
    assert (
        logged(
            sim.gateway, "a refund was paid or failed lately, so ngp pays no other by itself; to pay it, run ngp refund"
        )
        == 1
    )
    sim.crash(sim.gateway)
    sim.run(30)
    ask(sim)
    assert len(refunds(sim.gateway)) == 1
    assert logged(sim.client, "was paid less than 60 min ago, or failed less than 5 min ago: ask again later") == 2
    sim.run(REFUND_PAUSE_S)
    ask(sim)
    assert len(refunds(sim.gateway)) == 2


def test_a_blocked_neighbour_and_one_without_an_account_get_nothing_by_asking() -> None:
    sim = prepaid()
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, True))
    assert say(sim, Refund(0)) == [Declined(b"", DeclineReason.BLOCKED)]
    offer(sim)  # the operator pays it all the same
    assert refunds(sim.gateway)
    sim = Sim(GENEROUS)
    assert say(sim, Refund(0)) == [Declined(b"", DeclineReason.AMOUNT)]
    assert not sim.gateway.world.accounts


def test_money_set_aside_for_rounding_stays() -> None:
    sim = Sim(replace(GENEROUS, contract_time_s=3600))
    sim.flow(HOST, 50_000, 3)
    ours = account(sim)
    held_msat, free_msat = ours.reserved_msat, ours.funds_msat // SAT_MSAT * SAT_MSAT
    assert ours.running and held_msat > 0
    ask(sim)
    assert refunds(sim.gateway) == [free_msat]
    assert ours.balance_msat >= held_msat >= ours.reserved_msat > 0
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, True))
    sim.run(2)
    offer(sim)
    assert account(sim).balance_msat < SAT_MSAT


def test_more_than_was_offered_is_not_paid_and_the_rest_is_named() -> None:
    sim = prepaid()
    (offered,) = say(sim, Refund(0))
    assert isinstance(offered, Refund)
    greedy = sim.payments.invoice("client", offered.amount_msat + SAT_MSAT)
    assert say(sim, Refund(offered.amount_msat + SAT_MSAT, greedy.hex())) == [
        Declined(greedy, DeclineReason.AMOUNT, offered.amount_msat)
    ]
    foreign = sim.payments.invoice("mallory", offered.amount_msat)
    assert say(sim, Refund(offered.amount_msat, foreign.hex())) == []
    assert not sim.payments.sent.get("gateway") and sim.gateway.world.counters["invoice_foreign_payee"] == 1
    for _ in range(3):  # one after the other, before the first has ended
        again = sim.payments.invoice("client", offered.amount_msat)
        say(sim, Refund(offered.amount_msat, again.hex()))
    sim.run(2)
    assert refunds(sim.gateway) == [offered.amount_msat]


def test_an_invoice_with_the_hash_of_a_refund_of_long_ago_is_not_paid() -> None:
    sim = prepaid()
    (offered,) = say(sim, Refund(0))
    assert isinstance(offered, Refund)
    amount_msat = offered.amount_msat // 2 // SAT_MSAT * SAT_MSAT
    payment_hash = sim.payments.invoice("client", amount_msat)
    say(sim, Refund(amount_msat, payment_hash.hex()))
    sim.run(2 * 86_400)
    assert payment_hash not in sim.gateway.world.money.payments and refunds(sim.gateway) == [amount_msat]
    say(sim, Refund(0))
    assert account(sim).refund.offered_msat >= amount_msat
    say(sim, Refund(amount_msat, payment_hash.hex()))
    sim.run(2)
    assert refunds(sim.gateway) == [amount_msat] and not sim.gateway.world.money.payments


@pytest.mark.parametrize("ours", [False, True])
def test_an_invoice_whose_hash_came_into_use_while_the_kernel_counted_is_not_paid(ours: bool) -> None:
    """Two neighbours that send invoices with one hash at a time must not make a batch that can't be stored."""
    sim = Sim(GENEROUS)
    sim.flow(HOST, 50_000, 2)
    sim.run(2)
    assert account(sim).running, "the kernel must count first"
    say(sim, Refund(0))
    amount_msat = account(sim).refund.offered_msat
    payment_hash = sim.payments.invoice("client", amount_msat)
    say(sim, Refund(amount_msat, payment_hash.hex()))
    assert account(sim).refund.pending is not None
    other = next(iter(sim.gateway.world.money.invoices.values()))
    money = sim.gateway.world.money
    (money.invoices if ours else money.payments)[payment_hash] = replace(other, identity=b"O" * 32)
    sim.run(1)
    assert not refunds(sim.gateway) and account(sim).refund.promised_msat == 0
    assert Declined(payment_hash, DeclineReason.TERMS) in sim.sent(sim.gateway, Declined)


def test_a_client_takes_less_when_the_server_has_less() -> None:
    sim = prepaid(replace(GENEROUS, budgets=Budgets(31_000, None, 10**9, 10**9, None)))
    assert account(sim).balance_msat > 50_000
    offer(sim)
    assert refunds(sim.gateway) == [30_000]


def test_an_asked_refund_costs_no_more_than_was_earned() -> None:
    generous = replace(GENEROUS, fee_limit=FeeLimit(0, 5_000))
    sim = prepaid(generous)
    earned_msat = account(sim).charged_msat
    assert earned_msat < 5_000
    ask(sim)
    sim_of_operator = prepaid(generous)
    offer(sim_of_operator)
    limits = [
        effect.fee_limit_msat
        for each in (sim, sim_of_operator)
        for effect in each.gateway.log
        if isinstance(effect, fx.PayInvoice)
    ]
    assert limits == [earned_msat, 5_000]


def pay_in(sim: Sim, amount_msat: int) -> None:
    """Let the client pay much more than it uses: BOLT 4 permits twice an invoice's amount, and LND takes any sum."""
    made = sim.payments.invoice("gateway", 1000)
    sim.happen(sim.gateway, ev.InvoiceMade(sim.client.identity, PaymentKind.TOP_UP, made.hex(), made, 1000, 600))
    sim.happen(sim.gateway, Settlement(sim.gateway.world.money.cursor + 1, made, amount_msat))


@pytest.mark.parametrize("restarted", [False, True])
def test_asked_refunds_cost_together_no_more_than_was_earned(restarted: bool) -> None:
    """Otherwise a client could pay in, ask for a refund routed through its own nodes, and earn their fees each hour."""
    sim = prepaid(replace(GENEROUS, fee_limit=FeeLimit(0, 200)))
    sim.payments.fee_msat = 150
    earned_msat = account(sim).charged_msat = 400
    sim.gateway.ledger.put(account(sim).record())
    fees = []
    for _ in range(5):
        pay_in(sim, 50_000)
        offered = [one for one in say(sim, Refund(0)) if isinstance(one, Refund)]
        made = sim.payments.invoice("client", offered[0].amount_msat)
        say(sim, Refund(offered[0].amount_msat, made.hex()))
        sim.run(1)
        fees = [one.fee_msat for one in sim.gateway.ledger.payments.values() if one.state is PaymentState.SUCCEEDED]
        if restarted:
            sim.crash(sim.gateway)
        sim.run(REFUND_PAUSE_S)
    assert sum(fees) == 300 <= earned_msat


@pytest.mark.parametrize(("day_msat", "total_msat"), [(200_000, None), (10**9, 200_000)])
def test_asked_refunds_leave_half_of_the_budgets_to_buy_with(day_msat: int, total_msat: int | None) -> None:
    sim = prepaid(replace(GENEROUS, budgets=Budgets(10**9, None, 10**9, day_msat, total_msat), buys=True))
    for _ in range(3):
        pay_in(sim, 70_000)
        bought(sim).paid_msat = account(sim).paid_msat
        ask(sim)
        sim.crash(sim.gateway)
        sim.run(REFUND_PAUSE_S)
    assert 90_000 < sum(refunds(sim.gateway)) <= 100_000
    offer(sim)  # the operator may let it cost more
    assert sum(refunds(sim.gateway)) > 100_000


def test_nothing_is_offered_out_of_an_empty_channel() -> None:
    sim = prepaid()
    drained = channel(end(0), end(500), PAYEES["client"].hex())
    sim.happen(sim.gateway, ev.ChannelsSeen((drained,)))
    offer(sim)
    assert logged(sim.gateway, "nothing to refund") == logged(sim.gateway, "is empty on our side") == 1
    sim.happen(sim.gateway, ev.ChannelsSeen((channel(end(40), end(500), PAYEES["client"].hex()),)))
    offer(sim)
    assert refunds(sim.gateway) == [40_000]


def test_a_second_offer_after_a_forgotten_one_is_answered_by_the_same_invoice() -> None:
    sim = prepaid()
    sim.happen(sim.client, ev.AskRefund(sim.gateway.identity))
    sim.run(0.012)  # offered; the invoice isn't there yet
    sim.crash(sim.gateway)
    sim.run(30)
    assert not refunds(sim.gateway)
    ask(sim)
    made = [e for e in sim.client.log if isinstance(e, fx.MakeInvoice)]
    assert len(made) == len(refunds(sim.gateway)) == 1


def test_offers_in_a_loop_make_few_invoices() -> None:
    sim = prepaid()
    for number in range(200):
        told = Refund(2000 + number % 2 * 1000)
        received = ev.MessageReceived(sim.gateway.identity, sim.gateway.link, 1, told, 9 << 32)
        sim.happen(sim.client, received)
        sim.run(1)
    made = [e for e in sim.client.log if isinstance(e, fx.MakeInvoice)]
    assert 0 < len(made) <= 2 + 200 / INVOICE_PAUSE_S


def test_a_refund_that_fails_may_be_asked_for_again_and_withdraws_the_invoice() -> None:
    sim = prepaid()
    sim.payments.outcomes = [PaymentStatus.FAILED]
    ask(sim)
    assert not refunds(sim.gateway) and account(sim).refund.promised_msat == 0
    assert not bought(sim).invoice.payment_hash
    sim.run(400)
    ask(sim)
    assert len(refunds(sim.gateway)) == 1


def settle_down(sim: Sim) -> None:
    """Wait until everything has ended, then compare both daemons' refunds with what was really paid back."""
    sim.loss = sim.late_s = sim.doubles = 0.0
    sim.gateway.crash_after = sim.client.crash_after = -1
    sim.payments.outcomes.clear()
    sim.run(700)
    given_back = sim.payments.sent.get("gateway", {})
    ours = sim.gateway.world.clients.get(sim.client.identity)
    if ours is None:
        assert not given_back
        return
    assert ours.refunded_msat == sum(given_back.values()) == sum(refunds(sim.gateway))
    assert ours.refund.promised_msat == 0 <= ours.balance_msat + ours.debt_msat
    lines = [line.payment_hash for line in sim.gateway.ledger.journal if line.kind == "refund"]
    assert sorted(lines) == sorted(given_back)
    if given_back:
        assert bought(sim).refunded_msat == ours.refunded_msat
    assert sim.gateway.world.money.spending.total_msat == ours.refunded_msat


@pytest.mark.parametrize("fate", [PaymentStatus.SUCCEEDED, PaymentStatus.PENDING, PaymentStatus.FAILED])
@pytest.mark.parametrize("whose", ["gateway", "client"])
def test_a_death_at_any_step_of_a_refund_gives_nothing_twice_and_loses_nothing(whose: str, fate: PaymentStatus) -> None:
    for step in range(14):
        sim = prepaid()
        free_msat = account(sim).balance_msat // SAT_MSAT * SAT_MSAT
        sim.payments.outcomes = [fate]
        (sim.gateway if whose == "gateway" else sim.client).crash_after = step
        sim.happen(sim.client, ev.AskRefund(sim.gateway.identity))
        sim.run(0.5)
        if sim.gateway.ledger.payments and account(sim).refund.promised_msat:
            offer(sim)  # while it is on its way
        settle_down(sim)
        ask(sim)  # the refund may have failed
        settle_down(sim)
        assert refunds(sim.gateway) == [free_msat], step


plans = st.lists(
    st.one_of(
        st.tuples(st.just("flow"), st.integers(1, 4)),
        st.tuples(st.just("ask"), st.sampled_from((0.0, 0.011, 2.0))),
        st.tuples(st.just("offer"), st.sampled_from((0.0, 0.011, 2.0))),
        st.tuples(st.just("crash"), st.booleans(), st.integers(0, 8)),
        st.tuples(st.just("run"), st.sampled_from((1.0, 20.0, 400.0, 3700.0))),
    ),
    max_size=14,
)


@effort(OFTEN, max_examples=effort.default.max_examples // 3)
@given(plans, st.lists(st.sampled_from(tuple(PaymentStatus)), max_size=6), st.integers(0, 1 << 30), st.booleans())
def test_each_refund_is_paid_once(
    plan: list[tuple[object, ...]], pays: list[PaymentStatus], seed: int, rough: bool
) -> None:
    """Either daemon may die between any two effects, messages may be lost or doubled, payments may fail or hang."""
    troubles = {"loss": 0.1, "doubles": 0.1, "late_s": 0.3} if rough else {}
    sim = Sim(GENEROUS, settings(sells=False, contract_time_s=5), seed, **troubles)  # type: ignore[arg-type]
    sim.flow(HOST, 50_000, 2)
    sim.payments.outcomes = list(pays)
    for action, *details in plan:
        if action == "flow":
            sim.flow(HOST, 50_000, float(details[0]))  # type: ignore[arg-type]
        elif action == "crash":
            node = sim.gateway if details[0] else sim.client
            node.crash_after = details[1]  # type: ignore[assignment]
        else:
            if action == "ask":
                sim.happen(sim.client, ev.AskRefund(sim.gateway.identity))
            elif action == "offer":
                sim.happen(sim.gateway, ev.RefundNeighbour(sim.client.identity))
            sim.run(details[0])  # type: ignore[arg-type]
        given_back = sum(sim.payments.sent.get("gateway", {}).values())
        assert given_back <= sum(sim.payments.sent.get("client", {}).values())
    settle_down(sim)


def test_refund_pays_what_is_free_and_nothing_unasked() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    stolen = sim.payments.invoice("client", 50_000)
    tell(sim, sim.gateway, Refund(50_000, stolen.hex()), decoded=sim.payments.decode(stolen.hex()))
    assert not sim.gateway.world.money.payments
    sim.happen(sim.gateway, ev.RefundNeighbour(sim.client.identity))
    sim.run(2)
    ours, theirs = account(sim), bought(sim)
    assert ours.refunded_msat == theirs.refunded_msat > 50_000
    assert ours.balance_msat >= 0


def test_a_refund_of_more_than_the_client_paid_is_told_on_both_sides() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    by_hand = ev.InvoiceMade(sim.client.identity, PaymentKind.MANUAL, "", b"h" * 32, 50_000, 600)
    sim.happen(sim.gateway, by_hand)
    sim.happen(sim.gateway, Settlement(9, b"h" * 32, 50_000))
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, True))
    sim.run(1)
    sim.happen(sim.gateway, ev.RefundNeighbour(sim.client.identity))
    sim.run(2)
    logs = {node.name: [one.text for one in node.log if isinstance(one, fx.Log)] for node in (sim.gateway, sim.client)}
    who = sim.client.identity.hex()[:8]
    assert any(text.startswith("refund of ") and f"offered to {who}" in text for text in logs["gateway"])
    assert any(text.startswith(f"{who} asks for ") for text in logs["gateway"])
    assert any("offers a refund of" in text for text in logs["client"])
    assert account(sim).refunded_msat > 0


def take_offer(sim: Sim) -> bytes:
    """Let the operator offer a refund and the client answer with an invoice; return its hash, carry no effect out."""
    sim.gateway.gatekeeper.step(ev.RefundNeighbour(sim.client.identity), sim.clock())
    offered = account(sim).refund.offered_msat
    bolt11 = sim.payments.invoice("client", offered)
    refund = ev.MessageReceived(
        *(sim.client.identity, sim.client.link, sim.client.boot, Refund(offered, bolt11.hex()), 7 << 32),
        decoded=sim.payments.decode(bolt11.hex()),
    )
    sim.gateway.gatekeeper.step(refund, sim.clock())
    assert account(sim).refund.promised_msat == offered > 0
    return bolt11


def counted(sim: Sim) -> list[fx.Effect]:
    """Answer `CountAccount` for the client's account; return the effects."""
    spent = sim.gateway.kernel.accounts[sim.client.identity].spent
    return sim.gateway.gatekeeper.step(ev.AccountCounted(sim.client.identity, spent, ()), sim.clock())


def test_a_refund_waits_for_a_count_that_was_asked_for_after_its_sum_was_taken_out() -> None:
    sim = Sim(client=settings(sells=False))
    sim.flow(HOST, 100_000, 2)
    metering.count_again(sim.gateway.world, account(sim))
    take_offer(sim)
    kinds = [type(effect) for effect in counted(sim)]
    assert fx.CountAccount in kinds and fx.PayInvoice not in kinds
    kinds = [type(effect) for effect in counted(sim)]
    assert fx.PayInvoice in kinds and fx.CountAccount not in kinds


def test_a_refund_that_fails_is_offered_again_and_makes_no_payment_wait() -> None:
    sim = Sim(client=settings(sells=False))
    sim.flow(HOST, 100_000, 2)
    for _ in range(2):
        bolt11 = take_offer(sim)
        counted(sim)
        failed = PaymentOutcome(bolt11, PaymentStatus.FAILED, reason="no route")
        sim.happen(sim.gateway, failed)
        assert account(sim).refund.promised_msat == 0
    assert sim.client.identity not in sim.gateway.world.servers
    assert sim.gateway.world.buying.backoff.failures == 0


def test_the_operator_is_told_why_no_refund_can_be_offered() -> None:
    sim = prepaid()
    world, who = sim.gateway.world, sim.client.identity
    named = who.hex()[:16]
    assert why_no_refund(world, who) == ""
    free = "0 msat of 0000000000000000's balance can be paid back"
    nobody = f"nothing to refund: {free}, and a payment must be at least 1000 msat"
    assert why_no_refund(world, bytes(32)) == nobody
    for neighbour in world.peers.by_identity[who].values():
        neighbour.up = False
    assert why_no_refund(world, who) == f"{named} is away and can't send its invoice: run this again when it is back"
    account(sim).refund.promised_msat = 5_000
    assert why_no_refund(world, who) == f"a refund of 5 sat to {named} is on its way: ngp accounts shows since when"
    offer(sim)
    assert logged(sim.gateway, "a refund of 5 sat") == 1 and account(sim).refund.offered_msat == 0


def test_the_operator_is_told_why_a_server_cannot_be_asked() -> None:
    sim = prepaid()
    world, who = sim.client.world, sim.gateway.identity
    assert why_not_ask(world, who) == ""
    for neighbour in world.peers.by_identity[who].values():
        neighbour.up = False
    assert why_not_ask(world, who) == f"{who.hex()[:16]} is away and can't be asked: run this again when it is back"
    nobody = "nothing to ask for: our balance with 0000000000000000 is 0 msat"
    assert why_not_ask(world, bytes(32)) == nobody
    sim.happen(sim.client, ev.AskRefund(bytes(32)))
    assert logged(sim.client, nobody) == 1
