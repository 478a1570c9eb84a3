"""Spawn: `ngp start` starts the daemon as a separate process, and waits until it is ready or has failed.

The daemon is a new interpreter in a new session rather than a fork: it shares no state with the command, and it has no
controlling terminal whose hang-up could end it. Through a pipe, whose number is in the environment, it reports its
warnings, and at last that it is ready, or why not. So `ngp start` returns 0 only when traffic is gated on the present
interfaces, and otherwise the daemon's own error and exit code. A pipe that ends without a report means that the process
died.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sdnotify

import ngp
from ngp.daemon import logs
from ngp.daemon.options import LOG_FILE, StartOptions
from ngp.daemon.state import StateLock, prepare, running_pid
from ngp.errors import ExitCode, NgpError, RunningError, refused

READY_FD = "NGP_READY_FD"
_TICK_S = 1.0
_MOST_REPORT_BYTES = 1 << 16
_MOST_ERROR = 8000  # characters, at most six bytes each as JSON
_END_S = 30.0
_INTERRUPTED = 128 + signal.SIGINT

_log = logging.getLogger(__name__)


# --- the command's side -----------------------------------------------------------------------------------------------


class StartFailed(NgpError):
    """The daemon ended before it was ready. The error has the daemon's text and exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = ExitCode(exit_code) if exit_code in set(ExitCode) and exit_code else ExitCode.OTHER


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon that is ready: its process number, whether it gates an interface already, its warnings."""

    pid: int
    gates: bool
    warnings: tuple[str, ...]


def start_detached(
    config_path: Path, state_dir: Path, verbose: bool, progress: Callable[[float, str], None]
) -> Started:
    """Start the daemon and wait until it is ready.

    Args:
        config_path, state_dir: absolute.
        verbose: the daemon writes its log messages to this terminal too; then its warnings aren't returned.
        progress: called about once a second with the seconds so far and what the start waits for.

    Raises:
        RunningError: a daemon runs there already. StartFailed: it didn't become ready. KernelError: the state directory
            can't be made, or written to.
    """
    existed = os.path.lexists(state_dir)
    prepare(state_dir)
    pid = running_pid(state_dir)
    if pid is not None:
        raise RunningError(f"ngp already runs on {state_dir} (process {pid}): ngp stop ends it")
    child, report = _spawn(config_path, state_dir, verbose)
    warnings: list[str] = []
    try:
        outcome = _await_report(report, progress, warnings.append)
    except KeyboardInterrupt:
        _end(child)
        raise
    finally:
        os.close(report)
    if outcome.get("ready") is True:
        child.returncode = 0  # the daemon outlives this command: Popen must not warn about that
        return Started(child.pid, outcome.get("gates") is True, tuple(warnings))
    failure = _failure(child, outcome, state_dir)
    if not existed and "error" in outcome and failure.exit_code != ExitCode.OTHER:  # else the message names the log
        _remove_unused(state_dir)
    raise failure


def _spawn(config_path: Path, state_dir: Path, verbose: bool) -> tuple[subprocess.Popen[bytes], int]:
    # -P: don't import packages from the current folder, which others may be able to write.
    command = [sys.executable, "-P", "-m", "ngp", "start", "--foreground", "--config", str(config_path)]
    command += ["--state-dir", str(state_dir), *(["-v"] if verbose else [])]
    # Without a terminal, the interpreter's own last messages go to the log too.
    output: IO[bytes] | int | None = None if verbose else _open_log(state_dir / LOG_FILE)
    report, ready = os.pipe()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            pass_fds=(ready,),
            env=os.environ | _import_path() | {READY_FD: str(ready)},
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(ready)
        if isinstance(output, int):
            os.close(output)
    return child, report


def _open_log(path: Path) -> int:
    try:
        return logs.open_log(path)
    except OSError as error:
        raise refused(f"log {path}", error, "start with sudo, or --state-dir") from error


def _import_path() -> dict[str, str]:
    """Return the environment for a daemon that runs from a checkout to find its package; empty for an installed one."""
    root = str(Path(ngp.__file__).resolve().parent.parent)
    if root in site.getsitepackages():
        return {}
    others = [os.path.abspath(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    return {"PYTHONPATH": os.pathsep.join([root, *(each for each in others if each != root)])}


def _await_report(report: int, progress: Callable[[float, str], None], warn: Callable[[str], None]) -> dict[str, Any]:
    """Read the pipe until it says `ready` or `error`, or ends."""
    began, stage, text = time.monotonic(), "", b""
    os.set_blocking(report, False)
    with selectors.DefaultSelector() as selector:
        selector.register(report, selectors.EVENT_READ)
        while len(text) <= _MOST_REPORT_BYTES:
            if not selector.select(_TICK_S):
                progress(time.monotonic() - began, stage)
                continue
            piece = os.read(report, 4096)
            if not piece:
                return {}
            *lines, text = (text + piece).split(b"\n")
            for said in map(_parse, lines):
                if "warning" in said:
                    warn(str(said["warning"]))
                elif "progress" in said:
                    stage = str(said["progress"])
                else:
                    return said
    return {}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _failure(child: subprocess.Popen[bytes], outcome: dict[str, Any], state_dir: Path) -> StartFailed:
    try:
        code: int = child.wait(_END_S)
    except subprocess.TimeoutExpired:
        code = ExitCode.OTHER
    if "error" in outcome:
        return StartFailed(str(outcome["error"]), int(outcome["exit_code"]))
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return StartFailed(f"the daemon {how} before it was ready: see {state_dir / LOG_FILE}", max(code, 0))


def _remove_unused(state_dir: Path) -> None:
    """Remove a state directory that has only a log, whose error the operator has already seen."""
    with suppress(OSError):
        if [each.name for each in state_dir.iterdir()] == [LOG_FILE]:
            (state_dir / LOG_FILE).unlink()
            state_dir.rmdir()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Tell the daemon to end and clean up, since the command no longer waits for it."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_END_S)


# --- the daemon's side ------------------------------------------------------------------------------------------------


class Reporter:
    """Reports to the process that waits for the start: `ngp start` through its pipe, systemd through its socket."""

    def __init__(self) -> None:
        self.was_ready = False
        text = os.environ.pop(READY_FD, "")
        self._pipe = int(text) if text.isdigit() else None
        if self._pipe is not None:
            try:
                os.set_inheritable(self._pipe, False)
            except OSError:  # the environment was copied from another process
                self._pipe = None

    @property
    def detached(self) -> bool:
        """Say whether `ngp start` waits at a pipe."""
        return self._pipe is not None

    def ready(self, gates: bool) -> None:
        """Report that gate and link are ready. Args: gates: False if there should be a gated interface, but is none."""
        self.was_ready = True
        self._tell({"ready": True, "gates": gates})
        self._close()
        sdnotify.SystemdNotifier().notify("READY=1")

    def progress(self, what: str) -> None:
        """Report what a slow start waits for."""
        self._tell({"progress": what})

    def warn(self, text: str) -> None:
        """Report a warning during the start; later warnings are in the log only."""
        self._tell({"warning": text})

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """Report an NgpError of the block to `ngp start`, which prints it. If none waits, raise the error unchanged."""
        try:
            yield
        except NgpError as error:
            told = self._tell({"error": str(error)[:_MOST_ERROR], "exit_code": int(error.exit_code)})
            self._close()
            if told:
                sys.exit(int(error.exit_code))
            raise

    def _tell(self, what: dict[str, object]) -> bool:
        if self._pipe is None:
            return False
        try:
            os.write(self._pipe, json.dumps(what).encode() + b"\n")
        except OSError:  # the command was killed; the daemon goes on
            self._close()
            return False
        return True

    def _close(self) -> None:
        if self._pipe is not None:
            with suppress(OSError):
                os.close(self._pipe)
            self._pipe = None


def run_here(config_path: Path, state_dir: Path, verbose: bool, reporter: Reporter) -> int:
    """Run the daemon in this process: lock the state directory, set up the log, run until told to stop.

    Returns:
        The exit code.

    Raises:
        NgpError: it could not start, or failed.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon handles it as `reload`
    prepare(state_dir)
    lock = StateLock.take(state_dir)
    os.umask(0o077)
    return _hold(lock, config_path, state_dir, verbose, reporter)


