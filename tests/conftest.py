"""What the tests of parts share: none leaves anything open."""

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

    A login may open 1,024, and hundreds of tests share a process. The fixture comes before a test's own and goes after
    them, and behind those of a module, whose descriptors it leaves alone.
    """
    before = open_descriptors()
    yield
    left = open_descriptors().items() - before.items()
    if left:
        gc.collect()  # what hangs in a cycle with a traceback is closed by the collector, so it can't add up
    deadline = time.monotonic() + 20  # gRPC closes in threads of its own
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = open_descriptors().items() - before.items()
    assert not left, f"left open: {sorted(left)}"


def open_descriptors() -> dict[int, str]:
    """Return this process's descriptors and what each one is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
