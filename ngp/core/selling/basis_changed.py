"""Basis changed: end what is sold when what it rests on costs more, is taken back, or can't carry it all any more.

A node in the middle never sells below its cost, nor more than it holds. Its routes may change, too: then contracts rest
on one neighbour's purchase, and their traffic may go by another's.
"""

from __future__ import annotations

from ngp.core import rerouting, upstream
from ngp.core.contract import CloseReason, State
from ngp.core.messages import Cancel, Prefix
from ngp.core.peers import Neighbour
from ngp.core.policy import least_above_cost
from ngp.core.prefixes import covers
from ngp.core.selling.quoting import forget
from ngp.core.selling.sale import Sale
from ngp.core.world import World


def costs_more(world: World, purchase_id: bytes, cost_msat_per_gib: int) -> None:
    """End the contracts and offers that rest on a purchase, or its quote, and are too cheap for what it costs now.

    So are those whose traffic may go by it, though they rest on another one from before our route changed.
    """
    for sale in [*world.resting.get(purchase_id, {}).values(), *_may_go_by(world, purchase_id)]:
        least = _least_above(world, sale, cost_msat_per_gib)
        if min(sale.price_msat_per_gib, (sale.renewal_offer or sale).price_msat_per_gib) < least:
            withdraw(world, sale)


def _may_go_by(world: World, purchase_id: bytes) -> list[Sale]:
    """List the contracts that rest on another purchase, and whose traffic may go by this one."""
    purchase, found = world.running_purchase(purchase_id), []
    if purchase is not None and purchase.in_use(world.now.monotonic_s):
        for contract, sales in world.resting.items():
            resting = world.running_purchase(contract)
            if resting is not None and resting.identity != purchase.identity:
                found += [one for one in sales.values() if purchase in upstream.other_ways(world, one, resting)]
    return found


def withdraw(world: World, sale: Sale) -> None:
    """End a contract, or take back its quote: its client may have accepted that already, or be about to."""
    if sale.state is State.QUOTED:
        neighbour = world.peers.of(sale)
        if neighbour is not None:
            world.send(neighbour, Cancel(sale.id, CloseReason.UPSTREAM.value))
        forget(world, sale)
    else:
        world.halt(sale, CloseReason.UPSTREAM)


def taken_back(world: World, neighbour: Neighbour, contract: bytes) -> None:
    """Take back the quotes that rest on a quote that its server takes back."""
    if contract in world.contracts:
        return
    for sale in list(world.resting.get(contract, {}).values()):
        if sale.seller == neighbour.identity:
            world.buying.quotes.pop((sale.seller, sale.destination.prefix), None)
            withdraw(world, sale)


def leads_elsewhere(world: World, purchase_id: bytes) -> None:
    """Find the contracts and offers for a destination that we bought just now: their traffic may go that way now.

    They rest on another neighbour's purchase, or on none, from before our route changed. Those that are too cheap for
    the new way end. Others are put on the new purchase, if they rest on none, or as soon as theirs carries nothing any
    more. Contracts for a default route don't cover what is bought there (`elsewhere`).
    """
    bought = world.running_purchase(purchase_id)
    if bought is None:
        return
    destination = bought.destination.prefix
    for client in list(world.peers.by_identity):
        sale = world.sales.find(client, destination.network_address)
        if sale is None or sale.destination.is_default or bought.identity in (client, sale.seller):
            continue
        if sale.price_msat_per_gib < _least_above(world, sale, bought.price_msat_per_gib):
            withdraw(world, sale)
        elif sale.running and covers(destination, sale.destination.prefix):
            rerouting.goes_elsewhere(world, sale, bought)


def goes_through(world: World, seller: bytes, prefix: Prefix) -> None:
    """End the contracts and offers within a prefix that are too cheap for a purchase that their traffic goes by now.

    Args: seller: through whom our packets to the prefix go now.
    """
    for sale in [one for one in world.contracts.values() if isinstance(one, Sale)]:
        if seller in (sale.identity, sale.seller) or not (sale.running or sale.state is State.QUOTED):
            continue
        destination = sale.destination.prefix
        bought = world.purchases.find(seller, destination.network_address) if covers(prefix, destination) else None
        if bought is None or not bought.running:
            continue
        if sale.price_msat_per_gib < _least_above(world, sale, bought.price_msat_per_gib):
            withdraw(world, sale)
        elif sale.running:
            rerouting.goes_elsewhere(world, sale, bought)


def _least_above(world: World, sale: Sale, cost_msat_per_gib: int) -> int:
    """Return the least price of a sale whose traffic costs us this much."""
    return least_above_cost(world.settings, sale.destination.prefix, world.occasion(sale), cost_msat_per_gib)


def shed(world: World, purchase_id: bytes) -> None:
    """End contracts that rest on a purchase, the latest first, until it can carry what the others still may."""
    purchase, sales = world.running_purchase(purchase_id), list(world.resting.get(purchase_id, {}).values())
    if purchase is None:
        return
    room = upstream.free(world, purchase) + sum(one.reserved_bytes for one in sales if one.state is State.HALTING)
    for sale in reversed([one for one in sales if one.running]):
        if room >= 0:
            return
        room += sale.reserved_bytes
        world.halt(sale, CloseReason.UPSTREAM)
