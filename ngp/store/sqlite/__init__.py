"""SQLite: the ledger in one file of the state directory."""

from ngp.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
