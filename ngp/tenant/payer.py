"""Payer: pays a landlord's invoices through our payment node, each once.

The order is in the books, durably, before the node hears of it. Until the node has said how the payment ended, it stays
pending, and nothing else is paid for that rental: not after an error, a kill, or a restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

from ngp.core.budget import HOUR_S
from ngp.core.networks import is_same, takes_invoice
from ngp.core.payment_node import UNKNOWN_PAYMENT, PaymentOutcome, PaymentStatus
from ngp.core.pricing import show_money
from ngp.core.settings import Budgets, FeeLimit
from ngp.core.tenant.account import Order
from ngp.core.values import DAY_S
from ngp.errors import PaymentError, PeerError
from ngp.ports import Payment
from ngp.tenant import files
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.renting import Quote

_log = logging.getLogger("ngp.tenant")

PAY_S = 60.0
TRACK_EVERY_S = 2.0
_SURE_S = 3.0
"""How long a node that doesn't know a payment is asked again: a killed process may have sent it a moment before."""


class Payer:
    """Pays for one rental.

    Args:
        books: of this rental.
        fee_limit: most that routing may cost.
        budgets: of net.conf; None: there is no net.conf.
        all_books: returns the books of all rentals, this one's included: budgets hold for all together.
    """

    def __init__(
        self,
        payment: Payment,
        books: BooksFile,
        fee_limit: FeeLimit,
        budgets: Budgets | None,
        all_books: Callable[[], Sequence[Books]],
    ) -> None:
        self._payment = payment
        self._books = books
        self._fee_limit = fee_limit
        self._budgets = budgets
        self._all_books = all_books

    async def finish(self) -> Books:
        """Wait for the outcome of a payment that is pending, if there is one. Returns the books afterwards.

        Raises: PaymentError: another node is in use than for this payment, or ours can't be asked; it stays pending.
        """
        books = self._books.read()
        order = books.pending
        if order is None:
            return books
        node = (await self._payment.info()).account_id
        if order.node != node:
            raise PaymentError(
                f"a payment of {show_money(order.amount_msat)} ({order.payment_hash.hex()[:16]}) was sent by the node "
                f"{order.node}, and its outcome isn't known: connect that node again, not {node}; nothing more is paid"
            )
        _log.info("waiting for the outcome of a payment of %s", show_money(order.amount_msat))
        outcome = await self._outcome(order, PaymentOutcome(order.payment_hash, PaymentStatus.PENDING))
        return self._book(books, order, outcome)

    async def refuse_unpayable(self, amount_msat: int) -> None:
        """Refuse a sum that the node doesn't have or a budget doesn't allow, before a landlord is asked for an invoice.

        Raises: PaymentError.
        """
        await self._refuse_above_balance(amount_msat)
        self._refuse_over_budget(amount_msat + self._fee_limit.of_msat(amount_msat))

    async def pay(self, quote: Quote, carried_msat: int | None = None) -> Books:
        """Pay an invoice that passed its checks, and return the books with it.

        Args: carried_msat: the landlord's word on the credit just before, which the user accepts; None: by our books.
        Raises: PaymentError: it was not paid, or its outcome isn't known and it stays pending.
        """
        books = self._books.read()
        if books.pending is not None:
            raise PaymentError("an earlier payment is on its way: nothing is paid until its outcome is known")
        order = replace(await self._order(quote), carried_msat=carried_msat)
        books = self._with_pending(books, order)
        try:
            outcome = await self._payment.pay(quote.asked.bolt11, order.fee_limit_msat, PAY_S)
        except PaymentError as error:
            _log.warning("%s; asking the node whether the payment was sent", error)
            outcome = PaymentOutcome(order.payment_hash, PaymentStatus.PENDING)
        outcome = await self._outcome(order, outcome)
        books = self._book(books, order, outcome)
        if outcome.status is not PaymentStatus.SUCCEEDED:
            why = outcome.reason or "no reason is known"
            raise PaymentError(f"{show_money(order.amount_msat)} were not paid: {why}")
        return books

    async def _order(self, quote: Quote) -> Order:
        info, amount_msat = await self._payment.info(), quote.amount_msat
        try:
            decoded = self._payment.decode(quote.asked.bolt11)
        except PeerError as error:
            raise PaymentError(f"the invoice can't be paid by this node ({error}): nothing was paid") from error
        if not is_same(decoded.network, info.network) and not takes_invoice(info.network, decoded.network):
            raise PaymentError(
                f"the invoice is of the network {decoded.network}, and the payment node is on {info.network}: "
                "nothing was paid; use a node of the landlord's network"
            )
        fee_limit_msat = self._fee_limit.of_msat(amount_msat)
        await self._refuse_above_balance(amount_msat)
        return Order(
            payment_hash=decoded.payment_hash,
            amount_msat=amount_msat,
            added_msat=quote.asked.added_msat,
            is_first=quote.asked.is_first,
            rate_sat_s=quote.asked.terms.rate_sat_s,
            at_s=quote.made_at_s,
            node=info.account_id,
            fee_limit_msat=fee_limit_msat,
            sent_at_s=int(time.time()),
        )

    async def _refuse_above_balance(self, amount_msat: int) -> None:
        balance_msat = await self._payment.balance_msat()
        if balance_msat < amount_msat:
            raise PaymentError(
                f"the payment node can spend {show_money(balance_msat)}, but {show_money(amount_msat)} are due: "
                "nothing was paid; fund its channels"
            )

    def _refuse_over_budget(self, amount_msat: int) -> None:
        if self._budgets is None:
            return
        now_s, all_books = time.time(), self._all_books()
        for name, limit_msat, since_s in (
            ("BUDGET_HOUR", self._budgets.hour_msat, now_s - HOUR_S),
            ("BUDGET_DAY", self._budgets.day_msat, now_s - DAY_S),
            ("BUDGET_TOTAL", self._budgets.total_msat, 0.0),
        ):
            mend = f"raise {name} in net.conf" + (", or pay later" if since_s else "")
            spent_msat = sum(books.spent_msat(since_s) for books in all_books)
            if limit_msat is not None and spent_msat + amount_msat > limit_msat:
                raise PaymentError(
                    f"{show_money(amount_msat)} with the highest fee would exceed {name} ({show_money(limit_msat)}, "
                    f"{show_money(spent_msat)} are spent): nothing was paid; {mend}"
                )

    def _with_pending(self, books: Books, order: Order) -> Books:
        """Check the budgets and write the order, alone: other processes pay for other rentals of the same budgets."""
        lock = self._books.path.with_name("budgets.lock")
        with files.only_one(lock, "another payment", "try again in a moment", files.WAIT_S):
            self._refuse_over_budget(order.amount_msat + order.fee_limit_msat)
            books = replace(books, pending=order)
            self._books.write(books)
        return books

    async def _outcome(self, order: Order, outcome: PaymentOutcome) -> PaymentOutcome:
        """Ask the node until a payment's outcome is known. That may take hours: a payment can be stuck on its way."""
        unknown_since_s: float | None = None
        while True:
            if outcome.status is PaymentStatus.FAILED and outcome.reason == UNKNOWN_PAYMENT:
                unknown_since_s = unknown_since_s or time.monotonic()
                if time.monotonic() - unknown_since_s >= _SURE_S:
                    return outcome
            elif outcome.status is not PaymentStatus.PENDING:
                return outcome
            await asyncio.sleep(TRACK_EVERY_S)
            outcome = await self._payment.track(order.payment_hash)

    def _book(self, books: Books, order: Order, outcome: PaymentOutcome) -> Books:
        if outcome.status is PaymentStatus.SUCCEEDED:
            if outcome.preimage and sha256(outcome.preimage).digest() != order.payment_hash:
                raise PaymentError("the payment node reports a success with a wrong preimage: nothing more is paid")
            if outcome.fee_msat > order.fee_limit_msat:
                _log.warning("the payment cost %s in fees, above the limit", show_money(outcome.fee_msat))
            books = books.succeeded(outcome.fee_msat, outcome.preimage)
            _log.info("paid %s, fee %s", show_money(order.amount_msat), show_money(outcome.fee_msat))
        else:
            books = books.failed()
        self._books.write(books)
        return books
