"""AutoPay with the sandbox's payments: what it pays and when, limits, budgets, proof and warnings."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from unittest import mock

import pytest
import yaml

from ngp.core.settings import Budgets
from ngp.core.tenant.account import Order
from ngp.errors import PaymentError
from ngp.tenant import files
from ngp.tenant.autopay import LimitError
from ngp.tenant.books import Books, BooksFile
from tests.tenant.keeper import FIRST_SAT, TARGET_SAT, Keeper, set_limits


def test_rents_and_fills_the_credit_in_parts_up_to_the_target(keeper: Keeper) -> None:
    keeper.run()
    paid = keeper.payments()
    assert paid[0] == (FIRST_SAT, "succeeded") and len(paid) == 3
    assert all(550 <= sat <= 1500 for sat, _ in paid[1:])
    (rental,) = keeper.landlord.rentals.values()
    assert 0 <= TARGET_SAT - rental.credit_now(keeper.landlord.now()) < 1
    account = keeper.books.read().account
    assert (account.paid_msat, account.payments) == (rental.paid * 1000, 3)
    assert keeper.home.conf_path(keeper.tunnel).exists()
    keeper.run()
    assert keeper.payments() == paid  # nothing is due


def test_the_file_of_the_published_client_is_taken_over(keeper: Keeper) -> None:
    keeper.run()
    books = keeper.books.read()
    values = yaml.safe_load(keeper.books.path.read_text())
    ours = ("Pending", "Payments", "Bought", "BoughtSince")
    published = yaml.safe_dump({key: value for key, value in values.items() if key not in ours})
    keeper.books.path.write_text(published)
    assert keeper.books.read().account == books.account
    assert keeper.books.read().bought_msat == books.bought_msat
    keeper.landlord.rent = 100  # everything is due again at another rent
    set_limits(keeper, target_credit=5500, target_time_s=10**9)
    keeper.run()
    assert keeper.books.path.with_name("TunnelState.yaml.before").read_text() == published


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("rent_max", 23_999, "MaxMonthlyRate"),
        ("activation_max", 47_999, "MaxActivationFee"),
        ("initial_max", 999, "MaxInitialCredit"),
        ("payment_max", 499, "MaxRegularPaymentSize"),
        ("payment_min", 1_501, "MinRegularPaymentSize"),
    ],
)
def test_each_limit_refuses_and_is_named(keeper: Keeper, name: str, value: int, setting: str) -> None:
    set_limits(keeper, **{name: value})
    with pytest.raises(LimitError, match=setting):
        keeper.run(once=False)
    assert not keeper.books.path.exists()
    assert [verb for verb, _ in keeper.landlord.calls if verb == "AddCredit"] == []


def test_a_large_sum_comes_in_parts_none_above_the_cap(keeper: Keeper) -> None:
    set_limits(keeper, target_credit=6000, target_time_s=10**9)
    keeper.run()
    parts = [sat for sat, _ in keeper.payments()[1:]]
    assert max(parts) == 1500 and 5000 - 550 < sum(parts) <= 5000


@pytest.mark.parametrize(("budget", "value"), [("hour_msat", 48_999), ("day_msat", 48_999), ("total_msat", 49_000)])
def test_budgets_hold_with_the_highest_fee(keeper: Keeper, budget: str, value: int) -> None:
    keeper.budgets = replace(Budgets(0, None, 10**9, 10**9, 10**9), **{budget: value * 1000})
    with pytest.raises(PaymentError, match=f"BUDGET_{budget.partition('_')[0].upper()}"):
        keeper.run()
    assert not keeper.payments()


def test_budgets_count_what_was_spent_before(keeper: Keeper) -> None:
    keeper.budgets = Budgets(0, None, 50_502_000, 10**9, None)
    with pytest.raises(PaymentError, match="BUDGET_HOUR"):
        keeper.run()
    assert [sat for sat, _ in keeper.payments()] == [FIRST_SAT, 1500]


def test_budgets_hold_for_processes_that_pay_at_once(keeper: Keeper) -> None:
    """The other one has checked the budget, and hasn't written its payment yet."""
    keeper.budgets = Budgets(0, None, 60_000_000, 10**9, None)
    other = BooksFile(keeper.home.folder / "TunnelState-other.yaml")
    held = threading.Event()

    def pay() -> None:
        with files.only_one(keeper.home.folder / "budgets.lock", "another payment", "wait"):
            held.set()
            time.sleep(1)
            order = Order(bytes(32), 49_000_000, 1_000_000, True, 1.0, 0, "node", 1_000, int(time.time()))
            other.write(Books(pending=order))

    paying = threading.Thread(target=pay)
    paying.start()
    held.wait()
    with pytest.raises(PaymentError, match="BUDGET_HOUR"):
        keeper.run()
    paying.join()
    assert not keeper.payments()


