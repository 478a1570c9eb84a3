"""Remembered node: the payment node that was in use last, in a small file of the state directory.

A payment module writes the file, and needs it when ngp starts while the node is down. The daemon and the verbs read it
for two reasons: to know without asking the node whether amounts are real money, and to notice that another node is in
use than last time. Another node doesn't know the invoices, payments and channels of the first one, and would report
payments that are on their way as failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from ngp.errors import PaymentError
from ngp.ports.payment import PaymentInfo


class RememberedNode:
    """Public key, network and addresses of the node that a payment module uses.

    Args:
        state_dir: has the file, `MODULE-node.json`.
        module: the payment module's name.
    """

    def __init__(self, state_dir: Path, module: str) -> None:
        self._path = state_dir / f"{module}-node.json"

    def read(self) -> PaymentInfo | None:
        """Return the remembered node; None if there is none, or if the file can't be read."""
        try:
            known = json.loads(self._path.read_text())
            key, network = str(known["account_id"]), str(known["network"])
            return PaymentInfo(key, network, tuple(map(str, known.get("addresses", ()))))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, info: PaymentInfo) -> None:
        """Remember a node. Errors are ignored: a full disk must not stop a daemon whose node answers."""
        with suppress(OSError):
            self._replace(json.dumps(asdict(info)).encode())

    def confirm(self, info: PaymentInfo, program: str, in_use: PaymentInfo | None) -> PaymentInfo:
        """Check that a node is the one in use, remember its present addresses, and return it.

        Args:
            info: the node's present description of itself.
            program: the node's name in an error.
            in_use: the node that we work with; None at the start, when the operator may choose another.

        Raises:
            PaymentError: another node answers in place of the one in use.
        """
        if in_use is not None and in_use != info:
            raise PaymentError(
                f"{program} is another node now ({info.account_id} on {info.network}, before {in_use.account_id} on "
                f"{in_use.network}): connect the former node again; or, if you intended this and ngp accounts shows no "
                "payment on its way, restart ngp"
            )
        known = self.read()
        if known is None or (known, known.addresses) != (info, info.addresses):
            self.keep(info)
        return info

    @contextmanager
    def unchanged(self) -> Iterator[PaymentInfo | None]:
        """Yield the remembered node and restore the file afterwards: a node that is only checked isn't in use yet."""
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
    """Say that another node is in use than last time; "" if it is the same node, or if none is remembered."""
    if known is None or known.account_id == info.account_id:
        return ""
    return (
        f"another payment node than last time: now {info.account_id} on {info.network}, before {known.account_id} on "
        f"{known.network}"
    )
