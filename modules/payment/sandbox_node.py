"""Sandbox node: the state of the simulated payment node, in a small SQLite file.

A real node is another process, and outlives a `kill -9` of the daemon; here the file outlives it. This module never
waits, and simulates no faults. Times are arguments. How and when a payment will end is stored when it starts, so a
payment that was on its way when the daemon was killed ends as if the daemon had lived.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from ngp.core.payment_node import PaymentOutcome, PaymentStatus, Settlement
from ngp.errors import PaymentError
from ngp.modules.payment import private_file
from ngp.ports.payment import InvoiceState

_KEEP_S = 30 * 86_400
_PRUNE_EVERY = 256

_TABLES = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS invoices (
    payment_hash BLOB PRIMARY KEY, amount_msat INTEGER NOT NULL, expires_at_s INTEGER NOT NULL,
    cancelled INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settlements (
    cursor INTEGER PRIMARY KEY AUTOINCREMENT, payment_hash BLOB NOT NULL UNIQUE, amount_msat INTEGER NOT NULL,
    visible_at_s REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS payments (
    payment_hash BLOB PRIMARY KEY, amount_msat INTEGER NOT NULL, fee_msat INTEGER NOT NULL,
    status TEXT NOT NULL, preimage BLOB NOT NULL, reason TEXT NOT NULL, fate TEXT NOT NULL, due_at_s REAL NOT NULL,
    expires_at_s INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS payments_pending ON payments (due_at_s) WHERE status = 'pending';
"""


class Fate(StrEnum):
    """How a payment on its way will end."""

    SUCCEED = "succeed"
    FAIL = "fail"
    STUCK = "stuck"  # not at all, until `release`


@dataclass(frozen=True, slots=True)
class Start:
    """A payment to start; `preimage` is shown only after it has succeeded."""

    payment_hash: bytes
    amount_msat: int
    fee_msat: int
    preimage: bytes
    reason: str
    fate: Fate
    due_at_s: float
    expires_at_s: int


