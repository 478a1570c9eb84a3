"""The real `ngp` on a host: its net.conf, its state directory, its verbs, and kill -9."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from core_tests import forked
from core_tests.shell import PATIENCE_S, ROOT, LabError, await_until, run, suspend
from ngp import cli
from ngp.cli import client as control
from ngp.errors import NgpError, RunningError

START_TIMEOUT_S = 300.0  # on a busy emulated machine this takes minutes
STATE_KEY = "NGP_STATE_DIR"
_START = "start", "-v"


def ngp_command() -> list[str]:
    """Return the command that runs `ngp`: the installed one beside this Python, else the one of the checkout."""
    installed = Path(sys.executable).parent / "ngp"
    return [str(installed)] if installed.is_file() else [sys.executable, "-m", "ngp"]


class Daemon:
    """One daemon; made by `Host.daemon`. It may be started, killed and started again on the same state.

    Attributes:
        import_path: where its Python looks first (PYTHONPATH); with `next_layout`'s folder it is a later version.
        forks: run the verbs of this version in forked processes (`core_tests.forked`), as the tests do; the
            demonstration and the benchmark run the command.
    """

    forks = False

    def __init__(
        self,
        name: str,
        namespace: str,
        folder: Path,
        pids_of_host: Callable[[], list[int]],
        inside: Callable[..., list[str]],
        net_conf: Mapping[str, object] | str | None,
    ) -> None:
        """Prepare a daemon in a folder.

        Args:
            pids_of_host, inside: of its host: list the processes there, and make a command line that runs there.
            net_conf: None if folder, net.conf and state are there, and perhaps the daemon runs.
        """
        self.name = name
        self.folder = folder
        self.config = folder / "net.conf"
        self.state_dir = folder / "state"
        self.import_path = str(ROOT)
        self._namespace = namespace
        self._pids_of_host = pids_of_host
        self._inside = inside
        self._log = folder / "log"
        if net_conf is not None:
            folder.mkdir(parents=True)
            self.state_dir.mkdir(mode=0o700)
            self.configure(net_conf)

    def configure(self, net_conf: Mapping[str, object] | str) -> None:
        """Write net.conf, from text or from its keys and values."""
        text = net_conf if isinstance(net_conf, str) else yaml.safe_dump(dict(net_conf), sort_keys=False)
        self.config.write_text(text)
        self.config.chmod(0o600)

    def reload(self, net_conf: Mapping[str, object] | str) -> subprocess.CompletedProcess[str]:
        """Write another net.conf and reload it."""
        self.configure(net_conf)
        return self.cli("reload")

    def try_start(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `ngp start -v` and return its output, for a start that may be refused.

        The log goes to a file, since the daemon keeps the output that it was started with.
        """
        words = [*_START, "--config", str(self.config), *options, "--state-dir", str(self.state_dir)]
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            code = self._start(words, log)
        said = self._log.read_bytes()[before:].decode(errors="replace")
        return subprocess.CompletedProcess(words, code, said, said)

    def _start(self, words: list[str], log: IO[bytes]) -> int:
        if self._forks():
            return self._verb_there(words).run_into(log.fileno(), log.fileno(), START_TIMEOUT_S)
        process = subprocess.Popen(
            [*self._command(), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._environment(),
            start_new_session=True,
        )
        try:
            return process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise LabError(f"{self.name}: `ngp start` didn't return\n{self.log()}") from None

    def start(self, *options: str) -> None:
        """Start the daemon; it is ready when this returns. Raises: LabError with its output when it is refused."""
        done = self.try_start(*options)
        if done.returncode:
            raise LabError(f"{self.name}: `ngp start` ended with {done.returncode}\n{done.stdout}")

    def cli(self, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a verb of `ngp` against this daemon."""
        if self._forks():
            return self._verb_there(words).run(timeout_s)
        return run([*self._command(), *words], timeout_s=timeout_s, environment=self._environment())

    def _forks(self) -> bool:
        """Say whether a forked process would run the same version."""
        return self.forks and self.import_path == str(ROOT)

    def _verb_there(self, words: Sequence[str]) -> forked.Verb:
        return forked.Verb(words, self._environment(), namespace=self._namespace)

    def _command(self) -> list[str]:
        return self._inside(*ngp_command())

    def ask(self, verb: str, **arguments: object) -> Any:
        """Ask through the control socket, as `ngp top` does: for questions that are repeated until a condition holds.

        Starting `ngp` takes a hundred times the processor time of the answer, and the daemons need the processors too.
        Raises: RunningError when nobody listens, LabError for any other error.
        """
        try:
            return control.Daemon(self.state_dir).ask(verb, **arguments)
        except RunningError:
            raise
        except NgpError as error:
            raise LabError(f"{self.name}: {verb}: {error}") from error

    def json(self, *words: str, in_process: bool = True) -> Any:
        """Run a reading verb with --json and return its value. Raises: LabError when it fails or says no JSON.

        If a daemon runs, the verb's function is called in this process, which saves the start of Python. Don't call
        this while another thread prints, since its output would be mixed with the verb's.
        """
        done = self._verb(*words, "--json") if in_process and self._listens() else self.cli(*words, "--json")
        if done.returncode:
            raise LabError(f"{self.name}: ngp {' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError as error:
            raise LabError(f"{self.name}: ngp {' '.join(words)} --json: {error}\n{done.stdout}") from None

    def _listens(self) -> bool:
        try:
            return bool(control.Daemon(self.state_dir).ask("test"))
        except NgpError:
            return False

    def _verb(self, *words: str) -> subprocess.CompletedProcess[str]:
        said, complaint = io.StringIO(), io.StringIO()
        with redirect_stdout(said), redirect_stderr(complaint):
            code = cli.run([*words, "--state-dir", str(self.state_dir)])
        return subprocess.CompletedProcess(words, code, said.getvalue(), complaint.getvalue())

    def stop(self) -> None:
        """Stop the daemon as an operator does, and wait until its process is gone."""
        done = self.cli("stop")
        if done.returncode:
            raise LabError(f"{self.name}: `ngp stop` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        await_until(lambda: not self.pids(), what=f"end of the daemon on {self.name}")

    def kill9(self) -> None:
        """Kill the daemon without a warning, and wait until its process is gone."""
        watched = []
        for pid in self.pids():
            with suppress(ProcessLookupError):
                watched.append(os.pidfd_open(pid))
        self._each(lambda pid: os.kill(pid, signal.SIGKILL))
        # Wait for the last thread: before its end the process may look dead while its socket is still open.
        for descriptor in watched:
            ended = select.select([descriptor], [], [], PATIENCE_S)[0]
            os.close(descriptor)
            if not ended:
                raise LabError(f"{self.name}: the daemon doesn't die")

    def suspend(self) -> None:
        """Suspend its process, like a machine that has no processor time for it."""
        self._each(suspend)

    def resume(self) -> None:
        """Resume the suspended process."""
        self._each(lambda pid: os.kill(pid, signal.SIGCONT))

    def _each(self, deed: Callable[[int], None]) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                deed(pid)

    def pids(self) -> list[int]:
        """List this daemon's processes: those of its host that were started with its state directory."""
        mark = f"{STATE_KEY}={self.state_dir}".encode()
        return [pid for pid in self._pids_of_host() if mark in _environment_of(pid)]

    def log(self) -> str:
        """Return all that the daemon has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def await_logged(self, text: str) -> None:
        """Wait until a text is in the log: a line is written a moment after what it is about."""
        await_until(lambda: text in self.log(), what=f"{text!r} in the log of {self.name}")

    def _environment(self) -> dict[str, str]:
        return {**os.environ, STATE_KEY: str(self.state_dir), "PYTHONPATH": self.import_path}


def _environment_of(pid: int) -> list[bytes]:
    """Return the variables with which a process was started; none for a process that is gone or dying."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return [] if status in "ZX" else Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
