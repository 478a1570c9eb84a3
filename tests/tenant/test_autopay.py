"""AutoPay against a landlord that may misbehave, with the sandbox's payments: limits, proof, restarts, never twice."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from ngp.cli.tenant_service import only_autopay
from ngp.core.settings import Budgets, FeeLimit
from ngp.core.tenant.account import Order
from ngp.core.tenant.terms import Limits
from ngp.errors import ConfigError, ExitCode, LandlordError, PaymentError
from ngp.modules.payment.sandbox import SandboxPayment
from ngp.tenant import autopay, files
from ngp.tenant.autopay import Kept, LimitError
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.home import FOLDER, Home, Tunnel
from ngp.tenant.https import HttpsLandlord
from ngp.tenant.payer import Payer
from tests.tenant.conftest import User
from tests.tenant.stand_in import StandIn

FIRST_SAT = 49_000  # 48,000 and the landlord's least credit
TARGET_SAT = 3_943  # 5 days of 24,000 sat a month, rounded up, is below the target of 6,000


@dataclass
class Told:
    """A proof that says what the test says."""

    why: str = ""

    async def why_not(self) -> str:
        return self.why


@dataclass
class Keeper:
    """A tenant with a sandbox node, whose AutoPay may be started as often as one likes."""

    folder: Path
    landlord: StandIn
    proof: Told = field(default_factory=Told)
    budgets: Budgets | None = None
    options: dict[str, str] = field(default_factory=dict)
    limits: Limits | None = None
    warn_s: int = 0

    def __post_init__(self) -> None:
        self.home = Home(self.folder / "home")
        place = self.home.landlord(None, self.landlord.host, self.landlord.pin)
        self.tunnel: Tunnel = self.home.add_tunnel(None, place)
        self.books = BooksFile(self.home.state_path(self.tunnel))
        self.https = HttpsLandlord(place)

    def all_books(self) -> list[Books]:
        return [BooksFile(path).read() for path in self.home.all_state_paths()]

    def run(self, once: bool = True) -> None:
        asyncio.run(self.keep(once))

    async def keep(self, once: bool = True, alone: bool = True) -> None:
        payment = SandboxPayment(self.folder / "node", self.options)
        payer = Payer(payment, self.books, FeeLimit(0, 1000), self.budgets, self.all_books)
        limits = lambda: self.limits or self.home.limits()  # noqa: E731
        proof, warn_s = lambda: self.proof, lambda: self.warn_s
        kept = Kept(self.home, self.tunnel, self.https, self.books, payer, proof, limits, warn_s)
        try:
            await autopay.keep(kept, once, lambda: False, alone)
        finally:
            await payment.close()

    def payments(self) -> list[tuple[int, str]]:
        """Return what the node paid: sat, and the state."""
        with sqlite3.connect(self.folder / "node" / "sandbox.db") as connection:
            rows = connection.execute("SELECT amount_msat, status FROM payments ORDER BY due_at_s").fetchall()
        return [(row[0] // 1000, row[1]) for row in rows]


@pytest.fixture
def keeper(tmp_path: Path, landlord: StandIn) -> Iterator[Keeper]:
    node = tmp_path / "node" / "sandbox.db"
    node.parent.mkdir()

    def is_paid(payment_hash: bytes) -> bool:
        if not node.exists():
            return False
        with sqlite3.connect(node) as connection:
            asked = "SELECT status FROM payments WHERE payment_hash = ?"
            row = connection.execute(asked, (payment_hash,)).fetchone()
        return row is not None and row[0] == "succeeded"

    def make_invoice(amount_msat: int, expiry_s: int) -> tuple[str, bytes]:
        async def make() -> tuple[str, bytes]:
            payee = SandboxPayment(tmp_path / "payee")
            made = await payee.create_invoice(amount_msat, "rent", expiry_s)
            await payee.close()
            return made.bolt11, made.payment_hash

        return asyncio.run(make())

    (tmp_path / "payee").mkdir()
    landlord.is_paid, landlord.make_invoice = is_paid, make_invoice
    with (
        mock.patch("ngp.tenant.payer.TRACK_EVERY_S", 0.05),
        mock.patch("ngp.tenant.payer._SURE_S", 0.1),
        mock.patch("ngp.tenant.renting.WIREGUARD_FOLDER", tmp_path / "wireguard"),
    ):
        yield Keeper(tmp_path, landlord)


class Killed(BaseException):
    """The process ends here, and nothing of it runs any more."""


def set_limits(keeper: Keeper, **sat: int) -> None:
    """Change limits of BuyOfferTerms, in sat or seconds."""
    limits: dict[str, Any] = {}
    for name, value in sat.items():
        factor = 1 if name == "target_time_s" else 1000
        limits[name] = replace(getattr(keeper.home.limits(), name), value=value * factor)
    keeper.limits = replace(keeper.home.limits(), **limits)


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


# --- a landlord that cheats -------------------------------------------------------------------------------------------


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
    autopay.take_over(keeper.home, keeper.tunnel, keeper.https.status(keeper.tunnel))
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


# --- a node that fails, a process that is killed ----------------------------------------------------------------------


def test_a_payment_that_fails_is_not_counted_and_comes_again(keeper: Keeper) -> None:
    keeper.options = {"failed": "on"}
    with pytest.raises(PaymentError, match="no route"):
        keeper.run()
    books = keeper.books.read()
    assert not books.account.started and books.pending is None and books.sent[0].state == "failed"
    keeper.options = {}
    keeper.run()
    assert [sat for sat, state in keeper.payments() if state == "succeeded"][0] == FIRST_SAT


def test_a_fee_above_the_limit_is_not_paid(keeper: Keeper) -> None:
    keeper.options = {"fee_msat": "1001"}
    with pytest.raises(PaymentError, match="above the limit"):
        keeper.run()
    keeper.options = {"fee_msat": "1000"}
    keeper.run()
    assert all(one.fee_msat == 1000 for one in keeper.books.read().sent if one.state == "paid")


def test_a_node_without_the_money_is_not_asked(keeper: Keeper) -> None:
    keeper.options = {"balance_msat": "48999000"}
    with pytest.raises(PaymentError, match="fund its channels"):
        keeper.run()
    assert not keeper.payments() and keeper.books.read() == Books()


def test_a_reply_that_is_lost_is_tracked(keeper: Keeper) -> None:
    keeper.options = {"lost reply": "on"}
    keeper.run()
    assert [state for _, state in keeper.payments()] == ["succeeded"] * 3


async def _stuck(keeper: Keeper) -> None:
    """Let a payment stick, and kill AutoPay while it waits."""
    task = asyncio.create_task(keeper.keep())
    while keeper.books.read().pending is None:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_stuck_payment_is_waited_for_over_restarts_and_never_paid_twice(keeper: Keeper) -> None:
    keeper.options = {"stuck": "on"}
    asyncio.run(_stuck(keeper))
    asyncio.run(_stuck(keeper))
    assert [state for _, state in keeper.payments()] == ["pending"]
    keeper.options = {}
    payment = SandboxPayment(keeper.folder / "node")
    payment.set_fault("stuck", "off")
    asyncio.run(payment.close())
    keeper.run()
    assert [sat for sat, state in keeper.payments() if state == "succeeded"].count(FIRST_SAT) == 1


def test_another_node_than_the_one_that_paid_is_not_believed(keeper: Keeper) -> None:
    keeper.options = {"stuck": "on"}
    asyncio.run(_stuck(keeper))
    (keeper.folder / "node" / "sandbox.key").unlink()
    with pytest.raises(PaymentError, match="connect that node again"):
        keeper.run()


@pytest.mark.parametrize("before", [True, False], ids=["before the node heard of it", "after the node paid"])
@pytest.mark.parametrize("payment_number", [1, 2, 3])
def test_killed_around_a_payment(keeper: Keeper, before: bool, payment_number: int) -> None:
    pay, count = SandboxPayment.pay, 0

    async def killing(self: SandboxPayment, *words: Any) -> Any:
        nonlocal count
        count += 1
        if before and count == payment_number:
            raise Killed
        outcome = await pay(self, *words)
        if count == payment_number:
            raise Killed
        return outcome

    with mock.patch.object(SandboxPayment, "pay", killing), pytest.raises(Killed):
        keeper.run()
    assert keeper.books.read().pending is not None
    keeper.run()
    check_paid_once(keeper)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("number", range(1, 9))
def test_killed_around_each_write_of_the_books(keeper: Keeper, after: bool, number: int) -> None:
    write, count = BooksFile.write, 0

    def killing(self: BooksFile, books: Books) -> None:
        nonlocal count
        count += 1
        if count == number and not after:
            raise Killed
        write(self, books)
        if count == number:
            raise Killed

    with mock.patch.object(BooksFile, "write", killing):
        try:
            keeper.run()
        except Killed:
            pass
        else:
            assert count < number
    keeper.run()
    check_paid_once(keeper)


def check_paid_once(keeper: Keeper) -> None:
    """All that the node paid is in our books, at the landlord, and no more than the target."""
    paid = [sat for sat, state in keeper.payments() if state == "succeeded"]
    (rental,) = keeper.landlord.rentals.values()
    books = keeper.books.read()
    assert paid.count(FIRST_SAT) == 1 and books.pending is None
    assert sum(paid) == rental.paid == books.account.paid_msat // 1000
    assert len(paid) == rental.payments == books.account.payments
    assert 0 <= TARGET_SAT - rental.credit_now(keeper.landlord.now()) < 1
    assert keeper.home.conf_path(keeper.tunnel).exists()


def test_damaged_books_end_it(keeper: Keeper) -> None:
    keeper.run()
    text = keeper.books.path.read_text()
    keeper.books.path.write_text(text.replace("start_time_CurrentRate", "start_time_Current"))
    with pytest.raises(ConfigError, match=r"TunnelState\.yaml is damaged"):
        keeper.run(once=False)
    assert len(keeper.payments()) == 3


# --- the command ------------------------------------------------------------------------------------------------------


def command(keeper: Keeper) -> subprocess.CompletedProcess[str]:
    """Run `staticIP AutoPay` in the home of another user, who has the keeper's node."""
    user = User(keeper.folder / "other", keeper.landlord)

    async def find(_home: Home, _ask: object, _how: str) -> SandboxPayment:
        return SandboxPayment(keeper.folder / "node", keeper.options)

    with mock.patch("ngp.tenant.wallet.find", find), mock.patch("ngp.cli.tenant_service.proof_of", lambda *_: Told()):
        return user.static_ip("AutoPay")


