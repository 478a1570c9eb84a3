"""Basis changed: end what is sold when what it rests on costs more, is taken back, or can't carry it all any more.

A node in the middle never sells below its cost, nor more than it holds. Its routes may change, too: then contracts rest
on one neighbour's purchase, and their traffic may go by another's.
"""

from __future__ import annotations

from itertools import islice

from ngp.core import parts, rerouting, unsold, upstream
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason, State
from ngp.core.effects import LookUpRoutes
from ngp.core.kernel import Onward
from ngp.core.messages import Cancel, Prefix, RejectReason
from ngp.core.peers import Neighbour
from ngp.core.prefixes import PackedPrefix
from ngp.core.selling.quoting import forget, give_up
from ngp.core.selling.sale import Sale
from ngp.core.world import World

MOST_LOOKED_UP = 256  # most routes that are looked up when a network is bought; the others are at the next renewals


def costs_more(world: World, purchase_id: bytes, cost_msat_per_gib: int) -> None:
    """End the contracts and offers that rest on a purchase, or its quote, and are too cheap for what it costs now.

    So are those whose traffic may go by it, though they rest on another one from before our route changed.
    """
    purchase = world.running_purchase(purchase_id)
    if purchase is not None:
        _end_those_around(world, purchase)
    for sale in [*world.resting.get(purchase_id, {}).values(), *_may_go_by(world, purchase_id)]:
        if sale.least_msat_per_gib < upstream.least_above(world, sale, cost_msat_per_gib):
            withdraw(world, sale)


def _may_go_by(world: World, purchase_id: bytes) -> list[Sale]:
    """List the contracts that rest on another purchase, and whose traffic may go by this one."""
    purchase = world.running_purchase(purchase_id)
    if purchase is None or not purchase.in_use(world.now.monotonic_s):
        return []
    return [
        sale
        for contract, sales in world.resting.items()
        if (resting := world.running_purchase(contract)) is not None and resting.identity != purchase.identity
        for sale in sales.values()
        # The first condition is cheap: a server may raise its price again and again while thousands of sales run.
        if purchase.destination.covers(sale.destination) and purchase in upstream.other_ways(world, sale, resting)
    ]


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

    They rest on another neighbour's purchase, or on none, from before our route changed. Within a network, or a default
    route, our routes to some of them may lead another way still: these routes are looked up.
    """
    bought = world.running_purchase(purchase_id)
    if bought is None:
        return
    _end_those_around(world, bought)
    destination, seller = bought.destination, bought.identity
    for client in list(world.peers.by_identity):
        sale = world.sales.covering(client, destination.prefix)
        if sale is not None and _may_go_elsewhere(sale, seller):
            _goes_by(world, sale, bought)
    if not destination.is_host:
        sales = (one for one in world.contracts.values() if isinstance(one, Sale) and _may_go_elsewhere(one, seller))
        inside = ((one.id, one.destination.prefix) for one in sales if destination.covers(one.destination))
        if found := tuple(islice(inside, MOST_LOOKED_UP)):
            world.do(LookUpRoutes(found))


def _end_those_around(world: World, purchase: Purchase) -> None:
    for sale in parts.bought(world, purchase):
        _take_apart(world, sale)


def goes_through(world: World, seller: bytes, prefix: Prefix) -> None:
    """End the contracts and offers within a prefix that are too cheap for a purchase that their traffic goes by now.

    Args: seller: through whom our packets to the prefix go now.
    """
    within = PackedPrefix.of(prefix)
    for sale in [one for one in world.contracts.values() if isinstance(one, Sale)]:
        if within.covers(sale.destination) and (bought := _bought_from(world, sale, seller)) is not None:
            _goes_by(world, sale, bought)


def route_seen(world: World, contract: bytes, onward: Onward) -> None:
    """End a contract or offer, or rest it elsewhere, if our route leads its traffic through another neighbour now."""
    sale = world.sale(contract)
    if sale is None:
        return
    if parts.goes_apart(world, sale, onward):
        _take_apart(world, sale)
    elif (bought := _leads_to(world, sale, onward)) is not None:
        _goes_by(world, sale, bought)


def _take_apart(world: World, sale: Sale) -> None:
    """End a contract for a network, or offer the address of the packet that waits for it instead."""
    neighbour = world.peers.of(sale)
    if sale.running or not (sale.held and sale.destination.is_network) or neighbour is None:
        withdraw(world, sale)
        return
    if sale.state is State.QUOTED:
        world.send(neighbour, Cancel(sale.id, CloseReason.UPSTREAM.value))
    give_up(world, neighbour, sale, RejectReason.UPSTREAM)


def least_by_route(world: World, sale: Sale, onward: Onward) -> int:
    """Return the least price of a sale by the way that our route leads now; 0 if that is the one on which it rests."""
    bought = _leads_to(world, sale, onward)
    return 0 if bought is None else upstream.least_above(world, sale, bought.highest_msat_per_gib)


def _leads_to(world: World, sale: Sale, onward: Onward) -> Purchase | None:
    """Return the purchase by which a sale's traffic goes by our routes now, if the sale rests on another neighbour's.

    None: it goes the same way, or we have bought nothing there yet.
    """
    seller = upstream.seller_to(world, sale.destination.prefix, onward.router)
    return None if seller is None else _bought_from(world, sale, seller.identity)


def _bought_from(world: World, sale: Sale, seller: bytes) -> Purchase | None:
    """Return the purchase from a neighbour that covers a sale's destination, if the sale rests on another one's."""
    return upstream.bought_from(world, sale, seller) if _may_go_elsewhere(sale, seller) else None


def _may_go_elsewhere(sale: Sale, seller: bytes) -> bool:
    # A contract for a default route doesn't cover what we buy elsewhere.
    is_open = sale.running or sale.state is State.QUOTED
    return is_open and not sale.destination.is_default and seller not in (sale.identity, sale.seller)


def _goes_by(world: World, sale: Sale, bought: Purchase) -> None:
    """End a sale that is too cheap for a purchase by which its traffic goes; else rest it there when it can be.

    An offer that rests on another server's offer is taken back: nothing would compare it when this gets dearer.
    """
    is_offer = not sale.running and sale.rests_on and world.running_purchase(sale.rests_on) is None
    if is_offer or upstream.is_too_cheap(world, sale, bought):
        withdraw(world, sale)
    elif sale.running and bought.destination.covers(sale.destination):
        rerouting.goes_elsewhere(world, sale, bought)


def _has_means(world: World, sale: Sale) -> bool:
    return unsold.may_buy_for(world, world.client(sale.identity), sale.price_msat_per_gib)


def shed(world: World, purchase_id: bytes) -> None:
    """End contracts that rest on a purchase, until it can carry what the others still may.

    Those that wait for money end first, and of these the latest: they may take nothing from one that is paid for.
    """
    purchase, sales = world.running_purchase(purchase_id), list(world.resting.get(purchase_id, {}).values())
    if purchase is None:
        return
    room = upstream.free(world, purchase) + sum(one.reserved_bytes for one in sales if one.state is State.HALTING)
    if room >= 0:
        return
    latest_first = [one for one in reversed(sales) if one.running and not one.unbought]
    for sale in sorted(latest_first, key=lambda one: _has_means(world, one)):
        if room >= 0:
            return
        room += sale.reserved_bytes
        world.halt(sale, CloseReason.UPSTREAM)
