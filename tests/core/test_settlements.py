"""A payment is credited once, in full, even if our node reports it late, twice, or with an amount other than proven."""

from __future__ import annotations

import pytest
from playbook import Sim, settings
from scripted_neighbour import ScriptedNeighbour, messages

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.messages import Declined, Invoice, Paid
from ngp.core.payment_node import UNKNOWN_PAYMENT, PaymentOutcome, PaymentStatus, Settlement
from ngp.core.records import CursorRecord, Direction, PaymentKind, PaymentState
from ngp.core.selling.account import ClientAccount

HOST = "198.51.100.1"
DAY_S = 86_400


def client_account(sim: Sim) -> ClientAccount:
    return sim.gateway.world.clients[sim.client.identity]


def invoice_by_hand(sim: Sim, amount_msat: int) -> bytes:
    made = sim.payments.invoice("gateway", amount_msat)
    sim.happen(sim.gateway, ev.InvoiceMade(sim.client.identity, PaymentKind.TOP_UP, made.hex(), made, amount_msat, 600))
    return made


def test_a_payment_above_its_invoice_counts_whole_also_when_the_proof_came_first() -> None:
    sim = Sim(client=settings(buys=False))
    made = invoice_by_hand(sim, 50_000)
    proof = Paid(made, sim.payments.preimages[made])
    sim.happen(sim.gateway, ev.MessageReceived(sim.client.identity, sim.client.link, 1, proof, 7 << 32))
    assert client_account(sim).paid_msat == 50_000
    for _ in range(2):
        sim.happen(sim.gateway, Settlement(1, made, 70_000))
    assert client_account(sim).paid_msat == 70_000
    sim.crash(sim.gateway)
    sim.happen(sim.gateway, Settlement(1, made, 70_000))
    assert client_account(sim).paid_msat == 70_000
    assert sim.gateway.ledger.payments[Direction.IN, made].amount_msat == 70_000


def test_the_cursor_alone_never_waits_for_the_disk() -> None:
    """A node's other payments must not cost a flush of the router's flash each; a lost cursor only repeats reports."""
    sim = Sim(client=settings(buys=False))
    made = invoice_by_hand(sim, 50_000)
    stored: list[fx.Persist] = []
    for cursor, payment_hash in enumerate((b"x" * 32, made, made, b"y" * 32), 1):
        effects = sim.gateway.gatekeeper.step(Settlement(cursor, payment_hash, 50_000), sim.clock())
        sim.carry_out(sim.gateway, effects)
        stored += [one for one in effects if isinstance(one, fx.Persist)]
    cursors = [one.durable for one in stored if isinstance(one.record, CursorRecord)]
    settled = [one.durable for one in stored if getattr(one.record, "state", None) is PaymentState.SETTLED]
    assert (cursors, settled, sim.gateway.ledger.cursor) == ([False] * 4, [True], 4)


@pytest.mark.parametrize("restarted", [False, True])
def test_money_that_a_node_took_before_days_of_absence_is_credited_when_it_is_back(restarted: bool) -> None:
    sim = Sim(client=settings(buys=False))
    made = invoice_by_hand(sim, 50_000)
    sim.payments.away = True
    sim.run(1.1 * DAY_S)
    if restarted:
        sim.crash(sim.gateway)
        sim.run(1.1 * DAY_S)
    sim.happen(sim.gateway, Settlement(1, made, 50_000))
    assert client_account(sim).paid_msat == 50_000


def test_a_node_that_starts_its_count_again_is_read_from_there() -> None:
    """A restored LND counts from 1 again: after the old cursor it would report nothing for a long time."""
    sim = Sim(client=settings(buys=False))
    made = [invoice_by_hand(sim, 50_000) for _ in range(2)]
    sim.happen(sim.gateway, Settlement(900, made[0], 50_000))
    sim.happen(sim.gateway, Settlement(1, made[1], 50_000))
    sim.crash(sim.gateway)
    assert sim.gateway.world.money.cursor == 1 and client_account(sim).paid_msat == 100_000


def test_an_invoice_is_forgotten_once_the_node_takes_no_money_for_it() -> None:
    sim = Sim(client=settings(buys=False))
    made = invoice_by_hand(sim, 50_000)
    sim.payments.away = True
    sim.run(3600)
    assert sim.gateway.ledger.payments[Direction.IN, made].state is PaymentState.OPEN
    sim.payments.away = False
    sim.run(120)
    assert sim.gateway.ledger.payments[Direction.IN, made].state is PaymentState.CANCELLED
    sim.run(DAY_S)
    assert made not in sim.gateway.world.money.invoices


