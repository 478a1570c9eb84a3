"""Transfer: copies a whole ledger from one database to another; their tables and columns are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ngp.store.sql import Connection

_ROWS = 1000


def copy(source: Connection, target: Connection, columns: Mapping[str, Sequence[str]], without: Iterable[str]) -> None:
    """Copy all rows into empty tables, inside the caller's transactions.

    Args:
        columns: the columns of each table.
        without: names in the table `state` that belong to the source's database alone.
    """
    for table, names in columns.items():
        listed = ", ".join(names)
        found = iter(source.execute(f"SELECT {listed} FROM {table}"))
        if table == "state":
            left = frozenset(without)
            found = (row for row in found if row[0] not in left)
        marks = ", ".join("?" * len(names))
        for some in _parts(found):
            target.executemany(f"INSERT INTO {table} ({listed}) VALUES ({marks})", some)


def _parts(found: Iterator[Any]) -> Iterator[list[Any]]:
    while some := list(islice(found, _ROWS)):
        yield some
