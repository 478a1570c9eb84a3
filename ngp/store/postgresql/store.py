"""Store: the place of an identity's ledger in a database (`ngp.ports.Store`)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from ngp.core.rental.records import RentalRecord
from ngp.errors import LedgerError
from ngp.store import rows, schema, sums
from ngp.store.postgresql import tables
from ngp.store.postgresql.ledger import PostgresLedger
from ngp.store.postgresql.server import Place, translated


class PostgresStore:
    """An identity's ledger, whether it exists or not.

    Args:
        url: postgresql://...
        identity: public key of the node; b"" if it has none yet: then there is no ledger.
        former: where a ledger of SQLite would be, which a new ledger takes over.
    """

    def __init__(self, url: str, identity: bytes, former: Path) -> None:
        self._place = Place(url, identity)
        self._former = former

    def __str__(self) -> str:
        return str(self._place)

    def exists(self) -> bool:
        """Say whether the database has the ledger, or one of SQLite is to be taken over."""
        if self._former.exists():
            return True
        with translated(self._place), closing(self._place.connect()) as connection:
            return bool(self._place.identity) and tables.exists(connection, self._place)

    def open(self) -> PostgresLedger:
        """Open the ledger, or make it if there is none."""
        if not self._place.identity:
            raise LedgerError(f"ledger {self._place}: there is no identity.key yet, the first start makes it")
        return PostgresLedger.open(self._place, self._former)

    def look(self) -> None:
        """Check that the identity's schema, if there is one, can be read and is a ledger."""
        with translated(self._place), closing(self._place.connect()) as connection:
            if tables.exists(connection, self._place):
                tables.version(connection, self._place)

    def rentals(self) -> list[RentalRecord]:
        """Read all rentals."""
        with translated(self._place), closing(self._place.connect()) as connection:
            if not tables.exists(connection, self._place):  # the one of SQLite wasn't taken over yet
                return []
            if tables.version(connection, self._place) != len(schema.MIGRATIONS):
                return []
            return list(map(rows.rental, connection.execute(f"SELECT {rows.RENTAL_COLUMNS} FROM rentals")))

    def audit(self, most_s: float) -> tuple[list[str], str]:
        """Audit the ledger, with a separate connection, as a daemon may be writing to it."""
        until = time.monotonic() + most_s
        found: list[str] = []
        with translated(self._place), closing(self._place.connect(max(1.0, most_s))) as connection:
            if tables.version(connection, self._place) != len(schema.MIGRATIONS):
                return [], "the ledger is of an older ngp; the next start updates it"
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")  # one state for all sums

            def ask(query: str) -> Iterable[Any]:
                left_ms = int((until - time.monotonic()) * 1000)
                if left_ms <= 0:
                    raise psycopg.errors.QueryCanceled
                connection.execute(f"SET LOCAL statement_timeout = {left_ms}")
                return connection.execute(query)

            try:
                found.extend(sums.compare(ask))
            except psycopg.errors.QueryCanceled:
                return found, f"the audit takes more than {most_s:g} s"
        return found, ""

    def written_s(self) -> int:
        """Return 0: the database doesn't say when it was last written."""
        return 0
