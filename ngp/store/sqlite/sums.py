"""Sums: adds up in SQL what `ngp.store.audit` compares; the journal takes by far the longest."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from ngp.store import audit
from ngp.store.sqlite import file, schema

_LOOKED_AT_EVERY = 20_000  # steps of SQLite's machine, less than a millisecond
_OVERBILLED = """SELECT identity, charged_msat, billed_msat FROM accounts
    WHERE role = 'client' AND charged_msat > billed_msat"""

# incoming payments go to a server's account, outgoing ones to a client's; refunds the other way
_PAYMENTS = """SELECT identity, (direction = 'in') = (kind <> 'refund'), kind = 'refund', state, sum(amount_msat)
    FROM payments WHERE state IN ('settled', 'succeeded', 'pending') GROUP BY 1, 2, 3, 4"""
_CHARGES = """SELECT identity, role, sum(charged_msat) FROM (
    SELECT identity, role, charged_msat FROM contracts
    UNION ALL SELECT identity, role, charged_msat FROM summaries) GROUP BY 1, 2"""
# a client's account is charged by the bill, its contracts by its own meter
_TOTALS = """SELECT identity, role, paid_msat, CASE role WHEN 'client' THEN metered_msat ELSE charged_msat END,
    refunded_msat FROM accounts"""
_ODD_JOURNAL = """SELECT journal.payment_hash, count(*), sum(abs(journal.amount_msat)), max(payments.amount_msat)
    FROM journal LEFT JOIN payments ON payments.payment_hash = journal.payment_hash
        AND payments.direction = CASE journal.state WHEN 'settled' THEN 'in' ELSE 'out' END
    WHERE journal.kind IN ('payment', 'refund') AND journal.state IN ('settled', 'succeeded')
    GROUP BY journal.payment_hash, journal.state
    HAVING max(payments.amount_msat) IS NULL OR sum(abs(journal.amount_msat)) <> max(payments.amount_msat)"""


def compare(path: Path, most_s: float) -> tuple[list[str], str]:
    """Implement `ngp.ports.Store.audit`, with a separate connection, as a daemon may be writing to the file."""
    until = time.monotonic() + most_s
    with file.translated(path), contextlib.closing(file.connect(path)) as connection:
        connection.execute("PRAGMA query_only=ON")
        if connection.execute("PRAGMA user_version").fetchone()[0] != len(schema.MIGRATIONS):
            return [], "the ledger is of an older ngp; the next start updates it"
        connection.set_progress_handler(lambda: time.monotonic() > until, _LOOKED_AT_EVERY)
        connection.execute("BEGIN")  # one state for all sums
        found: list[str] = []
        try:
            ask = connection.execute
            found += audit.accounts(ask(_PAYMENTS), ask(_CHARGES), ask(_TOTALS))
            found += audit.overbilled(ask(_OVERBILLED))
            found += audit.journal(ask(_ODD_JOURNAL))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return found, f"it takes more than {most_s:g} s"
        return found, ""
