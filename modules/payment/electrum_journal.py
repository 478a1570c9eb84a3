"""Electrum's journal: numbers settlements, since Electrum itself doesn't, and lists the invoices that we cancelled.

Settlements are numbered in the order in which we notice them, and stored before they are reported. Electrum lets an
invoice be paid in parts, and more than once. When the amount paid for an invoice grows, its settlement gets a new
number, and is reported again with the whole amount.

If the journal is lost, no money is lost: all settlements of the node get new numbers, higher than the ledger's cursor,
and are reported again. The ledger counts each payment hash once, or the difference if the amount has grown. The list of
cancelled invoices isn't needed then: we deleted them from the wallet, and an invoice that isn't there counts as
cancelled.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ngp.core.payment_node import Settlement
from ngp.errors import PaymentError
from ngp.modules.payment import private_file

_TABLES = """
CREATE TABLE IF NOT EXISTS settlements (
    cursor INTEGER PRIMARY KEY, payment_hash BLOB NOT NULL UNIQUE, amount_msat INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS cancelled (id INTEGER PRIMARY KEY, payment_hash BLOB NOT NULL UNIQUE) STRICT;
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
MOST_CANCELLED = 4096
"""Cancelled invoices remembered. Neighbours that ask for invoices and never pay must not fill the disk."""


class Journal:
    """Settlements in the order of their numbers, and cancelled invoices, in a small SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._translated():
            self._connection = private_file.connect(path)
            self._connection.executescript(_TABLES)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._connection.close()

    def add(self, payment_hash: bytes, amount_msat: int, after: int) -> None:
        """Give a settlement a number; if it has one already, give it a new one only if its amount has grown.

        Args:
            after: a cursor that is in use; the new number is larger.
        """
        with self._translated():
            self._connection.execute(
                "INSERT INTO settlements SELECT max(?, coalesce(max(cursor), 0)) + 1, ?, ? FROM settlements WHERE true "
                "ON CONFLICT (payment_hash) DO UPDATE SET cursor = excluded.cursor, amount_msat = excluded.amount_msat "
                "WHERE excluded.amount_msat > settlements.amount_msat",
                (after, payment_hash, amount_msat),
            )

    def amounts_msat(self) -> dict[bytes, int]:
        """Return the settled amount of each numbered invoice."""
        with self._translated():
            return dict(self._connection.execute("SELECT payment_hash, amount_msat FROM settlements").fetchall())

    def after(self, cursor: int) -> list[Settlement]:
        """Return the settlements after a cursor, in order."""
        with self._translated():
            found = self._connection.execute(
                "SELECT cursor, payment_hash, amount_msat FROM settlements WHERE cursor > ? ORDER BY cursor", (cursor,)
            ).fetchall()
        return [Settlement(*row) for row in found]

    def cancel(self, payment_hash: bytes) -> None:
        """Store that an invoice of ours was cancelled."""
        with self._translated():
            self._connection.execute("INSERT OR IGNORE INTO cancelled (payment_hash) VALUES (?)", (payment_hash,))
            self._connection.execute(
                "DELETE FROM cancelled WHERE id <= (SELECT max(id) FROM cancelled) - ?", (MOST_CANCELLED,)
            )

    def keep(self, payment_hash: bytes) -> None:
        """Remove an invoice from the cancelled ones: it was not cancelled after all."""
        with self._translated():
            self._connection.execute("DELETE FROM cancelled WHERE payment_hash = ?", (payment_hash,))

    def cancelled(self, payment_hash: bytes) -> bool:
        """Say whether we cancelled an invoice."""
        with self._translated():
            row = self._connection.execute("SELECT 1 FROM cancelled WHERE payment_hash = ?", (payment_hash,)).fetchone()
        return row is not None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorcode", None) in _DAMAGED:
                raise PaymentError(
                    f"{self._path} is damaged ({error}): stop ngp, move this file and {self._path.name}-wal away, and "
                    "start ngp; no money is lost or counted twice, as ngp only numbers the settlements anew"
                ) from error
            raise PaymentError(f"{self._path} can't be used: {error}; free some space, or correct its mode") from error
