"""A PostgreSQL server for tests: a real one, in a folder of its own, reached by a socket there, ended with the tests.

A process makes one when it needs it for the first time. Its children use the same one. It runs as an unprivileged user,
as PostgreSQL refuses root, and ends if the tests are killed.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from glob import glob
from pathlib import Path

import psycopg

from core_tests.shell import await_until, suspend

_URL = "NGPT_POSTGRESQL"
_START_S = 60.0
_PR_SET_PDEATHSIG = 1


def url() -> str:
    """Return the URL of this process's server, or of its parent's."""
    return os.environ.get(_URL) or _shared().url


@cache
def _shared() -> Server:
    server = Server()
    os.environ[_URL] = server.url
    atexit.register(server.close)
    return server


class Server:
    """A server, running."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ngpt-postgresql-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        data = str(self.folder / "data")
        self._run("initdb", "--pgdata", data, "--username=ngp", "--auth=trust", "--no-sync", "--encoding=UTF8")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://ngp@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        words = [
            _program("postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), "-c", "listen_addresses=",
            "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=200",
        ]  # fmt: skip
        with (self.folder / "log").open("a") as log:
            self._postmaster = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self._user, cwd="/",
                preexec_fn=_end_with_us,
            )  # fmt: skip
        until = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or self._postmaster.poll() is not None:
                    raise AssertionError(f"no server: {(self.folder / 'log').read_text()}") from None
                time.sleep(0.05)

    def processes(self) -> list[int]:
        """Return the process ids of the server, its first process first."""
        first = self._postmaster.pid
        return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]

    def kill(self) -> None:
        """Kill every process of the server, as a crash of its machine would; return when all are gone."""
        suspend(self._postmaster.pid)  # it makes no more of them
        pids = self.processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._postmaster.wait()
        await_until(lambda: not any(map(_lives, pids)), _START_S, "the end of the server's processes")

    def close(self) -> None:
        """End the server, and remove its folder."""
        self._postmaster.send_signal(signal.SIGINT)  # "fast": it doesn't wait for those that are connected
        self._postmaster.wait()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *words: str) -> None:
        ended = subprocess.run([_program(program), *words], user=self._user, cwd="/", capture_output=True, text=True)
        assert not ended.returncode, ended.stderr


def _program(name: str) -> str:
    """Return where a program of the server is: Debian has those of each version in a folder of their own."""
    found = shutil.which(name) or max(glob(f"/usr/lib/postgresql/*/bin/{name}"), default="")
    assert found, f"{name} not found: apt install postgresql"
    return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _end_with_us() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
