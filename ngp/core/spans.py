"""Spans: a set of prefixes as ranges of addresses, so that it takes few steps to compare a prefix with a thousand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from ngp.core.messages import Prefix


class Spans:
    """The addresses of some prefixes, in both IP versions. Ranges that meet are one."""

    def __init__(self, prefixes: Iterable[Prefix] = ()) -> None:
        self._firsts: dict[int, list[int]] = {4: [], 6: []}
        self._lasts: dict[int, list[int]] = {4: [], 6: []}
        for version, first, last in sorted((one.version, *_ends(one)) for one in prefixes):
            firsts, lasts = self._firsts[version], self._lasts[version]
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)

    def overlap(self, prefix: Prefix) -> bool:
        """Say whether any address of a prefix is among these."""
        first, last = _ends(prefix)
        at = bisect_right(self._firsts[prefix.version], last) - 1
        return at >= 0 and self._lasts[prefix.version][at] >= first

    def cover(self, prefix: Prefix) -> bool:
        """Say whether all addresses of a prefix are among these."""
        first, last = _ends(prefix)
        at = bisect_right(self._firsts[prefix.version], first) - 1
        return at >= 0 and self._lasts[prefix.version][at] >= last


def _ends(prefix: Prefix) -> tuple[int, int]:
    first = int(prefix.network_address)
    return first, first + (1 << prefix.max_prefixlen - prefix.prefixlen) - 1
