"""Reload: which settings a reload applies, and which wait for a restart.

Sockets, kernel programs and the ledger's place are made once, at start. To change them a reload would have to cut live
contracts, so it keeps the old values and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from ngp.config.keys import KEYS
from ngp.core.settings import Settings

_OF_LETTING = "letting."


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of keys whose values differ: those that take effect now, and those that need a restart."""

    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def changes(old: Settings, new: Settings) -> Changes:
    """Compare two Settings by key. A changed DEFAULT_PRICE shows as changes of the prices that depend on it."""
    differing = [key for key in KEYS if any(_differs(field, old, new) for field in key.fields)]
    before, after = _of_modules(old), _of_modules(new)
    of_modules = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return Changes(
        tuple(key.name for key in differing if not key.needs_restart),
        (*(key.name for key in differing if key.needs_restart), *of_modules),
    )


def _differs(field: str, old: Settings, new: Settings) -> bool:
    """Say whether a field differs; what LANDLORD switches on or off as a whole isn't compared one by one."""
    if field.startswith(_OF_LETTING) and not (old.lets and new.lets):
        return False
    return bool(attrgetter(field)(old) != attrgetter(field)(new))


def _of_modules(settings: Settings) -> dict[str, Any]:
    return {key: value for given in settings.modules.values() for key, value in given.items()}


def keep_until_restart(old: Settings, new: Settings) -> Settings:
    """Return the new Settings, but with the old values of keys that need a restart (all keys of modules do)."""
    kept = replace(new, modules=old.modules)
    for field in (field for key in KEYS if key.needs_restart for field in key.fields):
        if _differs(field, old, kept):
            kept = _with(kept, field, attrgetter(field)(old))
    return kept


def _with(settings: Any, field: str, value: Any) -> Any:
    """Return settings with another value of a field, which may be one of a part: `letting.tunnel.port`."""
    part, _, rest = field.partition(".")
    return replace(settings, **{part: _with(getattr(settings, part), rest, value) if rest else value})
