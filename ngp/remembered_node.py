"""Remembered node: which payment node was in use last, in a small file of the state directory.

A payment module writes it, for a start while the node is down. The daemon and the verbs read it: to say whether amounts
are real money while no node is asked, and to notice that another node is in use than last time. Invoices, payments and
channels are those of one node: another one knows nothing of what is on its way, and would call it failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from ngp.core.values import PaymentInfo
from ngp.errors import PaymentError


class RememberedNode:
    """Public key, network and addresses of the node that a payment module uses.

    Args:
        state_dir: holds the file, `MODULE-node.json`.
        module: the payment module's name.
    """

    def __init__(self, state_dir: Path, module: str) -> None:
        self._path = state_dir / f"{module}-node.json"

    def read(self) -> PaymentInfo | None:
        """Return the node that was remembered last; None where none was, or the file can't be read."""
        try:
            known = json.loads(self._path.read_text())
            key, network = str(known["account_id"]), str(known["network"])
            return PaymentInfo(key, network, tuple(map(str, known.get("addresses", ()))))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, info: PaymentInfo) -> None:
        """Remember a node, or go on without: a full disk must not stop a daemon whose node answers."""
        with suppress(OSError):
            self._replace(json.dumps(asdict(info)).encode())

    def confirm(self, info: PaymentInfo, program: str, in_use: PaymentInfo | None) -> PaymentInfo:
        """Make sure that a node is the one in use, and remember what is new about it; returns it.

        Args:
            info: what the node says of itself now.
            program: its name in an error.
            in_use: the node that we work with; None at the start, when the operator's choice counts.

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

    @contextmanager
    def unchanged(self) -> Iterator[PaymentInfo | None]:
        """Yield the remembered node, and restore the file afterwards: to look at a node is not to use it."""
        try:
            before = self._path.read_bytes()
        except OSError:
            before = None
        try:
            yield self.read()
        finally:
            with suppress(OSError):
                if before is not None and self._path.read_bytes() != before:
                    self._replace(before)

    def _replace(self, content: bytes) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(self._path)


def swapped(known: PaymentInfo | None, info: PaymentInfo) -> str:
    """Say that another node is in use than last time; "" where it is the same, or the first."""
    if known is None or known.account_id == info.account_id:
        return ""
    return (
        f"another payment node than last time: now {info.account_id} on {info.network}, before {known.account_id} on "
        f"{known.network}"
    )
