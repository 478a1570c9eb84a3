"""State directory: made for ngp alone, and locked by the one daemon that may use it.

The lock is the kernel's (flock on ngp.pid), so it can't outlive its process. After `kill -9` the file still has the
process's number, but no lock. So the next start can lock it, and `ngp stop` knows that it may have to clean up. Two
daemons on one ledger would count the same payment twice, so the second is refused before it opens anything.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from ngp import store
from ngp.daemon.operators import OPERATORS_MODE, operators_group, show_operators
from ngp.daemon.options import CONTROL_SOCKET, LOG_FILE, PID_FILE
from ngp.errors import KernelError, RunningError, refused

_HOW = "start with sudo, or --state-dir"
_NAMESPACE_NAME = b"\0ngp/datapath"
_TRIES = 5
_PAUSE_S = 0.04
_MOST_PATH_BYTES = 100  # sun_path has 108 bytes, with the final zero


def prepare(state_dir: Path) -> None:
    """Make the state directory (0700, or 0710 with the group ngp where that exists), or check an existing one.

    Raises:
        KernelError: it can't be made, or others could put a ledger or keys of their own into it.
    """
    group = operators_group()
    try:
        state_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            state_dir.mkdir(mode=0o700)
        except FileExistsError:
            pass
        else:
            if group is not None:
                with suppress(OSError):
                    os.chown(state_dir, -1, group)
                    state_dir.chmod(0o710)
        refuse_unsafe(state_dir)
    except OSError as error:
        raise refused(f"state directory {state_dir}", error, _HOW) from error


def refuse_unsafe(state_dir: Path) -> None:
    """Refuse a state directory that others could put a ledger or keys of their own into.

    Raises: KernelError; OSError: it doesn't exist, or can't be examined.
    """
    found = state_dir.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise KernelError(f"state directory {state_dir} is not a directory: move the file away, or use --state-dir")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise KernelError(
            f"state directory {state_dir} could be changed by others (owner {found.st_uid}, mode "
            f"{stat.S_IMODE(found.st_mode):04o}): chown {os.geteuid()} {state_dir}; chmod 0700 {state_dir}"
        )


class StateLock:
    """The lock of a state directory; released by `release`, or by the kernel when the process ends.

    Attributes:
        after_killed: the last holder ended without cleaning up.
    """

    def __init__(self, path: Path, descriptor: int, after_killed: bool) -> None:
        self.after_killed = after_killed
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, state_dir: Path) -> Self:
        """Lock a state directory for this process and write its number there.

        Raises:
            RunningError: another process holds it; the text has its number.
            KernelError: the file can't be written.
        """
        path = state_dir / PID_FILE
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S)  # `ngp status` takes the lock for an instant to test it
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
            if _lock(descriptor, fcntl.LOCK_EX) and _same(descriptor, path):
                after_killed = _read_pid(descriptor) != 0
                show_operators(descriptor)
                try:
                    _write_pid(descriptor)
                except OSError as error:
                    if not after_killed:
                        path.unlink(missing_ok=True)  # a file left here would look as if a daemon had been killed
                    os.close(descriptor)
                    raise refused(str(path), error, _HOW) from error
                return cls(path, descriptor, after_killed)
            pid = _read_pid(descriptor)
            os.close(descriptor)
        who = f"process {pid}" if pid else "another process"
        raise RunningError(f"ngp already runs on {state_dir} ({who}): ngp stop ends it")

    def release(self) -> None:
        """Release the lock and remove its file: nothing is left to clean up. Safe to call twice."""
        if self._descriptor < 0:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def abandon(self) -> None:
        """Release the lock but leave its file: something may still have to be cleaned up in the kernel."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class NamespaceLock:
    """The lock of this network namespace; released by `release`, or by the kernel when the process ends.

    Gate and hooks belong to the namespace, not to a state directory: a second daemon would take over those of the
    first, and remove them at its end. Each namespace has its own abstract unix sockets (unix(7),
    network_namespaces(7)), so a socket's name is a lock that can be held once in each.
    """

    def __init__(self, holder: socket.socket) -> None:
        self._holder = holder

    @classmethod
    def take(cls) -> Self:
        """Lock the namespace for this process. Raises RunningError when another daemon gates it."""
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(_NAMESPACE_NAME)
        except OSError as error:
            holder.close()
            pid = gating_pid()
            who, how = (f"process {pid}", f"kill {pid}, or ") if pid else ("another process", "")
            theirs = state_dir_of(pid)
            where, named = (f" {theirs}", str(theirs)) if theirs else ("", "with its directory")
            raise RunningError(
                f"another ngp ({who}), with another state directory{where}, gates this network namespace: stop that "
                f"one ({how}ngp stop --state-dir {named}), or start this one in a namespace of its own (ip netns exec)"
            ) from error
        return cls(holder)

    @staticmethod
    def is_held() -> bool:
        """Say whether a daemon gates the namespace; doesn't take the lock."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
            try:
                asker.connect(_NAMESPACE_NAME)
            except OSError:
                return False
        return True

    def release(self) -> None:
        """Release the namespace. Safe to call twice."""
        self._holder.close()


def gating_pid() -> int:
    """Return the number of the process that has this namespace locked; 0 if another PID namespace hides it."""
    name = _NAMESPACE_NAME.decode().replace("\0", "@")
    with suppress(OSError):
        sockets = [line.split() for line in Path("/proc/thread-self/net/unix").read_text(errors="replace").splitlines()]
        wanted = {f"socket:[{fields[6]}]" for fields in sockets if fields[-1] == name}
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):
                if os.readlink(link) in wanted:
                    return int(link.parts[2])
    return 0


def state_dir_of(pid: int) -> Path | None:
    """Return the state directory that a daemon holds locked, by its open files; None if /proc doesn't show them."""
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                opened = Path(os.readlink(link))
                if opened.name == PID_FILE:
                    return opened.parent
    return None


