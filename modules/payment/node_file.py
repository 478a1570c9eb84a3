"""Node file: who the payment node was when it was last asked, for a start while it is down."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from ngp.ports import PaymentInfo


class NodeFile:
    """Public key, network and addresses of a node, in a small file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> PaymentInfo | None:
        """Return what was kept last; None where nothing was, or nothing that can be read."""
        try:
            known = json.loads(self._path.read_text())
            key, network = str(known["account_id"]), str(known["network"])
            return PaymentInfo(key, network, tuple(map(str, known.get("addresses", ()))))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, info: PaymentInfo) -> None:
        """Write it, whole or not at all: not on a full disk, since a node that answers is of use without it."""
        fresh = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(asdict(info)))
            os.replace(fresh, self._path)