@pytest.fixture
def quiet_log(tmp_path: Path) -> Iterator[None]:
    """Undo what the command does to logging and signals; another machine's AutoPay, or test, is no matter."""
    root, ours = logging.getLogger(), logging.getLogger("ngp")
    before, level, handler = root.handlers[:], ours.level, signal.getsignal(signal.SIGHUP)
    with mock.patch("ngp.cli.tenant_service._PUBLISHED_NAME", b"\0" + str(tmp_path).encode()[-90:]):
        yield
    root.handlers[:] = before
    ours.setLevel(level)
    signal.signal(signal.SIGHUP, handler)


def test_the_command_pays_until_it_is_told_to_stop_and_does_not_end_with_0(keeper: Keeper, quiet_log: None) -> None:
    def stop_when_paid() -> None:
        while len(keeper.landlord.rentals) == 0 or next(iter(keeper.landlord.rentals.values())).payments < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    watching = threading.Thread(target=stop_when_paid)
    watching.start()
    done = command(keeper)
    watching.join()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert len(keeper.payments()) == 3
    log = (keeper.folder / "other" / FOLDER / "debug.log").read_text()
    assert "paid 49000 sat" in log and keeper.landlord.pin not in log


def test_the_command_ends_with_5_and_the_limit_if_the_terms_are_refused(keeper: Keeper, quiet_log: None) -> None:
    keeper.landlord.rent = 48_001
    done = command(keeper)
    assert done.returncode == ExitCode.PAYMENT and "MaxMonthlyRate" in done.stderr


