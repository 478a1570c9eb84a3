"""Node account: if ngp pays by a Lightning node, ACCOUNT_ID must be that node's public key, or `none`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ngp.module_keys import ACCOUNT_ID


def check(module: str) -> Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]]:
    """Return the check for a module's settings."""

    def find(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        account = values.get(ACCOUNT_ID)
        if account is not None and re.fullmatch(r"0[23][0-9a-f]{64}", account) is None:
            yield (
                ACCOUNT_ID,
                f"is not a Lightning node's public key, which {module} needs: write its 66 hexadecimal digits, or none",
            )

    return find
