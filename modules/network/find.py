"""Find: opens the tables of a meter that is already in the kernel, whichever daemon and version of ngp made it.

It finds them by the programs on the interfaces that use them, else by the tables' pins.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ngp.modules.bpf import Table
from ngp.modules.network import bpf, hooks, layout
from ngp.modules.network.hooks import Direction
from ngp.modules.network.meter import read_layout


def find_running(folder: Path) -> dict[str, Table]:
    """Open the tables of a running meter: those of attached programs, preferably programs of this version.

    Programs of two versions are attached if a daemon was killed while it replaced the programs of another version. By
    then all that the other version's tables had counted was charged, so these tables aren't needed any more.

    Args: folder: where the pins are.
    Returns: tables by name; empty if nothing runs.
    Raises: KernelError.
    """
    found: dict[str, Table] = {}
    for index, _ in socket.if_nameindex():
        for number in hooks.attached(index, Direction.OUT):
            tables = _ours(bpf.program_tables(number))
            if read_layout(tables) == layout.LAYOUT:
                close_tables(found)
                return tables
            close_tables(tables if found else {})
            found = found or tables
    return found or _find_pinned(folder)


def close_tables(tables: dict[str, Table]) -> None:
    """Close tables; safe to call twice."""
    for table in tables.values():
        table.close()


def _ours(tables: dict[str, Table]) -> dict[str, Table]:
    """Return the meter's tables, and close the others: those of other programs, and `.rodata`, the compiler's own.

    If the meter's configuration table isn't among them, none of them is the meter's.
    """
    ours = {name for name in tables if name.startswith(layout.TABLES_BEGIN)} if layout.CONFIG in tables else set()
    for name in tables.keys() - ours:
        tables.pop(name).close()
    return tables


def _find_pinned(folder: Path) -> dict[str, Table]:
    """Open the pinned tables, unless some of them are missing."""
    paths = [path for path in bpf.pins(folder, layout.TABLES_BEGIN) if not path.name.endswith("_new")]
    opened = {path.name: bpf.open_pin(path) for path in paths}
    tables = {name: table for name, table in opened.items() if table is not None}
    if _is_whole(tables):
        return tables
    close_tables(tables)
    return {}


def _is_whole(tables: dict[str, Table]) -> bool:
    """Say whether tables that were found by their pins are complete.

    If they aren't, a removal or a set-up was not finished. Then nothing in them matters: tables are only removed after
    all that they counted is charged, and no contract is made before all tables exist.
    """
    if layout.CONFIG not in tables:
        return False
    number = read_layout(tables)
    if number == layout.LAYOUT:
        return tables.keys() >= set(layout.TABLES)
    books = layout.BOOKS.get(number)
    return books is None or tables.keys() >= {books.contracts, books.labels}
