"""AutoPay and a landlord that cheats: nothing is paid beyond limits, clock and our own books."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from ngp.core.tenant.account import Order
from ngp.errors import LandlordError, PaymentError
from ngp.tenant import autopay, renting
from ngp.tenant.autopay import LimitError
from ngp.tenant.books import Books
from tests.tenant.keeper import FIRST_SAT, Keeper, set_limits
from tests.tenant.stand_in import StandIn


def test_a_landlord_that_does_not_count_a_payment_gets_no_other(keeper: Keeper) -> None:
    keeper.landlord.is_paid = lambda _hash: False
    with mock.patch("ngp.tenant.autopay.CONFIRM_S", 0.5), mock.patch("ngp.tenant.renting.POLL_S", 0.1):
        with pytest.raises(PaymentError, match="hasn't counted"):
            keeper.run()
        with pytest.raises((PaymentError, LandlordError), match="payments of 0 sat"):
            keeper.run()
    assert [sat for sat, _ in keeper.payments()] == [FIRST_SAT]


@pytest.mark.parametrize(
    ("twist", "said"),
    [
        ({"total_paid": 49_000}, "counts"),
        ({"NumberOfPayments": 1}, "counts"),
        ({"ActivationFee": 48_001}, "activation fee"),
        ({"CurrentRate": 1.0}, "rent rose"),
        ({"Credit": 100.0}, "credit"),
        ({"Networks": ["203.0.113.1/32"]}, "networks"),
    ],
)
def test_a_landlord_that_says_less_than_our_books(keeper: Keeper, twist: dict[str, Any], said: str) -> None:
    keeper.run()
    keeper.landlord.twists["getstatus"] = lambda plain: plain | twist
    with pytest.raises(PaymentError, match=said):
        keeper.run()
    assert len(keeper.payments()) == 3


def _claim(landlord: StandIn, **claimed: float) -> None:
    """Let a landlord claim a payment that nobody made, and what comes with it. Args: Credit: is added."""

    def claim(plain: dict[str, Any]) -> dict[str, Any]:
        more = {"NumberOfPayments": plain["NumberOfPayments"] + 1, "total_paid": plain["total_paid"] + 1}
        said = plain | more | claimed
        return said | ({"Credit": plain["Credit"] + claimed["Credit"]} if "Credit" in claimed else {})

    landlord.twists["getstatus"] = lambda plain: plain if "Error" in plain else claim(plain)


def test_a_rental_that_nothing_of_ours_paid_for_is_not_taken_over(keeper: Keeper) -> None:
    keeper.landlord.add_credit({"WireGuardPubKey": keeper.tunnel.public_key, "amount": "1000"})
    _claim(keeper.landlord, Credit=-(10**9))
    for _ in range(2):
        with pytest.raises(PaymentError, match="nothing was paid for it"):
            keeper.run()
    assert not keeper.payments()


def test_no_rent_above_the_limit_is_taken_over(keeper: Keeper) -> None:
    keeper.run()
    before = keeper.books.read().account
    _claim(keeper.landlord, CurrentRate=1e6)
    with pytest.raises(LimitError, match="MaxMonthlyRate"):
        keeper.run()
    assert keeper.books.read().account == before and len(keeper.payments()) == 3


def test_no_more_is_paid_than_limits_and_clock_allow_whatever_the_landlord_says(keeper: Keeper) -> None:
    keeper.run()
    bought_sat = sum(sat for sat, _ in keeper.payments()) - 48_000
    began_s, status, has_lied = time.time(), keeper.landlord.status, False
    past_s = 86_400 * 365

    def lagging(rental: Any) -> dict[str, Any]:
        """At each invoice a clock of long ago; at each status the present one, and so a year of rent."""
        nonlocal has_lied
        said = status(rental)
        if rental.bolt11:
            has_lied = True
            return said | {"current_time": said["current_time"] - past_s}
        return said | {"Credit": said["Credit"] - past_s * keeper.landlord.rate * has_lied}

    keeper.landlord.status = lagging  # type: ignore[method-assign]
    set_limits(keeper, target_credit=6000, target_time_s=10**9)
    for _ in range(20):
        with pytest.raises(PaymentError):
            keeper.run()
    paid_sat = sum(sat for sat, _ in keeper.payments()) - 48_000
    assert bought_sat < paid_sat <= 6000 + 1500 + 48_000 * (time.time() - began_s + 60) / (30 * 86_400)


def test_without_a_proof_only_rent_for_the_time_since_the_first_payment_is_paid(keeper: Keeper) -> None:
    keeper.run()
    books = keeper.books.read()
    ago = replace(books.account, since_s=books.account.since_s - 365 * 86_400)  # as after a landlord's wrong clock
    keeper.books.write(replace(books, account=ago))
    (rental,) = keeper.landlord.rentals.values()
    rental.since -= 365 * 86_400
    keeper.proof.why = "no answer"
    with pytest.raises(PaymentError, match=r"at MaxMonthlyRate no more than 1,?50\d"):
        keeper.run()
    assert len(keeper.payments()) == 3


def test_a_payment_by_hand_accepts_what_was_charged_and_autopay_goes_on(keeper: Keeper) -> None:
    keeper.run()
    keeper.books.write(replace(keeper.books.read(), bought_msat=10**12))
    set_limits(keeper, target_credit=6000, target_time_s=10**9)
    with pytest.raises(PaymentError, match="pay by hand"):
        keeper.run()
    quote = renting.ask(keeper.https, keeper.tunnel, 500, None, is_first=False)
    autopay.take_over(keeper.home, keeper.tunnel, quote, keeper.https.status(keeper.tunnel))
    keeper.run()
    assert len(keeper.payments()) > 3


def test_what_was_bought_outlives_the_list_of_payments(keeper: Keeper) -> None:
    keeper.run()
    books = keeper.books.read()
    keeper.books.write(replace(books, sent=()))
    found = keeper.books.read()
    paid_msat = sum(one.amount_msat for one in books.sent)
    assert found.bought_msat == paid_msat - 48_000_000 and found.bought_since_s == books.sent[0].sent_at_s


def test_payments_that_fail_do_not_push_out_what_budgets_count() -> None:
    order = Order(bytes(32), 49_000_000, 1_000_000, True, 1.0, 0, "node", 1_000, 1)
    books = Books(pending=order).succeeded(1_000, bytes(32))
    with mock.patch("ngp.tenant.books.KEPT_PAYMENTS", 3):
        for _ in range(5):
            books = replace(books, pending=order).failed()
        assert len(books.sent) == 3 and books.spent_msat(0) == 49_001_000
        for _ in range(5):
            books = replace(books, pending=order).succeeded(1_000, bytes(32))
        assert [one.state for one in books.sent] == ["paid"] * 3


def test_a_landlord_whose_clock_is_ahead(keeper: Keeper) -> None:
    keeper.run()
    keeper.landlord.ahead_s = 7200
    with pytest.raises(PaymentError, match=r"clock is 7\d\d\d s ahead"):
        keeper.run()


def test_a_landlord_that_counts_only_the_seconds_that_it_has_run(keeper: Keeper) -> None:
    keeper.run()
    keeper.landlord.lags_s = 7200
    set_limits(keeper, target_credit=6000, target_time_s=10**9)
    keeper.run()
    (rental,) = keeper.landlord.rentals.values()
    assert rental.payments > 3
    with mock.patch("time.time", lambda now=time.time: now() + 3600):  # an hour later
        keeper.run()


def test_a_landlord_that_forgot_the_rental(keeper: Keeper) -> None:
    keeper.run()
    keeper.landlord.rentals.clear()
    with pytest.raises(LandlordError, match="were paid for the rental"):
        keeper.run()


@pytest.mark.parametrize("changed", ["rent", "fee", "payment_min", "credit_max"])
def test_terms_that_change_between_offer_and_invoice(keeper: Keeper, changed: str) -> None:
    landlord = keeper.landlord

    def change(plain: dict[str, Any]) -> dict[str, Any]:
        setattr(landlord, changed, getattr(landlord, changed) + 10)
        return plain

    landlord.twists["GetSellOfferTerms"] = change
    with pytest.raises(LandlordError, match="changed its terms"):
        keeper.run()
    assert not keeper.payments()


def test_an_invoice_of_a_renewal_for_more_than_its_credit(keeper: Keeper) -> None:
    set_limits(keeper, target_credit=1100)
    keeper.run()
    make = keeper.landlord.make_invoice
    assert make is not None
    keeper.landlord.make_invoice = lambda amount_msat, expiry_s: make(amount_msat * 10, expiry_s)
    keeper.limits = None
    with pytest.raises(LandlordError, match="the credit is"):
        keeper.run()
    assert all(sat in (FIRST_SAT, 550) for sat, _ in keeper.payments())
