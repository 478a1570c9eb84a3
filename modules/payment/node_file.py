"""Node file: who the payment node was when it was last asked: for a start while it is down, and to know it again.

Invoices, payments and channels are those of one node. If another answered in its place while we run, what is on its way
would be unknown there, and so be called failed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ngp.core import kept_node
from ngp.errors import PaymentError
from ngp.ports import PaymentInfo


class NodeFile:
    """Public key, network and addresses of a node, in a small file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> PaymentInfo | None:
        """Return what was kept last; None where nothing was, or nothing that can be read."""
        try:
            return kept_node.read(self._path.read_text())
        except (OSError, ValueError):
            return None

    def keep(self, info: PaymentInfo) -> None:
        """Write it, whole or not at all: not on a full disk, since a node that answers is of use without it."""
        fresh = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_text(kept_node.written(info))
            os.replace(fresh, self._path)

    def confirm(self, info: PaymentInfo, program: str, in_use: PaymentInfo | None) -> PaymentInfo:
        """Make sure that a node is the one that is in use, and keep what is new of it; returns it.

        Args:
            info: what the node says of itself now.
            program: what it is called in an error.
            in_use: the one that we work with, which may not become another; None: none yet, so it is a choice.

        Raises:
            PaymentError: another node answers in place of the one in use.
        """
        if in_use is not None and in_use != info:
            raise PaymentError(
                f"{program} is another node now ({info.account_id} on {info.network}, before {in_use.account_id} on "
                f"{in_use.network}): bring that one back; or, if it is meant and ngp accounts shows nothing on its "
                "way, restart ngp"
            )
        known = self.read()
        if known is None or (known, known.addresses) != (info, info.addresses):
            self.keep(info)
        return info
