"""Store: the place of the ledger's file (`ngp.ports.Store`)."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from ngp.core.rental.records import RentalRecord
from ngp.errors import LedgerError
from ngp.store import rows, schema, sums
from ngp.store.sqlite import file
from ngp.store.sqlite.ledger import SqliteLedger

_LOOKED_AT_EVERY = 20_000  # after so many steps of SQLite (less than 1 ms) the audit looks whether its time is over


class SqliteStore:
    """A ledger's file, whether it exists or not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def exists(self) -> bool:
        """Say whether anything is at the ledger's path; a dangling symbolic link is refused when it is opened."""
        try:
            self._path.lstat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise LedgerError(f"ledger {self._path}: {error.strerror}; try sudo") from error
        return True

    def open(self) -> SqliteLedger:
        """Open the ledger, or create it if there is none."""
        return SqliteLedger.open(self._path)

    def look(self) -> None:
        """Check that a ledger not in use is intact."""
        file.look(self._path)

    def rentals(self) -> list[RentalRecord]:
        """Read all rentals, with a connection that can't write."""
        with file.translated(self._path), closing(file.connect(self._path)) as connection:
            connection.execute("PRAGMA query_only=ON")
            if connection.execute("PRAGMA user_version").fetchone()[0] != len(schema.MIGRATIONS):
                return []
            return list(map(rows.rental, connection.execute(f"SELECT {rows.RENTAL_COLUMNS} FROM rentals")))

    def audit(self, most_s: float) -> tuple[list[str], str]:
        """Audit the ledger, with a separate connection, as a daemon may be writing to the file."""
        until = time.monotonic() + most_s
        with file.translated(self._path), closing(file.connect(self._path)) as connection:
            connection.execute("PRAGMA query_only=ON")
            if connection.execute("PRAGMA user_version").fetchone()[0] != len(schema.MIGRATIONS):
                return [], "the ledger is of an older ngp; the next start updates it"
            connection.set_progress_handler(lambda: time.monotonic() > until, _LOOKED_AT_EVERY)
            connection.execute("BEGIN")  # one state for all sums
            found: list[str] = []
            try:
                found.extend(sums.compare(connection.execute))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                return found, f"the audit takes more than {most_s:g} s"
            return found, ""

    def written_s(self) -> int:
        """Return when a transaction was last written to the log; moving the log into the file doesn't count."""
        with suppress(OSError):
            return int(self._path.with_name(self._path.name + "-wal").stat().st_mtime)
        return 0
