"""Firsts: which of a neighbour's links stands for all of them in the kernel's tables.

Two routers may have several links between them, and what goes out by one may be answered by another. A neighbour is one
customer, with one contract a destination. So all that is kept for a neighbour stands under one of its links, the first,
and the kernel takes what comes by another link for the first one's. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable


class Firsts:
    """Knows a neighbour's numbers, one for each of its links, and the one that stands for them."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}  # of those that aren't their own
        self._numbers: dict[bytes, set[int]] = {}

    def __bool__(self) -> bool:
        """Whether any neighbour has several links."""
        return bool(self._first)

    def of(self, number: int) -> int:
        """Return the number that stands for a neighbour's number."""
        return self._first.get(number, number)

    def behind(self, number: int) -> list[int]:
        """Return the numbers for which one stands, its own first."""
        return [number, *(other for other, first in self._first.items() if first == number)]

    def put(self, number: int, first: int) -> None:
        """Let one number stand for another, or for itself again."""
        self._first.pop(number, None)
        if number != first:
            self._first[number] = first

    def add(self, number: int, identity: bytes) -> None:
        """Take note that a number is a link of an identity."""
        self._numbers.setdefault(identity, set()).add(number)

    def remove(self, number: int, identity: bytes) -> None:
        """Forget that a number is a link of an identity."""
        numbers = self._numbers.get(identity, set())
        numbers.discard(number)
        if not numbers:
            self._numbers.pop(identity, None)

    def wanted(self, identity: bytes, present: Iterable[int]) -> dict[int, int]:
        """Say which number should stand for each of an identity's that are present: the one that does, if it can.

        Args: present: numbers of links that the kernel has now.
        """
        numbers = self._numbers.get(identity, set()).intersection(present)
        stand = {self.of(number) for number in numbers} & numbers
        return dict.fromkeys(sorted(numbers), min(stand or numbers, default=0))

    def rename(self, old: int, new: int) -> None:
        """Put a number in the place of another one: the same link has been numbered anew."""
        for number in self.behind(old)[1:]:
            self.put(number, new)
        if old in self._first:
            self.put(new, self._first.pop(old))