def _hold(lock: StateLock, config_path: Path, state_dir: Path, verbose: bool, reporter: Reporter) -> int:
    """Run under the lock.

    The pid file is removed only if nothing of ours can be in the kernel: after an orderly end, or if a start was
    refused before it changed anything. Otherwise it stays, so that `ngp stop` knows that it may have to clean up.
    """
    clean = False
    try:
        try:
            logs.set_up(state_dir, verbose, terminal=not reporter.detached, tell=reporter.warn)
        except OSError as error:
            raise refused(f"log {error.filename}", error, "make the state directory writable") from error
        code = _run(StartOptions(config_path, state_dir, reporter.ready, reporter.progress))
        clean = code == ExitCode.DONE
    except NgpError:
        clean = not (reporter.was_ready or lock.after_killed)
        raise
    finally:
        logging.shutdown()
        if clean:
            lock.release()
        else:
            lock.abandon()
    return code


def _run(options: StartOptions) -> int:
    # Late: it imports every module, which the command and the errors above don't need.
    import asyncio

    from ngp.daemon import main

    try:
        return int(asyncio.run(main.run(options)))
    except NgpError as error:
        _log.error("%s", error, extra=logs.TOLD)
        raise
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        _log.exception("the daemon failed", extra=logs.TOLD)
        raise NgpError(f"the daemon failed ({type(error).__name__}): see {options.state_dir / LOG_FILE}") from error
