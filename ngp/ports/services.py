"""Services: for a host the kernel has room for few pairs of protocol and port, free ones and payment services together.

The kernel looks up only the longest prefix that covers a host. So the entry of a prefix must also have the pairs of the
wider prefixes that cover it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from ngp.core.messages import Prefix
from ngp.core.prefixes import covers

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
    """Return the rules for free traffic at a prefix: its own and those of wider prefixes, each pair once.

    If a rule without protocol and port makes everything free, it is returned alone.
    """
    found = {(rule.protocol, rule.port): rule for rule in free if covers(rule.prefix, prefix)}
    return [found[EVERYTHING]] if EVERYTHING in found else list(found.values())


def room_for_services(free_here: Iterable[Rule]) -> int:
    """Return how many payment services fit at a prefix beside its free rules; may be negative."""
    return SERVICES_A_HOST - sum((rule.protocol, rule.port) != EVERYTHING for rule in free_here)


def crowded(free: Iterable[R], services: Iterable[R]) -> Iterator[tuple[Prefix, int]]:
    """Yield each prefix that needs more pairs than the kernel has room for, with the number that it needs."""
    free, services = tuple(free), tuple(services)
    for prefix in dict.fromkeys(rule.prefix for rule in (*free, *services)):
        rated = {(rule.protocol, rule.port) for rule in services if rule.prefix == prefix}
        over = len(rated) - room_for_services(free_at(prefix, free))
        if over > 0:
            yield prefix, SERVICES_A_HOST + over
