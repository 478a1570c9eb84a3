"""First payments that are held: taken only when the tunnel serves the tenant, else given back; also after any kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from let import FEE, SAT, Landlord, PaymentNodeOfLandlord, key, letting

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.messages import Paid
from ngp.core.records import PaymentState
from ngp.core.rental.effects import RemoveTunnelPeer, SettleInvoice, SetTunnelPeer
from ngp.core.rental.events import InvoiceHeld, ReleaseRental, RentProven, SwitchRental, TunnelPeerSet
from ngp.core.rental.holding import LEAST_BLOCKS_LEFT
from ngp.core.rental.rental import RentalState


@pytest.fixture
def landlord(tmp_path: Path) -> Iterator[Landlord]:
    """A landlord whose payment node can hold payments."""
    with closing(Landlord(tmp_path, node=PaymentNodeOfLandlord(holds=True))) as made:
        yield made


def asked(landlord: Landlord, tenant: int = 1) -> str:
    answer = landlord.ask(tenant, 1000)
    assert answer is not None and answer.bolt11, answer
    return answer.bolt11


def is_settled(landlord: Landlord, bolt11: str) -> bool:
    return landlord.world.money.invoices[bytes.fromhex(bolt11)].state is PaymentState.SETTLED


def gone_back(landlord: Landlord, bolt11: str, is_all: bool = True) -> bool:
    """Say whether the payer has its money again. Args: is_all: then nothing is left of its rental either."""
    node, payment_hash = landlord.node, bytes.fromhex(bolt11)
    assert not node.paid and not landlord.peers and not (is_all and landlord.world.letting.rentals)
    return payment_hash in node.cancelled and not node.held


def test_the_tunnel_comes_first_then_the_payment_is_taken_then_it_counts(landlord: Landlord) -> None:
    invoice = asked(landlord)
    payment_hash, rental = bytes.fromhex(invoice), landlord.rental(1)
    preimage = landlord.node.preimages[payment_hash]
    assert landlord.status(1).unpaid_invoice == invoice
    steps = [
        (InvoiceHeld(payment_hash, 80), [SetTunnelPeer(landlord.tunnel_peer(1), payment_hash)]),
        (TunnelPeerSet(payment_hash, ""), [SettleInvoice(preimage)]),
    ]
    for event, expected in steps:
        assert landlord.gatekeeper.step(event, landlord.clock()) == expected
        assert rental.state is RentalState.PENDING and not rental.payments
        assert landlord.status(1).unpaid_invoice == invoice, "a client that is told of none takes it for paid"
    landlord.happen(RentProven(Paid(payment_hash, preimage)))
    assert rental.state is RentalState.ACTIVE and rental.payments == 1
    assert landlord.status(1).unpaid_invoice == ""


def test_a_payment_is_taken_once_and_counts_once_however_often_the_node_tells(landlord: Landlord) -> None:
    invoice = asked(landlord)
    assert landlord.pay(invoice) and is_settled(landlord, invoice)
    landlord.happen(InvoiceHeld(bytes.fromhex(invoice), 80))
    landlord.happen(TunnelPeerSet(bytes.fromhex(invoice), ""))
    landlord.crash()
    assert landlord.node.paid == [(bytes.fromhex(invoice), FEE + 1000 * SAT)]
    assert landlord.rental(1).payments == 1 and landlord.credit(1) == 1000 * SAT and set(landlord.peers) == {key(1)}
    landlord.check()


def test_what_the_tunnel_can_not_serve_goes_back_and_its_networks_are_free(landlord: Landlord) -> None:
    landlord.tunnel_fails = "no such device"
    invoice = asked(landlord)
    assert landlord.pay(invoice)
    assert gone_back(landlord, invoice)
    assert any("49000 sat are given back: no such device" in line for line in landlord.log)
    assert landlord.world.letting.free.count(4, 32) == 8
    landlord.tunnel_fails = ""
    landlord.rent(1, 1000)
    landlord.check()


def test_networks_that_net_conf_lets_no_longer_cost_the_tenant_nothing(landlord: Landlord) -> None:
    for terms in (letting(pools=("198.51.100.0/29", "2001:db8:1::/61")), None):
        invoice, before = asked(landlord), landlord.world.settings
        landlord.happen(ev.SettingsChanged(replace(before, letting=terms)))
        assert landlord.pay(invoice) and gone_back(landlord, invoice)
        landlord.happen(ev.SettingsChanged(before))


def test_a_payment_that_was_held_for_too_long_goes_back_before_a_channel_closes(landlord: Landlord) -> None:
    for blocks_left, back in ((LEAST_BLOCKS_LEFT - 1, True), (-3, True), (LEAST_BLOCKS_LEFT, False)):
        landlord.node.blocks_left = blocks_left
        invoice = asked(landlord)
        assert landlord.pay(invoice)
        assert gone_back(landlord, invoice) if back else is_settled(landlord, invoice)


def test_a_payment_for_a_rental_that_has_just_been_released_goes_back(landlord: Landlord) -> None:
    invoice = asked(landlord)
    landlord.node.held.add(bytes.fromhex(invoice))  # it has arrived, and the daemon hasn't heard of it
    landlord.happen(ReleaseRental(landlord.rental(1).id))
    landlord.at(1)
    assert gone_back(landlord, invoice)


def test_an_invoice_that_was_replaced_gives_its_payment_back(landlord: Landlord) -> None:
    first = asked(landlord)
    landlord.node.held.add(bytes.fromhex(first))
    second = asked(landlord)
    assert bytes.fromhex(first) in landlord.node.cancelled and not landlord.node.held and not landlord.peers
    assert landlord.pay(second) and is_settled(landlord, second)
    landlord.check()


def test_a_node_that_is_away_takes_the_payment_later_or_gives_it_back(landlord: Landlord) -> None:
    first, second = asked(landlord, 1), asked(landlord, 2)
    landlord.node.held |= {bytes.fromhex(first), bytes.fromhex(second)}
    landlord._settle = lambda _: landlord._watched.add(bytes.fromhex(second))  # type: ignore[method-assign]
    landlord.at(1)
    del landlord._settle
    landlord._watched.add(bytes.fromhex(first))
    assert set(landlord.peers) == {key(1), key(2)} and not landlord.node.paid
    landlord.node.held.discard(bytes.fromhex(second))  # it ended by itself
    landlord.at(1)
    assert is_settled(landlord, first)
    landlord.at(1000)
    assert set(landlord.peers) == {key(1)}, "nobody pays for the other one any more"
    landlord.check()


def test_a_withdrawn_invoice_lets_nobody_into_the_tunnel(landlord: Landlord) -> None:
    landlord.node.away = True  # so the invoice stays withdrawn, and its payment may still arrive
    invoice = asked(landlord)
    payment_hash = bytes.fromhex(invoice)
    landlord.happen(ReleaseRental(landlord.rental(1).id))
    assert landlord.gatekeeper.step(InvoiceHeld(payment_hash, 80), landlord.clock()) == []


def test_a_tenant_that_asks_anew_while_it_is_let_in_is_taken_out_again(landlord: Landlord) -> None:
    invoice = asked(landlord)
    landlord.node.away = True
    landlord.gatekeeper.step(InvoiceHeld(bytes.fromhex(invoice), 80), landlord.clock())
    asked(landlord)
    effects = landlord.gatekeeper.step(TunnelPeerSet(bytes.fromhex(invoice), ""), landlord.clock())
    assert effects == [RemoveTunnelPeer(key(1))]


def test_a_tenant_that_asks_anew_while_its_payment_is_taken_is_served_only_if_it_was_taken(landlord: Landlord) -> None:
    """The node carries out the later order, to give the payment back, before the order to take it."""
    orders: list[fx.Effect] = []
    do = landlord._do
    landlord._do = (  # type: ignore[method-assign]
        lambda effect: orders.append(effect) if isinstance(effect, SettleInvoice | fx.CancelInvoice) else do(effect)
    )
    first = bytes.fromhex(asked(landlord))
    assert landlord.pay(first.hex()) and landlord.peers
    asked(landlord)
    landlord._do = do  # type: ignore[method-assign]
    assert [type(one) for one in orders] == [SettleInvoice, fx.CancelInvoice]
    assert not landlord.peers
    do(orders[1])
    assert not landlord.node.settle(first)
    landlord.at(500)
    third = asked(landlord)
    assert not landlord.node.paid and not landlord.peers, "asking again and again keeps nobody in the tunnel"
    assert landlord.pay(third) and set(landlord.peers) == {key(1)}
    landlord.check()


def test_the_second_payment_of_a_tenant_that_is_off_is_credit_and_lets_it_in_no_more(landlord: Landlord) -> None:
    first = bytes.fromhex(asked(landlord))
    landlord.node.away = True
    second = asked(landlord)
    landlord.happen(RentProven(Paid(first, landlord.node.preimages[first])))
    landlord.happen(SwitchRental(landlord.rental(1).id, on=False))
    landlord.node.away = False
    effects = landlord.gatekeeper.step(InvoiceHeld(bytes.fromhex(second), 80), landlord.clock())
    assert effects == [SettleInvoice(landlord.node.preimages[bytes.fromhex(second)])]


@pytest.mark.parametrize("crash_first", [True, False])
def test_no_invoice_of_a_released_rental_takes_money_after_a_kill(landlord: Landlord, crash_first: bool) -> None:
    """The node is away while one invoice replaces another: both are open in the ledger."""
    first = asked(landlord)
    landlord.node.away = True
    second = asked(landlord)
    deeds = [landlord.crash, lambda: landlord.happen(ReleaseRental(landlord.rental(1).id))]
    for deed in deeds if crash_first else reversed(deeds):
        deed()
    landlord.node.held |= {bytes.fromhex(first), bytes.fromhex(second)}
    landlord.node.away = False
    landlord.at(30)
    assert gone_back(landlord, first) and gone_back(landlord, second)


def test_a_released_rental_with_credit_takes_no_further_payment_after_a_kill(landlord: Landlord) -> None:
    first = asked(landlord)
    landlord.node.away = True
    second = asked(landlord)
    landlord.happen(RentProven(Paid(bytes.fromhex(second), landlord.node.preimages[bytes.fromhex(second)])))
    landlord.happen(ReleaseRental(landlord.rental(1).id))
    landlord.crash()
    landlord.node.held.add(bytes.fromhex(first))
    landlord.node.away = False
    landlord.at(30)
    assert gone_back(landlord, first, is_all=False)


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("fails", ["", "no such device"])
def test_a_kill_at_any_step_leaves_a_payment_that_is_taken_or_goes_back(
    landlord: Landlord, after: int, fails: str
) -> None:
    landlord.tunnel_fails = fails
    invoice = asked(landlord)
    landlord.crash_after = after
    landlord.pay(invoice)
    landlord.crash_after = -1
    for _ in range(2):
        landlord.at(1)
        landlord.check()
        landlord.crash()
    assert not landlord.node.held
    assert gone_back(landlord, invoice) if fails else is_settled(landlord, invoice)
    if not fails:
        assert landlord.rental(1).payments == 1 and set(landlord.peers) == {key(1)}


@pytest.mark.parametrize(("holds", "wish", "held"), [(True, "no", 0), (True, "yes", 1), (False, "auto", 0)])
def test_payments_are_held_only_where_net_conf_and_node_allow(
    tmp_path: Path, holds: bool, wish: str, held: int
) -> None:
    terms = replace(letting(), hold=wish)
    with closing(Landlord(tmp_path, terms, node=PaymentNodeOfLandlord(holds=holds))) as landlord:
        landlord.rent(1, 1000)
        assert len(landlord.node.hold_invoices) == held


def test_a_later_payment_is_an_ordinary_one(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    invoice = asked(landlord)
    assert bytes.fromhex(invoice) not in landlord.node.hold_invoices
    assert landlord.pay(invoice) and landlord.credit(1) == 2000 * SAT


def test_a_preimage_is_in_no_effect_or_event_as_text(landlord: Landlord) -> None:
    invoice = asked(landlord)
    preimage = landlord.node.preimages[bytes.fromhex(invoice)]
    named = (
        SettleInvoice(preimage),
        fx.MakeInvoice(key(1), landlord.world.money.invoices[bytes.fromhex(invoice)].kind, 1, "", 1, preimage),
    )
    assert not any(repr(preimage) in repr(one) for one in named)
