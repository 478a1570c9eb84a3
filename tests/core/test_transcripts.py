"""Stories of a gateway and a client, told through the core alone."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import ip_network

import playbook
import pytest
from playbook import MSAT_PER_KB, Sim, settings

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.contract import MOVES, IllegalMove, State
from ngp.core.messages import (
    Accept,
    Ask,
    Hello,
    Invoice,
    Notice,
    Propose,
    Refund,
    Reject,
    RejectReason,
    Role,
    Statement,
    StatementLine,
)
from ngp.core.records import PaymentKind
from ngp.core.settings import Budgets, FeeLimit, PriceRule
from ngp.core.values import PaymentOutcome, PaymentStatus, Verdict

HOST = "198.51.100.1"
buyer = settings(sells=False)


def states(sim: Sim) -> list[tuple[str, str]]:
    return [(c.state, c.reason) for c in sim.contracts(sim.gateway)]


def account(sim: Sim, role: Role = Role.SERVER):  # type: ignore[no-untyped-def]
    node = sim.gateway if role is Role.SERVER else sim.client
    return node.world.accounts[sim.peer(node).identity, role]


def tell(sim: Sim, node: playbook.Node, message: object, **changes: object) -> list[fx.Effect]:
    """Let a node hear a message, and return what it wants done."""
    sender = sim.peer(node)
    heard = ev.MessageReceived(sender.identity, sender.link, sender.boot, message, 7 << 32)  # type: ignore[arg-type]
    effects = node.gatekeeper.step(replace(heard, **changes), sim.clock())  # type: ignore[arg-type]
    sim.carry_out(node, effects)
    return effects


def test_first_packet_is_held_agreed_released_and_charged() -> None:
    sim = Sim()
    sim.up(HOST, 100)
    assert sim.passed == 0 and len(sim.gateway.held) == 1
    sim.run(0.1)
    assert (sim.passed, sim.gateway.held) == (100, {})
    assert [type(m) for m in (*sim.sent(sim.gateway, Propose), *sim.accepts)] == [Propose, Accept]
    sim.run(1)
    assert account(sim).charged_msat == 1
    assert states(sim) == [("active", "")]


def test_price_is_found_between_seller_and_buyer() -> None:
    seller = settings(sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=4 * MSAT_PER_KB)
    sim = Sim(seller, settings(sells=False, buy_msat_per_gib=3 * MSAT_PER_KB, buy_max_msat_per_gib=5 * MSAT_PER_KB))
    sim.up(HOST)
    sim.run(1)
    price = sim.contracts(sim.gateway)[0].prices[0][1]
    assert 4 * MSAT_PER_KB <= price <= 5 * MSAT_PER_KB
    assert 1 < len(sim.sent(sim.gateway, Propose)) <= 4


def test_too_dear_ends_in_bounded_rounds_is_remembered_and_told_to_the_sender() -> None:
    seller = settings(sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=6 * MSAT_PER_KB)
    sim = Sim(seller, settings(sells=False, buy_msat_per_gib=1 * MSAT_PER_KB))
    sim.up(HOST)
    sim.run(1)
    assert sim.refusals == [Verdict.PROHIBIT]
    proposed = len(sim.sent(sim.gateway, Propose))
    assert proposed <= 4
    for _ in range(20):
        sim.up(HOST)
        sim.run(0.1)
    assert len(sim.sent(sim.gateway, Propose)) == proposed  # dropped in the kernel
    sim.run(40)
    assert not sim.gateway.world.contracts and not sim.gateway.kernel.slots


@pytest.mark.parametrize("who", ["gateway", "client"])
def test_a_refusal_is_forgotten_when_either_side_reloads_its_prices(who: str) -> None:
    sim = Sim(settings(sell_msat_per_gib=7 * MSAT_PER_KB, sell_min_msat_per_gib=7 * MSAT_PER_KB), buyer)
    sim.up(HOST)
    sim.run(0.1)
    assert sim.refusals == [Verdict.PROHIBIT]
    told = [effect.text for node in (sim.client, sim.gateway) for effect in node.log if isinstance(effect, fx.Log)]
    assert any(text.endswith("7 msat/kB is above BUY_PRICE_MAX 5 msat/kB") for text in told)
    assert any("at 7 msat/kB: too dear" in text and "SELL_PRICE_MIN" in text for text in told)
    if who == "gateway":
        sim.happen(sim.gateway, ev.SettingsChanged(settings()))
    else:
        dearer = settings(sells=False, buy_max_msat_per_gib=8 * MSAT_PER_KB, buy_msat_per_gib=8 * MSAT_PER_KB)
        sim.happen(sim.client, ev.SettingsChanged(dearer))
    sim.run(0.1)
    sim.up(HOST)
    sim.run(0.1)
    assert sim.passed == 1000


def test_a_reload_asks_again_only_for_what_was_declined_lately() -> None:
    sim = Sim(settings(sell_msat_per_gib=7 * MSAT_PER_KB, sell_min_msat_per_gib=7 * MSAT_PER_KB), buyer)
    sim.up(HOST)
    sim.run(40)
    sim.happen(sim.client, ev.SettingsChanged(settings(sells=False, buy_max_msat_per_gib=8 * MSAT_PER_KB)))
    assert not sim.sent(sim.client, Ask) and not sim.client.world.declined


def test_a_client_that_counters_for_ever_is_left() -> None:
    sim = Sim(settings(sell_min_msat_per_gib=0))
    sim.silenced = {Accept, Reject}
    sim.up(HOST)
    contract = next(iter(sim.gateway.world.contracts))
    for counter in range(300):
        tell(sim, sim.gateway, Reject(contract, RejectReason.PRICE, counter))
    assert len(sim.sent(sim.gateway, Propose)) <= 4


def test_unanswered_quote_lapses_and_its_packets_are_dropped() -> None:
    sim = Sim()
    sim.silenced = {Accept}
    sim.up(HOST)
    sim.up(HOST)
    sim.run(11)
    assert sim.refusals == [Verdict.DROP, Verdict.DROP] and not sim.gateway.held
    sim.run(10)
    assert not sim.gateway.world.contracts


def test_quoted_price_holds_over_a_reload() -> None:
    sim = Sim()
    sim.silenced = {Accept}
    sim.up(HOST)
    proposed = sim.sent(sim.gateway, Propose)[0]
    assert isinstance(proposed, Propose)
    sim.happen(sim.gateway, ev.SettingsChanged(settings(sell_msat_per_gib=9 * MSAT_PER_KB)))
    tell(
        sim, sim.gateway, Accept(proposed.contract, proposed.price_msat_per_gib, proposed.data_limit_bytes)
    )
    assert sim.contracts(sim.gateway)[0].prices == ((0, 5 * MSAT_PER_KB),)


def test_renewal_by_data_lets_no_packet_wait_and_takes_the_new_price_from_an_offset() -> None:
    small = {"contract_data_bytes": 1 << 20, "data_renewal_bytes": 256 << 10}
    high = 6 * MSAT_PER_KB
    sim = Sim(settings(**small), settings(sells=False, buy_max_msat_per_gib=high, **small))
    sim.flow(HOST, 500_000, 1)
    sim.happen(sim.gateway, ev.SettingsChanged(settings(sell_msat_per_gib=high, sell_min_msat_per_gib=high, **small)))
    sim.flow(HOST, 500_000, 7)
    sim.run(1)
    ours, theirs = sim.contracts(sim.gateway)[0], sim.contracts(sim.client)[0]
    assert len(sim.contracts(sim.gateway)) == 1 and ours.data_limit_bytes > 4 << 20
    assert ours.prices == theirs.prices == ((0, 5 * MSAT_PER_KB), (1 << 20, high))
    assert sim.passed >= 3_990_000


def test_renewal_by_time_only_while_it_carries() -> None:
    short = {"contract_time_s": 20}
    sim = Sim(settings(**short), settings(sells=False, **short))
    sim.flow(HOST, 20_000, 50)
    assert len(sim.contracts(sim.gateway)) == 1
    sim.run(60)
    assert states(sim) == [("closed", "expired")]
    assert [c.state for c in sim.contracts(sim.client)] == ["closed"]


def test_without_renewal_a_destination_is_bought_once_until_it_was_idle() -> None:
    once = {"contract_data_bytes": 100_000, "contract_time_s": 30, "data_renewal_bytes": 0, "time_renewal_s": 0}
    sim = Sim(settings(**once), settings(sells=False, **once))
    sim.flow(HOST, 50_000, 10)
    assert sim.passed == 100_000
    assert ("closed", "exhausted") in states(sim)
    sim.flow(HOST, 10_000, 40)
    assert sim.passed == 100_000
    sim.run(70)
    sim.up(HOST)
    sim.run(1)
    assert sim.passed == 101_000


def test_expiry_cuts_and_the_next_packet_asks_again() -> None:
    short = {"contract_time_s": 5, "time_renewal_s": 0}
    sim = Sim(settings(**short), settings(sells=False, **short))
    sim.up(HOST)
    sim.run(5.2)
    assert states(sim) == [("closed", "expired")]
    sim.up(HOST)
    sim.run(0.2)
    assert sim.passed == 2000


def test_grace_is_used_to_its_end_then_cut_and_not_given_again() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 8, size=512)
    assert sim.passed == 256 << 10
    sim.run(5)
    assert states(sim) == [("closed", "unpaid")]
    sim.flow("198.51.100.2", 100_000, 5)
    assert sim.passed == 256 << 10
    sim.run(20)
    assert not sim.gateway.held


def test_a_second_identity_on_the_same_link_gets_no_second_grace() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 8, size=512)
    sim.run(80)
    sim.client.identity = b"D" * 32
    sim.run(21)
    for number in range(30):
        sim.up(HOST if number else "198.51.100.9", 512)
        sim.run(0.1)
    assert sim.passed == 256 << 10


def test_newcomer_prepays_when_the_interface_has_no_credit_left() -> None:
    sim = Sim()
    sim.gateway.world.credit.change(("eth1", b"others"), (256 << 10) * 64)
    sim.up(HOST)
    sim.run(0.15)
    assert sim.passed == 0
    sim.run(1)
    assert sim.passed == 1000 and states(sim) == [("active", "")]


def test_a_page_of_thirty_destinations_works_on_grace() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    hosts = [f"198.51.100.{number}" for number in range(1, 31)]
    for host in hosts:
        sim.up(host, 60)
    sim.run(0.1)
    for _ in range(3):
        for host in hosts:
            sim.down(host, 1200)
        sim.run(0.01)
    assert sim.passed == 30 * (60 + 3 * 1200)


def test_idle_contracts_give_their_budget_to_the_next() -> None:
    small = {"payment_amount_msat": 1000}
    sim = Sim(settings(**small), settings(sells=False, **small))
    for number in range(300):
        host = f"198.51.{number // 250}.{number % 250 + 1}"
        sim.up(host, 100)
        sim.run(0.05)
        sim.down(host, 900)
        sim.run(0.05)
    assert sim.passed >= 0.9 * 300_000  # a top-up is 200 kB, the grace is 64 contracts: some wait a moment


def test_many_new_destinations_at_once_all_find_budget() -> None:
    sim = Sim()
    sim.up("198.51.100.1", 100)
    sim.run(3)
    for number in range(1000):  # 2 s: none of them is idle yet
        sim.up(f"198.51.{101 + number // 250}.{number % 250 + 1}", 100)
        sim.run(0.002)
    sim.run(0.1)
    assert sim.passed == 1001 * 100


def test_who_waits_for_budget_is_served_when_others_are_idle_though_nobody_else_asks() -> None:
    small = {"payment_amount_msat": 1000, "grace_data_bytes": 0}
    sim = Sim(settings(**small), settings(sells=False, **small))
    sim.up(HOST, 100)
    sim.run(3)
    sim.silenced = {Invoice}
    sim.flow(HOST, 150_000, 1)
    account = sim.gateway.world.account(sim.client.identity, Role.SERVER)
    while account.funds_msat >= 20:  # the flow's contract holds all that is left
        sim.flow(HOST, 150_000, 0.05)
    before = sim.passed
    sim.up("203.0.113.1", 100)
    sim.run(1)
    assert sim.passed == before
    sim.run(3)
    assert sim.passed == before + 100


def test_top_ups_grow_with_the_rate() -> None:
    small = {"payment_amount_msat": 1000}
    sim = Sim(settings(**small), settings(sells=False, **small))
    sim.flow(HOST, 2_000_000, 6)
    before = sim.passed
    sim.flow(HOST, 2_000_000, 2)
    assert sim.passed - before >= 0.95 * 4_000_000
    assert len(sim.gateway.world.invoices) < 30


def test_the_data_limit_is_used_to_the_last_byte() -> None:
    once = {"contract_data_bytes": 300_000, "data_renewal_bytes": 0, "time_renewal_s": 0}
    sim = Sim(settings(**once), settings(sells=False, **once))
    sim.flow(HOST, 100_000, 5, size=100)
    sim.run(5)
    assert sim.passed == 300_000 and states(sim) == [("closed", "exhausted")]
    assert account(sim).charged_msat == -(-300_000 * 5 // 1024)


def test_statement_bills_and_an_honest_one_is_not_disputed() -> None:
    sim = Sim()
    for number in range(200):  # one packet each, held, so that the client's meter never saw it
        sim.up(f"198.51.100.{number}", 1200)
        sim.run(0.05)
    sim.run(10)
    assert account(sim, Role.CLIENT).billed_msat == account(sim).charged_msat > 0
    assert not account(sim, Role.CLIENT).disputed


def test_a_wrong_bill_is_disputed_not_paid_on_and_settled_by_unblock() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    contract = sim.contracts(sim.client)[0].contract
    tell(sim, sim.client, Statement(0, 10_000, 0, (StatementLine(contract, 9_000_000, 0, 10_000),)))
    assert account(sim, Role.CLIENT).disputed
    paid = sim.mint.invoice("gateway", 1000)
    effects = tell(sim, sim.client, Invoice(paid.hex(), 1000), decoded=sim.mint.decode(paid.hex()))
    assert not [e for e in effects if isinstance(e, fx.PayInvoice)]
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, False))
    assert not account(sim, Role.CLIENT).disputed


def test_after_a_reboot_bills_are_believed_only_as_far_as_the_server_may_have_our_money() -> None:
    sim = Sim()
    for number in range(1, 9):
        sim.flow(f"198.51.100.{number}", 100_000, 1)
    sim.crash(sim.client, reboot=True)
    sim.run(0.001)
    lines = tuple(StatementLine(one.contract, 1 << 60, 1 << 60, 10**15) for one in sim.contracts(sim.client))
    tell(sim, sim.client, Statement(0, 10**15, 0, lines))
    client = account(sim, Role.CLIENT)
    ahead_msat = 4 * sim.client.settings.payment_amount_msat  # two in hand, one tolerated of any bill, and a little
    assert client.disputed
    assert client.charged_msat <= client.paid_msat + ahead_msat
    assert client.tolerated_msat <= client.paid_msat + ahead_msat


def test_a_kill_before_the_first_bill_after_a_reboot_makes_that_bill_no_wrong_one() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    carried = 5_000_000  # while the machine was down, or the meter was
    for reboot in (True, False):
        sim.crash(sim.client, reboot)
    sim.run(0.001)
    first = sim.contracts(sim.client)[0]
    tell(sim, sim.client, Statement(0, 0, 0, (StatementLine(first.contract, carried, 0, 0),)))
    assert not account(sim, Role.CLIENT).disputed


def moved(sim: Sim, mac: bytes, used_bytes: int) -> list[fx.Effect]:
    """Let the gateway speak from another MAC, and bill the client for so much by its first contract."""
    link = (sim.gateway.link[0], mac)
    sim.run(0.1)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False), link=link)
    first = sim.contracts(sim.client)[0]
    return tell(sim, sim.client, Statement(0, 0, 0, (StatementLine(first.contract, used_bytes, 0, 0),)), link=link)


def test_a_server_with_another_link_address_is_believed_once_and_its_contracts_made_anew() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    effects = moved(sim, b"\2gate2", 3_000_000)
    (answer,) = [one.message for one in effects if isinstance(one, fx.Send)]
    assert isinstance(answer, Reject) and answer.reason is RejectReason.UNKNOWN_CONTRACT
    assert [one for one in effects if isinstance(one, fx.HaltContract)]
    sim.run(1)
    assert sim.contracts(sim.client)[0].reason == "cancelled"
    assert not account(sim, Role.CLIENT).disputed
    sim.run(120)
    moved(sim, b"\2gate3", 6_000_000)
    assert account(sim, Role.CLIENT).disputed  # it moves too often


def test_what_a_client_does_not_know_ends_also_while_it_is_being_renewed() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 1)
    (contract,) = sim.gateway.world.contracts.values()
    tell(sim, sim.gateway, Ask(contract.destination, 0, 0, contract.contract))
    assert contract.state is State.RENEWING
    tell(sim, sim.gateway, Reject(contract.contract, RejectReason.UNKNOWN_CONTRACT))
    sim.run(0.1)
    assert states(sim) == [("closed", "cancelled")]


def test_a_server_with_another_link_address_is_not_believed_any_bill() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    moved(sim, b"\2gate2", 1 << 60)
    client = account(sim, Role.CLIENT)
    assert client.disputed
    assert client.tolerated_msat <= client.paid_msat + 3 * sim.client.settings.payment_amount_msat


def test_a_server_that_speaks_from_two_link_addresses_keeps_its_contracts() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False), link=(sim.gateway.link[0], b"\2gate2"))
    sim.flow(HOST, 100_000, 2)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False))
    effects = moved(sim, b"\2gate2", 0)
    assert not [one for one in effects if isinstance(one, fx.HaltContract)]


def test_block_cuts_and_unblock_lets_in_again() -> None:
    sim = Sim()
    sim.up(HOST)
    sim.run(0.1)
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, True))
    sim.run(0.1)
    assert states(sim) == [("closed", "cancelled")]
    sim.up(HOST)
    sim.run(0.1)
    assert sim.refusals == [Verdict.PROHIBIT]
    sim.crash(sim.gateway)
    sim.run(0.1)
    assert sim.gateway.world.blocked == {sim.client.identity}
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, False))
    sim.up(HOST)
    sim.run(0.1)
    assert sim.passed == 2000


def test_refund_pays_what_is_free_and_nothing_unasked() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    stolen = sim.mint.invoice("client", 50_000)
    tell(sim, sim.gateway, Refund(50_000, stolen.hex()), decoded=sim.mint.decode(stolen.hex()))
    assert not sim.gateway.world.payments
    sim.happen(sim.gateway, ev.RefundNeighbour(sim.client.identity))
    sim.run(2)
    ours, theirs = account(sim), account(sim, Role.CLIENT)
    assert ours.refunded_msat == theirs.refunded_msat > 50_000
    assert ours.balance_msat >= 0


def test_a_refund_of_more_than_the_client_paid_is_told_on_both_sides() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    by_hand = ev.InvoiceMade(sim.client.identity, PaymentKind.MANUAL, "", b"h" * 32, 50_000, 600)
    sim.happen(sim.gateway, by_hand)
    sim.happen(sim.gateway, ev.SettlementSeen(9, b"h" * 32, 50_000))
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


def test_money_talk_opens_no_account_for_a_node_that_does_not_trade_in_that_role() -> None:
    sim = Sim(settings(buys=False), settings(sells=False))
    bolt11 = sim.mint.invoice("client", 5000).hex()
    tell(sim, sim.gateway, Refund(5000))
    tell(sim, sim.gateway, Refund(0))
    tell(sim, sim.gateway, Statement(0, 5000, 0, (StatementLine(b"c" * 16, 1000, 0, 5000),)))
    effects = tell(sim, sim.gateway, Invoice(bolt11, 5000), decoded=sim.mint.decode(bolt11))
    declined = Reject(bytes.fromhex(bolt11), RejectReason.NOT_BUYING)
    assert declined in [effect.message for effect in effects if isinstance(effect, fx.Send)]
    bolt11 = sim.mint.invoice("gateway", 5000).hex()
    tell(sim, sim.client, Refund(5000, bolt11), decoded=sim.mint.decode(bolt11))
    assert not sim.gateway.world.accounts and not sim.client.world.accounts


def test_a_refund_that_fails_is_offered_again_and_makes_no_payment_wait() -> None:
    sim = Sim(client=settings(sells=False))
    sim.flow(HOST, 100_000, 2)
    for _ in range(2):
        sim.gateway.gatekeeper.step(ev.RefundNeighbour(sim.client.identity), sim.clock())
        offered = account(sim).refund_offered_msat
        bolt11 = sim.mint.invoice("client", offered)
        refund = ev.MessageReceived(
            *(sim.client.identity, sim.client.link, sim.client.boot, Refund(offered, bolt11.hex()), 7 << 32),
            decoded=sim.mint.decode(bolt11.hex()),
        )
        sim.gateway.gatekeeper.step(refund, sim.clock())
        assert account(sim).refunding_msat == offered > 0
        failed = PaymentOutcome(bolt11, PaymentStatus.FAILED, reason="no route")
        sim.happen(sim.gateway, ev.PaymentResult(failed))
        assert account(sim).refunding_msat == 0
    assert (sim.client.identity, Role.CLIENT) not in sim.gateway.world.accounts
    assert sim.gateway.world.patience.failures == 0


def test_nobody_buys_back_what_it_sells_unless_the_route_has_turned() -> None:
    sim = Sim()
    sim.flow(HOST, 10_000, 2)
    proposal = Propose(b"l" * 16, ip_network(HOST), MSAT_PER_KB, 100_000, 60, 10, 0, 1)

    def answer() -> object:
        (sent,) = [e.message for e in tell(sim, sim.gateway, proposal) if isinstance(e, fx.Send)]
        return sent

    assert answer() == Reject(proposal.contract, RejectReason.NOT_BUYING)
    sim.run(15)
    assert isinstance(answer(), Accept)


def test_nobody_is_paid_by_an_invoice_of_our_own() -> None:
    """A node that may pay itself would credit the neighbour that sent it, and whoever it was made for."""
    sim = Sim()
    sim.flow(HOST, 100_000, 2)

    def own(node: playbook.Node, amount_msat: int) -> str:
        made = sim.mint.invoice(node.name, amount_msat)
        event = ev.InvoiceMade(sim.peer(node).identity, PaymentKind.MANUAL, made.hex(), made, amount_msat, 600)
        node.gatekeeper.step(event, sim.clock())
        return made.hex()

    sim.gateway.gatekeeper.step(ev.RefundNeighbour(sim.client.identity), sim.clock())
    offered = account(sim).refund_offered_msat
    bolt11 = own(sim.gateway, offered)
    tell(sim, sim.gateway, Refund(offered, bolt11), decoded=sim.mint.decode(bolt11))
    assert offered and not sim.gateway.world.payments
    bolt11 = own(sim.client, 1000)
    effects = tell(sim, sim.client, Invoice(bolt11, 1000), decoded=sim.mint.decode(bolt11))
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
    spent = sum(sim.mint.sent["client"].values())
    assert 0 < spent <= 150_000
    assert any("BUDGET_HOUR" in e.text for e in sim.client.log if isinstance(e, fx.Log))


def test_a_fee_above_the_limit_is_not_paid_and_a_reload_raises_it() -> None:
    sim = Sim(client=settings(sells=False, fee_limit=FeeLimit(10_000, 1000)))
    sim.mint.fee_msat = 1500
    sim.flow(HOST, 50_000, 3)
    tried = [effect for effect in sim.client.log if isinstance(effect, fx.PayInvoice)]
    assert tried and {effect.fee_limit_msat for effect in tried} == {1000}
    assert not sim.mint.sent and sim.client.world.spending.total_msat == 0
    sim.happen(sim.client, ev.SettingsChanged(settings(sells=False, fee_limit=FeeLimit(0, 1500))))
    sim.flow(HOST, 50_000, 60)
    paid = sim.mint.sent["client"]
    assert sim.client.world.spending.total_msat == sum(paid.values()) + 1500 * len(paid) > 0


def test_a_budget_leaves_room_for_the_fee() -> None:
    sim = Sim(client=settings(sells=False, fee_limit=FeeLimit(0, 60_000), budgets=Budgets(*[130_000] * 5)))
    sim.flow(HOST, 50_000, 3)
    tried = [effect for effect in sim.client.log if isinstance(effect, fx.PayInvoice)]
    assert [sim.mint.sent["client"][effect.payment_hash] for effect in tried] == [70_000]


def test_a_failed_payment_gives_no_room_for_more_than_the_hour() -> None:
    sim = Sim(client=settings(sells=False, budgets=Budgets(20_000_000, None, 150_000, 200_000_000, None)))
    sim.mint.outcomes = [PaymentStatus.FAILED] * 3
    sim.flow(HOST, 100_000, 3)
    spending = sim.client.world.spending
    sim.run(3700)
    assert spending.within_msat(3600, sim.clock().utc_s) >= 0


def test_ask_before_sending() -> None:
    sim = Sim()
    sim.happen(sim.client, ev.AskFor(sim.gateway.identity, sim.gateway.link, ip_network("203.0.113.0/24")))
    sim.run(0.1)
    sim.up("203.0.113.9")
    assert sim.passed == 1000


def test_a_wide_prefix_costs_what_its_dearest_part_costs() -> None:
    dear = PriceRule(ip_network("203.0.113.0/24"), 50 * MSAT_PER_KB, None, None, None, None)
    sim = Sim(settings(prices=(dear,)))
    effects = tell(sim, sim.gateway, Ask(ip_network("0.0.0.0/0"), 0, 0))
    (proposed,) = [e.message for e in effects if isinstance(e, fx.Send)]
    assert isinstance(proposed, Propose) and proposed.price_msat_per_gib == 50 * MSAT_PER_KB


def test_a_nested_destination_closed_falls_back_to_the_wider_one() -> None:
    sim = Sim()
    for prefix in ("203.0.113.0/24", "203.0.113.9/32"):
        sim.happen(sim.client, ev.AskFor(sim.gateway.identity, sim.gateway.link, ip_network(prefix)))
        sim.run(0.1)
    narrow = next(c for c in sim.gateway.world.contracts.values() if c.destination.prefixlen == 32)
    tell(sim, sim.gateway, Reject(narrow.contract, RejectReason.UNKNOWN_CONTRACT))
    sim.run(0.1)
    sim.up("203.0.113.9")
    assert sim.passed == 1000
    (wide,) = sim.gateway.world.contracts.values()
    assert wide.destination.prefixlen == 24


def test_second_identity_on_a_live_link_is_refused() -> None:
    sim = Sim()
    thief = ev.MessageReceived(b"T" * 32, sim.client.link, 1, Hello("sandbox", True, True, (), "", False), 9 << 32)
    sim.happen(sim.gateway, thief)
    assert sim.gateway.world.by_link[sim.client.link].identity == sim.client.identity
    assert sim.gateway.world.counters["link_taken"] == 1


def test_nobody_speaks_about_anothers_contract() -> None:
    sim = Sim()
    sim.up(HOST)
    sim.run(0.1)
    contract = sim.contracts(sim.gateway)[0].contract
    other = ("eth1", b"\2other")
    for identity, link in ((b"T" * 32, other), (sim.client.identity, ("eth1", b"\2else!"))):
        hello = Hello("sandbox", True, True, (), "", False)
        sim.happen(sim.gateway, ev.MessageReceived(identity, link, 1, hello, 9 << 32))
        for message in (Reject(contract, RejectReason.UNKNOWN_CONTRACT), Ask(ip_network(HOST), 0, 0, contract)):
            sim.gateway.gatekeeper.step(ev.MessageReceived(identity, link, 1, message, 10 << 32), sim.clock())
    for node in (sim.client,):
        hello = Hello("sandbox", True, True, (), "", False)
        sim.happen(node, ev.MessageReceived(b"T" * 32, other, 1, hello, 9 << 32))
        cut = Notice(contract, "cut", "expired")  # type: ignore[arg-type]
        node.gatekeeper.step(ev.MessageReceived(b"T" * 32, other, 1, cut, 10 << 32), sim.clock())
    assert sim.gateway.world.contracts[contract].state is not State.RENEWING
    assert sim.gateway.world.contracts[contract].halting is None
    assert sim.client.world.contracts[contract].halting is None


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize("who", ["gateway", "client"])
def test_restart_goes_on_and_counts_nothing_twice(who: str, reboot: bool) -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    for host in ("198.51.100.2", "198.51.100.3"):
        sim.flow(host, 30_000, 2)
    sim.crash(getattr(sim, who), reboot)
    sim.run(1)
    sim.flow(HOST, 100_000, 5)
    sim.run(4000)
    assert {state for state, _ in states(sim)} == {"closed"}
    if not reboot:
        assert account(sim).charged_msat == sum(c.charged_msat for c in sim.contracts(sim.gateway))
        carried = sum(c.used_to_bytes + c.used_from_bytes for c in sim.contracts(sim.gateway))
        assert carried == sim.passed
    assert not account(sim, Role.CLIENT).disputed


def test_a_restarted_client_reserves_nothing() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    sim.crash(sim.client)
    assert sim.client.world.contracts and account(sim, Role.CLIENT).reserved_msat == 0


def test_a_restart_writes_only_what_the_kernel_does_not_have() -> None:
    sim = Sim()
    for number in range(1, 6):
        sim.up(f"198.51.100.{number}")
        sim.run(1)
    sim.run(70)  # all totals are in the ledger
    slots = list(sim.gateway.kernel.slots.values())
    slots[0].grant = replace(slots[0].grant, blocked=True)  # as a halt leaves it whose books were not closed
    slots[1].used_to += 500
    del sim.gateway.log[:]
    before = dict(sim.gateway.ledger.contracts)
    sim.crash(sim.gateway)
    granted = [effect.grant.contract for effect in sim.gateway.log if isinstance(effect, fx.GrantContract)]
    assert granted == [slots[0].grant.contract]
    written = [key for key, record in sim.gateway.ledger.contracts.items() if record is not before[key]]
    assert written == [slots[1].grant.contract]
    passed = sim.passed
    for number in range(1, 6):
        sim.up(f"198.51.100.{number}")
    assert sim.passed == passed + 5 * 1000


def test_illegal_moves_change_nothing() -> None:
    sim = Sim()
    sim.up(HOST)
    contract = next(iter(sim.gateway.world.contracts.values()))
    for state in State:
        for target in State:
            contract.state = state
            if target in MOVES[state]:
                continue
            with pytest.raises(IllegalMove):
                contract.move(target)
            assert contract.state is state




def test_two_payment_networks_are_named_once_on_both_sides() -> None:
    sim = Sim(client_network="regtest")
    sim.flow(HOST, 100_000, 2)
    sim.run(100)  # several hellos
    assert not sim.contracts(sim.gateway) and sim.passed == 0
    for node, theirs, ours in ((sim.gateway, "regtest", "sandbox"), (sim.client, "sandbox", "regtest")):
        told = [one for one in node.log if isinstance(one, fx.Log) and "network" in one.text]
        assert [one.level for one in told] == [logging.WARNING], node.name
        assert f"it pays on network {theirs!r}, we on {ours!r}" in told[0].text
        assert "PAYMENT_INTERFACE" in told[0].text


def test_a_neighbour_that_changes_its_network_all_the_time_fills_no_log() -> None:
    sim = Sim()
    for number in range(100):
        tell(sim, sim.gateway, Hello(f"net{number}", True, True, (), "ngp", False, b""))
    assert sum("network" in one.text for one in sim.gateway.log if isinstance(one, fx.Log)) == 1
