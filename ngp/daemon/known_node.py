"""Known node: which payment node served here last, as its module keeps it beside the ledger.

For whoever looks while no daemon runs, when no node is asked; and to tell of a swap, since invoices, payments and
channels are those of one node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ngp.core import kept_node
from ngp.core.values import PaymentInfo


def last(state_dir: Path, module: str) -> PaymentInfo | None:
    """Return the node that a module has used here last; None where none did, or nothing that can be read tells."""
    try:
        return kept_node.read((state_dir / kept_node.file_name(module)).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def unchanged(state_dir: Path, module: str) -> Iterator[PaymentInfo | None]:
    """Yield the node that was used last, and have it be that afterwards too: a look, which asks a node, is no use."""
    path = state_dir / kept_node.file_name(module)
    try:
        before = path.read_bytes()
    except OSError:
        before = None
    try:
        yield last(state_dir, module)
    finally:
        with suppress(OSError):
            if before is not None and path.read_bytes() != before:
                fresh = path.with_suffix(".new")
                fresh.write_bytes(before)
                fresh.replace(path)


def swapped(known: PaymentInfo | None, account_id: str, network: str) -> str:
    """Tell that another node is in use than last time; "" where it is the same, or the first."""
    if known is None or known.account_id == account_id:
        return ""
    return (
        f"another payment node than last time: now {account_id} on {network}, before {known.account_id} on "
        f"{known.network}"
    )

