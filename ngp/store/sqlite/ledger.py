"""Ledger: implements the port `Ledger` with one SQLite file in WAL mode.

Calls are synchronous and for one thread. A `commit` is one transaction: all records of one or several steps, or none.
Ordinary commits are `synchronous=NORMAL`: they survive `kill -9`; a power cut may lose the last of them, but never a
part of one. Commits that move money are `durable`: the file is flushed before the call returns (`synchronous=FULL`),
and with it every earlier ordinary commit. See https://www.sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from ngp.core.messages import Prefix
from ngp.errors import LedgerError
from ngp.store.ledger import SqlLedger
from ngp.store.sqlite import file
from ngp.store.sqlite.checkpoints import Checkpoints

VACUUM_PAGES = 256


class SqliteLedger(SqlLedger):
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

    def hold_networks(self, rental: bytes, networks: Sequence[Prefix]) -> tuple[Prefix, ...]:
        """Hold networks: this ledger has one landlord, whose core lets none of them twice."""
        return ()

    def backup(self, target: Path) -> None:
        """Copy the ledger to a file while it is in use. Raises LedgerError; see `ngp.ports.Ledger`."""
        if self._places.has(target):  # to look into it would drop SQLite's locks on the ledger
            raise LedgerError(f"backup {target}: is the ledger itself; choose another file")
        with self._reading() as connection:
            file.back_up(connection, target)

    def prune(self, now_utc_s: int) -> bool:
        """Fold and delete old records, and give pages back to the file system."""
        more = super().prune(now_utc_s)
        with self._reading() as connection:
            # executescript: a plain execute stops after the first page, since the pragma has rows without columns
            connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
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
