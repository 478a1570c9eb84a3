"""The ledger's place, and what all ledgers share: the rule on payments, the audit, how long records are kept.

`at` returns the place of a ledger as `ngp.ports.Store`. Only this package knows which database is behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ngp.ports import Store

_FILE = "ledger.db"


def at(state_dir: Path) -> Store:
    """Return the place of a state directory's ledger."""
    from ngp.store.sqlite import SqliteStore  # late: most verbs ask the daemon, and need no database

    return SqliteStore(state_dir / _FILE)
