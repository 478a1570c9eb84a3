"""Former meter: a meter that another version of ngp has left in the kernel. This module reads what its contracts used.

The former meter's programs run until ours replace them. So its contracts are stopped first: after that, what they used
doesn't change any more, and can be charged. The tables stay readable. So if this daemon is killed before all is
charged, the next start reads the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import count

from ngp.core.kernel import Reading
from ngp.errors import KernelError
from ngp.modules.bpf import Table
from ngp.modules.network import layout
from ngp.modules.network.meter import read_layout

HOW_TO_END = (
    "use that version's ngp stop; this version's ngp stop doesn't charge what was carried since the ledger's last entry"
)
_IN_USE = 1


def is_former(tables: dict[str, Table]) -> bool:
    """Say whether running tables have another LAYOUT. Raises: KernelError if that LAYOUT isn't known."""
    number = read_layout(tables)
    if not tables or number == layout.LAYOUT:
        return False
    if number not in layout.BOOKS:
        raise KernelError(
            f"the meter that is running was made by another version of ngp, whose tables this one can't read (LAYOUT "
            f"{number}); {HOW_TO_END}"
        )
    return True


def last_readings(tables: dict[str, Table], wait: Callable[[], None]) -> list[Reading]:
    """Let nothing more pass on the contracts of another version's meter, and return what they used in all.

    Another call returns the same readings, also in another process.

    Args: wait: returns when every packet that is on its way now has left the programs.
    Raises: KernelError.
    """
    books = layout.BOOKS[read_layout(tables)]
    with _mapped(tables[books.contracts]) as lines, _mapped(tables[books.labels]) as labels:
        words = lines.cast("Q")
        with words:
            in_use = [slot for slot, tag in zip(count(), words[books.tag :: books.line_words]) if tag & _IN_USE]
            for slot in in_use:
                words[slot * books.line_words + books.limit] = 0
            wait()
            return [_reading(books, words, labels, slot) for slot in in_use]


def _reading(books: layout.Books, words: memoryview, labels: memoryview, slot: int) -> Reading:
    contract, base_to, base_from, *_ = books.label.unpack_from(labels, slot * books.label.size)
    used, used_to = (words[slot * books.line_words + word] for word in (books.used, books.used_to))
    return Reading(contract, used_to - base_to, used - used_to - base_from)


@contextlib.contextmanager
def _mapped(table: Table) -> Iterator[memoryview]:
    memory = table.map_memory()
    try:
        with memoryview(memory)[: table.entries * table.value_bytes] as content:
            yield content
    finally:
        memory.close()
