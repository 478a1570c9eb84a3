"""Services: how many protocol and port pairs of one host can be told apart, free ones and payment services together.

The kernel finds only the longest prefix, so each prefix says what its wider ones say too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from ngp.core.messages import Prefix

SERVICES_A_HOST = 8
EVERYTHING = (None, None)


class Rule(Protocol):
    """An entry of FREE_DESTINATIONS or PAYMENT_SERVICES, as net.conf or as the kernel has it."""

    @property
    def prefix(self) -> Prefix: ...
    @property
    def protocol(self) -> int | str | None: ...
    @property
    def port(self) -> int | None: ...


R = TypeVar("R", bound=Rule)


def free_at(prefix: Prefix, free: Iterable[R]) -> list[R]:
    """Return the rules that say what is free at a prefix, its own and those of wider ones, each pair once.

    Where all is free (a rule of neither protocol nor port) it is that one alone.
    """
    found = {(rule.protocol, rule.port): rule for rule in free if _covers(rule.prefix, prefix)}
    return [found[EVERYTHING]] if EVERYTHING in found else list(found.values())


def room_for_services(free_here: Iterable[Rule]) -> int:
    """Return how many payment services have room at a prefix, besides what is free there; may be negative."""
    return SERVICES_A_HOST - sum((rule.protocol, rule.port) != EVERYTHING for rule in free_here)


def crowded(free: Iterable[R], services: Iterable[R]) -> Iterator[tuple[Prefix, int]]:
    """Yield each prefix at which too many pairs meet, and how many they are."""
    free, services = tuple(free), tuple(services)
    for prefix in dict.fromkeys(rule.prefix for rule in (*free, *services)):
        rated = {(rule.protocol, rule.port) for rule in services if rule.prefix == prefix}
        over = len(rated) - room_for_services(free_at(prefix, free))
        if over > 0:
            yield prefix, SERVICES_A_HOST + over


def _covers(wide: Prefix, narrow: Prefix) -> bool:
    return (
        wide.version == narrow.version
        and wide.prefixlen <= narrow.prefixlen
        and int(wide.network_address) == int(narrow.network_address) & int(wide.netmask)
    )