def pending_payment() -> tuple[Sim, bytes, PaymentOutcome]:
    """Let the client pay. Returns the hash of the pending payment, and the answer of a node that doesn't know it."""
    sim = Sim(client=settings(sells=False))
    sim.payments.outcomes = [PaymentStatus.PENDING]
    sim.up(HOST, 100)
    while not sim.client.world.money.payments:
        sim.run(0.1)
    (made,) = sim.client.world.money.payments
    unheard = PaymentOutcome(made, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)
    return sim, made, unheard


def test_a_payment_that_the_node_does_not_know_yet_is_asked_for_once_more() -> None:
    """After a broken connection, the order to pay may be in the node's buffers and be carried out all the same."""
    sim, made, unheard = pending_payment()
    sim.happen(sim.client, unheard)
    assert sim.client.world.money.payments[made].state is PaymentState.PENDING
    sim.payments.unknown[made] = PaymentStatus.SUCCEEDED
    sim.run(10)
    assert sim.client.world.money.payments[made].state is PaymentState.SUCCEEDED
    assert [one for one in sim.client.log if isinstance(one, fx.TrackPayment)]


def test_a_payment_that_the_node_never_knew_is_reported_as_such() -> None:
    sim, made, unheard = pending_payment()
    for _ in range(2):
        sim.happen(sim.client, unheard)
    assert sim.client.world.money.payments[made].state is PaymentState.FAILED
    words = "failed: our payment node never received the order, so no money left it"
    assert [one for one in sim.client.log if isinstance(one, fx.Log) and one.text.endswith(words)]
    account = sim.client.world.servers[sim.gateway.identity]
    assert account.why_not.endswith(words)


def test_an_unknown_payment_failed_only_if_the_node_says_so_twice_in_a_row() -> None:
    """A node that was stopped and goes on may answer a question before it has read the order to pay."""
    sim, made, unheard = pending_payment()
    for outcome in (unheard, PaymentOutcome(made, PaymentStatus.PENDING), unheard):
        sim.happen(sim.client, outcome)
    assert sim.client.world.money.payments[made].state is PaymentState.PENDING
    done = PaymentOutcome(made, PaymentStatus.SUCCEEDED, sim.payments.preimages[made])
    sim.happen(sim.client, done)
    assert not sim.client.world.money.unheard_of


def test_an_invoice_outlives_a_power_cut_before_anybody_can_pay_it() -> None:
    sim = Sim(client=settings(buys=False))
    event = ev.InvoiceMade(sim.client.identity, PaymentKind.TOP_UP, "lnbc1", b"\7" * 32, 50_000, 600)
    stored = [effect for effect in sim.gateway.gatekeeper.step(event, sim.clock()) if isinstance(effect, fx.Persist)]
    assert stored and all(effect.durable for effect in stored)


def test_a_payment_to_one_neighbour_is_not_proven_to_another() -> None:
    """A neighbour may see the hash of another's invoice (the link isn't encrypted) and make its own invoice with it."""
    sim = Sim(client=settings(sells=False))
    sim.flow(HOST, 50_000, 3)
    made = next(one for one in sim.client.world.money.payments.values() if one.state is PaymentState.SUCCEEDED)
    attacker = ScriptedNeighbour(sim, sim.client)
    decoded = sim.payments.decode(made.bolt11)
    assert decoded is not None
    told = ev.MessageReceived(
        attacker.identity, attacker.link, 1, Invoice(made.bolt11, made.amount_msat), 9 << 32, decoded
    )
    assert messages(attacker.tell(told), Declined) and not messages(attacker.tell(told), Paid)


def test_no_other_invoice_is_made_while_the_node_may_still_take_money_for_the_last() -> None:
    sim = Sim(client=settings(sells=False))
    sim.flow(HOST, 100_000, 2)
    sim.silenced.add(Invoice)
    sim.payments.away = True

    def unpaid() -> set[bytes]:
        invoices = sim.gateway.world.money.invoices.items()
        return {made for made, record in invoices if record.state is not PaymentState.SETTLED}

    def withdrawn() -> set[bytes]:
        invoices = sim.gateway.world.money.invoices.items()
        return {made for made, record in invoices if record.state is PaymentState.WITHDRAWN}

    while not unpaid():
        sim.flow(HOST, 1000, 1)
    first = unpaid()
    for _ in range(15):
        sim.flow(HOST, 1000, 10)
    assert unpaid() == first == withdrawn()
    sim.payments.away = False
    sim.flow(HOST, 1000, 20)
    assert len(unpaid()) == 2 and not withdrawn()
