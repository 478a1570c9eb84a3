"""Streams: standard input, output and error, even if the caller closed them (`ngp start >&-`).

The system gives the lowest free descriptor to the next file that is opened. Without this module the ledger or a
neighbour's socket could become descriptor 1 or 2, and an output line of a library, or of a program that we run, would
be written into it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_NAMES = ("stdin", "stdout", "stderr")


def fill() -> None:
    """Open /dev/null for each standard stream that is closed. Call it before anything else is opened."""
    for number, name in enumerate(_NAMES):
        if not _is_open(number):
            _take(number)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _take(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == number:
        os.set_inheritable(number, True)
        return
    os.dup2(opened, number)
    os.close(opened)


def say(*lines: str) -> None:
    """Print what a verb has done. A failure to print is ignored: the exit code shows that the verb has succeeded."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:
        forget_stdout()


def note(text: str, end: str = "\n") -> None:
    """Write to standard error; ignore it if that is closed."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def forget_stdout() -> None:
    """Replace standard output by /dev/null after its reader is gone, so that the interpreter's last flush succeeds."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
