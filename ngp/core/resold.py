"""Resold: what a node remembers about the default routes and networks that it sells as a whole.

`elsewhere` and `parts` have the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import MeshRoutes
from ngp.core.messages import Prefix
from ngp.core.newest import Newest
from ngp.core.prefixes import PackedPrefix
from ngp.core.selling.sale import Sale
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
    """Default routes that we buy, networks that we sell, and what contracts for both don't cover.

    Attributes:
        routes: our routes into the mesh, by IP version, as they were seen last. asked_mono_s: when a client asked for a
            default route last, so that they are followed.
        purchases: our purchases of default routes that aren't closed.
        parts: prefixes, by IP version, for which a neighbour offered us a contract although we had bought the default
            route: it doesn't carry them by that. They are kept as long as that purchase.
        networks: sales of networks, by id. dear: parts of them that cost more than a network around them is sold for:
            their cost, msat per GiB. split: networks with too many such parts: until when they aren't sold as a whole.
        elsewhere: the prefixes that the kernel excepts from resold default routes and from networks; None: it wasn't
            told any yet. spans: the same, to look up.
        fresh: those of them that are new in this step, so that sales within them must end.
        not_before_mono_s: by IP version, until when no default route is resold, as too much was lost.
        unsold: what was lost lately.
    """

    routes: dict[int, MeshRoutes] = field(default_factory=dict)
    asked_mono_s: float = float("-inf")
    purchases: dict[bytes, Purchase] = field(default_factory=dict)
    parts: dict[int, dict[Prefix, None]] = field(default_factory=dict)
    networks: dict[bytes, Sale] = field(default_factory=dict)
    dear: dict[PackedPrefix, int] = field(default_factory=dict)
    split: Newest[PackedPrefix, float] = field(default_factory=lambda: Newest(MOST_SPLIT))
    elsewhere: frozenset[Prefix] | None = None
    spans: Spans = field(default_factory=Spans)
    fresh: set[Prefix] = field(default_factory=set)
    not_before_mono_s: dict[int, float] = field(default_factory=dict)
    unsold: Unsold = field(default_factory=Unsold)

    def forget(self, sale: Sale) -> None:
        """Forget the sale of a network, and the dear parts around which no network is sold any more."""
        if self.networks.pop(sale.id, None) is not None and self.dear:
            networks = {one.destination for one in self.networks.values()}
            gone = [part for part in self.dear if not any(one.has_part(part) for one in networks)]
            for part in gone:
                del self.dear[part]
