"""Durable file: written completely or not at all, and readable by its owner only.

The content is first written under another name, which nobody can guess, and flushed to the disk. So a crash can't leave
half a file in the place of a whole one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN_BYTES = 8


def create(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600. If the file has appeared meanwhile, it stays as it is. Raises OSError."""
    with _written(path, content) as fresh, suppress(FileExistsError):
        os.link(fresh, path)  # unlike a rename, it replaces nothing


def replace(path: Path, content: bytes) -> None:
    """Write a file of mode 0600; if it exists, replace it. Raises OSError."""
    with _written(path, content) as fresh:
        os.replace(fresh, path)


@contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """Write the content to a file `.NAME.TOKEN` and yield its path; the block puts that file into its place."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN_BYTES)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
