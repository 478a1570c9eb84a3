"""Default route: one contract for all that our default route leads to a neighbour (BUY_DEFAULT_ROUTE).

The first destination is bought as ever, so that its packets don't wait any longer than usual. Then the server is asked
for the default route, and from that contract on no packet to a new destination waits. If another server is chosen
(CHOOSE_ROUTES), it is asked when the first answers come through it. A server that doesn't sell its default route
refuses; then each destination is bought by itself, and the question is repeated only after a while.

Only a node that sells nothing buys a default route for itself. We pay for all that the server sends us under a source
that we bought, and then that is every source. A household gets what it pays for. But a node in the middle also pays for
packets to its customers that none of them has bought, and drops them. So it buys one only for a client that asks, and
`ngp.core.default_resale` bounds that loss.
"""

from __future__ import annotations

from itertools import product

from ngp.core.buying import bills
from ngp.core.messages import Ask, Prefix
from ngp.core.peers import Neighbour
from ngp.core.prefixes import default_prefix
from ngp.core.world import World

AGAIN_S = 600.0
"""A server that didn't sell us its default route is asked again after this time."""
ANSWERS_S = 5.0


def ask(world: World, neighbour: Neighbour, version: int) -> None:
    """Ask a server, through which our default route leads, for all of it, unless we have that or asked lately."""
    whole, now = default_prefix(version), world.now.monotonic_s
    about = neighbour.identity, whole
    bought = world.purchases.exact(*about)
    if (bought is not None and bought.running) or now < world.buying.default_asked.get(about, float("-inf")) + AGAIN_S:
        return
    world.buying.default_asked.note(about, now)
    world.send(neighbour, Ask(whole, 0, 0))


def carried(world: World, neighbour: Neighbour, route: Prefix) -> None:
    """Ask a server from which answers come for our default route, if that is the route which leads there.

    Not before: as long as the kernel doesn't know the link address of a router that was just chosen, we can't tell that
    our default route leads there, and would decline the offer.
    """
    if is_for_us(world, route) and neighbour.up and neighbour.sells:
        ask(world, neighbour, route.version)


def is_for_us(world: World, destination: Prefix) -> bool:
    """Say whether we buy a default route."""
    return world.settings.buys_default_route and not destination.prefixlen


def bought(world: World, neighbour: Neighbour, destination: Prefix) -> None:
    """Note that a server sold us a destination: when its contract is over, we may ask at once."""
    world.buying.default_asked.pop((neighbour.identity, destination), None)


def refused(world: World) -> list[tuple[bytes, Prefix]]:
    """List the servers, and the default routes, that were asked for and not sold."""
    return [about for about, at in world.buying.default_asked.items() if world.now.monotonic_s - at >= ANSWERS_S]


def switched(world: World) -> None:
    """End the contracts for default routes if we don't buy these any more, except for those that we resell."""
    if world.settings.buys_default_route:
        return
    world.buying.default_asked.clear()
    for about in product(list(world.servers), map(default_prefix, (4, 6))):
        one = world.purchases.exact(*about)
        if one is not None and one.running and not world.resting.get(one.id):
            bills.end(world, one)
