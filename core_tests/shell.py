"""Commands and waiting: the laboratory's means to act on the machine, with errors that name the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.02
MOST_POLL_S = 0.5
ASKING_SHARE = 8  # a pause is this many times as long as the question took: most of that is a program's start
PATIENCE_S = 60.0  # for events that take a second on a quiet machine: this bound only catches a hang
_LACKING = re.compile(r'exec of "(.+)" failed: No such file')


class LabError(AssertionError):
    """The laboratory, not the product, couldn't do what a test asked; the message has the command's output."""


def sh(*command: str, check: bool = True, timeout_s: float = 60.0, text_in: str | None = None) -> str:
    """Run a command and return its output.

    Raises: LabError with the command and its output when it fails and `check` is set, or when it takes too long.
    """
    done = run(command, timeout_s=timeout_s, text_in=text_in)
    if check and done.returncode:
        raise LabError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def run(
    command: Sequence[str],
    timeout_s: float = 60.0,
    text_in: str | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return the result, whatever its exit code.

    Raises: LabError when the command doesn't exist or takes longer than `timeout_s`.
    """
    stdin: dict[str, object] = {"input": text_in} if text_in is not None else {"stdin": subprocess.DEVNULL}
    try:
        # In a session of its own: the terminal's signals don't end what it leaves running before the clean-up knows it.
        done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
            list(command), text=True, capture_output=True, timeout=timeout_s, check=False, env=environment,
            start_new_session=True, **stdin,
        )  # fmt: skip
    except FileNotFoundError:
        raise _not_found(command[0]) from None
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{' '.join(command)}: no end after {timeout_s} s\n{late.stdout!r}\n{late.stderr!r}") from None
    # `ip netns exec` reports a missing command by an exit code like any other, and a test may expect a failure.
    if lacking := _LACKING.match(done.stderr):
        raise _not_found(lacking[1])
    return done


def _not_found(name: str) -> LabError:
    return LabError(f"{name}: not found; tools/setup installs what the tests need")


def await_until(condition: Callable[[], Answer], timeout_s: float = PATIENCE_S, what: str = "") -> Answer:
    """Repeat a question until the answer is true, and return the answer.

    For things that can only be polled: counters, listings of another process. The bound is generous because the
    machine may be busy; a test that passes doesn't wait for it.
    Raises: LabError naming `what` and the last answer, when the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        asked_at = time.monotonic()
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout_s} s: {what or condition}; last answer: {answer!r}")
        # A question that takes long, such as starting a program, slows the thing asked about: ask less often.
        time.sleep(min(max(POLL_S, ASKING_SHARE * (time.monotonic() - asked_at)), MOST_POLL_S))


def suspend(pid: int) -> None:
    """Stop a process, and return when none of its threads runs any more.

    The signal alone stops a thread that runs on another processor only a moment later; meanwhile it could still answer.
    Raises: ProcessLookupError if there is no such process.
    """
    os.kill(pid, signal.SIGSTOP)
    await_until(lambda: set(_thread_states(pid)) <= set("TtZX"), what=f"process {pid} stopped")


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Keep a process stopped in a `with`."""
    suspend(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _thread_states(pid: int) -> Iterator[str]:
    """Yield the state of each thread of a process, as proc_pid_stat(5) names it."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            yield stat.read_text().rpartition(")")[2].split()[0]
