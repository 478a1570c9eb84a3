"""The ledgers that the suite tests, and what tests do to them without ngp. A new one is listed in ADAPTERS."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from core_tests import postgresql
from ngp.ports import Store
from ngp.store.postgresql import PostgresStore
from ngp.store.postgresql.server import Place
from ngp.store.sqlite import SqliteStore


class Adapter(Protocol):
    """One ledger for one test, in a folder of its own."""

    store: Store
    share: int
    """Long tests try this part of their examples: 1 is all of them."""

    def __init__(self, folder: Path) -> None: ...

    def execute(self, statement: str) -> Sequence[Sequence[Any]]:
        """Run a statement on the ledger's tables without ngp, while the ledger is closed."""

    def restored(self, copy: Path) -> Store:
        """Return the place of a ledger that was restored from a copy of a backup."""


class Postgresql:
    """An identity of its own in the tests' server."""

    share = 5

    def __init__(self, folder: Path) -> None:
        self.url, self.identity = postgresql.url(), sha256(str(folder).encode()).digest()
        self.store: Store = PostgresStore(self.url, self.identity, folder / "ledger.db")

    def execute(self, statement: str) -> Sequence[Sequence[Any]]:
        with closing(Place(self.url, self.identity).connect()) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else ()

    def restored(self, copy: Path) -> Store:
        return SqliteStore(copy)


class Sqlite:
    """A file `ledger.db` in the folder."""

    share = 1

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.store: Store = SqliteStore(self.path)

    def execute(self, statement: str) -> Sequence[Sequence[Any]]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement).fetchall()

    def restored(self, copy: Path) -> Store:
        return SqliteStore(copy)


ADAPTERS: dict[str, type[Adapter]] = {"sqlite": Sqlite, "postgresql": Postgresql}