class SandboxNode:
    """Invoices, settlements, payments and the balance of the simulated node."""

    def __init__(self, path: Path, first_balance_msat: int, now_s: float) -> None:
        self._path = path
        self._writes = 0
        with self._translated():
            self._connection = private_file.connect(path)
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute("PRAGMA journal_size_limit=1048576")
            self._connection.executescript(_TABLES)
            self._connection.execute("INSERT OR IGNORE INTO state VALUES ('balance_msat', ?)", (first_balance_msat,))
        self._prune(now_s)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._connection.close()

    def balance_msat(self) -> int:
        """Return the money that is neither spent nor on its way."""
        with self._translated():
            row = self._connection.execute("SELECT value FROM state WHERE name = 'balance_msat'").fetchone()
        return int(row[0])

    # --- invoices -----------------------------------------------------------------------------------------------------

    def add_invoice(self, payment_hash: bytes, amount_msat: int, expires_at_s: int, now_s: float) -> None:
        """Add an invoice of ours. Raises PaymentError if its hash was used before."""
        with self._transaction(now_s) as connection:
            added = connection.execute(
                "INSERT OR IGNORE INTO invoices VALUES (?, ?, ?, 0)", (payment_hash, amount_msat, expires_at_s)
            ).rowcount
            if not added:
                raise PaymentError(f"an invoice with hash {payment_hash.hex()} exists; use a new preimage")

    def invoice_state(self, payment_hash: bytes, now_s: float) -> InvoiceState:
        """Return an invoice's state. Raises PaymentError if it isn't ours."""
        with self._translated():
            row = self._connection.execute(
                "SELECT cancelled, expires_at_s, visible_at_s FROM invoices LEFT JOIN settlements USING (payment_hash) "
                "WHERE payment_hash = ?",
                (payment_hash,),
            ).fetchone()
        if row is None:
            raise _not_ours(payment_hash)
        cancelled, expires_at_s, visible_at_s = row
        if visible_at_s is not None:
            return InvoiceState.SETTLED if visible_at_s <= now_s else InvoiceState.ACCEPTED
        return InvoiceState.CANCELLED if cancelled or expires_at_s <= now_s else InvoiceState.OPEN

    def settle(self, payment_hash: bytes, visible_at_s: float, now_s: float) -> None:
        """Book the payment of an invoice, once; of a cancelled invoice too, as its payer has paid."""
        with self._transaction(now_s) as connection:
            row = connection.execute(
                "SELECT amount_msat FROM invoices WHERE payment_hash = ?", (payment_hash,)
            ).fetchone()
            if row is None:
                raise _not_ours(payment_hash)
            added = connection.execute(
                "INSERT INTO settlements (payment_hash, amount_msat, visible_at_s) VALUES (?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (payment_hash, row[0], visible_at_s),
            ).rowcount
            if added:
                self._move_balance(connection, row[0])

    def cancel(self, payment_hash: bytes, now_s: float) -> None:
        """Cancel an invoice. Raises PaymentError if it is settled or not ours."""
        with self._transaction(now_s) as connection:
            if self.invoice_state(payment_hash, now_s) in (InvoiceState.SETTLED, InvoiceState.ACCEPTED):
                raise PaymentError(
                    f"invoice {payment_hash.hex()} is paid already and can't be cancelled: the neighbour is credited "
                    "with the payment, and `ngp refund NEIGHBOUR` pays it back"
                )
            connection.execute("UPDATE invoices SET cancelled = 1 WHERE payment_hash = ?", (payment_hash,))

    def settlements(self, cursor: int, now_s: float) -> tuple[list[Settlement], float | None]:
        """Return a page of settlements after the cursor and, if it is empty, when the next one becomes visible."""
        with self._translated():
            found = self._connection.execute(
                "SELECT cursor, payment_hash, amount_msat, visible_at_s FROM settlements WHERE cursor > ? "
                "ORDER BY cursor LIMIT 100",
                (cursor,),
            ).fetchall()
        visible: list[Settlement] = []
        for row in found:
            if row[3] > now_s:  # the ones behind it must wait too, as settlements are reported in the cursor's order
                return visible, row[3]
            visible.append(Settlement(*row[:3]))
        return visible, None

    # --- payments -----------------------------------------------------------------------------------------------------

    def start(self, payment: Start, now_s: float) -> None:
        """Start a payment and reserve its money. Raises PaymentError if its hash was paid before."""
        with self._transaction(now_s) as connection:
            connection.execute(
                "INSERT INTO payments VALUES (?, ?, ?, 'pending', ?, ?, ?, ?, ?)",
                (payment.payment_hash, payment.amount_msat, payment.fee_msat, payment.preimage, payment.reason,
                 payment.fate, payment.due_at_s, payment.expires_at_s),
            )  # fmt: skip
            self._move_balance(connection, -payment.amount_msat - payment.fee_msat)

    def outcome(self, payment_hash: bytes, now_s: float) -> tuple[PaymentOutcome, float | None] | None:
        """Return a payment's outcome and, while it is on its way, when it ends; None if it was never started."""
        self._advance(now_s)
        with self._translated():
            row = self._connection.execute(
                "SELECT status, preimage, fee_msat, reason, fate, due_at_s FROM payments WHERE payment_hash = ?",
                (payment_hash,),
            ).fetchone()
        if row is None:
            return None
        status, preimage, fee_msat, reason, fate, due_at_s = row
        if status == PaymentStatus.PENDING:
            due = None if fate == Fate.STUCK else float(due_at_s)
            return PaymentOutcome(payment_hash, PaymentStatus.PENDING), due
        if status == PaymentStatus.FAILED:
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=reason), None
        return PaymentOutcome(payment_hash, PaymentStatus.SUCCEEDED, preimage, fee_msat), None

    def release(self, fate: Fate, now_s: float) -> None:
        """Let every stuck payment end now. Args: fate: how they end, SUCCEED or FAIL."""
        with self._transaction(now_s) as connection:
            connection.execute(
                "UPDATE payments SET fate = ?, due_at_s = ?, reason = CASE ? WHEN 'fail' THEN 'released as failed' "
                "ELSE reason END WHERE status = 'pending' AND fate = 'stuck'",
                (fate, now_s, fate),
            )

    def _advance(self, now_s: float) -> None:
        """End the payments that are due; a payment succeeds only if its preimage, the proof, fits its hash."""
        due = "status = 'pending' AND fate <> 'stuck' AND due_at_s <= ?"
        with self._translated():
            found = self._connection.execute(
                f"SELECT payment_hash, preimage, fate, amount_msat + fee_msat FROM payments WHERE {due}", (now_s,)
            ).fetchall()
        if not found:
            return
        with self._transaction(now_s) as connection:
            for payment_hash, preimage, fate, reserved_msat in found:
                if fate == Fate.SUCCEED and sha256(preimage).digest() == payment_hash:
                    connection.execute(
                        "UPDATE payments SET status = 'succeeded' WHERE payment_hash = ?", (payment_hash,)
                    )
                    continue
                connection.execute(
                    "UPDATE payments SET status = 'failed', preimage = x'', fee_msat = 0, reason = CASE reason "
                    "WHEN '' THEN 'the payee does not know the preimage' ELSE reason END WHERE payment_hash = ?",
                    (payment_hash,),
                )
                self._move_balance(connection, reserved_msat)

    # --- file ---------------------------------------------------------------------------------------------------------

    def _move_balance(self, connection: sqlite3.Connection, by_msat: int) -> None:
        connection.execute("UPDATE state SET value = value + ? WHERE name = 'balance_msat'", (by_msat,))

    def _prune(self, now_s: float) -> None:
        """Forget payments and invoices that ended a month ago, unless the invoice could still be paid."""
        before_s = now_s - _KEEP_S
        with self._translated():
            self._connection.execute(
                "DELETE FROM settlements WHERE visible_at_s < ? AND payment_hash IN "
                "(SELECT payment_hash FROM invoices WHERE expires_at_s < ?)",
                (before_s, before_s),
            )
            self._connection.execute(
                "DELETE FROM invoices WHERE expires_at_s < ? AND payment_hash NOT IN "
                "(SELECT payment_hash FROM settlements)",
                (before_s,),
            )
            self._connection.execute(
                "DELETE FROM payments WHERE status <> 'pending' AND due_at_s < ? AND expires_at_s < ?",
                (before_s, before_s),
            )

    @contextlib.contextmanager
    def _transaction(self, now_s: float) -> Iterator[sqlite3.Connection]:
        self._writes += 1
        if self._writes % _PRUNE_EVERY == 0:
            self._prune(now_s)
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError) as error:
            raise PaymentError(
                f"sandbox payment, {self._path}: {error}. Its money is not real: check the disk, and if the file is "
                f"damaged, stop ngp and move it away"
            ) from error


def _not_ours(payment_hash: bytes) -> PaymentError:
    return PaymentError(f"no invoice with hash {payment_hash.hex()} was made by this node")
