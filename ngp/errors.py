"""Errors: each says what is wrong, with which value, and what to do, and has the exit code of the command line.

Adapters translate their library's errors into these. Hostile input from a neighbour can only become a `PeerError`,
which the daemon counts and forgets; all other errors reach the operator.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of `ngp`; documented in docs/operators-guide.md."""

    DONE = 0
    OTHER = 1
    USAGE = 2
    CONFIGURATION = 3
    KERNEL = 4
    PAYMENT = 5
    LEDGER = 6
    RUNNING = 7


class NgpError(Exception):
    """An error for the operator; its message never has a secret in it."""

    exit_code = ExitCode.OTHER


class UsageError(NgpError):
    """A command's arguments are wrong."""

    exit_code = ExitCode.USAGE


class ConfigError(NgpError):
    """net.conf, or a file it names, can't be used as it is."""

    exit_code = ExitCode.CONFIGURATION


class UnseenError(ConfigError):
    """A value of net.conf can't be used, and may be a secret, so no message may show it."""


class KernelError(NgpError):
    """The kernel refused something, lacks a feature, or we lack rights."""

    exit_code = ExitCode.KERNEL


class MomentError(KernelError):
    """The kernel refused for the moment: another program holds a lock, an interface just vanished. Worth a retry.

    systemd doesn't restart a service that ends with the exit code `KERNEL`, as that wouldn't help. This error has
    another exit code, after which systemd does restart the service (docs/ngp.service).
    """

    exit_code = ExitCode.OTHER


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_YET = {errno.EADDRNOTAVAIL}  # at a boot the network, and with it an address of ours, may come later
_PASSING = FULL | _NOT_YET | {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def passes(error: BaseException) -> bool:
    """Say whether an error of the system may pass by itself."""
    return isinstance(error, OSError) and error.errno in _PASSING


def refused(what: str, error: OSError, remedy: str) -> KernelError:
    """Return the error for a refusal by the system: a `MomentError` if it may pass by itself.

    Args:
        what: the action or the file.
        remedy: what the operator should do; if the disk is full, the error says to free some space instead.
    """
    advice = "free some space on its file system" if error.errno in FULL else remedy
    return (MomentError if passes(error) else KernelError)(f"{what}: {error.strerror}; {advice}")


class PaymentError(NgpError):
    """The payment module refused a request, or can't do it."""

    exit_code = ExitCode.PAYMENT


class LedgerError(NgpError):
    """The ledger can't be read or written; the daemon never goes on with an empty one."""

    exit_code = ExitCode.LEDGER


class RecordError(LedgerError):
    """The ledger refuses what it should write, and always will: a defect of ngp, which no waiting mends."""


class LedgerMomentError(LedgerError):
    """The ledger is intact, but can't be read or written for the moment: a lock, a full disk. Worth a retry."""

    exit_code = ExitCode.OTHER


class RentalError(NgpError):
    """A tenant's request can't be served; the text is for the tenant and says what to do."""


class ProofError(RentalError):
    """A tenant doesn't prove that a WireGuard key is its own."""


class LandlordError(NgpError):
    """A landlord can't be reached, refuses, or gives an answer that can't be accepted."""


class RunningError(NgpError):
    """The daemon doesn't run, or already runs."""

    exit_code = ExitCode.RUNNING


class PeerError(NgpError):
    """A message of a neighbour is refused.

    Args:
        reason: a short fixed word, used as the counter's name (`malformed`, `replayed`, `foreign`, ...).
        detail: what was wrong, for the debug log; never echoed to the peer.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
