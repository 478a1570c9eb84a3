"""Resold: what a node remembers about the default routes that it resells, and of what else it sells on.

`elsewhere`, `parts` and `rerouting` have the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import MeshRoutes
from ngp.core.messages import Prefix
from ngp.core.newest import Newest
from ngp.core.prefixes import PackedPrefix
from ngp.core.spans import Spans

MOST_SPLIT = 1024


@dataclass(slots=True)
class Unsold:
    """Bytes that we paid for and dropped, as their receivers hadn't bought them.

    Attributes:
        counted_bytes: the kernel's counter as it was read last; None: it wasn't read since the purchase began.
        lost_bytes: by how much the counter grew since `since_mono_s`.
    """

    counted_bytes: int | None = None
    lost_bytes: int = 0
    since_mono_s: float = 0.0


@dataclass(slots=True, eq=False)
class Resold:
    """Default routes that we buy, and what contracts for them don't cover when we resell them.

    Attributes:
        routes: our routes into the mesh, by IP version, as they were seen last. asked_mono_s: when a client asked for a
            default route last, so that they are followed.
        purchases: our purchases of default routes that aren't closed.
        parts: prefixes, by IP version, for which a neighbour offered us a contract although we had bought the default
            route: it doesn't carry them by that. They are kept as long as that purchase.
        elsewhere: the prefixes that the kernel excepts from resold default routes; None: it wasn't told any yet. spans:
            the same, to look up.
        fresh: those of them that are new in this step, so that sales within them must end.
        not_before_mono_s: by IP version, until when no default route is resold, as too much was lost.
        unsold: what was lost lately.
        doubtful: ids of contracts that rest on nothing, although we bought their destination.
        split: until when networks aren't sold as a whole, by the monotonic clock.
    """

    routes: dict[int, MeshRoutes] = field(default_factory=dict)
    asked_mono_s: float = float("-inf")
    purchases: dict[bytes, Purchase] = field(default_factory=dict)
    parts: dict[int, dict[Prefix, None]] = field(default_factory=dict)
    elsewhere: frozenset[Prefix] | None = None
    spans: Spans = field(default_factory=Spans)
    fresh: set[Prefix] = field(default_factory=set)
    not_before_mono_s: dict[int, float] = field(default_factory=dict)
    unsold: Unsold = field(default_factory=Unsold)
    doubtful: dict[bytes, None] = field(default_factory=dict)
    split: Newest[PackedPrefix, float] = field(default_factory=lambda: Newest(MOST_SPLIT))
