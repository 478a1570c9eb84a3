"""Key file: a secret key in STATE_DIR, which no other user of the machine can read.

A file that others can read is refused, not repaired: the key may be known already, and only the operator can judge
that. The file appears complete or not at all, so a crash can't leave half a key, and two daemons that start together
use the same one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from ngp import durable_file
from ngp.errors import ConfigError, passes, refused

KEY_BYTES = 32
MOST_BYTES = 1 << 16


def load_or_create(
    path: Path, what: str, anew: str, generate: Callable[[], bytes], size: int | None = KEY_BYTES
) -> bytes:
    """Read a key, or make one if there is none.

    Args:
        path: in an existing folder.
        what: names the key in errors. anew: what the next start would make if the file were moved away.
        generate: returns a new key.
        size: of the key, bytes; None: any up to MOST_BYTES.
    Raises: ConfigError with file and remedy; MomentError: the disk is full, or a similar obstacle.
    """
    try:
        if not os.path.lexists(path):
            durable_file.create(path, generate())
        return _read(path, what, anew, size)
    except OSError as error:
        if passes(error):
            raise refused(f"{what} {path}", error, "try again") from error
        raise ConfigError(
            f"{what} {path}: {error.strerror}; choose a state directory that ngp can read and write (STATE_DIR)"
        ) from error


def _read(path: Path, what: str, anew: str, size: int | None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{what} {path} isn't a regular file; move it away or restore it from a backup")
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{what} {path} belongs to user {found.st_uid}; run: chown {os.geteuid()} {path}")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(
                f"{what} {path} has mode {stat.S_IMODE(found.st_mode):04o}, others can read or change it; if "
                f"nobody did, run: chmod 600 {path}; otherwise move it away, and the next start makes a new {anew}"
            )
        key = file.read((size or MOST_BYTES) + 1)
    if len(key) != size if size else not 0 < len(key) <= MOST_BYTES:
        expected = size or f"1 to {MOST_BYTES}"
        raise ConfigError(
            f"{what} {path} has {found.st_size} bytes instead of {expected}; restore it from a backup, "
            f"or move it away, and the next start makes a new {anew}"
        )
    return key
