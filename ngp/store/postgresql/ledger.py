"""Ledger: implements the port `Ledger` with the identity's schema of a PostgreSQL database.

The daemon outlives the database server, so every commit is flushed to the server's disk (`synchronous_commit`): what
the daemon has in memory as written must not be gone after a crash of the server.

Three things can happen here that a file knows nothing of:

- The connection breaks while a transaction is being committed. Then nobody knows whether it was committed, and writing
  it again could count a line of the journal twice. So each transaction writes its number into the ledger. The next
  connection reads that number. If the transaction was committed, its records are left out when they come again.
- Another daemon with the same identity (a copy of the machine) writes. The session holds a lock (pg_advisory_lock). If
  the session ended, another daemon may have had the lock since: then the number isn't the one that this daemon wrote
  last, and this daemon writes nothing more.
- Another landlord has a network (`ngp.store.postgresql.tables`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import psycopg
from psycopg.pq import TransactionStatus

from ngp.core.messages import Prefix
from ngp.core.records import Record, Snapshot
from ngp.errors import LedgerError
from ngp.store import transfer
from ngp.store.batch import Batch
from ngp.store.ledger import SqlLedger
from ngp.store.postgresql import tables
from ngp.store.postgresql.dialect import Statements
from ngp.store.postgresql.server import Connection, NetworksTakenError, Place, translated
from ngp.store.sql import Connection as Sql
from ngp.store.sqlite import file

_COPY_S = 3600.0


class PostgresLedger(SqlLedger):
    """The open ledger (`ngp.ports.Ledger`)."""

    def __init__(self, place: Place, connection: Connection) -> None:
        self._place = place
        self._connection = connection
        self._number = tables.count(connection)
        self._trying: Sequence[Record] = ()
        self._in_doubt: Sequence[Record] | None = None
        self._written: dict[int, Record] = {}
        self._broken = ""

    @classmethod
    def open(cls, place: Place, former: Path) -> Self:
        """Open the identity's ledger, or make it if there is none.

        Args: former: file of this node's SQLite ledger: if it exists, a new ledger takes over its content, and the file
            is renamed.
        """
        with translated(place):
            connection = _connect(place)
            try:
                is_new = not tables.exists(connection, place)
                if former.exists() and not is_new and tables.count(connection) > 1:
                    raise LedgerError(
                        f"ledger {place}: exists, and so does {former}. Move {former.name} away if the daemon last "
                        "used the database; otherwise write LEDGER: none"
                    )
                with connection.transaction():
                    if is_new:
                        tables.make(connection, place)
                        _take_over(former, connection)
                    tables.migrate(connection, place)
                    statements = Statements(connection)
                    tables.reconcile(statements, place)
                    tables.number(statements, tables.count(connection) + 1)
                with file.translated(former):
                    file.set_aside(former)
                return cls(place, connection)
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Close the connection, which ends the lock; safe to call twice."""
        self._connection.close()
        self._broken = self._broken or "it is closed"

    def commit(self, records: Sequence[Record], durable: bool = False) -> None:
        """Write records in one transaction, all or none.

        Records of a transaction in doubt that turned out to be committed are left out.
        """
        with translated(self._place):
            self._connect_again()
        left = self._trying = [one for one in records if id(one) not in self._written]
        try:
            super().commit(left, durable)
        finally:
            self._trying = ()
        for one in records:
            self._written.pop(id(one), None)

    def _write(self, connection: Sql, batch: Batch) -> None:
        super()._write(connection, batch)
        assert isinstance(connection, Statements)
        tables.follow(connection, self._place, batch.rentals, batch.forgotten)

    def load(self, now_utc_s: int) -> Snapshot:
        """Read what a start needs, and what other landlords have."""
        snapshot = super().load(now_utc_s)
        with self._reading() as statements:
            return replace(snapshot, others=tuple(tables.held_by_others(statements, self._place)))

    def hold_networks(self, rental: bytes, networks: Sequence[Prefix]) -> tuple[Prefix, ...]:
        """Hold networks, unless another landlord of this database has some of them."""
        while True:
            try:
                with self._transaction(durable=True) as statements:
                    tables.hold(statements, self._place, rental, map(str, networks))
                return ()
            except NetworksTakenError:
                with self._reading() as statements:
                    if taken := tables.held(statements, rental):
                        return tuple(taken)  # otherwise the other landlord has just released it

    def backup(self, target: Path) -> None:
        """Write the ledger to a file of SQLite, which can also be used as a ledger without this database."""
        with file.translated(target), closing(file.scratch()) as copy:
            with translated(self._place), closing(self._place.connect(_COPY_S)) as source:
                source.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                copy.execute("BEGIN")
                transfer.copy(Statements(source, in_parts=True), copy, file.columns(copy), tables.OWN_STATE)
                copy.execute("COMMIT")
            file.back_up(copy, target)

    # --- the connection -----------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[Statements]:
        with translated(self._place):
            self._connect_again()
            connection = self._connection
            try:
                yield Statements(connection)
            except psycopg.Error as error:
                if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
                    connection.close()  # it is broken, or an answer that comes late would be taken for the next one
                raise

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[Statements]:
        with self._reading() as statements:
            connection, number = self._connection, self._number + 1
            connection.execute("BEGIN")
            try:
                yield statements
                if not tables.number(statements, number):
                    raise self._lost()
            except BaseException:
                _undo(connection)
                raise
            try:
                connection.execute("COMMIT")
            except BaseException:
                connection.close()  # the next connection finds out whether it was committed
                self._in_doubt = self._trying
                raise
            self._number = number

    def _connect_again(self) -> None:
        """Connect anew if the connection is broken, and find out whether the last transaction was committed."""
        if self._broken:
            raise LedgerError(f"ledger {self._place}: {self._broken}; start ngp again")
        if not self._connection.closed:
            return
        connection = _connect(self._place)
        try:
            found = tables.count(connection)
        except BaseException:
            connection.close()
            raise
        if found == self._number + 1 and self._in_doubt is not None:
            self._written |= {id(one): one for one in self._in_doubt}
        elif found != self._number:
            connection.close()
            raise self._lost()
        self._connection, self._number, self._in_doubt = connection, found, None

    def _lost(self) -> LedgerError:
        """Return the error for a database that isn't as this daemon left it; from now on nothing more is written."""
        self._broken = "another daemon wrote to it while this one was cut off, or the database was restored"
        return LedgerError(f"ledger {self._place}: {self._broken}; start ngp again")


def _undo(connection: Connection) -> None:
    """Roll back; if that fails the connection ends, and the transaction with it."""
    try:
        if connection.info.transaction_status is not TransactionStatus.ACTIVE:
            connection.execute("ROLLBACK")
            return
    except psycopg.Error:
        pass
    connection.close()


def _connect(place: Place) -> Connection:
    """Connect, and wait for the identity's lock, which a daemon that ends may still have. Raises psycopg.Error."""
    connection = place.connect()
    try:
        connection.execute("SELECT pg_advisory_lock(%s)", (place.lock,))
    except BaseException:
        connection.close()
        raise
    return connection


def _take_over(former: Path, connection: Connection) -> None:
    """Copy a ledger of SQLite into a new one of ours."""
    if not former.exists():
        return
    with file.translated(former), closing(file.open_file(former)) as source:  # checked, and brought up to date
        transfer.copy(source, Statements(connection), file.columns(source), ())
    connection.execute("SELECT setval(pg_get_serial_sequence('journal', 'id'), max(id)) FROM journal")
