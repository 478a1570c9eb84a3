"""What every payment module must do: the sandbox and real nodes pass this one suite.

A module's tests subclass `PaymentContract` and say in `nodes` how to get two nodes that can pay each other. Nothing in
this file depends on the module. If the module settles by proof, the tests hand the payer's preimage to the payee, like
ngp's `paid` message.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest

from ngp.core.payment_node import PaymentOutcome, PaymentStatus, Settlement
from ngp.errors import PaymentError, PeerError
from ngp.ports import Payment
from ngp.ports.payment import InvoiceState

AMOUNT_MSAT = 123_000
FEE_LIMIT_MSAT = 10_000
TIMEOUT_S = 60.0  # catches a hang; everything awaited comes within a second on a quiet machine


@dataclass
class Nodes:
    """Two nodes of one network; `restart_*` closes the module and opens it again on the same node."""

    payer: Payment
    payee: Payment
    restart_payer: Callable[[], Awaitable[Payment]]
    restart_payee: Callable[[], Awaitable[Payment]]
    hold_next_payment: Callable[[], None]
    """Make the payer's next payment stay pending until `release` (with LND, by a hold invoice at the payee)."""
    release: Callable[[], None]
    has_order: Callable[[bytes], bool]
    """Ask the payer's node itself whether a payment is on its way."""
    chooses_preimages: bool = True
    """An invoice can be made for a preimage of ours."""
    signs: bool = True
    """The node signs with its key."""

    async def settle(self, outcome: PaymentOutcome) -> None:
        """Do what the neighbours do after a payment has succeeded: if it settles by proof, hand over the preimage."""
        if self.payee.capabilities().settles_by_proof:
            await self.payee.settle_invoice(outcome.preimage)

    async def pay(self, bolt11: str) -> PaymentOutcome:
        return await self.payer.pay(bolt11, FEE_LIMIT_MSAT, TIMEOUT_S)

    async def pay_new(self, amount_msat: int = AMOUNT_MSAT) -> PaymentOutcome:
        made = await self.payee.create_invoice(amount_msat, "ngp top-up", 600)
        outcome = await self.pay(made.bolt11)
        assert outcome.status is PaymentStatus.SUCCEEDED, outcome.reason
        await self.settle(outcome)
        return outcome


def watching(payment: Payment, cursor: int) -> AbstractAsyncContextManager[AsyncIterator[Settlement]]:
    """Watch the settlements; the stream is closed at the end of the block."""
    return contextlib.aclosing(payment.watch_settlements(cursor))  # type: ignore[type-var]


async def first(payment: Payment, cursor: int, count: int) -> list[Settlement]:
    """Return this many different settlements after the cursor."""
    found: dict[int, Settlement] = {}
    async with asyncio.timeout(TIMEOUT_S), watching(payment, cursor) as stream:
        async for settlement in stream:
            found[settlement.cursor] = settlement
            if len(found) == count:
                break
    return list(found.values())


