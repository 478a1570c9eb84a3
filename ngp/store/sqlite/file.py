"""File: the ledger's database file: made, opened, checked, migrated and copied; never replaced by a blank one.

A daemon that starts with an empty ledger has forgotten what its neighbours prepaid. So an absent file is created
beside its place and linked there only when it is complete, and a file that exists must be a whole ledger: anything else
(0 bytes, cut off, foreign, from a newer ngp, a directory) is a LedgerError that names the file and the remedy. What
`kill -9` leaves, a -wal file of committed transactions, SQLite recovers by itself (https://www.sqlite.org/wal.html).
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

from ngp.errors import FULL, LedgerError, LedgerMomentError, passes
from ngp.store.sqlite import schema

_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_BUSY_S = 5.0
_PERHAPS_FULL = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
WAL_PAGES = 1000
_WAL_KEPT_BYTES = 1 << 20


def refusal(path: Path, said: object) -> LedgerError:
    """Build the error for a ledger that can't be trusted; it names the file, what was found and the remedy."""
    return LedgerError(
        f"ledger {path}: {said}. Nothing was changed. To go on: move {path.name}, {path.name}-wal and {path.name}-shm "
        f"away and copy a backup made by `ngp backup` to {path}"
    )


def failure(path: Path, error: BaseException) -> LedgerError:
    """Translate an error of SQLite or the system; says what it said and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return refusal(path, error)
    if code == sqlite3.SQLITE_FULL or (code in _PERHAPS_FULL and _is_full(path)) or getattr(error, "errno", 0) in FULL:
        return LedgerMomentError(f"ledger {path}: {error}. The ledger is intact; free some space on its file system")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerMomentError(f"ledger {path}: {error}. Another program has it open for writing; end that program")
    if passes(error):
        return LedgerMomentError(f"ledger {path}: {error}. The ledger is intact; try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return LedgerError(
            f"ledger {path}: {error}. Make the file and its folder writable for this user; if the file is damaged, "
            f"restore the backup made by `ngp backup`"
        )
    return LedgerError(
        f"ledger {path}: {error}. The transaction was undone; if this comes again, check the disk and restore the "
        f"backup made by `ngp backup`"
    )


def _is_full(path: Path) -> bool:
    """Say whether there is no room: SQLite, which then can't make the files beside its own, tells of no full disk."""
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return False
    return not room.f_bavail or (room.f_files > 0 and not room.f_favail)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Let only LedgerError out of a block."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError) as error:
        raise failure(path, error) from error


def places(path: Path) -> dict[Path, tuple[int, int]]:
    """Return the device and inode that the ledger's name, and that of its log, lead to. Raises OSError.

    Nothing is opened: to close a second descriptor of the file would drop the locks that SQLite holds on it
    (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """
    found = {}
    for one in (path, path.with_name(path.name + "-wal")):
        with contextlib.suppress(FileNotFoundError):
            status = one.stat()
            found[one] = (status.st_dev, status.st_ino)
    return found


def require_in_place(before: dict[Path, tuple[int, int]], path: Path) -> None:
    """Refuse to write into a file that nobody will find again. Raises LedgerError."""
    now = places(path)
    for one, where in before.items():
        if now.get(one) != where:
            raise LedgerError(
                f"ledger {path}: {one.name} was moved, deleted or replaced while ngp runs. `ngp backup FILE` still "
                f"saves what it held; then `ngp stop`, copy that file to {path}, and start ngp again"
            )


def open_file(path: Path) -> sqlite3.Connection:
    """Open the ledger, creating it (0600, its folder 0700) where there is none.

    Raises:
        LedgerError: the file is not a whole ledger of this or an older ngp, or can't be written.
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
    """Look whether a ledger at rest is whole, without bringing an older one up to date. Raises LedgerError."""
    with translated(path):
        _inspect(path)
        with contextlib.closing(connect(path)) as connection:
            _check(connection, path)


def connect(path: Path) -> sqlite3.Connection:
    """Connect to an existing database; transactions are begun and ended by hand."""
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, isolation_level=None, timeout=_BUSY_S
    )
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _create(path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        raise refusal(path, f"the file is gone, but {wal.name} is there: it must not begin blank")
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
        _advance(connection, 0)
    finally:
        connection.close()
    sync(fresh)
    os.link(fresh, path)  # unlike a rename it fails where a ledger has appeared meanwhile
    fresh.unlink()
    sync(path.parent)


def _inspect(path: Path) -> None:
    """Refuse by the file's head what SQLite would take for a new database, or only notice later."""
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
            f"install that ngp again, or restore the backup made by `ngp backup` before the update"
        )
    problems = quick_check(connection)
    if problems:
        raise refusal(path, f"is damaged: {problems}")
    connection.execute("PRAGMA journal_mode=WAL")  # a restored backup is in rollback mode
    connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_KEPT_BYTES}")
    connection.execute("BEGIN IMMEDIATE")  # fails here, not at the first payment, where it is read-only
    connection.execute("ROLLBACK")


def quick_check(connection: sqlite3.Connection) -> str:
    """Return what `PRAGMA quick_check` complains of, or an empty string."""
    said = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    return "" if said == ["ok"] else "; ".join(said)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == len(schema.MIGRATIONS):
        return
    copy(connection, path.with_name(f"{path.name}.before-{len(schema.MIGRATIONS)}"), replace=True)
    _advance(connection, version)


def _advance(connection: sqlite3.Connection, version: int) -> None:
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
    """Copy a running database to a file of its own (0600), checked before it takes its place.

    Args:
        connection: an open ledger; goes on as it was.
        target: written beside its place first, so that a full disk leaves an older copy untouched.
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
            written.execute("PRAGMA journal_mode=DELETE")  # one file: nothing beside it to forget when restoring
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
    """Remove what a copy that was killed left beside its target: it is as large as the ledger, and holds preimages."""
    for one in target.parent.glob(f".{glob.escape(target.name)}.*.new*"):
        pid = one.name.removeprefix(f".{target.name}.").partition(".new")[0]
        if pid.isdecimal() and (int(pid) == os.getpid() or not os.path.exists(f"/proc/{pid}")):
            one.unlink(missing_ok=True)


def is_backup(path: Path) -> bool:
    """Tell whether a file is a ledger at rest, as `copy` writes it; a running ledger (WAL mode) is not."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    rollback_mode = head[18:20] == b"\x01\x01"
    return head[:16] == _MAGIC and rollback_mode and head[68:72] == schema.APPLICATION_ID.to_bytes(4, "big")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
