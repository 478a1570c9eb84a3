"""Standard streams that are closed, full or unread: a verb does its work, and its exit code is about that work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from tests.cli.conftest import LONGEST_S, Host

_CLOSE = {"in": "<&-", "out": ">&-", "err": "2>&-"}
_FILLED = """
import itertools, os, sys
from ngp.cli import streams
combinations = [some for count in (1, 2, 3) for some in itertools.combinations(range(3), count)]
for some in combinations:
    if not (child := os.fork()):
        for number in some:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)
        streams.fill()
        print("to stdout", flush=True)
        print("to stderr", file=sys.stderr, flush=True)
        null = all(os.readlink(f"/proc/self/fd/{number}") == os.devnull for number in some)
        kept = all(os.get_inheritable(number) for number in some)
        os._exit(0 if null and kept and os.open("/", os.O_RDONLY) > 2 and not (0 in some and sys.stdin.read()) else 1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"closed: {some}")
print(len(combinations), "combinations")
"""


def shell(host: Host, streams: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a verb with its streams changed by the shell."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *host.command(*words)],
        cwd=host.folder, env=host.variables(), text=True, capture_output=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on stderr, without the progress that a slow machine shows."""
    progress = ("ngp is starting: ", "ngp is stopping: ")
    return [line for line in done.stderr.splitlines() if not line.startswith(progress)]


def places(host: Host) -> list[str]:
    """Return the files that are the daemon's standard input, output and error."""
    return [os.readlink(f"/proc/{host.pid()}/fd/{number}") for number in range(3)]


def test_what_is_closed_is_filled_in_every_combination(host: Host) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FILLED], env=host.variables(), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("7 combinations\n")


@pytest.mark.parametrize("closed", [["out"], ["err"], ["in", "out"], ["in", "out", "err"]], ids="+".join)
def test_start_and_stop_work_with_closed_streams(host: Host, closed: list[str]) -> None:
    streams = " ".join(_CLOSE[one] for one in closed)
    started = shell(host, streams, "start", "--config", "net.conf")
    assert (started.returncode, told(started)) == (0, [])
    assert places(host) == [os.devnull, os.devnull, str(host.state_dir / "ngp.log")]
    assert host.ngp("server", "test").stdout == "Test OK\n"
    stopped = shell(host, streams, "stop")
    assert (stopped.returncode, told(stopped)) == (0, [])


def test_a_daemon_in_the_foreground_keeps_its_books_and_sockets_off_closed_streams(host: Host) -> None:
    stays = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *host.command("start", "--foreground", "--config", "net.conf")],
        cwd=host.folder, env=host.variables(),
    )  # fmt: skip
    while host.ngp("server", "test").returncode:
        assert stays.poll() is None
    assert places(host) == [os.devnull] * 3
    assert host.ngp("stop").returncode == 0
    assert stays.wait(LONGEST_S) == 0


@pytest.mark.parametrize("words", [["contracts"], ["check", "--config", "net.conf"], ["top", "--count", "1"]])
def test_verbs_that_read_end_as_ever_with_closed_streams(running: Host, words: list[str]) -> None:
    done = shell(running, "<&- >&- 2>&-", *words)
    assert done.returncode == running.ngp(*words).returncode == 0


def test_a_usage_error_is_2_with_stderr_closed(host: Host) -> None:
    assert shell(host, "2>&-", "contracts", "--nonsense").returncode == 2
    refused = shell(host, "<&-", "lightning", "connect")
    assert refused.returncode == 2
    assert "no URI was given" in refused.stderr


@pytest.mark.parametrize("output", ["/dev/full", "a pipe without a reader"])
def test_what_is_done_counts_as_done_where_the_output_cant_be_written(host: Host, output: str) -> None:
    with open_output(output) as writable:
        for words in (("start", "--config", "net.conf"), ("server", "test"), ("block", "7f3a"), ("stop",)):
            done = subprocess.run(
                host.command(*words), cwd=host.folder, env=host.variables(), stdout=writable,
                stderr=subprocess.PIPE, text=True, timeout=LONGEST_S, check=False,
            )  # fmt: skip
            assert (done.returncode, told(done)) == (0, []), words


def open_output(kind: str) -> TextIO:
    """Open a file that accepts no output."""
    if kind.startswith("/"):
        return Path(kind).open("w")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")
