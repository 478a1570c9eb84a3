"""Sums: adds up in SQL what `ngp.store.audit` compares; the journal takes by far the longest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ngp.store import audit

_OVERBILLED = """SELECT identity, charged_msat, billed_msat FROM accounts
    WHERE role = 'client' AND charged_msat > billed_msat"""

# incoming payments go to a server's account, outgoing ones to a client's; refunds the other way
_PAYMENTS = """SELECT identity, (direction = 'in') = (kind <> 'refund'), kind = 'refund', state,
    CAST(sum(amount_msat) AS BIGINT)
    FROM payments WHERE state IN ('settled', 'succeeded', 'pending') GROUP BY 1, 2, 3, 4"""
_CHARGES = """SELECT identity, role, CAST(sum(charged_msat) AS BIGINT) FROM (
    SELECT identity, role, charged_msat FROM contracts
    UNION ALL SELECT identity, role, charged_msat FROM summaries) AS charges GROUP BY 1, 2"""
# a client's account is charged by the bill, its contracts by its own meter
_TOTALS = """SELECT identity, role, paid_msat, CASE role WHEN 'client' THEN metered_msat ELSE charged_msat END,
    refunded_msat FROM accounts"""
_ODD_JOURNAL = """SELECT journal.payment_hash, count(*), CAST(sum(abs(journal.amount_msat)) AS BIGINT),
    max(payments.amount_msat) FROM journal LEFT JOIN payments ON payments.payment_hash = journal.payment_hash
        AND payments.direction = CASE journal.state WHEN 'settled' THEN 'in' ELSE 'out' END
    WHERE journal.kind IN ('payment', 'refund') AND journal.state IN ('settled', 'succeeded')
    GROUP BY journal.payment_hash, journal.state
    HAVING max(payments.amount_msat) IS NULL OR sum(abs(journal.amount_msat)) <> max(payments.amount_msat)"""


def compare(ask: Callable[[str], Iterable[Any]]) -> Iterator[str]:
    """Yield the sums that differ, a sentence each. Args: ask: runs a query; all of them see one state of the ledger."""
    yield from audit.accounts(ask(_PAYMENTS), ask(_CHARGES), ask(_TOTALS))
    yield from audit.overbilled(ask(_OVERBILLED))
    yield from audit.journal(ask(_ODD_JOURNAL))
