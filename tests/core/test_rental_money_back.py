"""What is left of a rental that is over is paid to the tenant's invoices, once."""

from __future__ import annotations

import pytest
from let import SAT, Landlord

from ngp.core.rental.events import ReleaseRental


def _over(landlord: Landlord) -> None:
    """Let tenant 1 rent, and the operator end it a second later."""
    landlord.rent(1, 10_000)
    landlord.happen(ReleaseRental(landlord.rental(1).id))


def test_what_is_left_of_a_rental_that_is_over_is_fetched_in_parts_and_once(landlord: Landlord) -> None:
    _over(landlord)
    account = landlord.world.client(landlord.rental(1).id)
    assert account.balance_msat == 10_000 * SAT
    for sat in (4000, 6000):
        answer = landlord.fetch(1, sat)
        assert answer is not None and not answer.why_not
    assert sum(landlord.node.sent.values()) == account.refunded_msat == 10_000 * SAT
    answer = landlord.fetch(1, 1)
    assert answer is not None and "no money left" in answer.why_not
    landlord.check()


@pytest.mark.parametrize(
    ("sat", "changes", "says"),
    [
        (10_001, {}, "for 10000 sat or less"),
        (0, {}, "for 10000 sat or less"),
        (1, {"amount_msat": None}, "for 10000 sat or less"),
        (1, {"amount_msat": 999}, "at least 1 sat"),
        (5000, {"network": "mainnet"}, "is for mainnet; this landlord is on sandbox"),
        (5000, {"expires_in_s": 86_400}, "at most 12 hours"),
        (5000, {"expires_in_s": 0}, "at most 12 hours"),
    ],
)
def test_an_invoice_that_can_not_be_paid_is_refused_with_the_limit(
    landlord: Landlord, sat: int, changes: dict[str, object], says: str
) -> None:
    _over(landlord)
    answer = landlord.fetch(1, sat, **changes)
    assert answer is not None and says in answer.why_not
    assert not landlord.node.sent


def test_a_running_rental_gives_nothing_back_and_the_same_invoice_is_paid_once(landlord: Landlord) -> None:
    landlord.rent(1, 10_000)
    answer = landlord.fetch(1, 1000)
    assert answer is not None and answer.why_not
    landlord.happen(ReleaseRental(landlord.rental(1).id))
    for _ in range(2):
        answer = landlord.fetch(1, 1000, payment_hash=bytes(32))
    assert answer is not None and "was sent before" in answer.why_not
    assert landlord.node.sent == {bytes(32): 1000 * SAT}


def test_money_is_fetched_in_parts_that_are_worth_their_fee_and_the_rest_at_once(landlord: Landlord) -> None:
    _over(landlord)
    left = landlord.status(1).fetchable_msat // SAT
    answers = [landlord.fetch(1, sat) for sat in (99, left - 50, 49, 50)]
    refused = ["at least 100 sat" in one.why_not for one in answers if one is not None]
    assert refused == [True, False, True, False]
    assert landlord.status(1).fetchable_msat == 0
    landlord.check()


def test_no_refund_is_paid_to_the_hash_of_a_refund_of_long_ago(landlord: Landlord) -> None:
    _over(landlord)
    landlord.fetch(1, 1000, payment_hash=bytes(32))
    landlord.at(2 * 86_400)
    assert not landlord.world.money.payments, "only the ledger remembers it"
    answer = landlord.fetch(1, 1000, payment_hash=bytes(32))
    assert answer is not None and "was sent before" in answer.why_not
    landlord.check()


def test_a_payment_that_fails_leaves_the_money_to_the_tenant(landlord: Landlord) -> None:
    _over(landlord)
    landlord.node.fails = True
    landlord.fetch(1, 10_000)
    landlord.node.fails = False
    answer = landlord.fetch(1, 10_000)
    assert answer is not None and not answer.why_not and len(landlord.node.sent) == 1
    landlord.check()


def test_more_than_a_budget_allows_is_fetched_in_parts_and_the_tenant_is_told_no_budget(landlord: Landlord) -> None:
    landlord.rent(1, 60_000)
    landlord.happen(ReleaseRental(landlord.rental(1).id))
    answer = landlord.fetch(1, 60_000)
    assert answer is not None and "at most 19801 sat" in answer.why_not and "BUDGET" not in answer.why_not
    assert any("BUDGET_PAYMENT" in line for line in landlord.log)
    answer = landlord.fetch(1, 19_801)
    assert answer is not None and not answer.why_not


def test_a_landlord_killed_while_it_pays_back_pays_once(landlord: Landlord) -> None:
    _over(landlord)
    for after in range(3):
        landlord.crash_after = after
        landlord.fetch(1, 1000)
        landlord.at(120)
        landlord.check()
    account = landlord.world.client(landlord.rental(1).id)
    assert account.refunded_msat == sum(landlord.node.sent.values())
    assert account.refund.promised_msat == 0
