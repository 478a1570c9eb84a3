"""Secret files: reads the credentials for a payment node from a file that only its owner may read.

A macaroon or a password gives access to the node's money. So a file that its group or others can read or write, or that
belongs to another user than root and ourselves, is refused with the command that corrects it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ngp.errors import ConfigError

FILE_BYTES_MAX = 1 << 20


class SecretShownError(ConfigError):
    """Other users can reach a secret; the text says how to prevent it."""


def read(path: Path, what: str, of_another: bool = False) -> bytes:
    """Read a file with a secret.

    Args:
        path: the file.
        what: its name in errors.
        of_another: whether the file is another program's; then that program's user may own it.

    Raises: SecretShownError, or ConfigError as `read_any`.
    """
    content, status = _read(path, what)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise SecretShownError(
            f"{what} has mode {stat.S_IMODE(status.st_mode):04o}, so others on this machine can reach it: "
            f"chmod 600 {path}"
        )
    if not of_another and status.st_uid not in (0, os.geteuid()):
        raise SecretShownError(
            f"{what} belongs to user {status.st_uid}, who can read and replace it: chown root {path}, or give ngp a "
            "copy of its own"
        )
    return content


def read_any(path: Path, what: str) -> bytes:
    """Read a file without a secret. Raises ConfigError if it can't be read, or is larger than 1 MB."""
    return _read(path, what)[0]


def _read(path: Path, what: str) -> tuple[bytes, os.stat_result]:
    try:
        with path.open("rb") as file:
            content, status = file.read(FILE_BYTES_MAX + 1), os.fstat(file.fileno())
    except OSError as error:
        raise ConfigError(f"{what} can't be read: {error.strerror}; check the path and its owner") from None
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{what} is larger than {FILE_BYTES_MAX} bytes: it must be another file than expected")
    return content, status
