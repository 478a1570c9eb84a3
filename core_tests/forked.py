"""Verbs of `ngp` in processes that are forked from one that has loaded their modules.

The start of Python and the imports are nine tenths of what a verb costs, and the tests run a thousand verbs. A forked
process runs the same function, with its own streams, environment, namespaces and exit code. `ngp start` starts the
daemon as a new Python as always. Whether the command itself starts well is a matter of `tests/cli/test_start.py`.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from core_tests.shell import LabError
from ngp import cli

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_SLAVE = 0x2, 0x4, 0x8, 0x4000, 0x80000
MNT_DETACH = 2

_forks = multiprocessing.get_context("forkserver")
# Without gRPC, whose threads wouldn't survive a fork: the verbs that need it import it themselves.
_forks.set_forkserver_preload([__name__, "ngp.cli.start", "ngp.cli.stop", "ngp.cli.check", "ngp.config"])


def prepare() -> None:
    """Start the process that the others are forked from; the first verb does it otherwise."""
    _forks.Process(target=os.getpid).start()


def ngp(
    words: Sequence[str],
    namespace: str,
    environment: Mapping[str, str],
    output: tuple[Path, Path],
    timeout_s: float,
) -> int:
    """Run a verb in a network namespace to its end, and return its exit code (negative: the signal that killed it).

    Args:
        namespace: its name; empty for the caller's.
        output: files to which standard output and standard error are added.

    Raises: LabError when it takes longer than `timeout_s`; then it is killed.
    """
    process = _forks.Process(target=_verb, args=(list(words), namespace, dict(environment), output))
    process.start()
    process.join(timeout_s)
    try:
        if process.exitcode is None:
            process.kill()
            process.join()
            raise LabError(f"ngp {' '.join(words)}: no end after {timeout_s} s")
        return process.exitcode
    finally:
        process.close()


def _verb(words: list[str], namespace: str, environment: dict[str, str], output: tuple[Path, Path]) -> None:
    os.setsid()
    for number, path in enumerate(output, 1):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    if namespace:
        enter(namespace)
    sys.exit(cli.run(words))


def enter(namespace: str) -> None:
    """Take this process into a network namespace, with a /sys that shows it, as `ip netns exec` does."""
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    _call("setns", descriptor, CLONE_NEWNET)
    os.close(descriptor)
    _call("unshare", CLONE_NEWNS)
    _call("mount", b"", b"/", b"none", MS_REC | MS_SLAVE, None)
    _call("umount2", b"/sys", MNT_DETACH)
    _call("mount", namespace.encode(), b"/sys", b"sysfs", 0, None)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises: OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
