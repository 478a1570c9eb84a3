"""A tenant that doesn't want a rental after all: its addresses are free at once, and no payment is lost by that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from let import FEE, SAT, Landlord, PaymentNodeOfLandlord, letting

from ngp.core.rental.rental import RentalState


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Landlord]:
    """A landlord with one address of each IP version."""
    with closing(Landlord(tmp_path, letting(pools=("203.0.113.0/32", "2001:db8::/64")))) as made:
        yield made


def test_the_addresses_are_free_at_once_and_nothing_is_left(single: Landlord) -> None:
    assert single.ask(1, 1000).bolt11  # type: ignore[union-attr]
    assert "are let" in single.ask(2, 1000).why_not  # type: ignore[union-attr]
    answer = single.cancel(1)
    assert answer is not None and not answer.why_not
    assert not single.world.letting.rentals and not single.world.clients
    single.check()
    single.rent(2)
    single.crash()
    single.check()
    assert single.rental(2).state is RentalState.ACTIVE


def test_only_what_waits_for_its_first_payment_is_cancelled(landlord: Landlord) -> None:
    why_not = "no rental of this WireGuard key waits"
    assert why_not in landlord.cancel(1).why_not  # type: ignore[union-attr]
    rental = landlord.rent(1)
    more = landlord.ask(1, 1000)
    assert why_not in landlord.cancel(1).why_not  # type: ignore[union-attr]
    assert rental.state is RentalState.ACTIVE and landlord.pay(more.bolt11)  # type: ignore[union-attr]
    landlord.check()


def test_a_payment_that_was_faster_begins_the_rental(landlord: Landlord) -> None:
    """The node has the money, and can't cancel its invoice any more, before the daemon hears of it."""
    answer = landlord.ask(1, 1000)
    assert answer is not None
    landlord.node.paid.append((bytes.fromhex(answer.bolt11), FEE + 1000 * SAT))
    landlord.cancel(1)
    assert landlord.rental(1).state is RentalState.PENDING, "its addresses aren't free yet"
    landlord.hear()
    assert landlord.rental(1).state is RentalState.ACTIVE and landlord.credit(1) == 1000 * SAT
    landlord.check()


def test_while_the_node_is_away_the_addresses_stay_and_the_tenant_may_ask_again(landlord: Landlord) -> None:
    first = landlord.ask(1, 1000)
    landlord.node.away = True
    landlord.cancel(1)
    assert landlord.rental(1).state is RentalState.PENDING
    second = landlord.ask(1, 1000)
    assert first is not None and second is not None and second.bolt11 != first.bolt11
    landlord.node.away = False
    assert landlord.pay(second.bolt11)
    assert landlord.rental(1).state is RentalState.ACTIVE
    landlord.at(60)
    assert not landlord.pay(first.bolt11)
    landlord.check()


def test_an_invoice_that_is_being_made_is_waited_for(landlord: Landlord) -> None:
    landlord.node.slow = True
    landlord.ask(1, 1000)
    assert "is being made" in landlord.cancel(1).why_not  # type: ignore[union-attr]


@pytest.mark.parametrize("after", range(4))
def test_a_kill_at_any_step_of_it_leaves_a_rental_that_can_be_paid_or_none(landlord: Landlord, after: int) -> None:
    answer = landlord.ask(1, 1000)
    landlord.crash_after = after
    landlord.cancel(1)
    landlord.crash_after = -1
    landlord.check()
    if answer is not None and landlord.pay(answer.bolt11):
        assert landlord.rental(1).state is RentalState.ACTIVE
    else:
        landlord.at(700)
        assert not landlord.world.letting.rentals
    landlord.check()


def test_a_held_payment_goes_back_and_the_tunnel_serves_nobody(tmp_path: Path) -> None:
    node = PaymentNodeOfLandlord(holds=True)
    with closing(Landlord(tmp_path, node=node)) as landlord:
        answer = landlord.ask(1, 1000)
        assert answer is not None
        node.held.add(bytes.fromhex(answer.bolt11))
        landlord.cancel(1)
        assert not node.held and not node.paid and not landlord.peers and not landlord.world.letting.rentals
        landlord.check()
