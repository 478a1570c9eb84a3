"""Ledger: implements the port `Ledger` with one SQLite file in WAL mode.

Calls are synchronous and for one thread. A `commit` is one transaction: all records of one or several steps, or none.
Ordinary commits are `synchronous=NORMAL`: they survive `kill -9`; a power cut may lose the last of them, but never a
part of one. Commits that move money are `durable`: the file is flushed before the call returns (`synchronous=FULL`),
and with it every earlier ordinary commit. See https://www.sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from ngp.core.messages import StatementLine
from ngp.core.records import ContractRecord, JournalRecord, Record, Snapshot
from ngp.errors import LedgerError
from ngp.store.batch import Batch
from ngp.store.keeping import KEEP_CLOSED_S
from ngp.store.sqlite import file, prune, rows
from ngp.store.sqlite.checkpoints import Checkpoints

_T = TypeVar("_T")
_DAY_S = 86_400
_PAGE_ROWS = 500


class SqliteLedger:
    """The open ledger (`ngp.ports.Ledger`)."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._checkpoints = Checkpoints(path, connection)
        self._places = file.Places(path)
        self._full = False
        self._broken = ""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the ledger at `path`, or create it if there is none; recovers what `kill -9` left."""
        return cls(path, file.open_file(path))

    def close(self) -> None:
        """Merge the write-ahead log into the file and close it; safe to call twice."""
        self._checkpoints.close()
        self._connection.close()
        self._broken = self._broken or "it is closed"

    def next_boot(self, least: int = 1) -> int:
        """Count this start, durably, and return the number."""
        with self._transaction(durable=True) as connection:
            row = connection.execute(
                "INSERT INTO state VALUES ('boot', ?1) "
                "ON CONFLICT (name) DO UPDATE SET value = max(value + 1, ?1) RETURNING value",
                (least,),
            ).fetchall()[0]
        return int(row[0])

    def commit(self, records: Sequence[Record], durable: bool = False) -> None:
        """Write records in one transaction, all or none; refused if the file is no longer at its path."""
        if not records:
            return
        batch = Batch(records)
        with self._transaction(durable) as connection:
            rows.write(connection, batch)

    def load(self, now_utc_s: int) -> Snapshot:
        """Read what a start needs."""
        with self._reading() as connection:
            found = connection.execute("SELECT value FROM state WHERE name = 'cursor'").fetchone()
            by_neighbour = connection.execute(
                "SELECT identity, sum(amount_msat + fee_msat) FROM payments "
                "WHERE direction = 'out' AND state IN ('pending', 'succeeded') GROUP BY identity"
            ).fetchall()
            (newest_s,) = connection.execute("SELECT max(touched_s) FROM payments WHERE compact = 0").fetchone()
            since_s = min(now_utc_s, newest_s or 0) - _DAY_S  # a clock that is ahead must not empty the budgets
            (forgotten_s,) = connection.execute(
                "SELECT max(touched_s) FROM payments WHERE direction = 'out' AND state NOT IN ('open', 'pending') "
                "AND (compact = 1 OR touched_s <= ?)",
                (since_s,),
            ).fetchone()

            def every(make: Callable[[Sequence[Any]], _T], query: str, *arguments: int) -> tuple[_T, ...]:
                return tuple(map(make, connection.execute(query, arguments)))

            return Snapshot(
                neighbours=every(rows.neighbour, f"SELECT {rows.NEIGHBOUR_COLUMNS} FROM neighbours"),
                accounts=every(rows.account, f"SELECT {rows.ACCOUNT_COLUMNS} FROM accounts"),
                contracts=every(
                    rows.contract,
                    f"SELECT {rows.CONTRACT_COLUMNS} FROM contracts WHERE closed_at_s = 0 OR closed_at_s > ?",
                    now_utc_s - KEEP_CLOSED_S,
                ),
                payments=every(
                    rows.payment,
                    f"SELECT {rows.PAYMENT_COLUMNS} FROM payments WHERE state IN ('open', 'pending') UNION "
                    f"SELECT {rows.PAYMENT_COLUMNS} FROM payments WHERE compact = 0 AND touched_s > ?",
                    since_s,
                ),
                cursor=found[0] if found else 0,
                spent_total_msat=sum(row[1] for row in by_neighbour),
                spent_by_neighbour_msat=tuple(by_neighbour),
                forgotten_s=forgotten_s or 0,
                blocked=tuple(row[0] for row in connection.execute("SELECT identity FROM blocks")),
            )

    def journal(self, since_s: int | None = None) -> Iterator[JournalRecord]:
        """Yield the journal, oldest first, a page at a time."""
        since = -1 if since_s is None else since_s
        with self._reading() as connection:
            summaries = connection.execute(
                "SELECT day_s, 'summary', identity, x'', charged_msat, x'', role FROM summaries WHERE day_s >= ? "
                "ORDER BY day_s, identity, role",
                (since,),
            ).fetchall()
        yield from map(rows.journal, summaries)
        last = 0
        while True:
            with self._reading() as connection:
                page = connection.execute(
                    f"SELECT id, {rows.JOURNAL_COLUMNS} FROM journal WHERE id > ? AND time_s >= ? ORDER BY id LIMIT ?",
                    (last, since, _PAGE_ROWS),
                ).fetchall()
            if not page:
                return
            yield from (rows.journal(row[1:]) for row in page)
            last = page[-1][0]

    def contracts(self, include_closed: bool = False) -> list[ContractRecord]:
        """List running contracts and then, if wanted, closed ones, the last closed first."""
        query = f"SELECT {rows.CONTRACT_COLUMNS} FROM contracts WHERE closed_at_s "
        with self._reading() as connection:
            found = connection.execute(query + "= 0").fetchall()
            if include_closed:
                found += connection.execute(query + "> 0 ORDER BY closed_at_s DESC").fetchall()
        return [rows.contract(row) for row in found]

    def unacknowledged(
        self, identity: bytes, after: tuple[int, bytes], limit: int
    ) -> tuple[tuple[StatementLine, ...], tuple[int, bytes] | None]:
        """Read a page of the bills that their clients haven't acknowledged."""
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT contract, used_to_bytes, used_from_bytes, charged_msat, closed_at_s FROM contracts "
                f"WHERE {rows.UNACKNOWLEDGED} AND identity = ? AND (closed_at_s, contract) > (?, ?) "
                f"ORDER BY closed_at_s, contract LIMIT ?",
                (identity, *after, limit),
            ).fetchall()
        rest = (found[-1][4], found[-1][0]) if len(found) == limit else None
        return tuple(StatementLine(*row[:4]) for row in found), rest

    def backup(self, target: Path) -> None:
        """Copy the ledger to a file while it is in use. Raises LedgerError; see `ngp.ports.Ledger`."""
        if self._places.has(target):  # to look into it would drop SQLite's locks on the ledger
            raise LedgerError(f"backup {target}: is the ledger itself; choose another file")
        replaced = file.is_backup(target)
        if not replaced and (target.is_symlink() or target.exists()):
            raise LedgerError(f"backup {target}: exists and is no backup of ngp; choose another file")
        with self._reading() as connection:
            try:
                file.copy(connection, target, replaced)
            except (OSError, sqlite3.Error) as error:
                if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF != sqlite3.SQLITE_FULL:
                    raise  # not the copy's disk, so it is an error of the ledger
                said = f"{getattr(error, 'strerror', None) or error}; choose a file in an existing folder with room"
                raise LedgerError(f"backup {target}: {said}") from error

    def prune(self, now_utc_s: int) -> bool:
        """Fold and delete old records, and give pages back to the file system."""
        with self._transaction(durable=False) as connection:
            more = prune.prune(connection, now_utc_s)
        with self._reading() as connection:
            # executescript: a plain execute stops after the first page, since the pragma has rows without columns
            connection.executescript(f"PRAGMA incremental_vacuum({prune.VACUUM_PAGES})")
        return more

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._broken:
            raise LedgerError(f"ledger {self.path}: {self._broken}; start ngp again")
        with file.translated(self.path):
            yield self._connection

    @contextlib.contextmanager
    def _transaction(self, durable: bool) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection:
            self._places.require_unchanged()
            if durable is not self._full:
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._full = durable
            self._checkpoints.consider()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        """Roll back; if even that fails, nothing more is written through this connection."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._broken = f"a transaction could not be undone ({error})"
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
