"""Parts: what is bought by itself within a network that is sold as a whole.

A packet is counted by the purchase with the longest prefix. So where a part of a network costs more than the network, a
contract for the network would be sold below its cost:

- From one server no part costs more than a network around it. The part's purchase ends, and its sales rest on the
  network; a dearer part that the server offers unasked is declined.
- Our routes to some parts may lead to other servers. As long as such a part is used and costs more, the network is sold
  host by host, and a contract for the network that is too cheap ends.

A default route is another matter: the kernel excepts dearer parts from it (`elsewhere`).
"""

from __future__ import annotations

from ngp.core import upstream
from ngp.core.basis_changed import is_open, withdraw
from ngp.core.buying import bills
from ngp.core.buying.purchase import Purchase
from ngp.core.messages import Prefix, Propose, Reject, RejectReason
from ngp.core.peers import Neighbour
from ngp.core.world import World

# --- from one server --------------------------------------------------------------------------------------------------


def merge(world: World, purchase: Purchase) -> None:
    """End what is bought from one server at a higher price than a network around it, after one of both has changed."""
    if purchase.destination.is_default or not purchase.running:
        return
    around = _around(world, purchase.identity, purchase.destination.prefix)
    if around is not None and purchase.highest_msat_per_gib > around.highest_msat_per_gib:
        _merge(world, purchase, around)
        return
    if not purchase.destination.is_host:
        for part in list(world.purchases.within(purchase.identity, purchase.destination.prefix)):
            if part.running and part.highest_msat_per_gib > purchase.highest_msat_per_gib:
                _merge(world, part, purchase)


def _merge(world: World, part: Purchase, network: Purchase) -> None:
    for sale in list(world.resting.get(part.id, {}).values()):
        if not (sale.running and upstream.move(world, sale, network)):
            withdraw(world, sale)
    part.unneeded = True
    bills.end(world, part)


def declines(world: World, neighbour: Neighbour, propose: Propose, message_id: int) -> bool:
    """Decline a part that its server offers unasked at a higher price than the network around it, which we have bought.

    Returns: whether the offer was declined.
    """
    about = neighbour.identity, propose.destination
    if propose.contract in world.contracts or world.awaited.get(about):
        return False
    around = _around(world, *about)
    if around is None or propose.price_msat_per_gib <= around.highest_msat_per_gib:
        return False
    world.send(neighbour, Reject(propose.contract, RejectReason.NOT_BUYING), message_id)
    return True


def _around(world: World, server: bytes, prefix: Prefix) -> Purchase | None:
    """Return the narrowest network around a prefix that is bought from a server, no default route."""
    found = world.purchases.covering(server, prefix.supernet()) if prefix.prefixlen else None
    return found if found is not None and found.running and not found.destination.is_default else None


# --- from other servers -----------------------------------------------------------------------------------------------


def used(world: World, purchase: Purchase) -> None:
    """End contracts and offers for networks around a purchase that is used now, if they are too cheap for it."""
    for sale in list(world.networks.values()):
        is_around = sale.destination.bits < purchase.destination.bits and sale.destination.covers(purchase.destination)
        goes_there = is_around and is_open(sale) and purchase.identity not in (sale.identity, sale.seller)
        if goes_there and upstream.is_too_cheap(world, sale, purchase):
            withdraw(world, sale)
