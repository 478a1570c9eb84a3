"""Verbs of `ngp` in processes that are forked from one that has loaded their modules.

The start of Python and the imports are most of what a verb costs, and the tests run a thousand verbs. A forked process
runs the same function, with its own streams, environment, namespaces and exit code. `ngp start` starts the daemon as a
new Python as always. Tests in which the command itself is the point start the command: closed streams, terminals,
Ctrl-C, the folder that it is started in.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from core_tests import namespaces
from core_tests.shell import ROOT, LabError
from ngp import cli

CLONE_NEWNS = 0x00020000
MS_REC, MS_SLAVE = 0x4000, 0x80000
MNT_DETACH = 2

_forks = multiprocessing.get_context("forkserver")
# Without gRPC, whose threads wouldn't survive a fork: a verb that needs it imports it itself.
_forks.set_forkserver_preload([__name__, "ngp.cli.start", "ngp.cli.stop", "ngp.cli.check", "ngp.config"])
# Starting a process and asking for an exit code both read the codes of all processes that have ended; when two threads
# read the same one, the second finds it gone and says 255.
_reading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb and where it runs.

    Attributes:
        words: those after `ngp`.
        environment: all of it. A `sitecustomize` in a folder of PYTHONPATH is run first, as a new Python would do.
        folder: the current one.
        namespace: the network namespace's name; empty for the caller's.
    """

    words: Sequence[str]
    environment: Mapping[str, str]
    folder: Path = ROOT
    namespace: str = ""

    def run(self, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run it to its end and return what it printed. Raises: LabError when it takes longer; then it is killed."""
        (said, stdout), (complained, stderr) = os.pipe(), os.pipe()
        with open(said, "rb") as output, open(complained, "rb") as complaints, ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(pipe.read) for pipe in (output, complaints)]
            try:
                code = self.run_into(stdout, stderr, timeout_s)
            finally:
                os.close(stdout)
                os.close(stderr)
            out, err = (text.result().decode() for text in texts)
        return subprocess.CompletedProcess(self.words, code, out, err)

    def run_into(self, stdout: int, stderr: int, timeout_s: float) -> int:
        """Run it to its end, with these descriptors as its output. Returns its exit code, or minus the signal's number.

        Raises: LabError when it takes longer than `timeout_s`; then it is killed.
        """
        with Connection(os.dup(stdout), readable=False) as out, Connection(os.dup(stderr), readable=False) as err:
            process = _forks.Process(target=_run, args=(self, out, err))
            with _reading:
                process.start()
        in_time = wait([process.sentinel], timeout_s)
        if not in_time:
            process.kill()
            wait([process.sentinel])
        with _reading:
            code = process.exitcode
            process.close()
        if not in_time or code is None:
            raise LabError(f"ngp {' '.join(self.words)}: no end after {timeout_s} s")
        return code


def prepare() -> None:
    """Start the process that the others are forked from; the first verb does it otherwise."""
    process = _forks.Process(target=os.getpid)
    process.start()
    process.join()
    process.close()


def _run(verb: Verb, out: Connection, err: Connection) -> None:
    os.setsid()
    for number, stream in ((1, out), (2, err)):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ.clear()
    os.environ.update(verb.environment)
    os.chdir(verb.folder)
    if verb.namespace:
        _enter(verb.namespace)
    for folder in verb.environment.get("PYTHONPATH", "").split(os.pathsep):
        if (site := Path(folder, "sitecustomize.py")).is_file():
            sys.path.insert(0, folder)
            runpy.run_path(str(site))
    sys.exit(cli.run(verb.words))


def _enter(namespace: str) -> None:
    """Take this process into a network namespace, with a /sys that shows it, as `ip netns exec` does."""
    namespaces.enter(namespace)
    _call("unshare", CLONE_NEWNS)
    _call("mount", b"", b"/", b"none", MS_REC | MS_SLAVE, None)
    _call("umount2", b"/sys", MNT_DETACH)
    _call("mount", namespace.encode(), b"/sys", b"sysfs", 0, None)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises: OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
