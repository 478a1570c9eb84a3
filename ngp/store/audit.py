"""Audit: does the money add up? Read by tests after every interleaving and crash, and by `ngp check`.

Accounts hold totals, payments and contracts the items; both are written in one transaction, so any difference between
them is a defect or a damaged file, and is named with both numbers.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import defaultdict
from pathlib import Path

from ngp.store import file, schema

_Key = tuple[bytes, str]
_LOOKED_AT_EVERY = 20_000  # steps of SQLite's machine, less than a millisecond
_OVERBILLED = """SELECT identity, charged_msat, billed_msat FROM accounts
    WHERE role = 'client' AND charged_msat > billed_msat"""

# a server's account is paid by what came in, a client's by what went out; refunds go the other way
_PAYMENTS = """SELECT identity, (direction = 'in') = (kind <> 'refund'), kind = 'refund', state, sum(amount_msat)
    FROM payments WHERE state IN ('settled', 'succeeded', 'pending') GROUP BY 1, 2, 3, 4"""
_CHARGES = """SELECT identity, role, sum(charged_msat) FROM (
    SELECT identity, role, charged_msat FROM contracts
    UNION ALL SELECT identity, role, charged_msat FROM summaries) GROUP BY 1, 2"""
# a client's account is charged by the bill; what its contracts are charged is by its own meter
_TOTALS = """SELECT identity, role, paid_msat, CASE role WHEN 'client' THEN metered_msat ELSE charged_msat END,
    refunded_msat FROM accounts"""
_ODD_JOURNAL = """SELECT journal.payment_hash, count(*), sum(abs(journal.amount_msat)), max(payments.amount_msat)
    FROM journal LEFT JOIN payments ON payments.payment_hash = journal.payment_hash
        AND payments.direction = CASE journal.state WHEN 'settled' THEN 'in' ELSE 'out' END
    WHERE journal.kind IN ('payment', 'refund') AND journal.state IN ('settled', 'succeeded')
    GROUP BY journal.payment_hash, journal.state
    HAVING max(payments.amount_msat) IS NULL OR sum(abs(journal.amount_msat)) <> max(payments.amount_msat)"""


def look(path: Path, most_s: float) -> tuple[list[str], str]:
    """Add up the books of a ledger, by a connection of its own that writes nothing; a daemon may be writing to it.

    Args:
        most_s: how long it may take; a router's flash is slow, and payments are kept for ever.

    Returns:
        What doesn't add up, and why that isn't known; both empty when all does.

    Raises:
        LedgerError: it can't be read.
    """
    until = time.monotonic() + most_s
    with file.translated(path), contextlib.closing(file.connect(path)) as connection:
        connection.execute("PRAGMA query_only=ON")
        if connection.execute("PRAGMA user_version").fetchone()[0] != len(schema.MIGRATIONS):
            return [], "it is of an older ngp; the first start brings it up to date"
        connection.set_progress_handler(lambda: time.monotonic() > until, _LOOKED_AT_EVERY)
        connection.execute("BEGIN")  # one state for all sums
        found: list[str] = []
        try:
            found += _accounts(connection)
            found += _journal(connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return found, f"that takes more than {most_s:g} s"
        return found, ""


def audit(connection: sqlite3.Connection) -> list[str]:
    """Return what doesn't add up, one sentence each; empty when all does."""
    return [*_accounts(connection), *_journal(connection)]


def _accounts(connection: sqlite3.Connection) -> list[str]:
    """Compare accounts with payments and contracts."""
    paid: dict[_Key, int] = defaultdict(int)
    refunded: dict[_Key, int] = defaultdict(int)
    pending: dict[_Key, int] = defaultdict(int)
    for identity, server, refund, state, amount_msat in connection.execute(_PAYMENTS):
        key = (identity, "server" if server else "client")
        if refund:
            (pending if state == "pending" else refunded)[key] += amount_msat
        elif state != "pending":
            paid[key] += amount_msat
    charged = {(identity, role): amount for identity, role, amount in connection.execute(_CHARGES)}
    found: list[str] = []
    totals = {
        (row[0], row[1]): row[2:]
        for row in connection.execute(_TOTALS)
    }
    for key in sorted({*totals, *paid, *charged, *refunded}):
        paid_msat, charged_msat, refunded_msat = totals.get(key, (0, 0, 0))
        name = f"account {key[0].hex()} as {key[1]}"
        if paid_msat != paid[key]:
            found.append(f"{name}: paid {paid_msat} msat, its settled payments are {paid[key]} msat")
        if charged_msat != charged.get(key, 0):
            found.append(f"{name}: charged {charged_msat} msat, its contracts are {charged.get(key, 0)} msat")
        # a refund on its way may be booked already: its funds are spoken for
        if not refunded[key] <= refunded_msat <= refunded[key] + pending[key]:
            found.append(f"{name}: refunded {refunded_msat} msat, its settled refunds are {refunded[key]} msat")
    for identity, charged_msat, billed_msat in connection.execute(_OVERBILLED):
        found.append(
            f"account {identity.hex()} as client: charged {charged_msat} msat, its server billed {billed_msat} msat"
        )
    return found


def _journal(connection: sqlite3.Connection) -> list[str]:
    """Compare what the journal says of payments with the payments, one by one: the longest part of it."""
    return [
        f"journal, payment {payment_hash.hex()}: {lines} line(s) of {written} msat, the payment is {amount} msat"
        for payment_hash, lines, written, amount in connection.execute(_ODD_JOURNAL)
    ]