def test_the_stricter_of_two_limits_holds(keeper: Keeper, quiet_log: None, tmp_path: Path) -> None:
    net_conf = tmp_path / "net.conf"
    net_conf.write_text("TENANT_ACTIVATION_MAX: 47999 sat\nTENANT_RENT_MAX: 99999 sat\n")
    with mock.patch("ngp.cli.tenant_service.ROUTERS_CONFIG", net_conf):
        done = command(keeper)
        assert done.returncode == ExitCode.PAYMENT and "TENANT_ACTIVATION_MAX" in done.stderr
        keeper.landlord.rent = 48_001
        assert "MaxMonthlyRate" in command(keeper).stderr
        net_conf.write_text("MESH_INTERFACES: mesh0\nTENANT_RENT_MAX: much\n")
        assert command(keeper).returncode == ExitCode.CONFIGURATION


def test_a_second_one_ends_with_7(keeper: Keeper, quiet_log: None) -> None:
    with only_autopay(keeper.folder):
        assert command(keeper).returncode == ExitCode.RUNNING
    Home(keeper.folder / "other" / FOLDER)
    with files.only_one(keeper.folder / "other" / FOLDER / "AutoPay.lock", "AutoPay", "end it"):
        assert command(keeper).returncode == ExitCode.RUNNING


