"""Place: finds the daemon that a command is for. A machine may run several, each with its own state directory.

The directory is --state-dir, else NGP_STATE_DIR, else STATE_DIR of net.conf, else /var/lib/ngp. If net.conf was
spoiled while the daemon runs, commands must still find the daemon: then only the line STATE_DIR is read.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ngp.daemon.options import DEFAULT_STATE_DIR
from ngp.errors import ConfigError

if TYPE_CHECKING:
    from ngp.core.settings import Settings
    from ngp.ports import Store

_STATE_DIR_LINE = re.compile(
    r"""^STATE_DIR[ ]*:[ ]+(?:'([^'\n]+)'|"([^"\\\n]+)"|([^\s'"#][^#\n]*?))[ ]*(?:#.*)?$""", re.MULTILINE
)
_MOST_BYTES = 1 << 18


class Place:
    """Where a verb looks for its daemon.

    Args:
        state_dir, config: as given on the command line, or None.
    """

    def __init__(self, state_dir: str | None = None, config: str | None = None) -> None:
        self._given_state_dir = state_dir or os.environ.get("NGP_STATE_DIR") or None
        self._given_config = config

    @cached_property
    def config_path(self) -> Path:
        """The configuration file. Raises ConfigError if none is given and the default places have none."""
        from ngp.config import default_path

        return Path(os.path.abspath(self._given_config if self._given_config is not None else default_path()))

    @property
    def has_config(self) -> bool:
        """Say whether there is a configuration file: one that was named, or one in the default places."""
        try:
            return bool(self.config_path)
        except ConfigError:
            return False

    def settings(self, trusted_only: bool = False, for_daemon: bool = False) -> Settings:
        """Load net.conf. Args: for_daemon: refuse a file with which no daemon could run. Raises ConfigError."""
        from ngp.config import load

        return load(self.config_path, trusted_only=trusted_only, for_daemon=for_daemon)

    @cached_property
    def state_dir(self) -> Path:
        """The state directory, whether it exists or not. Raises ConfigError for a --config that can't be used."""
        if self._given_state_dir is not None:
            return Path(os.path.abspath(self._given_state_dir))
        try:
            return Path(self.settings().state_dir)
        except ConfigError:
            found = self._state_dir_line()
            if found is None and self._given_config is not None:
                raise
            return found or DEFAULT_STATE_DIR

    def _state_dir_line(self) -> Path | None:
        try:
            with self.config_path.open("rb") as file:
                text = file.read(_MOST_BYTES).decode("utf-8", "replace")
        except (OSError, ConfigError):
            return None
        match = _STATE_DIR_LINE.search(text)
        if match is None:
            return None
        return Path(os.path.normpath(self.config_path.parent / next(filter(None, match.groups()))))

    @property
    def store(self) -> Store:
        """The ledger's place, whether a ledger exists or not: in the state directory if net.conf can't be read.

        Raises: LedgerError.
        """
        from ngp.daemon.belongings import ledger_place

        try:
            settings = self.settings()
        except ConfigError:
            settings = None
        return ledger_place(self.state_dir, settings)
