"""Known node: which payment node served here last, as its module keeps it beside the ledger.

For whoever looks while no daemon runs, when no node is asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A payment node's public key, in hexadecimal, and its network's name."""

    account_id: str
    network: str


def last(state_dir: Path, module: str) -> KnownNode | None:
    """Return the node that a module has used here last; None where none did, or nothing that can be read tells."""
    try:
        kept = json.loads((state_dir / f"{module}-node.json").read_text())  # as modules/payment/ name it
        return KnownNode(str(kept["account_id"]), str(kept["network"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
