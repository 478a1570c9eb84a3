"""Errors that name what, which value and what to do; each carries the exit code that the command line returns.

Adapters translate their library's errors into one of these at the edge. Hostile input from a neighbour can only ever
become a `PeerError`, which the daemon counts and forgets; the others reach the operator.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """What `ngp` returns to the shell; documented in docs/operators-guide.md."""

    DONE = 0
    OTHER = 1
    USAGE = 2
    CONFIGURATION = 3
    KERNEL = 4
    PAYMENT = 5
    LEDGER = 6
    RUNNING = 7


class NgpError(Exception):
    """Something failed in a way that the operator should read; the message never holds a secret."""

    exit_code = ExitCode.OTHER


class UsageError(NgpError):
    """The words of a command make no sense here."""

    exit_code = ExitCode.USAGE


class ConfigError(NgpError):
    """net.conf, or a file it names, can't be used as it is."""

    exit_code = ExitCode.CONFIGURATION


class UnseenError(ConfigError):
    """A value of net.conf that may itself be a secret can't be used: nothing may show it."""


class KernelError(NgpError):
    """The kernel refused, lacks a feature, or rights are missing."""

    exit_code = ExitCode.KERNEL


class MomentError(KernelError):
    """The kernel refused for the moment: another program holds a lock, an interface went just now. To be tried again.

    A service that ends with `KERNEL` isn't started again, as that mends nothing; this one is (docs/ngp.service).
    """

    exit_code = ExitCode.OTHER


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PASSING = FULL | {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def passes(error: BaseException) -> bool:
    """Say whether what the system refused may be granted in a while, though nobody mends anything here."""
    return isinstance(error, OSError) and error.errno in _PASSING


def refused(what: str, error: OSError, remedy: str) -> KernelError:
    """Build the error for what the system refused: a `MomentError` where it may pass by itself.

    Args:
        what: was to be done, or with which file.
        remedy: unless its disk is full.
    """
    advice = "free some space on its file system" if error.errno in FULL else remedy
    return (MomentError if passes(error) else KernelError)(f"{what}: {error.strerror}; {advice}")


class PaymentError(NgpError):
    """The payment module refused or can't do what was asked."""

    exit_code = ExitCode.PAYMENT


class LedgerError(NgpError):
    """The ledger can't be read or written; the daemon never goes on blank."""

    exit_code = ExitCode.LEDGER


class LedgerMomentError(LedgerError):
    """The ledger is well and can't be read or written for the moment: a lock, a full disk. To be tried again."""

    exit_code = ExitCode.OTHER


class RunningError(NgpError):
    """The daemon isn't running, or is running already."""

    exit_code = ExitCode.RUNNING


class PeerError(NgpError):
    """A neighbour sent something that is refused.

    Args:
        reason: a short fixed word, used as the counter's name (`malformed`, `replayed`, `foreign`, ...).
        detail: what was wrong, for the debug log; never echoed to the peer.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
