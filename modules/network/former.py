"""Former layouts: what the contracts of a meter that another version of ngp made have used, so that it can be booked.

Only what `layout.BOOKS` describes is read of such tables, and nothing is written to them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ngp.errors import KernelError
from ngp.modules.bpf import Table
from ngp.modules.network import layout
from ngp.modules.network.meter import read_layout

_IN_USE = 1


@dataclass(frozen=True, slots=True)
class LastCount:
    """What a contract used in all: towards its destination and from it. `account`: who pays, b"" if nobody does."""

    contract: bytes
    used_to_bytes: int
    used_from_bytes: int
    price_msat_per_gib: int
    account: bytes


def last_counts(tables: dict[str, Table]) -> list[LastCount]:
    """Read the contracts of a meter of any known LAYOUT.

    It is final only when its programs hang on no interface any more and those that ran have ended.
    Args: tables: its own, by name. Raises: KernelError where its LAYOUT isn't known.
    """
    books = layout.BOOKS.get(read_layout(tables))
    if books is None or not {books.contracts, books.labels, books.identities} <= tables.keys():
        raise KernelError(
            "the meter that is running was made by a version of ngp that isn't known; end it with: ngp stop"
        )
    lines, labels, identities = (_content(tables[name]) for name in (books.contracts, books.labels, books.identities))
    found = []
    line_format = struct.Struct(f"={books.line_words}Q")
    for slot in range(tables[books.contracts].entries):
        line = line_format.unpack_from(lines, slot * line_format.size)
        if not line[books.tag] & _IN_USE:
            continue
        contract, base_to, base_from, *_ = books.label.unpack_from(labels, slot * books.label.size)
        payer, used_to = line[books.tag] >> 32, line[books.used_to]
        account = books.identity.unpack_from(identities, payer * books.identity.size)[0] if payer else b""
        used_from = line[books.used] - used_to - base_from
        found.append(LastCount(contract, used_to - base_to, used_from, line[books.price], account))
    return found


def _content(table: Table) -> bytes:
    memory = table.map_memory()
    content = memory[: table.entries * table.value_bytes]
    memory.close()
    return content
