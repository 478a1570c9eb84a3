"""Network namespaces of the calling thread."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"


def enter(name: str) -> None:
    """Take this thread into a network namespace for good. Raises: OSError."""
    _enter(f"/run/netns/{name}")


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Take this thread into a network namespace for a while; sockets that are made inside stay there."""
    before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _enter(f"/proc/self/fd/{before}")
    finally:
        os.close(before)


def _enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):  # os.setns comes with Python 3.12
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}", path)
    finally:
        os.close(descriptor)
