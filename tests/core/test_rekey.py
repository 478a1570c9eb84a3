"""A rental gets another WireGuard key: all of it or nothing, and no key has two rentals."""

from __future__ import annotations

import pytest
from let import Landlord, key

from ngp.core.rental.effects import AnswerTenant
from ngp.core.rental.events import RekeyAsked, ReleaseRental
from ngp.core.rental.rental import RentalState


def rekey(landlord: Landlord, old: int, new: int) -> AnswerTenant | None:
    landlord.happen(RekeyAsked(77, key(old), key(new)))
    return landlord.answers.pop(77, None)


def test_the_same_rental_goes_on_with_the_new_key(landlord: Landlord) -> None:
    before = landlord.rent(1)
    networks, credit = before.networks, landlord.credit(1)
    answer = rekey(landlord, 1, 2)
    assert answer is not None and not answer.why_not and answer.rental == before.id
    assert landlord.peers == {key(2): networks}
    assert landlord.rental(2) is before and landlord.credit(2) == credit
    assert key(1) not in landlord.world.letting.by_key
    landlord.check()
    landlord.crash()
    assert landlord.peers == {key(2): networks} and landlord.rental(2).id == before.id
    landlord.check()


def test_the_former_key_rents_anew(landlord: Landlord) -> None:
    first = landlord.rent(1)
    rekey(landlord, 1, 2)
    second = landlord.rent(1)
    assert second.id != first.id and not set(second.networks) & set(first.networks)
    landlord.check()


@pytest.mark.parametrize("after", range(4))
def test_a_crash_leaves_one_of_the_two_keys(landlord: Landlord, after: int) -> None:
    rental = landlord.rent(1)
    landlord.crash_after = after
    rekey(landlord, 1, 2)
    landlord.crash_after = -1
    letting = landlord.world.letting
    there = [number for number in (1, 2) if key(number) in letting.by_key]
    assert len(there) == 1 and letting.by_key[key(there[0])].id == rental.id
    assert landlord.peers == {key(there[0]): rental.networks}
    landlord.check()
    if there == [2]:
        again = rekey(landlord, 1, 2)
        assert again is not None and "no rental has the WireGuard key that you" in again.why_not
    assert landlord.rental(there[0]).state is RentalState.ACTIVE


def test_a_key_with_a_rental_is_refused(landlord: Landlord) -> None:
    first, second = landlord.rent(1), landlord.rent(2)
    answer = rekey(landlord, 1, 2)
    assert answer is not None and "has a rental already" in answer.why_not
    assert landlord.rental(1) is first and landlord.rental(2) is second
    same = rekey(landlord, 1, 1)
    assert same is not None and same.why_not
    landlord.check()


def test_who_has_no_rental_is_refused(landlord: Landlord) -> None:
    answer = rekey(landlord, 1, 2)
    assert answer is not None and "no rental has the WireGuard key that you" in answer.why_not
    landlord.happen(ReleaseRental(landlord.rent(1).id))
    answer = rekey(landlord, 1, 2)
    assert answer is not None and "no rental has the WireGuard key that you" in answer.why_not


def test_a_rental_that_is_not_paid_keeps_its_key(landlord: Landlord) -> None:
    """Otherwise a stranger could have more rentals wait than its address may."""
    landlord.ask(1, 24_000)
    answer = rekey(landlord, 1, 2)
    assert answer is not None and "isn't paid yet" in answer.why_not
    assert not landlord.peers


def test_a_rental_without_credit_gets_its_key_for_later(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    landlord.at(400_000)
    assert landlord.rental(1).state is RentalState.RESERVED
    rekey(landlord, 1, 2)
    assert not landlord.peers
    landlord.rent(2, 24_000)
    assert set(landlord.peers) == {key(2)}
    landlord.check()


def test_a_later_payment_of_an_invoice_from_before_counts(landlord: Landlord) -> None:
    landlord.rent(1)
    asked = landlord.ask(1, 5000)
    assert asked is not None
    before = landlord.credit(1)
    rekey(landlord, 1, 2)
    assert landlord.pay(asked.bolt11)
    assert landlord.credit(2) == before + 5_000_000
    landlord.check()


def test_money_of_an_earlier_rental_is_fetched_with_the_new_key(landlord: Landlord) -> None:
    landlord.happen(ReleaseRental(landlord.rent(1, 5000).id))
    landlord.rent(1)
    rekey(landlord, 1, 2)
    landlord.crash()
    old, new = landlord.fetch(1, 5000), landlord.fetch(2, 5000)
    assert old is not None and "no money left" in old.why_not
    assert new is not None and not new.why_not
    landlord.check()