def test_nothing_is_paid_while_the_tunnel_is_not_proven(keeper: Keeper) -> None:
    keeper.proof.why = "no answer"
    with pytest.raises(PaymentError, match="no answer"):
        keeper.run()
    assert [sat for sat, _ in keeper.payments()] == [FIRST_SAT]
    keeper.proof.why = ""
    keeper.run()
    assert len(keeper.payments()) == 3


def test_the_end_of_the_credit_is_announced_once_an_hour(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    keeper.warn_s, keeper.proof.why = 10 * 86_400, "no answer"

    async def looks() -> None:
        with mock.patch("ngp.tenant.autopay.LOOK_AGAIN_S", 0.1):
            await asyncio.wait_for(keeper.keep(once=False), 3)

    with pytest.raises(TimeoutError):
        asyncio.run(looks())
    assert sum("ends in" in line for line in caplog.messages) == 1
    assert sum("no answer" in line for line in caplog.messages) == 1


def test_the_first_look_that_succeeds_is_told_once(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ngp.tenant")
    keeper.run()
    assert not any("AutoPay keeps" in line for line in caplog.messages), "with --once it ends"
    with mock.patch("ngp.tenant.autopay.LOOK_MOST_S", 0.2), pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(keeper.keep(once=False), 2))
    assert sum("AutoPay keeps the credit of" in line for line in caplog.messages) == 1


def test_a_rental_without_rent_has_no_end_to_announce(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    keeper.run()
    books = keeper.books.read()
    keeper.books.write(replace(books, account=replace(books.account, rate_sat_s=0.0)))
    keeper.warn_s = 10 * 86_400
    keeper.landlord.silent.add("getstatus")
    with mock.patch("ngp.tenant.https.ANSWER_S", 0.2), pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(keeper.keep(once=False), 2))
    assert not any("ends in" in line for line in caplog.messages)


def test_the_end_of_the_credit_is_announced_although_the_landlord_is_away(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    keeper.run()
    keeper.warn_s = 10 * 86_400
    keeper.landlord.silent.add("getstatus")
    with mock.patch("ngp.tenant.https.ANSWER_S", 0.2), pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(keeper.keep(once=False), 3))
    assert sum("ends in" in line for line in caplog.messages) == 1
    assert sum("doesn't answer" in line for line in caplog.messages) == 1


def test_back_rent_is_paid_without_a_proof_as_the_tunnel_is_off_and_no_more(keeper: Keeper) -> None:
    keeper.run()
    (rental,) = keeper.landlord.rentals.values()
    keeper.proof.why = "no answer"
    with mock.patch("time.time", lambda now=time.time: now() + 10 * 86_400):
        owed = -rental.credit_now(keeper.landlord.now())
        assert owed > 3000
        with pytest.raises(PaymentError, match="no answer"):
            keeper.run()
        paid = [sat for sat, _ in keeper.payments()[3:]]
        assert 0 < rental.credit_now(keeper.landlord.now()) <= 1500 and sum(paid) > owed and max(paid) <= 1500
        keeper.proof.why = ""
        keeper.run()
        assert rental.credit_now(keeper.landlord.now()) > TARGET_SAT - 550


def test_a_payment_by_hand_is_taken_over(keeper: Keeper) -> None:
    keeper.run()
    (key,) = keeper.landlord.rentals
    keeper.landlord.add_credit({"WireGuardPubKey": key, "amount": "700"})
    former, keeper.landlord.is_paid = keeper.landlord.is_paid, lambda _hash: True
    keeper.run()
    keeper.landlord.is_paid = former
    assert len(keeper.payments()) == 3
    assert keeper.books.read().account.payments == 4
    set_limits(keeper, target_credit=6000, target_time_s=10**9)
    keeper.run()
    assert len(keeper.payments()) > 3
