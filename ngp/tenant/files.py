"""Files: written completely or not at all, readable by their owner only; and locks, so that one process writes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ngp import durable_file
from ngp.errors import ConfigError, NgpError, RunningError

_MOST_BYTES = 1 << 20
WAIT_S, _ASK_AGAIN_S = 5.0, 0.02
"""How long we wait for another process to end its change, which takes milliseconds, and the pause between two tries."""
_LEFT_S = 600.0
"""A half-written file that is older than this was left by a killed process."""


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, and remove what killed processes left half written in it.

    The published client lets everybody enter its folder, and read the WireGuard files there, which have private keys.
    Files in the folder name commands, which we run. So the folder and its parent must belong to us or to root: root may
    have another user's HOME, whose folder may be a link to anywhere.

    Raises: ConfigError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_others(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _refuse_others(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
        for left in path.glob(f".*.{'[0-9a-f]' * (2 * durable_file.TOKEN_BYTES)}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _LEFT_S:
                    left.unlink()
    except OSError as error:
        raise ConfigError(
            f"{path} can't be used: {error.strerror}; run this as its owner, or set HOME to a folder that you own"
        ) from error


def _refuse_others(folder: Path) -> None:
    owner = folder.stat().st_uid
    if owner not in (0, os.geteuid()):
        raise ConfigError(
            f"{folder} belongs to user {owner}, who could have commands run by the user that runs this "
            f"({os.geteuid()}): run this as its owner, or set HOME to a folder of your own"
        )


def replace(path: Path, content: bytes) -> None:
    """Write a file of mode 0600; durable when it returns. Raises NgpError."""
    try:
        durable_file.replace(path, content)
    except OSError as error:
        raise NgpError(f"{path} can't be written: {error.strerror}; nothing was changed") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file with one mapping; empty if there is no file. Its mode becomes 0600. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
            if os.fstat(file.fileno()).st_mode & 0o077:
                os.fchmod(file.fileno(), 0o600)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; check its owner") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} has more than {_MOST_BYTES} bytes: it must be another file than expected")
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: is not YAML: correct it, or restore it from {path.name}.before") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{path} has no keys with values: correct it, or restore it from {path.name}.before")
    return found


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write a YAML file in the order of its keys. Raises NgpError."""
    replace(path, yaml.safe_dump(values, sort_keys=False, default_flow_style=False).encode())


@contextlib.contextmanager
def only_one(path: Path, what: str, remedy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock. The kernel frees it when the process ends, however it ends.

    Args: wait_s: how long to wait for another process. Raises: RunningError: another process still holds the lock.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} can't be opened: {error.strerror}; check the folder's owner") from error
    try:
        until_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= until_s:
                    raise RunningError(f"{what} runs already on {path.parent}: {remedy}") from error
            time.sleep(_ASK_AGAIN_S)
        yield
    finally:
        os.close(descriptor)
