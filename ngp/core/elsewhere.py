"""Elsewhere: which parts of a default route aren't covered when we resell it.

A node in the middle sells `0.0.0.0/0` by what it buys from one neighbour, to which its own default route leads. Some
parts of it cost something else, or must be bought elsewhere:

- our routes lead to them through another router that sells to us, or that we don't know;
- we have bought them by themselves, at a higher price than the default route;
- the server offered us a contract for them, as it reaches them through the mesh itself: its own contract for the
  default route doesn't cover them.

The kernel excepts these parts from our clients' contracts for default routes. So a packet to such a part is held, and
its destination is sold by itself, never below cost. If the default route doesn't lead to one neighbour that sells to
us, or if there are too many such parts, all of it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from ngp.core.buying.purchase import Purchase
from ngp.core.effects import SetElsewhere
from ngp.core.kernel import MeshRoutes, Router
from ngp.core.messages import Prefix
from ngp.core.peers import Neighbour
from ngp.core.prefixes import default_prefix
from ngp.core.spans import Spans
from ngp.core.world import World

MOST_PARTS = 1024
"""Parts of a default route that may be elsewhere. The kernel has room for more: it gets new ones before old ones go."""


def resold(world: World) -> list[Purchase]:
    """List the running purchases of default routes on which our clients' contracts rest."""
    return [one for one in world.resold.purchases.values() if one.running and world.resting.get(one.id)]


def may_resell(world: World, version: int, seller: bytes) -> bool:
    """Say whether we may sell what a neighbour sells us as its default route."""
    routes, now = world.resold.routes.get(version), world.now.monotonic_s
    if routes is None or now < world.resold.not_before_mono_s.get(version, float("-inf")):
        return False
    leads_to = _seller(world, routes)
    everything = default_prefix(version)
    return leads_to is not None and leads_to.identity == seller and everything not in _parts(world, routes)


def is_unsure(world: World, version: int) -> bool:
    """Say whether we can't tell yet to which neighbour our default route leads: the kernel looks for its link address.

    Meanwhile all of it is elsewhere, but nothing needs to end.
    """
    routes = world.resold.routes.get(version)
    router = routes.default if routes is not None else None
    return router is not None and router.link_address is None and world.peers.at(router) is None


def is_elsewhere(world: World, destination: Prefix) -> bool:
    """Say whether a destination, or a part of it, isn't covered by a default route that we resell."""
    return world.resold.spans.overlap(destination)


def is_excepted(world: World, destination: Prefix) -> bool:
    """Say whether the kernel excepts all of a destination from default routes that we resell."""
    return world.resold.spans.cover(destination)


def tell(world: World) -> None:
    """Tell the kernel what is elsewhere now, if that changed."""
    parts = frozenset(part for routes in world.resold.routes.values() for part in _parts(world, routes))
    before = world.resold.elsewhere
    if parts == before:
        return
    world.resold.elsewhere, world.resold.spans = parts, Spans(parts)
    world.resold.fresh |= parts - (before or frozenset())
    world.do(SetElsewhere(tuple(sorted(parts, key=lambda part: (part.version, part.network_address, part.prefixlen)))))


def _parts(world: World, routes: MeshRoutes) -> set[Prefix]:
    everything, seller = {default_prefix(routes.version)}, _seller(world, routes)
    if seller is None or not routes.is_whole:
        return everything
    costs = {router: _may_cost(world, router, routes, seller) for router in {router for _, router in routes.others}}
    found = {prefix for prefix, router in routes.others if costs[router]}
    found.update(world.resold.parts.get(routes.version, ()), _dearer(world, seller, routes.version))
    return found if len(found) <= MOST_PARTS else everything


def _seller(world: World, routes: MeshRoutes) -> Neighbour | None:
    """Return the neighbour that sells to us and to which our default route leads."""
    found = world.peers.at(routes.default) if routes.default is not None else None
    return found if found is not None and found.sells else None


def _may_cost(world: World, router: Router, routes: MeshRoutes, seller: Neighbour) -> bool:
    """Say whether we might have to pay another neighbour at a router: one that hasn't said hello yet may sell to us."""
    if routes.default is not None and router.place == routes.default.place:
        return False
    found = world.peers.at(router)
    return found is None or (found.sells and found.identity != seller.identity)


def _dearer(world: World, seller: Neighbour, version: int) -> Iterator[Prefix]:
    """Yield what we buy from a neighbour at a higher price than its default route."""
    whole = world.purchases.exact(seller.identity, default_prefix(version))
    if whole is None or not whole.running:
        return
    for link in world.peers.links_of(seller.identity):
        for one in link.contracts.values():
            is_part = isinstance(one, Purchase) and one.running and one.destination.version == version
            if is_part and one.highest_msat_per_gib > whole.highest_msat_per_gib:
                yield one.destination.prefix
