"""Kept node: who the payment node was when it was last asked, as a payment module keeps it beside the ledger.

The module that writes the file and whoever looks while no daemon runs read it by this.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from ngp.core.values import PaymentInfo


def file_name(module: str) -> str:
    """Name the file of a payment module, in the state directory."""
    return f"{module}-node.json"


def written(info: PaymentInfo) -> str:
    """Return what is kept of a node."""
    return json.dumps(asdict(info))


def read(text: str) -> PaymentInfo | None:
    """Return the node that a file's text tells of; None where it is damaged."""
    try:
        known = json.loads(text)
        key, network = str(known["account_id"]), str(known["network"])
        return PaymentInfo(key, network, tuple(map(str, known.get("addresses", ()))))
    except (ValueError, KeyError, TypeError):
        return None
