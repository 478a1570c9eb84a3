"""SQLite's file: opening refuses all but an intact ledger, backups are complete, and a full disk harms nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ledger_records import DAY, NOW, contract, journal, neighbour, payment

import ngp
from ngp import identity, store
from ngp.daemon.main import open_ledger
from ngp.errors import ExitCode, LedgerError, LedgerMomentError
from ngp.store.sqlite import SqliteStore, checkpoints, file
from ngp.store.sqlite.ledger import SqliteLedger

ROOT = Path(ngp.__file__).parent.parent


def filled(path: Path) -> Path:
    ledger = SqliteLedger.open(path)
    ledger.commit([neighbour(), *(contract(i) for i in range(200)), payment(1)])
    ledger.close()
    return path


def cut_to(size: int) -> object:
    return lambda path: os.truncate(path, size)


def overwrite(offset: int, data: bytes) -> object:
    def damage(path: Path) -> None:
        with path.open("r+b") as opened:
            opened.seek(offset)
            opened.write(data)

    return damage


def run(sql: str) -> object:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.executescript(sql)
        connection.close()

    return damage


DAMAGES = {
    "empty": cut_to(0),
    "a few bytes": cut_to(50),
    "one page": cut_to(4096),
    "cut in half": cut_to(32768),
    "text": overwrite(0, b"hello, this is a text and no database at all"),
    "noise in the schema": overwrite(100, os.urandom(3000)),
    "noise in the tables": overwrite(4096, b"\xa5" * 40000),
    "foreign": run("PRAGMA application_id=7"),
    "newer": run("PRAGMA user_version=99"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_a_whole_ledger_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    path = filled(tmp_path / "ledger.db")
    DAMAGES[name](path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(LedgerError) as caught:
        SqliteLedger.open(path)
    assert str(path) in str(caught.value)
    assert "ngp backup" in str(caught.value)
    assert path.read_bytes() == before


def test_a_folder_a_pipe_and_a_dangling_link_are_no_ledgers(tmp_path: Path) -> None:
    folder, pipe, link = tmp_path / "folder", tmp_path / "pipe", tmp_path / "link"
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "nowhere")
    for path in (folder, pipe, link):
        with pytest.raises(LedgerError, match=path.name):
            SqliteLedger.open(path)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_gone_from_beside_its_wal_is_not_replaced_by_a_blank_one(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.db")
    path.rename(tmp_path / "elsewhere")
    (tmp_path / "ledger.db-wal").write_bytes(b"x")
    with pytest.raises(LedgerError, match="no first start"):
        SqliteLedger.open(path)
    assert not path.exists()


def test_an_identity_that_lost_its_ledger_does_not_begin_blank(tmp_path: Path) -> None:
    open_ledger(tmp_path, store.at(tmp_path)).close()
    identity.load_or_create(tmp_path)
    open_ledger(tmp_path, store.at(tmp_path)).close()
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(LedgerError, match=r"identity\.key.*ngp backup"):
        open_ledger(tmp_path, store.at(tmp_path))
    assert not (tmp_path / "ledger.db").exists()


def test_a_creation_that_was_killed_half_way_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".ledger.db.new").write_bytes(b"half")
    assert SqliteLedger.open(tmp_path / "ledger.db").next_boot() == 1


def test_a_new_ledger_is_private_and_empty(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.db"
    ledger = SqliteLedger.open(path)
    ledger.commit([neighbour()])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for one in path.parent.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) == 0o600, one
    assert {one.name for one in path.parent.iterdir()} == {"ledger.db", "ledger.db-wal", "ledger.db-shm"}


def test_an_open_file_mode_is_tightened(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.db")
    path.chmod(0o644)
    SqliteLedger.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_can_shrink_and_keeps_its_log_small(tmp_path: Path) -> None:
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    ask = ledger._connection.execute
    assert ask("PRAGMA auto_vacuum").fetchone() == (2,)
    assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ask("PRAGMA journal_size_limit").fetchone()[0] > 0


def fill(ledger: SqliteLedger, until: Callable[[], bool]) -> None:
    """Write records until something is so."""
    for start in itertools.count(0, 50):
        if until():
            return
        ledger.commit([contract(number) for number in range(start, start + 50)])


def log_bytes(ledger: SqliteLedger) -> int:
    return ledger.path.with_name("ledger.db-wal").stat().st_size


def test_records_are_written_while_the_log_is_moved_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk delays a checkpoint, but no first packet."""
    let_go, movers = threading.Event(), list[threading.Thread]()

    def slowly(connection: sqlite3.Connection) -> bool:
        movers.append(threading.current_thread())
        assert let_go.wait(60.0)
        return move(connection)

    move = checkpoints._move
    monkeypatch.setattr(checkpoints, "_move", slowly)
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    fill(ledger, lambda: bool(movers))
    moved_bytes = ledger.path.stat().st_size
    fill(ledger, lambda: log_bytes(ledger) > 2 * file.WAL_MOST_BYTES)
    assert threading.main_thread() not in movers and ledger.path.stat().st_size == moved_bytes
    let_go.set()
    movers[0].join()
    ledger.commit([neighbour()])
    ledger.commit([neighbour()])
    assert log_bytes(ledger) <= file.WAL_MOST_BYTES, "the log didn't begin anew"
    assert ledger.path.stat().st_size > moved_bytes
    ledger.close()


