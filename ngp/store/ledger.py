"""Ledger: what survives the process, in one SQLite file in WAL mode.

Calls are synchronous and meant for one thread. A `commit` is one transaction: all records of the step (or of several
steps that the daemon put together) or none. Ordinary ones are `synchronous=NORMAL`: they survive `kill -9`, and a
power cut costs at most the last of them but never leaves half of one. Those that move money are `durable`: the file is
flushed before the call returns (`synchronous=FULL`), and with it every ordinary commit before.
See https://www.sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from ngp.core.messages import StatementLine
from ngp.core.records import (
    AccountRecord,
    BilledRecord,
    BlockRecord,
    ContractRecord,
    CursorRecord,
    ForgetLink,
    ForgetNeighbours,
    JournalRecord,
    NeighbourRecord,
    PaymentRecord,
    Record,
    Snapshot,
)
from ngp.errors import LedgerError
from ngp.store import audit, file, prune, rows

_HOUR_S = 3_600
_DAY_S = 86_400
_PAGE_ROWS = 500
_SPENT = "FROM payments WHERE direction = 'out' AND state IN ('pending', 'succeeded')"


class Ledger:
    """The open ledger; make one with `Ledger.open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._places = file.places(path)
        self._full = False
        self._broken = ""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the ledger at `path`, creating it where there is none; recovers what `kill -9` left.

        Raises:
            LedgerError: it is damaged, empty, foreign, newer, or can't be read and written; never begins blank.
        """
        return cls(path, file.open_file(path))

    def close(self) -> None:
        """Fold the write-ahead log into the file and let go of it; safe to call twice."""
        self._connection.close()
        self._broken = self._broken or "it is closed"

    def next_boot(self, least: int = 1) -> int:
        """Count this start, durably, and return the number: one more than the last, and at least `least`.

        Neighbours refuse a number that they have seen. `least` is taken from the clock, so that a ledger put back from
        a backup doesn't begin with numbers that were used after the backup was made.
        """
        with self._transaction(durable=True) as connection:
            row = connection.execute(
                "INSERT INTO state VALUES ('boot', ?1) "
                "ON CONFLICT (name) DO UPDATE SET value = max(value + 1, ?1) RETURNING value",
                (least,),
            ).fetchall()[0]
        return int(row[0])

    def commit(self, records: Sequence[Record], durable: bool = False) -> None:
        """Write records in one transaction, all or none; what is written twice changes nothing.

        Args:
            records: in the order in which they arose; of several with one key the last one stands.
            durable: return only when they survive a power cut; for everything that moves money.

        Raises:
            LedgerError: the disk is full or failed, the file is gone from its place, or a payment would go back; the
                ledger is as it was before.
        """
        if not records:
            return
        batch = _Batch()
        for record in records:
            batch.add(record)
        with self._transaction(durable) as connection:
            batch.write(connection)

    def load(self, now_utc_s: int) -> Snapshot:
        """Read what a start needs: all that is not over, and the last hour's and day's for what comes late.

        Args:
            now_utc_s: contracts closed in the hour before it and payments of the day before it are included. Money
                counts as spent in an hour or day by the later of the payment's begin and end, fees included, also
                while its outcome isn't known.
        """
        with self._reading() as connection:
            found = connection.execute("SELECT value FROM state WHERE name = 'cursor'").fetchone()
            by_neighbour = connection.execute(
                f"SELECT identity, sum(amount_msat + fee_msat), "
                f"sum((amount_msat + fee_msat) * (touched_s > ?)), sum((amount_msat + fee_msat) * (touched_s > ?)) "
                f"{_SPENT} GROUP BY identity",
                (now_utc_s - _HOUR_S, now_utc_s - _DAY_S),
            ).fetchall()
            (forgotten_s,) = connection.execute(
                "SELECT max(touched_s) FROM payments WHERE direction = 'out' AND state NOT IN ('open', 'pending') "
                "AND (compact = 1 OR touched_s <= ?)",
                (now_utc_s - _DAY_S,),
            ).fetchone()
            return Snapshot(
                neighbours=tuple(
                    map(rows.neighbour, connection.execute(f"SELECT {rows.NEIGHBOUR_COLUMNS} FROM neighbours"))
                ),
                accounts=tuple(map(rows.account, connection.execute(f"SELECT {rows.ACCOUNT_COLUMNS} FROM accounts"))),
                contracts=tuple(
                    map(
                        rows.contract,
                        connection.execute(
                            f"SELECT {rows.CONTRACT_COLUMNS} FROM contracts WHERE closed_at_s = 0 OR closed_at_s > ?",
                            (now_utc_s - prune.KEEP_CLOSED_S,),
                        ),
                    )
                ),
                payments=tuple(
                    map(
                        rows.payment,
                        connection.execute(
                            f"SELECT {rows.PAYMENT_COLUMNS} FROM payments WHERE state IN ('open', 'pending') UNION "
                            f"SELECT {rows.PAYMENT_COLUMNS} FROM payments WHERE compact = 0 AND touched_s > ?",
                            (now_utc_s - _DAY_S,),
                        ),
                    )
                ),
                cursor=found[0] if found else 0,
                spent_hour_msat=sum(row[2] for row in by_neighbour),
                spent_day_msat=sum(row[3] for row in by_neighbour),
                spent_total_msat=sum(row[1] for row in by_neighbour),
                spent_by_neighbour_msat=tuple((row[0], row[1]) for row in by_neighbour),
                forgotten_s=forgotten_s or 0,
                blocked=tuple(row[0] for row in connection.execute("SELECT identity FROM blocks")),
            )

    def journal(self, since_s: int | None = None, limit: int | None = None) -> Iterator[JournalRecord]:
        """Yield the journal, oldest first; commits may go on between two lines.

        Lines of kind `summary` come first: one per neighbour, role (as `state`) and day of folded contracts.

        Args:
            since_s: leave out what is older, UTC seconds.
            limit: only the newest so many.
        """
        since = -1 if since_s is None else since_s
        with self._reading() as connection:
            lines = connection.execute("SELECT count(*) FROM journal WHERE time_s >= ?", (since,)).fetchone()[0]
            summaries = connection.execute(
                "SELECT day_s, 'summary', identity, x'', charged_msat, x'', role FROM summaries WHERE day_s >= ? "
                "ORDER BY day_s, identity, role",
                (since,),
            ).fetchall()
        skipped = 0 if limit is None else max(0, len(summaries) + lines - limit)
        yield from map(rows.journal, summaries[skipped:])
        yield from self._journal_lines(since, max(0, skipped - len(summaries)))

    def _journal_lines(self, since: int, skipped: int) -> Iterator[JournalRecord]:
        last = 0
        while True:
            with self._reading() as connection:
                page = connection.execute(
                    f"SELECT id, {rows.JOURNAL_COLUMNS} FROM journal WHERE id > ? AND time_s >= ? ORDER BY id "
                    f"LIMIT ? OFFSET ?",
                    (last, since, _PAGE_ROWS, skipped),
                ).fetchall()
            if not page:
                return
            yield from (rows.journal(row[1:]) for row in page)
            last, skipped = page[-1][0], 0

    def contracts(self, include_closed: bool = False, limit: int | None = None) -> list[ContractRecord]:
        """List contracts: those that run, then, if asked for, closed ones, the last closed first."""
        query = f"SELECT {rows.CONTRACT_COLUMNS} FROM contracts WHERE closed_at_s "
        most = -1 if limit is None else limit
        with self._reading() as connection:
            found = connection.execute(query + "= 0 LIMIT ?", (most,)).fetchall()
            if include_closed:
                left = -1 if limit is None else limit - len(found)
                found += connection.execute(query + "> 0 ORDER BY closed_at_s DESC LIMIT ?", (left,)).fetchall()
        return [rows.contract(row) for row in found]

    def payments(self, limit: int | None = None) -> list[PaymentRecord]:
        """List payments, the newest first, without their preimages: a listing is read by others."""
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT {rows.PAYMENT_COLUMNS} FROM payments ORDER BY rowid DESC LIMIT ?",
                (-1 if limit is None else limit,),
            ).fetchall()
        return [replace(rows.payment(row), preimage=b"") for row in found]

    def unacknowledged(
        self, identity: bytes, after: tuple[int, bytes], limit: int
    ) -> tuple[tuple[StatementLine, ...], tuple[int, bytes] | None]:
        """Read bills of contracts that we sold and closed, in the order of closing, that their client hasn't got yet.

        Args:
            after: (closed when, contract) of the last one that was read, or (0, b"").
            limit: most to read, >= 1.

        Returns:
            The lines, and what to give as `after` for the next ones; None when these were all.
        """
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT contract, used_to_bytes, used_from_bytes, charged_msat, closed_at_s FROM contracts "
                f"WHERE {rows.UNACKNOWLEDGED} AND identity = ? AND (closed_at_s, contract) > (?, ?) "
                f"ORDER BY closed_at_s, contract LIMIT ?",
                (identity, *after, limit),
            ).fetchall()
        rest = (found[-1][4], found[-1][0]) if len(found) == limit else None
        return tuple(StatementLine(*row[:4]) for row in found), rest

    def audit(self) -> list[str]:
        """Return what doesn't add up between accounts, payments, contracts and journal; empty when all does."""
        with self._reading() as connection:
            return audit.audit(connection)

    def backup(self, target: Path) -> None:
        """Copy the ledger to `target` (0600) while it is in use; the copy is checked before it takes its place.

        Raises:
            LedgerError: `target` is something else than an older backup, or can't be written.
        """
        target = Path(target)
        replaced = file.is_backup(target)
        if not replaced and (target.is_symlink() or target.exists()):
            raise LedgerError(f"backup {target}: exists and is no ngp backup; name another file")
        with self._reading() as connection:
            try:
                file.copy(connection, target, replaced)
            except (OSError, sqlite3.Error) as error:
                if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF != sqlite3.SQLITE_FULL:
                    raise  # not the copy's disk: it is told of the ledger
                said = f"{getattr(error, 'strerror', None) or error}; name a file in a folder that exists and has room"
                raise LedgerError(f"backup {target}: {said}") from error

    def prune(self, now_utc_s: int) -> bool:
        """Fold and shorten what is old and give pages back to the file system; bounded work.

        Returns:
            Whether more is waiting; call again in a while.
        """
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
            file.require_in_place(self._places, self.path)
            if durable is not self._full:
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._full = durable
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        """Roll back; where even that fails nothing more is written through this connection."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._broken = f"a transaction could not be undone ({error})"
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()


class _Batch:
    """The records of one transaction, one row a key, so that steps written together cost little flash."""

    def __init__(self) -> None:
        self.neighbours: dict[tuple[bytes, str, bytes], NeighbourRecord | None] = {}
        self.blocks: dict[bytes, bool] = {}
        self.accounts: dict[tuple[bytes, str], AccountRecord] = {}
        self.contracts: dict[bytes, ContractRecord] = {}
        self.billed: list[BilledRecord] = []
        self.payments: list[PaymentRecord] = []
        self.journal: list[JournalRecord] = []
        self.cursor: int | None = None
        self.forgotten: set[bytes] = set()

    def add(self, record: Record) -> None:
        match record:
            case ContractRecord():
                self.contracts[record.contract] = record
            case BilledRecord():
                self.billed.append(record)
            case AccountRecord():
                self.accounts[record.identity, record.role] = record
            case JournalRecord():
                self.journal.append(record)
            case PaymentRecord():
                self.payments.append(record)
            case NeighbourRecord():
                self.neighbours[record.identity, record.interface, record.link_address] = record
            case BlockRecord():
                self.blocks[record.identity] = record.blocked
            case CursorRecord():
                self.cursor = record.cursor
            case ForgetLink():
                self.neighbours[record.identity, record.interface, record.link_address] = None
            case ForgetNeighbours():
                self._forget(frozenset(record.identities))

    def _forget(self, identities: frozenset[bytes]) -> None:
        """Leave out what came before in this transaction; what comes behind is of a new beginning."""
        self.forgotten |= identities
        self.neighbours = {key: one for key, one in self.neighbours.items() if key[0] not in identities}
        self.accounts = {key: one for key, one in self.accounts.items() if one.identity not in identities}
        self.contracts = {key: one for key, one in self.contracts.items() if one.identity not in identities}
        self.journal = [one for one in self.journal if one.identity not in identities]

    def write(self, connection: sqlite3.Connection) -> None:
        rows.forget_neighbours(connection, self.forgotten)
        rows.forget_links(connection, (key for key, one in self.neighbours.items() if one is None))
        rows.put_neighbours(connection, (one for one in self.neighbours.values() if one is not None))
        rows.put_blocks(connection, self.blocks)
        rows.put_accounts(connection, self.accounts.values())
        rows.put_contracts(connection, self.contracts.values())
        rows.put_billed(connection, self.billed)
        for payment in self.payments:
            rows.put_payment(connection, payment)
        rows.put_journal(connection, self.journal)
        if self.cursor is not None:
            connection.execute("INSERT OR REPLACE INTO state VALUES ('cursor', ?)", (self.cursor,))
