"""Lines: a table of 64-byte lines in mapped memory, each with a label that only user space reads.

Contracts and accounts are in such tables. A line's words are written and read one by one, eight aligned bytes at a
time, as the kernel does too; so neither side ever sees half of a word.
"""

from __future__ import annotations

from collections.abc import Iterator

from ngp.modules.bpf import Table
from ngp.modules.network.layout import KERNEL_WORDS, LINE_BYTES, LINE_WORDS

_PAGE_BYTES = 4096


class Lines:
    """Lines and labels in mapped memory. Args: lines, labels: the two tables, with the same number of entries."""

    def __init__(self, lines: Table, labels: Table) -> None:
        self.slots_max: int = lines.entries
        self._lines, self.labels = lines.map_memory(), labels.map_memory()
        self.words = memoryview(self._lines).cast("Q")
        self.label_words, self.label_halves = memoryview(self.labels).cast("q"), memoryview(self.labels).cast("I")
        self._pages: list[bytes] = []

    def used_before(self) -> Iterator[int]:
        """Yield all slots up to the end of the last page where a label was ever written; unused pages cost little.

        The caller reads them all. So the first call of `changed` leaves out what the kernel doesn't write any more.
        """
        end, empty, last = self.slots_max * LINE_BYTES, bytes(_PAGE_BYTES), 0
        for start in range(0, end, _PAGE_BYTES):
            page = self.labels[start : min(start + _PAGE_BYTES, end)]
            if page != empty[: len(page)]:
                until = (start + len(page)) // LINE_BYTES
                for each in range(len(self._pages) * _PAGE_BYTES, until * LINE_BYTES, _PAGE_BYTES):
                    self._pages.append(self._lines[each : each + _PAGE_BYTES])
                yield from range(last, until)
                last = until

    def changed(self, slots: int) -> Iterator[int]:
        """Yield those of the first `slots` slots where the kernel wrote since the last call, or since `used_before`.

        Whole pages are compared with their former content, so unchanged lines cost next to nothing.
        """
        for index, start in enumerate(range(0, slots * LINE_BYTES, _PAGE_BYTES)):
            page = self._lines[start : start + _PAGE_BYTES]
            if index == len(self._pages):
                self._pages.append(bytes(len(page)))
            before = self._pages[index]
            if page == before:
                continue
            self._pages[index] = page
            new, old = memoryview(page).cast("Q"), memoryview(before).cast("Q")
            for line in range(0, len(new), LINE_WORDS):
                kernel = slice(line + KERNEL_WORDS, line + LINE_WORDS)
                if new[kernel] != old[kernel]:
                    yield start // LINE_BYTES + line // LINE_WORDS

    def close(self) -> None:
        """Release the mapped memory."""
        for view in (self.words, self.label_words, self.label_halves):
            view.release()
        self._lines.close()
        self.labels.close()
