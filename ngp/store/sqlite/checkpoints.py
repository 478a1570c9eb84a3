"""Checkpoints: move what the write-ahead log holds into the ledger's file, in a thread of their own.

A checkpoint waits for the disk twice. In the daemon's own thread, first packets would wait for it too: one in a hundred
did, and took ten times as long. While the checkpoint runs, new records may be added to the log. SQLite begins the log
anew only when a transaction finds all of it in the file. So the ledger's own thread moves these new records before the
next transaction; they are few, and mostly there are none. If the log grows faster than the disk can take it, the
ledger's thread waits for the checkpoint: otherwise the log would grow without end.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

from ngp.store.sqlite import file

_PASSES = 3  # most passes over the log in one checkpoint: records may be added during each
_WAITED_FOR = 4  # times WAL_MOST_BYTES: if the log is longer, the ledger's thread waits for the checkpoint
_PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpoints:
    """The checkpoints of one open ledger.

    Args:
        path: the ledger's.
        connection: the one that writes; from now on it makes no checkpoint by itself.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._log = f"{path}-wal"
        self._connection = connection
        self._own = file.connect(path, one_thread=False)
        self._thread: threading.Thread | None = None
        connection.execute("PRAGMA wal_autocheckpoint=0")

    def consider(self) -> None:
        """Begin a checkpoint if the log is long, or finish one that ran; call it before each transaction."""
        if self._thread is not None:
            if self._thread.is_alive() and not self._is_longer_than(_WAITED_FOR * file.WAL_MOST_BYTES):
                return
            self._thread.join()
            self._thread = None
            _move(self._connection)
        elif self._is_longer_than(file.WAL_MOST_BYTES):
            thread = threading.Thread(target=self._run, name="checkpoint")
            try:
                thread.start()
            except RuntimeError:  # no thread can be started now: too many processes, no memory
                _move(self._connection)
            else:
                self._thread = thread

    def close(self) -> None:
        """Wait for the checkpoint that runs; safe to call twice."""
        if self._thread is not None:
            self._thread.join()
        self._own.close()

    def _is_longer_than(self, size_bytes: int) -> bool:
        """Say whether the log's file is longer. SQLite cuts it to WAL_MOST_BYTES whenever the log begins anew."""
        try:
            return os.stat(self._log).st_size > size_bytes
        except OSError:
            return False

    def _run(self) -> None:
        for _ in range(_PASSES):
            if _move(self._own):
                return


def _move(connection: sqlite3.Connection) -> bool:
    """Move all that the log holds now, and say whether nothing was added meanwhile.

    An error here doesn't harm the ledger: the records stay in the log, and another checkpoint is begun later.
    """
    with contextlib.suppress(sqlite3.Error):
        busy, frames, moved = connection.execute(_PASSIVE).fetchone()
        return not busy and bool(frames == moved)
    return False
