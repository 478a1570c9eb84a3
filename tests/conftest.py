"""Shared by the tests of all parts: no test leaves anything open."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Fail a test that leaves files, sockets or BPF objects open.

    A login may open 1,024 files, and hundreds of tests share a process. This fixture is set up before a test's own
    fixtures and ends after them. A module's fixtures end later, so their descriptors don't count.
    """
    before = open_descriptors()
    yield
    left = open_descriptors().items() - before.items()
    if left:
        gc.collect()  # objects in a cycle with a traceback are only closed by the collector
    deadline = time.monotonic() + 20  # gRPC closes in threads of its own
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = open_descriptors().items() - before.items()
    assert not left, f"left open: {sorted(left)}"


def open_descriptors() -> dict[int, str]:
    """Return this process's descriptors, and what each of them is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
