"""Belongings: whether a start would accept a state directory and its files. `ngp check` uses the same rules."""

from __future__ import annotations

import os
from pathlib import Path

from ngp import identity, store
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.daemon.options import LOG_FILE, PID_FILE
from ngp.daemon.state import refuse_unsafe
from ngp.errors import ConfigError, KernelError, LedgerError
from ngp.ports import Store

_ELSEWHERE = "start with sudo, or name another directory with STATE_DIR or --state-dir"


def ledger_place(state_dir: Path, settings: Settings | None) -> Store:
    """Return where the ledger is: as net.conf says, and for the identity in the state directory.

    Args: settings: None: without a net.conf the ledger is in the state directory.
    Raises: ConfigError: the identity can't be read. LedgerError: the place can't be used at all.
    """
    if settings is None or settings.ledger is None:
        return store.at(state_dir)
    key = identity.load(state_dir)
    return store.at(state_dir, settings.ledger, b"" if key is None else identity.public_key(key))


def refuse_lost_ledger(state_dir: Path, place: Store) -> None:
    """Refuse to start with an empty ledger where an identity had one. Raises LedgerError."""
    key = state_dir / identity.KEY_FILE
    if os.path.lexists(key) and not place.exists():  # a first start makes the ledger before the key
        raise LedgerError(
            f"ledger {place}: is missing, but {key.name} exists: neighbours may have prepaid this node. Copy a backup "
            f"made by `ngp backup` to {state_dir / store.FILE}. Without a backup you can begin with an empty ledger; "
            f"what neighbours prepaid is then forgotten: move {key.name} away, write LEDGER: none in net.conf (the "
            f"ledger is then a file), run `ngp start` and `ngp stop`, and move {key.name} back over the new one"
        )


def look_at_directory(state_dir: Path) -> Check:
    """Check whether other users could change a state directory. Whether this user may use it isn't checked."""
    if not os.path.lexists(state_dir):
        return _directory(True, f"{state_dir}: doesn't exist yet, the first start makes it")
    try:
        refuse_unsafe(state_dir)
    except KernelError as error:
        return _directory(False, str(error))
    except OSError as error:
        return _directory(False, f"{state_dir}: {error.strerror}", _ELSEWHERE)
    return _directory(True, f"{state_dir}: nobody else can change it")


def look(state_dir: Path) -> list[Check]:
    """Check whether a start could write to a state directory and would accept its identity. Creates nothing."""
    directory = look_at_directory(state_dir)
    if directory.ok:
        directory = _unwritable(state_dir) or directory
    return [line for line in (directory, _bad_identity(state_dir)) if line]


def _directory(is_well: bool, found: str, remedy: str = "") -> Check:
    return Check("state directory", is_well, found, remedy, "kernel")


def _unwritable(state_dir: Path) -> Check | None:
    folder = next((each for each in (state_dir, *state_dir.parents) if os.path.lexists(each)), state_dir)
    if not folder.is_dir():
        return _directory(False, f"{state_dir} can't be made: {folder} is not a directory", _ELSEWHERE)
    if not os.access(folder, os.W_OK | os.X_OK):
        return _directory(False, f"{folder} can't be written to", _ELSEWHERE)
    for path in (state_dir / PID_FILE, state_dir / LOG_FILE):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or not os.access(path, os.W_OK)):
            return _directory(False, f"{path} is not a file that can be written to", f"move {path} away")
    return None


def _bad_identity(state_dir: Path) -> Check | None:
    try:
        identity.load(state_dir)
    except ConfigError as error:
        return Check("identity", False, str(error), kind="configuration")
    return None
