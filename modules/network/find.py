"""Find: the tables of a meter that is in the kernel already, whichever daemon and version of ngp made it.

They are found by the programs that hang on the interfaces, else by their pins.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ngp.modules.bpf import Table
from ngp.modules.network import bpf, hooks, layout
from ngp.modules.network.hooks import Direction
from ngp.modules.network.meter import read_layout


def find_running(folder: Path) -> dict[str, Table]:
    """Open the tables of what runs: first choice are those that programs in force use, and of them ours.

    There are two kinds after a daemon was killed while it put ours in another version's place, all of it booked.
    Args: folder: where the pins are. Returns: tables by name; none where nothing runs. Raises: KernelError.
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
    """Let go of tables; safe to call twice."""
    for table in tables.values():
        table.close()


def _ours(tables: dict[str, Table]) -> dict[str, Table]:
    """Close what is of another's program of that name, and what the compiler made of constants; return the rest."""
    ours = {name for name in tables if name.startswith(layout.TABLES_BEGIN)} if layout.CONFIG in tables else set()
    for name in tables.keys() - ours:
        tables.pop(name).close()
    return tables


def _find_pinned(folder: Path) -> dict[str, Table]:
    """Open the tables that are pinned, unless they are but the rest of some."""
    paths = [path for path in bpf.pins(folder, layout.TABLES_BEGIN) if not path.name.endswith("_new")]
    opened = {path.name: bpf.open_pin(path) for path in paths}
    tables = {name: table for name, table in opened.items() if table is not None}
    if _is_whole(tables):
        return tables
    close_tables(tables)
    return {}


def _is_whole(tables: dict[str, Table]) -> bool:
    """Say whether tables that were found by their pins are all there, or only the rest of some that were removed.

    They are removed when what they counted is booked, and before a contract is made all are there.
    """
    if layout.CONFIG not in tables:
        return False
    number = read_layout(tables)
    if number == layout.LAYOUT:
        return tables.keys() >= set(layout.TABLES)
    books = layout.BOOKS.get(number)
    return books is None or tables.keys() >= {books.contracts, books.labels}