def test_the_log_begins_anew_after_records_that_came_when_a_checkpoint_had_moved_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, let_go = threading.Event(), threading.Event()

    def ends_late(connection: sqlite3.Connection) -> bool:
        is_all = move(connection)
        if threading.current_thread() is not threading.main_thread():
            moved.set()
            assert let_go.wait(60.0)
        return is_all

    move = checkpoints._move
    monkeypatch.setattr(checkpoints, "_move", ends_late)
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    fill(ledger, moved.is_set)
    fill(ledger, lambda: log_bytes(ledger) > 2 * file.WAL_MOST_BYTES)
    let_go.set()
    while any(thread.name == "checkpoint" for thread in threading.enumerate()):
        time.sleep(0.01)
    ledger.commit([neighbour()])
    assert log_bytes(ledger) <= file.WAL_MOST_BYTES
    ledger.close()


def test_the_ledger_moves_the_log_itself_where_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    fill(ledger, lambda: log_bytes(ledger) > file.WAL_MOST_BYTES)
    for _ in range(2):
        ledger.commit([neighbour()])
    assert log_bytes(ledger) <= file.WAL_MOST_BYTES
    monkeypatch.undo()
    fill(ledger, lambda: ledger._checkpoints._thread is not None)
    ledger.close()


def test_the_log_begins_anew_however_steadily_records_are_written(tmp_path: Path) -> None:
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    sizes = [0]

    def began_anew() -> int:
        sizes.append(log_bytes(ledger))
        return sum(size <= file.WAL_MOST_BYTES < before for before, size in itertools.pairwise(sizes))

    fill(ledger, lambda: began_anew() == 3)
    assert max(sizes) < 5 * file.WAL_MOST_BYTES
    count = len(ledger.contracts())
    ledger.close()
    assert not ledger.path.with_name("ledger.db-wal").exists()
    assert len(SqliteLedger.open(ledger.path).contracts()) == count


def test_pruned_pages_go_back_to_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger.open(path)
    ledger.commit([contract(i, closed_at_s=NOW) for i in range(3000)])
    ledger.close()
    before = path.stat().st_size
    ledger = SqliteLedger.open(path)
    for _ in range(10):
        ledger.prune(NOW + 91 * DAY)
    ledger.close()
    assert path.stat().st_size < before / 5


def test_only_durable_commits_flush_the_disk(tmp_path: Path) -> None:
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    levels = []
    for durable in (False, True, True, False):
        ledger.commit([neighbour()], durable=durable)
        levels.append(ledger._connection.execute("PRAGMA synchronous").fetchone()[0])
    assert levels == [1, 2, 2, 1]