def test_without_a_payment_node_it_says_how_to_name_one(keeper: Keeper, quiet_log: None) -> None:
    user = User(keeper.folder / "other", keeper.landlord)
    with mock.patch("sys.stdin", io.StringIO()):
        done = user.static_ip("AutoPay")
    assert done.returncode == ExitCode.CONFIGURATION and "LNDhost" in done.stderr


def test_an_unreachable_node_in_the_file_is_no_reason_to_use_another(keeper: Keeper, quiet_log: None) -> None:
    user = User(keeper.folder / "other", keeper.landlord)
    user.folder.mkdir(parents=True)
    (user.folder / "Config.yaml").write_text("LNDhost: lndconnect://127.0.0.1:1?macaroon=AgEDbG5k\n")
    done = user.static_ip("AutoPay")
    assert done.returncode in (ExitCode.PAYMENT, ExitCode.CONFIGURATION) and "AgEDbG5k" not in done.stderr
    assert not keeper.landlord.rentals


def test_a_defect_is_told_once_and_looks_go_on_beside_other_rentals(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    look, faults = autopay.look, [OverflowError("a number")] * 2

    async def failing(kept: Kept) -> float:
        if faults:
            raise faults.pop()
        return await look(kept)

    with (
        mock.patch("ngp.tenant.autopay.LOOK_AGAIN_S", 0.1),
        mock.patch("ngp.tenant.autopay.look", failing),
        pytest.raises(TimeoutError),
    ):
        asyncio.run(asyncio.wait_for(keeper.keep(once=False, alone=False), 5))
    assert sum("a defect of ngp (OverflowError" in line for line in caplog.messages) == 1
    assert len(keeper.payments()) == 3


@pytest.mark.parametrize("defect", [RuntimeError("a defect"), MemoryError()])
def test_a_defect_ends_it_with_a_message_and_not_with_0(keeper: Keeper, quiet_log: None, defect: Exception) -> None:
    user = User(keeper.folder, keeper.landlord)
    with (
        mock.patch("ngp.tenant.wallet.find", mock.AsyncMock()),
        mock.patch("ngp.tenant.autopay.look", mock.AsyncMock(side_effect=defect)),
    ):
        done = user.static_ip("AutoPay")
    assert done.returncode == ExitCode.OTHER and type(defect).__name__ in done.stderr
