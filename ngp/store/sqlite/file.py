"""File: makes, opens, checks, migrates and copies the ledger's database file; never replaces it by an empty one.

A daemon that starts with an empty ledger has forgotten what its neighbours prepaid. So a new file is created under
another name and linked to its place only when it is complete. An existing file must be an intact ledger: anything else
(0 bytes, truncated, foreign, from a newer ngp, a directory) is a LedgerError with file and remedy. After `kill -9` a
-wal file of committed transactions may be left, which SQLite recovers by itself (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from ngp.durable_file import sync
from ngp.errors import FULL, LedgerError, LedgerMomentError, RecordError, passes
from ngp.store import schema

_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_BUSY_S = 5.0
_PERHAPS_FULL = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
WAL_MOST_BYTES = 1000 * schema.PAGE_BYTES
"""When the write-ahead log is longer than this, a checkpoint moves it into the file."""


def refusal(path: Path, said: object) -> LedgerError:
    """Return the error for a ledger that can't be trusted, with file, finding and remedy."""
    return LedgerError(
        f"ledger {path}: {said}. Nothing was changed. To go on: move {path.name}, {path.name}-wal and {path.name}-shm "
        f"away and copy a backup made by `ngp backup` to {path}"
    )


def failure(path: Path, error: BaseException) -> LedgerError:
    """Translate an error of SQLite or the system into a LedgerError with its text and a remedy."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return refusal(path, error)
    if code == sqlite3.SQLITE_FULL or (code in _PERHAPS_FULL and _is_full(path)) or getattr(error, "errno", 0) in FULL:
        return LedgerMomentError(f"ledger {path}: {error}. The ledger is intact; free some space on its file system")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerMomentError(f"ledger {path}: {error}. Another program has it open for writing; end that program")
    if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH) or isinstance(error, OverflowError):
        return RecordError(
            f"ledger {path}: {error}. The transaction was undone; this is a defect: keep the ledger and the log, and "
            "report it"
        )
    if passes(error):
        return LedgerMomentError(f"ledger {path}: {error}. The ledger is intact; try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return LedgerError(
            f"ledger {path}: {error}. Make the file and its folder writable for this user; if the file is damaged, "
            f"restore the backup made by `ngp backup`"
        )
    return LedgerError(
        f"ledger {path}: {error}. The transaction was undone; if this happens again, check the disk and restore the "
        f"backup made by `ngp backup`"
    )


def _is_full(path: Path) -> bool:
    """Say whether the disk is full. SQLite doesn't report that if it can't make the files beside the database."""
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return False
    return not room.f_bavail or (room.f_files > 0 and not room.f_favail)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn all errors of a block into LedgerError."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError) as error:
        raise failure(path, error) from error


class Places:
    """Device and inode of the files that have the names of the ledger and its log at the start. Raises OSError.

    Nothing is opened: closing a second descriptor of the file would drop SQLite's locks on it
    (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        names = str(path), f"{path}-wal"
        self._before = [(name, where) for name in names if (where := _place(name)) is not None]

    def has(self, target: Path) -> bool:
        """Say whether a file is one of the ledger's own, by whatever name; without opening it."""
        names = (str(self._path), f"{self._path}-wal", f"{self._path}-shm")
        return _place(str(target)) in [where for name in names if (where := _place(name)) is not None]

    def require_unchanged(self) -> None:
        """Refuse to write into a file that is no longer at its path. Raises LedgerError."""
        for name, where in self._before:
            if _place(name) != where:
                raise LedgerError(
                    f"ledger {self._path}: {os.path.basename(name)} was moved, deleted or replaced while ngp runs. "
                    f"`ngp backup FILE` can still save its content; then `ngp stop`, copy that backup to {self._path}, "
                    "and start ngp again"
                )


def _place(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def open_file(path: Path) -> sqlite3.Connection:
    """Open the ledger, or create it (0600, its folder 0700) if there is none.

    Raises:
        LedgerError: the file isn't an intact ledger of this or an older ngp, or can't be written.
    """
    with translated(path):
        if not os.path.lexists(path):
            _create(path)
        _inspect(path)
        connection = connect(path)
        try:
            _check(connection, path)
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def look(path: Path) -> None:
    """Check that a ledger not in use is intact; doesn't update an older one. Raises LedgerError."""
    with translated(path):
        _inspect(path)
        with contextlib.closing(connect(path)) as connection:
            _check(connection, path)


def connect(path: Path, one_thread: bool = True) -> sqlite3.Connection:
    """Connect to an existing database; the caller begins and ends transactions explicitly.

    Args: one_thread: refuse other threads than this one.
    """
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_S,
        check_same_thread=one_thread,
    )
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _create(path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        raise refusal(path, f"the file is missing, but {wal.name} exists: so this is no first start")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    for leftover in (fresh, fresh.with_name(fresh.name + "-wal"), fresh.with_name(fresh.name + "-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = connect(fresh)
    try:
        connection.execute(f"PRAGMA page_size={schema.PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        advance(connection, 0)
    finally:
        connection.close()
    sync(fresh)
    os.link(fresh, path)  # unlike a rename it fails if a ledger has appeared meanwhile
    fresh.unlink()
    sync(path.parent)


def _inspect(path: Path) -> None:
    """Check the file's head: refuse what SQLite would take for a new database, or would notice only later."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, "is not a regular file")
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES:
        raise refusal(path, f"holds only {status.st_size} bytes")
    if head[:16] != _MAGIC:
        raise refusal(path, "is not an SQLite database")
    wal = path.with_name(path.name + "-wal")
    page_bytes = int.from_bytes(head[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    stated_bytes = page_bytes * int.from_bytes(head[28:32], "big")
    if status.st_size < stated_bytes and not (wal.exists() and wal.stat().st_size):
        raise refusal(path, f"is cut off: {status.st_size} of {stated_bytes} bytes, and no {wal.name}")
    if status.st_mode & 0o077:
        path.chmod(0o600)  # it holds preimages and what neighbours owe


def _check(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    if found != schema.APPLICATION_ID:
        raise refusal(path, f"is another program's database (application id {found:#x})")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(schema.MIGRATIONS):
        raise LedgerError(
            f"ledger {path}: was written by a newer ngp (schema {version}, this one knows {len(schema.MIGRATIONS)}); "
            f"install the newer ngp again, or restore a backup made by `ngp backup` before the update"
        )
    problems = quick_check(connection)
    if problems:
        raise refusal(path, f"is damaged: {problems}")
    connection.execute("PRAGMA journal_mode=WAL")  # a restored backup is in rollback mode
    connection.execute(f"PRAGMA journal_size_limit={WAL_MOST_BYTES}")
    connection.execute("BEGIN IMMEDIATE")  # a read-only file fails here, not at the first payment
    connection.execute("ROLLBACK")


def quick_check(connection: sqlite3.Connection) -> str:
    """Return the complaints of `PRAGMA quick_check`, or an empty string."""
    said = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    return "" if said == ["ok"] else "; ".join(said)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == len(schema.MIGRATIONS):
        return
    copy(connection, path.with_name(f"{path.name}.before-{len(schema.MIGRATIONS)}"), replace=True)
    advance(connection, version)


def advance(connection: sqlite3.Connection, version: int) -> None:
    """Make the migrations from this version on, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for migration in schema.MIGRATIONS[version:]:
            for statement in migration:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={len(schema.MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def copy(connection: sqlite3.Connection, target: Path, replace: bool) -> None:
    """Copy a database in use to another file (0600), which is checked before it gets its name.

    Args:
        connection: an open ledger; stays open.
        target: first written under another name, so that a full disk doesn't harm an older copy.
        replace: whether an existing file may be replaced.

    Raises:
        LedgerError: the copy is damaged.
        FileExistsError: `target` exists and must not be replaced.
    """
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    _remove_left_over(target)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        written = connect(fresh)
        try:
            connection.backup(written)
            written.execute("PRAGMA journal_mode=DELETE")  # a single file is easier to restore
            problems = quick_check(written)
        finally:
            written.close()
        if problems:
            raise LedgerError(f"backup {target}: the copy is damaged ({problems}); check both disks and try again")
        sync(fresh)
        if replace:
            fresh.replace(target)
        else:
            os.link(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)
    sync(target.parent)


def _remove_left_over(target: Path) -> None:
    """Remove the temporary file of a copy that was killed: it is as large as the ledger, and has preimages."""
    for one in target.parent.glob(f".{glob.escape(target.name)}.*.new*"):
        pid = one.name.removeprefix(f".{target.name}.").partition(".new")[0]
        if pid.isdecimal() and (int(pid) == os.getpid() or not os.path.exists(f"/proc/{pid}")):
            one.unlink(missing_ok=True)


def back_up(connection: sqlite3.Connection, target: Path) -> None:
    """Copy a database to a backup, new or in place of an older one.

    Raises: LedgerError: the backup can't be written. Errors of reading the database are raised as they are.
    """
    replaced = is_backup(target)
    if not replaced and (target.is_symlink() or target.exists()):
        raise LedgerError(f"backup {target}: exists and is no backup of ngp; choose another file")
    try:
        copy(connection, target, replaced)
    except (OSError, sqlite3.Error) as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF != sqlite3.SQLITE_FULL:
            raise  # not the copy's disk, so it is an error of the ledger
        said = f"{getattr(error, 'strerror', None) or error}; choose a file in an existing folder with room"
        raise LedgerError(f"backup {target}: {said}") from error


def scratch() -> sqlite3.Connection:
    """Return an empty ledger in a file without a name, which vanishes when it is closed."""
    connection = sqlite3.connect("", isolation_level=None)
    connection.execute(f"PRAGMA page_size={schema.PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    advance(connection, 0)
    return connection


def columns(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Return the tables of a ledger, and their columns."""
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {one: [row[1] for row in connection.execute(f"PRAGMA table_info({one})")] for one in sorted(tables)}


def set_aside(path: Path) -> None:
    """Rename a closed ledger whose content is in another database now, so that nobody goes on with it."""
    if path.exists():
        path.rename(path.with_name(f"{path.name}.moved"))
        sync(path.parent)


def is_backup(path: Path) -> bool:
    """Say whether a file is a backup, as `copy` writes it; a ledger in use (WAL mode) isn't."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    rollback_mode = head[18:20] == b"\x01\x01"
    return head[:16] == _MAGIC and rollback_mode and head[68:72] == schema.APPLICATION_ID.to_bytes(4, "big")
