"""Ledger: the parts of `ngp.ports.Ledger` that are the same in every SQL database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, TypeVar

from ngp.core.messages import StatementLine
from ngp.core.records import AccountRecord, ContractRecord, JournalRecord, Record, Snapshot
from ngp.core.rental.records import RentalRecord
from ngp.core.values import DAY_S
from ngp.store import prune, rows
from ngp.store.batch import Batch
from ngp.store.keeping import KEEP_CLOSED_S
from ngp.store.sql import Connection

_T = TypeVar("_T")
_PAGE_ROWS = 500


class SqlLedger(ABC):
    """An open ledger; its database adds connections, transactions and backups. Errors are LedgerErrors."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Connection]:
        """Lend the connection for queries."""

    @abstractmethod
    def _transaction(self, durable: bool) -> AbstractContextManager[Connection]:
        """Lend the connection for one transaction, which an exception undoes."""

    def next_boot(self, least: int = 1) -> int:
        """Count this start, durably, and return the number."""
        with self._transaction(durable=True) as connection:
            boot = max((rows.state(connection, "boot") or 0) + 1, least)
            connection.execute(rows.PUT_STATE, ("boot", boot))
        return boot

    def commit(self, records: Sequence[Record], durable: bool = False) -> None:
        """Write records in one transaction, all or none."""
        if not records:
            return
        batch = Batch(records)
        with self._transaction(durable) as connection:
            self._write(connection, batch)

    def _write(self, connection: Connection, batch: Batch) -> None:
        rows.write(connection, batch)

    def load(self, now_utc_s: int) -> Snapshot:
        """Read what a start needs."""
        with self._reading() as connection:
            by_neighbour = connection.execute(
                "SELECT identity, CAST(sum(amount_msat + fee_msat) AS BIGINT) FROM payments "
                "WHERE direction = 'out' AND state IN ('pending', 'succeeded') GROUP BY identity"
            ).fetchall()
            (newest_s,) = connection.execute("SELECT max(touched_s) FROM payments WHERE compact = 0").fetchone()
            since_s = min(now_utc_s, newest_s or 0) - DAY_S  # a clock that is ahead must not empty the budgets

            def every(make: Callable[[Sequence[Any]], _T], query: str, *arguments: int) -> tuple[_T, ...]:
                return tuple(map(make, connection.execute(query, arguments)))

            return Snapshot(
                neighbours=every(rows.neighbour, f"SELECT {rows.NEIGHBOUR_COLUMNS} FROM neighbours"),
                accounts=every(rows.account, f"SELECT {rows.ACCOUNT_COLUMNS} FROM accounts"),
                contracts=every(
                    rows.contract,
                    f"SELECT {rows.CONTRACT_COLUMNS} FROM contracts "
                    "WHERE kind = 'traffic' AND (closed_at_s = 0 OR closed_at_s > ?)",
                    now_utc_s - KEEP_CLOSED_S,
                ),
                payments=every(
                    rows.payment,
                    f"SELECT {rows.PAYMENT_COLUMNS} FROM payments WHERE state IN ('open', 'pending') UNION "
                    f"SELECT {rows.PAYMENT_COLUMNS} FROM payments WHERE compact = 0 AND touched_s > ?",
                    since_s,
                ),
                cursor=rows.state(connection, "cursor") or 0,
                spent_total_msat=sum(row[1] for row in by_neighbour),
                spent_by_neighbour_msat=tuple(by_neighbour),
                rentals=every(
                    rows.rental,
                    f"SELECT {rows.RENTAL_COLUMNS} FROM rentals WHERE state <> 'released' UNION "
                    f"SELECT {rows.RENTAL_COLUMNS} FROM rentals JOIN accounts ON identity = rental "
                    "WHERE role = 'server' AND (paid_msat > charged_msat + refunded_msat OR period <> x'') UNION "
                    # invoices of rent are open, never pending: both states, so that SQLite uses payments_waiting
                    f"SELECT {rows.RENTAL_COLUMNS} FROM rentals WHERE rental IN (SELECT identity FROM payments "
                    "WHERE state IN ('open', 'pending') AND kind = 'rent')",
                ),
                service=rows.service(
                    connection.execute("SELECT name, value FROM state WHERE name IN (?, ?, ?)", rows.SERVICE)
                ),
                blocked=tuple(row[0] for row in connection.execute("SELECT identity FROM blocks")),
            )

    def was_ordered(self, payment_hash: bytes) -> bool:
        """Say whether there is a payment of ours with this hash."""
        query = "SELECT 1 FROM payments WHERE direction = 'out' AND payment_hash = ?"
        with self._reading() as connection:
            return connection.execute(query, (payment_hash,)).fetchone() is not None

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

    def rentals(self) -> list[tuple[RentalRecord, AccountRecord]]:
        """List all rentals with their accounts, the oldest first."""
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT {rows.RENTAL_COLUMNS}, {rows.ACCOUNT_COLUMNS} FROM rentals "
                "JOIN accounts ON identity = rental AND role = 'server' ORDER BY started_at_s, rental"
            ).fetchall()
        width = len(fields(RentalRecord))
        return [(rows.rental(row[:width]), rows.account(row[width:])) for row in found]

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

    def prune(self, now_utc_s: int) -> bool:
        """Fold and delete old records."""
        with self._transaction(durable=False) as connection:
            return prune.prune(connection, now_utc_s)
