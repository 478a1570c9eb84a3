"""Operators: the group ngp, whose members may read files without secrets, and use the control socket."""

from __future__ import annotations

import grp
import os
from contextlib import suppress

from ngp.daemon.options import GROUP

OPERATORS_MODE = 0o640
"""Mode of files without secrets, for operators: root writes them, the group ngp (where it exists) reads them."""


def show_operators(descriptor: int) -> None:
    """Let the group ngp (where it exists) and nobody else read an open file, whatever mode it had."""
    with suppress(OSError):
        os.fchmod(descriptor, OPERATORS_MODE)
    group = operators_group()
    if group is not None:
        with suppress(OSError):
            os.fchown(descriptor, -1, group)


def operators_group() -> int | None:
    """Return the number of the group ngp, or None where the system has none."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None
