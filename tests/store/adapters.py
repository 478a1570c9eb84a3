"""The ledgers that the suite tests, and what tests do to them without ngp. A new one is listed in ADAPTERS."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from ngp.ports import Store
from ngp.store.sqlite import SqliteStore


class Adapter(Protocol):
    """One ledger for one test, in a folder of its own."""

    store: Store

    def __init__(self, folder: Path) -> None: ...

    def execute(self, statement: str) -> Sequence[Sequence[Any]]:
        """Run a statement on the ledger's tables without ngp, while the ledger is closed."""

    def restored(self, copy: Path) -> Store:
        """Return the place of a ledger that was restored from a copy of a backup."""


class Sqlite:
    """A file `ledger.db` in the folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.store: Store = SqliteStore(self.path)

    def execute(self, statement: str) -> Sequence[Sequence[Any]]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement).fetchall()

    def restored(self, copy: Path) -> Store:
        return SqliteStore(copy)


ADAPTERS: dict[str, type[Adapter]] = {"sqlite": Sqlite}
