"""Plain: turns answers into JSON values; the keys are the fields of the dataclass.

A field made with `when_known` is left out while it is None, as not every row has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any

_OMIT = "omitted where None"
_AS_IT_IS = frozenset({str, int, bool, float, type(None)})  # checked first, for speed: there may be 100,000 rows


def when_known() -> Any:
    """Make a field that only some rows have."""
    return field(default=None, metadata={_OMIT: True})


def instant(utc_s: int) -> datetime | None:
    """Return a UTC instant, or None for 0, which means never."""
    return datetime.fromtimestamp(utc_s, UTC) if utc_s else None


def plain(value: Any) -> Any:
    """Return an answer as JSON values: dataclasses as objects, instants as ISO 8601 in UTC."""
    kind: Any = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is datetime:
        return value.isoformat().replace("+00:00", "Z")
    if is_dataclass(value):
        names, read, omitted = _shape(kind)
        return {
            name: each if type(each) in _AS_IT_IS else plain(each)
            for name, each in zip(names, read(value), strict=False)
            if each is not None or name not in omitted
        }
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return value


@lru_cache(maxsize=64)
def _shape(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]], frozenset[str]]:
    """Return a dataclass's field names, a function that reads all fields at once, and the fields omitted where None."""
    names = tuple(each.name for each in fields(kind))  # with a single name attrgetter would return no tuple
    omitted = frozenset(each.name for each in fields(kind) if _OMIT in each.metadata)
    return names, attrgetter(*names, "__class__"), omitted
