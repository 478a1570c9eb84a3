"""Commands: where programs of this system are that modules run."""

from __future__ import annotations

import os
import shutil

_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find_command(name: str) -> str | None:
    """Return the path of a command, or None.

    The sbin folders are searched too, as sudo and systemd may leave them out of PATH.
    """
    return shutil.which(name, path=_SEARCH_PATH)
