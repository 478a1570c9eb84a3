"""Default resale: sell a default route that we buy from the neighbour to which our own default route leads.

The ordinary rules of resale hold (`upstream`). This module ends it when they no longer can: when our default route
leads elsewhere, when a part of it turns out to cost more (`elsewhere`), and when it costs us too much that nobody pays.

Whoever buys a default route pays for all that its server sends: every source is bought, so the gate takes every packet
of the server for a return. A node in the middle drops those that are for none of its clients' contracts, and has paid
for them. So the kernel counts their bytes, and if they are more than GRACE_DATA within an hour, nothing is resold for
an hour. The clients buy single destinations then, which let nobody else in.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ngp.core import elsewhere
from ngp.core.basis_changed import withdraw
from ngp.core.buying import bills
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.kernel import MeshRoutes
from ngp.core.messages import Prefix, Propose, Reject, RejectReason
from ngp.core.peers import Neighbour
from ngp.core.pricing import about_price
from ngp.core.resold import Unsold
from ngp.core.spans import Spans
from ngp.core.streams import LOSS_WINDOW_S
from ngp.core.world import World

ASKED_S = 30.0  # quotes are valid for less
REFUSED_S = 3600.0
"""After too much was lost, no default route is resold for this time."""


def is_in_use(world: World) -> bool:
    """Say whether a client's contract for a default route rests on a purchase, or may do so soon."""
    return world.now.monotonic_s < world.resold.asked_mono_s + ASKED_S or bool(elsewhere.resold(world))


def asked(world: World, routes: Sequence[MeshRoutes]) -> None:
    """Note that a client asks for a default route. Args: routes: where ours lead now, if they were looked at."""
    world.resold.asked_mono_s = world.now.monotonic_s
    if routes:
        routes_seen(world, routes)


def routes_seen(world: World, routes: Sequence[MeshRoutes]) -> None:
    """Follow our routes."""
    world.resold.routes = {one.version: one for one in routes}
    follow(world)


def follow(world: World) -> None:
    """Bring the kernel up to date, and end what isn't for resale any more."""
    if not world.resold.routes:
        return
    elsewhere.tell(world)
    for purchase in elsewhere.resold(world):
        version = purchase.destination.version
        if not (elsewhere.may_resell(world, version, purchase.identity) or elsewhere.is_unsure(world, version)):
            _end(world, purchase, "our default route doesn't lead there alone any more, or too many parts of it don't")


def moved(world: World, prefix: Prefix, seller: bytes) -> None:
    """End what rests on another neighbour's default route, as we lead packets through this one now (CHOOSE_ROUTES)."""
    for purchase in elsewhere.resold(world):
        if purchase.identity != seller and prefix == purchase.destination.prefix:
            _end(world, purchase, "packets go through another neighbour now")


def settle(world: World) -> None:
    """End the sales that rest on a default route although their destination has turned out to be elsewhere."""
    if not world.resold.fresh:
        return
    fresh, world.resold.fresh = Spans(part for part in world.resold.fresh if part.prefixlen), set()
    for purchase in elsewhere.resold(world):
        for sale in list(world.resting[purchase.id].values()):
            if not sale.destination.is_default and fresh.overlap(sale.destination.prefix):
                withdraw(world, sale)


def declines(world: World, neighbour: Neighbour, propose: Propose, message_id: int, sends_to: Prefix | None) -> bool:
    """Decline an offer for a part of a default route that we resell, if the part costs more than the default route.

    A server that offers us a part doesn't carry that by the default route. So the part is elsewhere from now on, and
    our clients buy it by itself. What they sent there before was charged at the default route's price, so what costs
    more must not be bought for it. The server drops these few packets. The next one is held by us, and asked for.

    An offer of another neighbour shows nothing, unless our packets go there: it may be made up to make parts of others'
    default routes elsewhere, until there are too many of them.

    Args: sends_to: the part of the destination to which our traffic goes through this neighbour, as in a proposal.

    Returns: whether the offer was declined.
    """
    destination, about = propose.destination, (neighbour.identity, propose.destination)
    wholes = [one for one in elsewhere.resold(world) if one.destination.version == destination.version]
    if sends_to is None and all(one.identity != neighbour.identity for one in wholes):
        return False
    was_asked = bool(world.awaited.get(about)) or world.buying.asked.get(about, 0.0) > world.now.monotonic_s
    if not wholes or propose.contract in world.contracts or was_asked or not destination.prefixlen:
        return False
    if elsewhere.is_excepted(world, destination):
        return False
    world.resold.parts.setdefault(destination.version, {})[destination] = None
    follow(world)
    if propose.price_msat_per_gib <= min(one.highest_msat_per_gib for one in wholes):
        return False
    world.send(neighbour, Reject(propose.contract, RejectReason.NOT_BUYING), message_id)
    price = about_price(propose.price_msat_per_gib)
    text = f"{neighbour.identity.hex()[:8]} asks {price} for {destination}, more than for its default route"
    world.log_seldom(("part", neighbour.identity), f"{text}: our clients buy that by itself", logging.INFO)
    return True


def lapse(world: World, purchase: Purchase) -> None:
    """End a default route that was bought to resell, when nobody buys it from us any more."""
    if not purchase.destination.is_default or not purchase.running or world.settings.buys_default_route:
        return
    if not world.resting.get(purchase.id):
        bills.end(world, purchase)


def unsold_seen(world: World, counted_bytes: int) -> None:
    """Stop to resell default routes if we paid for too much that was for none of our clients.

    Args: counted_bytes: the kernel's counter of such bytes.
    """
    unsold, now, wholes = world.resold.unsold, world.now.monotonic_s, elsewhere.resold(world)
    if not wholes:
        world.resold.unsold = Unsold()
        return
    # What came by other purchases is taken off, perhaps before it is counted: then the counter falls for a moment.
    if unsold.counted_bytes is None or now - unsold.since_mono_s > LOSS_WINDOW_S:
        world.resold.unsold = Unsold(max(counted_bytes, unsold.counted_bytes or 0), 0, now)
        return
    unsold.lost_bytes += counted_bytes - unsold.counted_bytes
    unsold.counted_bytes = counted_bytes
    if unsold.lost_bytes <= world.settings.grace_data_bytes:
        return
    for purchase in wholes:
        world.resold.not_before_mono_s[purchase.destination.version] = now + REFUSED_S
        _end(world, purchase, f"{unsold.lost_bytes} bytes came by it for which no client pays")
    world.log(
        "no default route is resold for an hour, and clients buy single destinations: somebody sends to hosts behind "
        "this router that didn't ask for it, or that have no contract; if the gateway lets only answers through (a "
        "firewall, NAT), this ends",
        logging.WARNING,
    )
    world.resold.unsold = Unsold()


def _end(world: World, purchase: Purchase, why: str) -> None:
    """End the purchase of a default route, and all that rests on it."""
    world.log(f"the default route of {purchase.identity.hex()[:8]} ({purchase.destination}) isn't resold now: {why}")
    for sale in list(world.resting.get(purchase.id, {}).values()):
        if sale.state is State.QUOTED:
            withdraw(world, sale)
    bills.end(world, purchase)
