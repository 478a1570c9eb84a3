"""AutoPay with a node that fails, or killed at any moment: nothing is paid twice or lost."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest

from ngp.errors import ConfigError, PaymentError
from ngp.modules.payment.sandbox import SandboxPayment
from ngp.tenant.books import Books, BooksFile
from tests.tenant.keeper import FIRST_SAT, TARGET_SAT, Keeper


class Killed(BaseException):
    """The process ends here, and nothing of it runs any more."""


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
