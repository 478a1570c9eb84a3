"""A node's history is long, or shorter than before: settlements come in order, and are never all in memory at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ngp.modules.payment import lnd
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd import LndPayment
from ngp.modules.payment.lnd_client import LIST_INVOICES, SUBSCRIBE_INVOICES, LndError

PAGE = 10


class OldNode:
    """Answers as LND does: lists invoices in the order of their making, and reports settlements after an index."""

    def __init__(self, settle_indexes: list[int]) -> None:
        self.invoices = [
            pb.Invoice(
                r_hash=bytes([number]) * 32,
                state=pb.Invoice.SETTLED if index else pb.Invoice.OPEN,
                settle_index=index,
                amt_paid_msat=1000 * index,
            )
            for number, index in enumerate(settle_indexes)
        ]
        self.pages = 0

    async def call(self, method: object, asked: Any) -> Any:
        assert method is LIST_INVOICES and asked.num_max_invoices == lnd.PAGE
        self.pages += 1
        if asked.reversed:
            end = asked.index_offset - 1 if asked.index_offset else len(self.invoices)
            page = self.invoices[max(0, end - lnd.PAGE) : end]
            return pb.ListInvoiceResponse(invoices=page, first_index_offset=end - len(page) + 1 if page else 0)
        end = min(len(self.invoices), asked.index_offset + lnd.PAGE)
        return pb.ListInvoiceResponse(invoices=self.invoices[asked.index_offset : end], last_index_offset=end)

    async def stream(self, method: object, asked: Any, timeout_s: float | None = None) -> AsyncIterator[Any]:
        assert method is SUBSCRIBE_INVOICES
        if asked.settle_index:  # 0: no backlog; an index that isn't reached yet: nothing is reported until it is
            for one in sorted(self.invoices, key=lambda one: int(one.settle_index)):
                if one.settle_index > asked.settle_index:
                    yield one


class NewNode(OldNode):
    """Settles its first invoices just before it accepts the subscription, and reports the last of them, or none."""

    def __init__(self, tells: bool) -> None:
        super().__init__([0] * 3)
        self.tells = tells

    async def stream(self, method: object, asked: Any, timeout_s: float | None = None) -> AsyncIterator[Any]:
        if asked.settle_index:
            async for told in super().stream(method, asked, timeout_s):
                yield told
            return
        assert timeout_s
        self.invoices = OldNode([2, 0, 1]).invoices
        if self.tells:
            yield self.invoices[0]
        raise LndError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "took too long")


@pytest.mark.parametrize("tells", [False, True])
def test_what_was_settled_before_the_subscription_was_taken_is_told(tmp_path: Path, tells: bool) -> None:
    payment, node = LndPayment(tmp_path), NewNode(tells)
    payment._client = node  # type: ignore[assignment]

    async def scenario() -> list[int]:
        return [one.cursor async for one in payment.watch_settlements(0)]

    assert asyncio.run(scenario()) == [1, 2]


@pytest.mark.parametrize(
    ("settle_indexes", "cursor", "told", "pages"),
    [
        ([3, 0, 1, *range(9, 90), 2], 0, [1, 2, 3, *range(9, 90)], 1),
        ([0] * 25 + [2, 1], 0, [1, 2], 3),
        ([0] * 25 + [7, 5, 6], 0, [5, 6, 7], 4),  # the first ones were of another kind, or were deleted
        ([0] * 15, 0, [], 3),
        ([3, 1, 2], 2, [3], 1),
        ([*range(1, 31), *[0] * 15], 28, [29, 30], 2),
        ([0, 2, 1], 900, [1, 2], 2),  # it lost its records, and counts from the beginning
        ([0] * 15, 900, [], 5),
        ([], 900, [], 2),
    ],
)
def test_all_that_was_settled_comes_in_order_and_few_pages_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle_indexes: list[int], cursor: int, told: list[int], pages: int
) -> None:
    monkeypatch.setattr(lnd, "PAGE", PAGE)
    payment, node = LndPayment(tmp_path), OldNode(settle_indexes)
    payment._client = node  # type: ignore[assignment]

    async def scenario() -> list[tuple[int, int]]:
        return [(one.cursor, one.amount_msat) async for one in payment.watch_settlements(cursor)]

    assert asyncio.run(scenario()) == [(index, 1000 * index) for index in told]
    assert node.pages == pages


class Tidy:
    """An LND that deletes cancelled and expired invoices, so that a second cancellation finds nothing."""

    def __init__(self, why: str) -> None:
        self.why = why

    async def call(self, *_: object) -> object:
        raise LndError(grpc.StatusCode.UNKNOWN, self.why, self.why)


def test_an_invoice_that_lnd_deleted_counts_as_cancelled_and_a_settled_one_does_not(tmp_path: Path) -> None:
    payment = LndPayment(tmp_path)
    payment._client = Tidy("unable to locate invoice")  # type: ignore[assignment]
    asyncio.run(payment.cancel_invoice(bytes(32)))
    payment._client = Tidy("invoice already settled")  # type: ignore[assignment]
    with pytest.raises(LndError):
        asyncio.run(payment.cancel_invoice(bytes(32)))