def running_pid(state_dir: Path) -> int | None:
    """Return the process that has a state directory locked: its number, 0 if that can't be read; None if none has."""
    try:
        descriptor = os.open(state_dir / PID_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _lock(descriptor, fcntl.LOCK_SH) else _read_pid(descriptor)
    finally:
        os.close(descriptor)


def was_killed(state_dir: Path) -> bool:
    """Say whether a daemon ended here without cleaning up: then its pid file exists but isn't locked."""
    return running_pid(state_dir) is None and os.path.lexists(state_dir / PID_FILE)


def last_sign_s(state_dir: Path) -> int:
    """Return the last time at which a daemon that didn't clean up was certainly alive, in UTC seconds; 0 if unknown.

    The time when the ledger's files were tidied doesn't count, since any command that reads the ledger tidies them.
    """
    times = [store.at(state_dir).written_s()]
    for name in (PID_FILE, LOG_FILE):
        with suppress(OSError):
            times.append(int((state_dir / name).stat().st_mtime))
    return max(times)


def keep_last_sign(state_dir: Path) -> None:
    """Store a killed daemon's last sign of life as the time of its pid file; call it before opening the ledger.

    Opening the ledger changes its files, and so their times. Without rights nothing is stored, but then the ledger
    can't be opened either.
    """
    if was_killed(state_dir):
        time_s = last_sign_s(state_dir)
        with suppress(OSError):
            os.utime(state_dir / PID_FILE, (time_s, time_s), follow_symlinks=False)


def left_behind(state_dir: Path) -> bool:
    """Say whether a daemon of this state directory ended without cleaning up."""
    return was_killed(state_dir) or any(os.path.ismount(each) for each in _folders(state_dir))


def _folders(state_dir: Path) -> list[Path]:
    try:
        return [each for each in state_dir.iterdir() if each.is_dir()]
    except OSError:
        return []


def short_address(path: Path, folder: int) -> str:
    """Return a socket's path, through its open folder if the path is too long for the kernel (unix(7): 108 bytes)."""
    return str(path) if len(os.fsencode(path)) <= _MOST_PATH_BYTES else f"/proc/self/fd/{folder}/{path.name}"


def forget_killed(state_dir: Path) -> None:
    """Remove the socket that a killed daemon left in its state directory."""
    (state_dir / CONTROL_SOCKET).unlink(missing_ok=True)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, OPERATORS_MODE)
    except OSError as error:
        raise refused(str(path), error, _HOW) from error


def _write_pid(descriptor: int) -> None:
    text = f"{os.getpid()}\n".encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: Path) -> bool:
    """Say whether the file that we locked is still at its path: its last owner may have removed it meanwhile."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
