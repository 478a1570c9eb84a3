"""Prune: does the work that `ngp.store.keeping` describes in bounded parts, since the daemon's loop waits for it."""

from __future__ import annotations

from collections.abc import Sequence

from ngp.core.values import DAY_S
from ngp.store import keeping
from ngp.store.rows import ADD_TO_SUMMARY, PUT_STATE, state
from ngp.store.schema import EMPTY
from ngp.store.sql import Connection

_ROWS = 500
_JOURNAL_ROWS = 2000

_FOLD = f"INSERT INTO summaries VALUES (?, ?, ?, 1, ?, ?, ?) {ADD_TO_SUMMARY}"


def prune(connection: Connection, now_utc_s: int) -> bool:
    """Do one bounded part of the work in the caller's transaction; return whether more is left to do."""
    emptied = _drop_empty_contracts(connection, now_utc_s - keeping.KEEP_CLOSED_S)
    folded = _fold_contracts(connection, _fold_before(connection, now_utc_s))
    shortened = connection.execute(
        """UPDATE payments SET bolt11 = '', compact = 1 WHERE (direction, payment_hash) IN (
        SELECT direction, payment_hash FROM payments
        WHERE compact = 0 AND touched_s < ? AND state IN ('settled', 'succeeded') ORDER BY touched_s LIMIT ?)""",
        (now_utc_s - keeping.KEEP_INVOICE_TEXT_S, _ROWS),
    ).rowcount
    removed = connection.execute(
        """DELETE FROM payments WHERE (direction, payment_hash) IN (
        SELECT direction, payment_hash FROM payments
        WHERE compact = 0 AND touched_s < ? AND state IN ('failed', 'cancelled') ORDER BY touched_s LIMIT ?)""",
        (now_utc_s - keeping.KEEP_UNPAID_S, _ROWS),
    ).rowcount
    walked = _thin_journal(connection, now_utc_s - keeping.KEEP_CONTRACTS_S)
    return max(emptied, folded, shortened, removed) >= _ROWS or walked >= _JOURNAL_ROWS


def _drop_empty_contracts(connection: Connection, before_s: int) -> int:
    rows = connection.execute(
        f"SELECT contract FROM contracts WHERE closed_at_s < ? AND {EMPTY} ORDER BY closed_at_s LIMIT ?",
        (before_s, _ROWS),
    ).fetchall()
    _delete(connection, rows)
    return len(rows)


def _fold_before(connection: Connection, now_utc_s: int) -> int:
    """Return the time (UTC seconds) such that contracts closed before it are folded now."""
    surplus = connection.execute(
        "SELECT closed_at_s FROM contracts WHERE closed_at_s > 0 ORDER BY closed_at_s DESC LIMIT 1 OFFSET ?",
        (keeping.MOST_CLOSED,),
    ).fetchone()
    too_many_s = min(surplus[0] + 1, now_utc_s - keeping.KEEP_CLOSED_S) if surplus else 0
    return max(now_utc_s - keeping.KEEP_CONTRACTS_S, too_many_s)


def _fold_contracts(connection: Connection, before_s: int) -> int:
    rows = connection.execute(
        """SELECT contract, identity, role, closed_at_s, used_to_bytes, used_from_bytes, charged_msat FROM contracts
        WHERE closed_at_s > 0 AND closed_at_s < ? ORDER BY closed_at_s LIMIT ?""",
        (before_s, _ROWS),
    ).fetchall()
    connection.executemany(
        _FOLD, ((row[1], row[2], row[3] - row[3] % DAY_S, row[4], row[5], row[6]) for row in rows)
    )
    _delete(connection, [row[:1] for row in rows])
    return len(rows)


def _delete(connection: Connection, keys: Sequence[tuple[bytes]]) -> None:
    connection.executemany("DELETE FROM journal WHERE contract = ? AND contract <> x'' AND payment_hash = x''", keys)
    connection.executemany("DELETE FROM contracts WHERE contract = ?", keys)


def _thin_journal(connection: Connection, before_s: int) -> int:
    """Delete old journal lines without money or contract; remember up to which line this was done."""
    thinned = state(connection, "journal_thinned") or 0
    newest = connection.execute("SELECT max(id) FROM journal").fetchone()[0] or 0
    start = thinned if thinned <= newest else 0  # ids begin again after the journal was empty
    last, count = connection.execute(
        "SELECT max(id), count(*) FROM "
        "(SELECT id FROM journal WHERE id > ? AND time_s < ? ORDER BY id LIMIT ?) AS page",
        (start, before_s, _JOURNAL_ROWS),
    ).fetchone()
    if not count:
        return 0
    connection.execute(
        """DELETE FROM journal WHERE id > ? AND id <= ? AND time_s < ? AND amount_msat = 0 AND payment_hash = x''
        AND NOT EXISTS (SELECT 1 FROM contracts WHERE contracts.contract = journal.contract)""",
        (start, last, before_s),
    )
    connection.execute(PUT_STATE, ("journal_thinned", last))
    return int(count)
