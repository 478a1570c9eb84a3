"""Newest: a memory of limited size. Others decide what is noted in it, so it must not grow without end."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Newest(dict[K, V]):
    """A dictionary in the order in which entries were noted last. Args: most: the oldest above this are forgotten."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def note(self, key: K, value: V) -> None:
        """Enter a value as the newest, whether or not there was one for the key."""
        self.pop(key, None)
        self[key] = value
        if len(self) > self._most:
            del self[next(iter(self))]
