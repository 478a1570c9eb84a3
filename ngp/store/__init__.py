"""The ledger's place, and what all ledgers share: the rule on payments, the audit, how long records are kept.

`at` returns the place of a ledger as `ngp.ports.Store`. Only this package knows which database is behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ngp.errors import LedgerError

if TYPE_CHECKING:
    from ngp.ports import Store

FILE = "ledger.db"


def at(state_dir: Path, url: str | None = None, identity: bytes = b"") -> Store:
    """Return the place of a state directory's ledger.

    Args:
        url: of a PostgreSQL server; None: the ledger is a file in the directory.
        identity: whose ledger it is in the server's database; b"" if this node has none yet: then there is no ledger.

    Raises: LedgerError: the package for PostgreSQL is missing, or the URL can't be read.
    """
    if url is None:
        from ngp.store.sqlite import SqliteStore  # late: most verbs ask the daemon, and need no database

        return SqliteStore(state_dir / FILE)
    try:
        from ngp.store.postgresql import PostgresStore
    except ImportError as error:
        raise LedgerError(
            f"LEDGER: a postgresql:// URL needs the package psycopg ({error}): install ngp[postgresql], "
            "as the operator's guide says"
        ) from error
    return PostgresStore(url, identity, state_dir / FILE)
