"""What the tests of both faces need, to see that strangers' connections cost little, end, and are no fault of ours."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ngp.modules.face.door import Bounds, Door

HASTY = Bounds(head_bytes=1024, body_bytes=512, idle_s=1.2, request_s=1, reply_s=1)


@pytest.fixture(autouse=True)
def no_fault(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which the face met an error that it didn't expect."""
    yield
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow both ends of a thousand connections in one process: a login's limit is 1,024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def await_none(door: Door) -> None:
    """Wait until the face has no connection any more."""
    deadline = time.monotonic() + 60
    while door._connections:
        assert time.monotonic() < deadline, "connections stay"
        time.sleep(0.01)
    assert not door._of_one and not door._waiting


def bytes_of_each(door: Door, hold: str, port: int, number: int) -> float:
    """Return how much memory of this process each of many connections takes.

    Args:
        hold: a program that opens them, and holds them until its input ends. Its arguments are port and number; it
            prints how many it has.
    """
    before = resident_bytes()
    command = [sys.executable, "-c", hold, str(port), str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None and client.stdout.readline() == f"{number}\n"
        assert len(door._connections) == number
        each = (resident_bytes() - before) / number
        client.communicate("")
    return each


def resident_bytes() -> int:
    """Return how much memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
