"""Reload: what a reload may apply, and what it must name as waiting for a restart.

Sockets, kernel programs and the ledger's place are made once at start; a reload that swapped them would have to cut
live contracts, so it keeps the old ones and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter

from ngp.config.keys import KEYS
from ngp.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of keys whose values differ: those that take effect now, and those that a restart would bring."""

    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def changes(old: Settings, new: Settings) -> Changes:
    """Compare two Settings by key. A changed DEFAULT_PRICE shows with the prices that follow it."""
    differing = [key for key in KEYS if any(attrgetter(field)(old) != attrgetter(field)(new) for field in key.fields)]
    return Changes(
        tuple(key.name for key in differing if not key.needs_restart),
        tuple(key.name for key in differing if key.needs_restart),
    )


def keep_until_restart(old: Settings, new: Settings) -> Settings:
    """Return the new Settings with the old values of all keys that need a restart: what a reload puts in force."""
    return replace(new, **{field: getattr(old, field) for key in KEYS if key.needs_restart for field in key.fields})