def test_adding_up_the_books_changes_nothing(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.db")
    before = path.read_bytes()
    assert SqliteStore(path).audit(60.0) == ([], "")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["ledger.db"]


# --- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_of_a_running_ledger_restores(tmp_path: Path) -> None:
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    ledger.commit([contract(1), payment(1)])
    target = tmp_path / "copy.db"
    ledger.backup(target)
    ledger.commit([contract(2)])
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    restored = tmp_path / "new" / "ledger.db"
    restored.parent.mkdir()
    shutil.copy(target, restored)
    assert SqliteLedger.open(restored).load(NOW).contracts == (contract(1),)
    ledger.backup(target)  # an older backup may be replaced
    assert len(SqliteLedger.open(target).contracts()) == 2
    assert sorted(item.name for item in tmp_path.iterdir() if item.name.startswith(".")) == []


def test_a_backup_removes_what_one_that_was_killed_left_beside_it(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [tmp_path / f".copy.db.{ended.pid}.new", tmp_path / f".copy.db.{ended.pid}.new-journal"]
    others = [tmp_path / f".{name}.new" for name in (f"copy.db.{os.getppid()}", "copy.db.x", f"other.{ended.pid}")]
    for one in (*left, *others):
        one.write_bytes(b"half a ledger")
    ledger = SqliteLedger.open(filled(tmp_path / "ledger.db"))
    ledger.backup(tmp_path / "copy.db")
    ledger.close()
    assert not any(one.exists() for one in left)
    assert all(one.exists() for one in others), "files of a ledger in use, or of other programs"


def test_a_backup_overwrites_neither_files_of_others_nor_a_running_ledger(tmp_path: Path) -> None:
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    text, link, folder = tmp_path / "text", tmp_path / "link", tmp_path / "folder"
    text.write_text("mine")
    link.symlink_to(text)
    folder.mkdir()
    filled(tmp_path / "other.db")
    for target in (text, link, folder, tmp_path / "other.db"):
        with pytest.raises(LedgerError, match="no backup of ngp"):
            ledger.backup(target)
    with pytest.raises(LedgerError, match="backup .*copy.db: No such file or directory; choose a file in"):
        ledger.backup(tmp_path / "nowhere" / "copy.db")
    assert text.read_text() == "mine"
    assert len(SqliteLedger.open(tmp_path / "other.db").contracts()) == 200


def test_a_backup_onto_the_ledgers_own_files_is_refused_and_leaves_its_locks(tmp_path: Path) -> None:
    """SQLite's locks on a file are gone when the process closes any other descriptor of it."""
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    ledger.commit([neighbour()])
    (tmp_path / "other name").hardlink_to(tmp_path / "ledger.db")
    before = _locks(tmp_path)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm", "other name"):
        with pytest.raises(LedgerError, match="is the ledger itself; choose another file"):
            ledger.backup(tmp_path / name)
    assert before and _locks(tmp_path) == before


def _locks(folder: Path) -> list[str]:
    """Return the kernel's locks on the files of a folder."""
    inodes = {str(file.stat().st_ino) for file in folder.iterdir()}
    lines = Path("/proc/locks").read_text().splitlines()
    return sorted(line.partition(": ")[2] for line in lines if line.split()[-3].rpartition(":")[2] in inodes)


# --- trouble with the disk --------------------------------------------------------------------------------------------


def test_a_full_database_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    ledger.commit([contract(0)])
    ledger._connection.execute("PRAGMA max_page_count=60")
    with pytest.raises(LedgerError, match="full"):
        ledger.commit([neighbour(), *(contract(i) for i in range(1, 2000))])
    assert ledger.contracts() == [contract(0)]
    assert ledger.load(NOW).neighbours == ()
    ledger.commit([contract(1)])
    assert len(ledger.contracts()) == 2


FULL_DISK = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from ledger_records import contract, journal
from ngp.errors import LedgerError
from ngp.store.sqlite.ledger import SqliteLedger
path = Path(sys.argv[1]) / "ledger.db"
ledger = SqliteLedger.open(path)
stored = 0
try:
    while stored < 100_000:
        ledger.commit([contract(i) for i in range(stored, stored + 50)], durable=True)
        stored += 50
except LedgerError as error:
    assert "full" in str(error) or "I/O" in str(error), error
assert 0 < stored < 100_000, stored
assert len(ledger.contracts()) == stored
try:
    ledger.backup(Path(sys.argv[1]) / "copy.db")
except LedgerError:
    pass
ledger.close()
(Path(sys.argv[1]) / "ballast").unlink()
again = SqliteLedger.open(path)
assert len(again.contracts()) == stored, (len(again.contracts()), stored)
again.commit([journal()], durable=True)
print("kept", stored)
"""

READ_ONLY = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from ngp.errors import LedgerError
from ngp.store.sqlite.ledger import SqliteLedger
try:
    SqliteLedger.open(Path(sys.argv[1]) / "ledger.db")
except LedgerError as error:
    print("kept", error)
"""


def in_mount(folder: Path, prepare: str, script: str) -> str:
    """Run a script in a mount namespace of its own, which ends with the script."""
    command = ["unshare", "-m", "sh", "-ec", prepare + '; exec "$@"', "sh", sys.executable, "-c", script]
    arguments = [str(folder), str(ROOT), str(Path(__file__).parent)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    prepare = f"mount -t tmpfs -o size=2m none {tmp_path}; head -c 262144 /dev/zero > {tmp_path}/ballast"
    assert in_mount(tmp_path, prepare, FULL_DISK).startswith("kept")


def test_a_read_only_file_system_is_named_at_the_start(tmp_path: Path) -> None:
    filled(tmp_path / "ledger.db")
    prepare = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,ro,bind {tmp_path}"
    said = in_mount(tmp_path, prepare, READ_ONLY)
    assert "ledger.db" in said
    assert "writable" in said


@pytest.mark.parametrize("lost", ["", "-wal"])
@pytest.mark.parametrize("how", [Path.unlink, lambda path: shutil.copy(path, path.with_name("copy")).replace(path)])
def test_nothing_is_written_into_a_file_that_nobody_finds_again(tmp_path: Path, lost: str, how: object) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger.open(path)
    ledger.commit([neighbour(), payment(1)])
    how(path.with_name(path.name + lost))  # type: ignore[operator]
    with pytest.raises(LedgerError, match=r"while ngp runs.*ngp backup"):
        ledger.commit([payment(2)])
    ledger.backup(tmp_path / "saved.db")
    ledger.close()
    assert len(SqliteLedger.open(tmp_path / "saved.db").load(NOW).payments) == 1


def test_after_a_rollback_that_fails_nothing_more_is_written(tmp_path: Path) -> None:
    class Failing:
        in_transaction = True

        def execute(self, sql: str, *_: object) -> None:
            if not sql.startswith(("BEGIN", "PRAGMA")):
                raise sqlite3.OperationalError("disk I/O error")

        executemany = execute

        def close(self) -> None:
            closed.append(True)

    closed: list[bool] = []
    ledger = SqliteLedger.open(tmp_path / "ledger.db")
    ledger._connection.close()
    ledger._connection = Failing()  # type: ignore[assignment]
    with pytest.raises(LedgerError, match="I/O"):
        ledger.commit([journal()])
    with pytest.raises(LedgerError, match="could not be undone"):
        ledger.commit([journal()])
    assert closed


@pytest.mark.parametrize(
    ("code", "remedy", "is_tried_again"),
    [
        (sqlite3.SQLITE_FULL, "free some space", True),
        (sqlite3.SQLITE_BUSY, "end that program", True),
        (sqlite3.SQLITE_LOCKED, "end that program", True),
        (sqlite3.SQLITE_CORRUPT, "ngp backup", False),
        (sqlite3.SQLITE_READONLY, "writable", False),
        (sqlite3.SQLITE_IOERR, "check the disk", False),
    ],
)
def test_errors_name_the_remedy_and_those_that_pass_by_themselves_are_tried_again(
    code: int, remedy: str, is_tried_again: bool
) -> None:
    """The exit code shows it, since docs/ngp.service makes systemd decide by it."""
    error = sqlite3.OperationalError("said")
    error.sqlite_errorcode = code
    told = file.failure(Path("/var/lib/ngp/ledger.db"), error)
    assert remedy in str(told)
    assert (told.exit_code is ExitCode.OTHER) is is_tried_again
    assert isinstance(told, LedgerError)


@pytest.mark.parametrize(
    ("number", "is_tried_again"),
    [(errno.ENOSPC, True), (errno.EMFILE, True), (errno.EACCES, False), (errno.EIO, False)],
)
def test_so_are_those_of_the_system(number: int, is_tried_again: bool) -> None:
    told = file.failure(Path("/var/lib/ngp/ledger.db"), OSError(number, "said"))
    assert (told.exit_code is ExitCode.OTHER) is is_tried_again


OPENED = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from ngp.errors import LedgerError
from ngp.store.sqlite.ledger import SqliteLedger
path = Path(sys.argv[1]) / "ledger.db"
SqliteLedger.open(path).close()
with (Path(sys.argv[1]) / "ballast").open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
try:
    SqliteLedger.open(path)
except LedgerError as error:
    print(error.exit_code, error)
"""


def test_a_start_on_a_full_disk_is_tried_again(tmp_path: Path) -> None:
    """SQLite reports an I/O error then, as there is no room for the files beside the ledger."""
    said = in_mount(tmp_path, f"mount -t tmpfs -o size=1m none {tmp_path}", OPENED)
    assert said.startswith(f"{int(ExitCode.OTHER)} ledger ")
    assert "free some space" in said


def test_a_start_beside_a_program_that_writes_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "ledger.db")
    monkeypatch.setattr(file, "_BUSY_S", 0.0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerMomentError, match="Another program"):
            SqliteLedger.open(path)
    SqliteLedger.open(path).close()
