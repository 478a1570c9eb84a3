"""Store: the place of the ledger's file (`ngp.ports.Store`)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ngp.errors import LedgerError
from ngp.store.sqlite import file, sums
from ngp.store.sqlite.ledger import SqliteLedger


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

    def audit(self, most_s: float) -> tuple[list[str], str]:
        """Audit the ledger, with a separate connection."""
        return sums.compare(self._path, most_s)

    def written_s(self) -> int:
        """Return when a transaction was last written to the log. A reader that merges the log doesn't count."""
        with suppress(OSError):
            return int(self._path.with_name(self._path.name + "-wal").stat().st_mtime)
        return 0