async def comes_to(payment: Payment, balance_msat: int) -> None:
    """Wait until a node has this balance: its channel is settled a moment after both nodes know of the payment."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while (found := await payment.balance_msat()) != balance_msat:
        assert asyncio.get_running_loop().time() < deadline, f"balance {found} msat, expected {balance_msat}"
        await asyncio.sleep(0.05)


async def goes_out(nodes: Nodes, payment_hash: bytes) -> None:
    """Wait until the node has a payment on its way.

    The module alone also answers PENDING before it has asked the node.
    """
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while not await asyncio.to_thread(nodes.has_order, payment_hash):
        assert asyncio.get_running_loop().time() < deadline, "the node never began to pay"
        await asyncio.sleep(0.05)


def with_nodes(test: Callable[[Any, Nodes], Awaitable[None]]) -> Callable[[Any], None]:
    """Run a test in an event loop with two nodes of the module under test."""

    @functools.wraps(test)
    def run(self: PaymentContract) -> None:
        async def body() -> None:
            async with asyncio.timeout(3 * TIMEOUT_S), self.nodes() as nodes:
                await test(self, nodes)

        asyncio.run(body())

    del run.__wrapped__  # pytest would take `nodes` for a fixture
    return run


class PaymentContract(ABC):
    """Subclass it as `Test...`; see the module's docstring."""

    @abstractmethod
    def nodes(self) -> AbstractAsyncContextManager[Nodes]:
        """Return two nodes that are ready, new ones or used ones."""

    @with_nodes
    async def test_an_invoice_says_what_was_asked(self, nodes: Nodes) -> None:
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "ngp töp-up", 600)
        read = nodes.payer.decode(made.bolt11)
        assert (made.amount_msat, made.expires_in_s) == (AMOUNT_MSAT, 600)
        assert (read.payment_hash, read.amount_msat, read.memo) == (made.payment_hash, AMOUNT_MSAT, "ngp töp-up")
        assert 400 < read.expires_in_s <= 600
        info = await nodes.payee.info()
        assert (read.payee, read.network) == (info.account_id, info.network)

    @with_nodes
    async def test_every_invoice_has_its_own_hash(self, nodes: Nodes) -> None:
        made = [await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600) for _ in range(3)]
        assert len({item.payment_hash for item in made}) == 3

    @with_nodes
    async def test_a_given_preimage_is_used_once_or_not_at_all(self, nodes: Nodes) -> None:
        preimage = secrets.token_bytes(32)
        if not nodes.chooses_preimages:
            with pytest.raises(PaymentError):
                await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600, preimage=preimage)
            return
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600, preimage=preimage)
        assert made.payment_hash == sha256(preimage).digest()
        with pytest.raises(PaymentError):
            await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600, preimage=preimage)

    @with_nodes
    async def test_the_payer_learns_the_preimage_by_paying_and_the_payee_is_told(self, nodes: Nodes) -> None:
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)
        assert await nodes.payee.lookup_invoice(made.payment_hash) is InvoiceState.OPEN
        outcome = await nodes.pay(made.bolt11)
        assert outcome.status is PaymentStatus.SUCCEEDED
        assert outcome.payment_hash == made.payment_hash == sha256(outcome.preimage).digest()
        assert 0 <= outcome.fee_msat <= FEE_LIMIT_MSAT
        await nodes.settle(outcome)
        settlement = await self._settlement_of(nodes.payee, made.payment_hash)
        assert settlement.amount_msat == AMOUNT_MSAT
        assert await nodes.payee.lookup_invoice(made.payment_hash) is InvoiceState.SETTLED

    async def _settlement_of(self, payee: Payment, payment_hash: bytes) -> Settlement:
        async with asyncio.timeout(TIMEOUT_S), watching(payee, 0) as stream:
            async for settlement in stream:
                if settlement.payment_hash == payment_hash:
                    return settlement
        raise AssertionError("the stream of settlements ended")

    @with_nodes
    async def test_paying_twice_pays_once(self, nodes: Nodes) -> None:
        before_msat = await nodes.payer.balance_msat()
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)
        outcome = await nodes.pay(made.bolt11)
        await comes_to(nodes.payer, before_msat - AMOUNT_MSAT - outcome.fee_msat)
        assert await nodes.pay(made.bolt11) == outcome
        assert await asyncio.gather(*(nodes.pay(made.bolt11) for _ in range(3))) == [outcome] * 3
        await comes_to(nodes.payer, before_msat - AMOUNT_MSAT - outcome.fee_msat)
        assert await nodes.payer.track(made.payment_hash) == outcome

    @with_nodes
    async def test_paying_at_the_same_time_pays_once(self, nodes: Nodes) -> None:
        before_msat = await nodes.payer.balance_msat()
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)
        outcomes = await asyncio.gather(*(nodes.pay(made.bolt11) for _ in range(4)))
        assert {item.preimage for item in outcomes} == {outcomes[0].preimage}
        await comes_to(nodes.payer, before_msat - AMOUNT_MSAT - outcomes[0].fee_msat)

    @with_nodes
    async def test_money_moves_from_payer_to_payee(self, nodes: Nodes) -> None:
        payer_msat, payee_msat = await nodes.payer.balance_msat(), await nodes.payee.balance_msat()
        outcome = await nodes.pay_new()
        await self._settlement_of(nodes.payee, outcome.payment_hash)
        await comes_to(nodes.payer, payer_msat - AMOUNT_MSAT - outcome.fee_msat)
        await comes_to(nodes.payee, payee_msat + AMOUNT_MSAT)

    @with_nodes
    async def test_settlements_come_in_order_from_the_cursor_on(self, nodes: Nodes) -> None:
        outcomes = [await nodes.pay_new(AMOUNT_MSAT + 1000 * index) for index in range(4)]
        start = (await self._settlement_of(nodes.payee, outcomes[0].payment_hash)).cursor
        following = await first(nodes.payee, start, 3)
        assert [item.payment_hash for item in following] == [item.payment_hash for item in outcomes[1:]]
        assert [item.amount_msat for item in following] == [AMOUNT_MSAT + 1000 * index for index in (1, 2, 3)]
        assert start < following[0].cursor < following[1].cursor < following[2].cursor
        assert await first(nodes.payee, following[1].cursor, 1) == following[2:]

    @with_nodes
    async def test_a_watcher_that_waits_is_told(self, nodes: Nodes) -> None:
        outcome = await nodes.pay_new()
        cursor = (await self._settlement_of(nodes.payee, outcome.payment_hash)).cursor
        watcher = asyncio.create_task(first(nodes.payee, cursor, 1))
        await asyncio.sleep(0)  # let it begin to wait
        second = await nodes.pay_new()
        (told,) = await watcher
        assert told.payment_hash == second.payment_hash

    @with_nodes
    async def test_proving_twice_settles_once(self, nodes: Nodes) -> None:
        outcome = await nodes.pay_new()
        again = await nodes.pay_new()
        await nodes.settle(outcome)
        start = (await self._settlement_of(nodes.payee, outcome.payment_hash)).cursor
        (following,) = await first(nodes.payee, start, 1)
        assert following.payment_hash == again.payment_hash

    @with_nodes
    async def test_a_false_proof_settles_nothing(self, nodes: Nodes) -> None:
        if not nodes.payee.capabilities().settles_by_proof:
            return
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)
        with pytest.raises(PaymentError):
            await nodes.payee.settle_invoice(secrets.token_bytes(32))
        assert await nodes.payee.lookup_invoice(made.payment_hash) is InvoiceState.OPEN

    @with_nodes
    async def test_a_cancelled_invoice_is_cancelled_and_a_paid_one_can_not_be(self, nodes: Nodes) -> None:
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)
        await nodes.payee.cancel_invoice(made.payment_hash)
        assert await nodes.payee.lookup_invoice(made.payment_hash) is InvoiceState.CANCELLED
        outcome = await nodes.pay_new()
        await self._settlement_of(nodes.payee, outcome.payment_hash)
        with pytest.raises(PaymentError):
            await nodes.payee.cancel_invoice(outcome.payment_hash)

    @with_nodes
    async def test_an_unknown_invoice_is_named(self, nodes: Nodes) -> None:
        with pytest.raises(PaymentError):
            await nodes.payee.lookup_invoice(secrets.token_bytes(32))

    @with_nodes
    async def test_an_expired_invoice_is_not_paid(self, nodes: Nodes) -> None:
        before_msat = await nodes.payer.balance_msat()
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 1)
        async with asyncio.timeout(TIMEOUT_S):
            while nodes.payer.decode(made.bolt11).expires_in_s > 0:  # real time must pass
                await asyncio.sleep(0.05)
        try:
            outcome = await nodes.pay(made.bolt11)
        except PaymentError:
            pass
        else:
            assert outcome.status is PaymentStatus.FAILED
            assert "expired" in outcome.reason
        assert await nodes.payer.balance_msat() == before_msat

    @with_nodes
    async def test_an_amount_above_the_balance_fails_with_a_reason(self, nodes: Nodes) -> None:
        before_msat = await nodes.payer.balance_msat()
        made = await nodes.payee.create_invoice((before_msat // 1000 + 1) * 1000, "", 600)
        outcome = await nodes.pay(made.bolt11)
        assert outcome.status is PaymentStatus.FAILED
        assert outcome.reason
        assert outcome.preimage == b""
        assert await nodes.payer.balance_msat() == before_msat

    @with_nodes
    async def test_a_payment_on_its_way_is_pending_until_it_is_over(self, nodes: Nodes) -> None:
        nodes.hold_next_payment()
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)
        outcome = await nodes.payer.pay(made.bolt11, FEE_LIMIT_MSAT, 0.2)
        assert outcome == PaymentOutcome(made.payment_hash, PaymentStatus.PENDING)
        assert (await nodes.payer.track(made.payment_hash)).status is PaymentStatus.PENDING
        await goes_out(nodes, made.payment_hash)
        nodes.payer = await nodes.restart_payer()
        assert (await nodes.payer.track(made.payment_hash)).status is PaymentStatus.PENDING
        nodes.release()
        outcome = await nodes.pay(made.bolt11)
        assert outcome.status is PaymentStatus.SUCCEEDED
        assert sha256(outcome.preimage).digest() == made.payment_hash
        assert await nodes.payer.track(made.payment_hash) == outcome

    @with_nodes
    async def test_a_payment_never_made_is_unknown(self, nodes: Nodes) -> None:
        outcome = await nodes.payer.track(secrets.token_bytes(32))
        assert (outcome.status, outcome.reason) == (PaymentStatus.FAILED, "unknown")

    @with_nodes
    async def test_invoices_payments_and_settlements_outlive_the_module(self, nodes: Nodes) -> None:
        outcome = await nodes.pay_new()
        cursor = (await self._settlement_of(nodes.payee, outcome.payment_hash)).cursor
        made = await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)
        before = await nodes.payer.info(), await nodes.payer.balance_msat()
        nodes.payer, nodes.payee = await nodes.restart_payer(), await nodes.restart_payee()
        assert (await nodes.payer.info(), await nodes.payer.balance_msat()) == before
        assert await nodes.payer.track(outcome.payment_hash) == outcome
        assert await nodes.payee.lookup_invoice(outcome.payment_hash) is InvoiceState.SETTLED
        second = await nodes.pay(made.bolt11)
        await nodes.settle(second)
        (told,) = await first(nodes.payee, cursor, 1)
        assert told.payment_hash == made.payment_hash
        assert told.cursor > cursor

    @with_nodes
    async def test_hostile_invoices_are_refused(self, nodes: Nodes) -> None:
        good = (await nodes.payee.create_invoice(AMOUNT_MSAT, "", 600)).bolt11
        middle = len(good) // 2
        swapped = good[:middle] + ("q" if good[middle] != "q" else "p") + good[middle + 1 :]
        for text in ("", "ln", "lnbc1", good[:-1], good + "q", swapped, "q" * 100_000, "lnbcrt1" + "\u0661" * 300):
            with pytest.raises(PeerError) as caught:
                nodes.payer.decode(text)
            assert caught.value.reason == "invoice"
            with pytest.raises(PaymentError):
                await nodes.pay(text)

    @with_nodes
    async def test_signatures_name_their_key(self, nodes: Nodes) -> None:
        if not nodes.signs:
            with pytest.raises(PaymentError):
                await nodes.payee.sign(b"certificate")
            return
        signature = await nodes.payee.sign(b"certificate")
        account_id = (await nodes.payee.info()).account_id
        assert nodes.payer.verify(b"certificate", signature) == account_id
        assert nodes.payer.verify(b"another", signature) != account_id
        for false in ("", "y", signature[:-1], signature + "y", "l" * 104, "\u0661" * 104):
            assert nodes.payer.verify(b"certificate", false) is None

    @with_nodes
    async def test_closing_twice_is_no_error(self, nodes: Nodes) -> None:
        await nodes.payer.close()
        await nodes.payer.close()
        nodes.payer = await nodes.restart_payer()
        await nodes.payer.wait_ready()
