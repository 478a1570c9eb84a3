"""Runs verbs of `ngp` as separate processes, with a daemon whose main module is fake.

They are forked from one that has loaded their modules (`core_tests.forked`), or, where the command itself is the point,
`python -m ngp`. A verb that asks a daemon is called as a function in the test's own process.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from core_tests import forked
from ngp import cli, store
from ngp.core.messages import Role
from ngp.core.records import AccountRecord, JournalRecord

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_daemon")
LONGEST_S = 60


@dataclass
class Host:
    """A folder with a net.conf and a state directory, and a way to run ngp there."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    in_process: bool = False

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def config(self) -> Path:
        return self.folder / "net.conf"

    def variables(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("NGP_STATE_DIR", "COLUMNS")}
        path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{FAKE}", "NGP_STATE_DIR": str(self.state_dir)}
        return kept | path | self.environment | more

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "ngp", *words]

    def ngp(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        if self.in_process:
            return self._in_process(words, self.variables(**more))
        return forked.Verb(words, self.variables(**more), self.folder).run(LONGEST_S)

    def _in_process(self, words: tuple[str, ...], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        said, complaint = io.StringIO(), io.StringIO()
        here = mock.patch.dict(os.environ, variables, clear=True)
        with here, chdir(self.folder), redirect_stdout(said), redirect_stderr(complaint):
            code = cli.run(words)
        return subprocess.CompletedProcess(words, code, said.getvalue(), complaint.getvalue())

    def start(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.ngp("start", "--config", "net.conf", *words, **more)

    def pid(self) -> int:
        return int((self.state_dir / "ngp.pid").read_text())


def make_host(folder: Path) -> Host:
    """Make a host with a net.conf that works."""
    host = Host(folder)
    host.config.write_text(f"MESH_INTERFACES: eth1\nWHEN_STOPPED: closed\nSTATE_DIR: {host.state_dir}\n")
    host.config.chmod(0o644)
    return host


def keep_books(host: Host) -> None:
    """Make a ledger with one account, whose money has no payment, and one entry of the journal."""
    host.state_dir.mkdir(mode=0o700)
    ledger = store.at(host.state_dir).open()
    identity = b"\x7f" * 32
    account = AccountRecord(identity, Role.SERVER, 5000, 1500, 0, 0, 0)
    ledger.commit([account, JournalRecord(1_000_000_000, "charge", identity, b"c" * 16, 1500, b"", "active")])
    ledger.close()


@pytest.fixture(scope="session", autouse=True)
def forking() -> None:
    """Start the process that verbs are forked from, so that no test seems to leave it behind."""
    forked.prepare()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host where nothing runs; a daemon that a test leaves behind is stopped."""
    host = make_host(tmp_path)
    yield host
    host.ngp("stop")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which the fake daemon runs."""
    host = make_host(tmp_path_factory.mktemp("running"))
    started = host.start()
    assert started.returncode == 0, started.stderr
    host.in_process = True
    yield host
    host.in_process = False
    stopped = host.ngp("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "ngp has stopped\n"), stopped.stderr
