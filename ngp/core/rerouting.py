"""Rerouting: sales follow their traffic to another purchase when our routes have changed.

Answers, and packets of a route with several next routers, may still come and go by the old purchase. So a sale moves
only when that carries nothing any more, and the old purchase ends when no sale rests on it.
"""

from __future__ import annotations

from itertools import islice

from ngp.core import upstream
from ngp.core.buying import choosing
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason
from ngp.core.effects import LookUpRoutes
from ngp.core.selling.sale import Sale
from ngp.core.timers import Due
from ngp.core.world import World

LOOK_S = 1.0
LOOKED_UP_AT_ONCE = 256


def goes_elsewhere(world: World, sale: Sale, purchase: Purchase) -> None:
    """Rest a sale on a purchase by which its traffic may go now, at once if it rests on none that runs."""
    resting = world.running_purchase(sale.rests_on)
    if resting is not None:
        leave(world, resting)
    elif not upstream.move(world, sale, purchase):
        world.halt(sale, CloseReason.UPSTREAM)


def doubt(world: World, sale: Sale) -> None:
    """Look up soon where a sale's traffic goes that rests on nothing, if we bought its destination: perhaps by that.

    When our route comes back to a neighbour after a moment, nothing is bought, so nothing else would show it.
    """
    if sale.rests_on or sale.destination.is_default:
        return
    ways = (one for one in upstream.ways(world, sale) if one.identity != sale.identity)
    if any(one.in_use(world.now.monotonic_s) for one in ways):
        world.resold.doubtful.setdefault(sale.id)
        world.timers.set_if_unset(Due.DOUBTFUL, b"", world.now.monotonic_s + LOOK_S)


def look_up_doubtful(world: World) -> None:
    """Look up our routes for these sales once, the oldest first; their next traffic brings them back as the newest."""
    doubtful = world.resold.doubtful
    found = list(islice(doubtful, LOOKED_UP_AT_ONCE))
    for one in found:
        del doubtful[one]
    if sales := [sale for one in found if (sale := world.sale(one)) is not None and sale.running]:
        world.do(LookUpRoutes(tuple((one.id, one.destination.prefix) for one in sales)))
    if doubtful:
        world.timers.set_if_unset(Due.DOUBTFUL, b"", world.now.monotonic_s + LOOK_S)


def leave(world: World, purchase: Purchase) -> None:
    """Look whether a purchase is idle from now on, and let its sales follow their traffic; then it ends."""
    world.buying.left[purchase.id] = None
    world.timers.set_if_unset(Due.LEFT, b"", world.now.monotonic_s + LOOK_S)


def look(world: World) -> None:
    """Look at the purchases whose traffic goes another way."""
    left = world.buying.left
    for contract in list(left):
        for sale in list(world.resting.get(contract, {}).values()):
            follow(world, sale)
        purchase = world.running_purchase(contract)
        if purchase is None or choosing.end_if_idle(world, purchase):
            del left[contract]
    if left:
        world.timers.set_if_unset(Due.LEFT, b"", world.now.monotonic_s + LOOK_S)


def follow(world: World, sale: Sale) -> None:
    """Rest a sale that is in use on the purchase that carries its traffic, if its own has carried nothing lately."""
    resting, now_mono_s = world.running_purchase(sale.rests_on), world.now.monotonic_s
    if resting is None or not sale.running or not sale.in_use(now_mono_s) or resting.in_use(now_mono_s):
        return
    used = [one for one in upstream.ways(world, sale) if one.in_use(now_mono_s)]
    if used:
        way = max(used, key=lambda one: one.rate.at_mono_s)
        if upstream.is_too_cheap(world, sale, way) or not upstream.move(world, sale, way):  # then it is agreed anew
            world.halt(sale, CloseReason.UPSTREAM)
        leave(world, resting)
