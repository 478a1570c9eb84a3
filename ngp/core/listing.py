"""Listing: the first few of perhaps many names, for a message that must stay one line."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_NAMED = 3


def listed(names: Iterable[str], between: str = ", ") -> str:
    """Return the first three names, and how many more there are.

    Args: between: what separates the names; "; " if the names contain commas.
    """
    every = list(names)
    left_out = len(every) - _MOST_NAMED
    more = f"{between.lstrip(',')}and {left_out} more" if left_out > 0 else ""
    return between.join(every[:_MOST_NAMED]) + more
