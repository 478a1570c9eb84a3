"""First links: which of a neighbour's links stands for all of its links in the kernel's tables.

Two routers may have several links between them, and a packet that leaves by one link may be answered by another. A
neighbour is one customer, with one contract for each destination. So everything about a neighbour is entered under one
of its links, the first one, and the kernel treats packets of its other links like packets of the first one. Pure.
"""

from __future__ import annotations

from collections.abc import Container


class FirstLinks:
    """Knows the numbers of each neighbour (each link has a number), and which number is the first link's."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}  # for numbers that aren't a first link's
        self._numbers: dict[bytes, set[int]] = {}

    def __bool__(self) -> bool:
        """Whether any neighbour has several links."""
        return bool(self._first)

    def of(self, number: int) -> int:
        """Return the first link's number, for the number of any link of a neighbour."""
        return self._first.get(number, number)

    def numbers_of(self, number: int) -> list[int]:
        """Return the numbers of all links whose first link has this number; this number itself comes first."""
        return [number, *(other for other, first in self._first.items() if first == number)]

    def set_first(self, number: int, first: int) -> None:
        """Set the first link of a number; it may be the number itself."""
        self._first.pop(number, None)
        if number != first:
            self._first[number] = first

    def add(self, number: int, identity: bytes) -> None:
        """Remember that a number is of a link of this identity."""
        self._numbers.setdefault(identity, set()).add(number)

    def remove(self, number: int, identity: bytes) -> None:
        """Forget that a number is of a link of this identity."""
        numbers = self._numbers.get(identity, set())
        numbers.discard(number)
        if not numbers:
            self._numbers.pop(identity, None)

    def wanted(self, identity: bytes, present: Container[int]) -> dict[int, int]:
        """Return the first link that each present number of an identity should have: the same as now, if possible.

        Args: present: the numbers of links that the kernel has now.
        """
        numbers = {number for number in self._numbers.get(identity, ()) if number in present}
        stand = {self.of(number) for number in numbers} & numbers
        return dict.fromkeys(sorted(numbers), min(stand or numbers, default=0))

    def renumber(self, old: int, new: int) -> None:
        """Replace a number by another one, because the same link has got a new number."""
        for number in self.numbers_of(old)[1:]:
            self.set_first(number, new)
        if old in self._first:
            self.set_first(new, self._first.pop(old))
