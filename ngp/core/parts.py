"""Parts: a network is sold as a whole only if all of it costs us the same.

It is sold for what it costs us, plus our margin. But our routes may lead a part of it through another neighbour that
sells to us. And we may have bought a part by itself when its price was higher: its packets go by that purchase. Then
the network's contracts end, and for a while its destinations are sold one by one, each above its own cost.

Our routes to parts are looked up when a network is quoted and sold, after each change of routes, and when a neighbour
begins to sell. What was bought is compared when a network is sold, when it gets cheaper, and when a part is bought or
gets dearer.
"""

from __future__ import annotations

import logging

from ngp.core import upstream
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.effects import LookUpRoutes
from ngp.core.kernel import Onward
from ngp.core.messages import Address, Prefix
from ngp.core.peers import Neighbour
from ngp.core.policy import SellTerms, ask_terms
from ngp.core.prefixes import PackedPrefix, host_prefix
from ngp.core.selling.sale import Sale
from ngp.core.timers import Due
from ngp.core.world import World

LOOK_S = 0.5
SPLIT_S = 3600.0
UNKNOWN_SPLIT_S = 10.0  # longer than the kernel needs to find a router's link address, or than packets are refused


def sold_whole(world: World) -> tuple[tuple[bytes, Prefix], ...]:
    """List the running contracts for networks, with their destinations."""
    sales = (one for one in world.contracts.values() if isinstance(one, Sale) and one.destination.is_network)
    return tuple((one.id, one.destination.prefix) for one in sales if one.running)


def look_up_soon(world: World) -> None:
    """Look up the routes to parts of all networks that we sell, but once in a while only: neighbours cause it."""
    world.timers.set_if_unset(Due.NETWORKS, b"", world.now.monotonic_s + LOOK_S)


def look_up(world: World) -> None:
    """Look up the routes to parts of all networks that we sell."""
    if found := sold_whole(world):
        world.do(LookUpRoutes(found))


def look_up_for(world: World, sale: Sale) -> None:
    """Look up the routes to parts of what a contract is for, if it is for a network."""
    if sale.destination.is_network:
        world.do(LookUpRoutes(((sale.id, sale.destination.prefix),)))


def is_split(world: World, destination: Prefix) -> bool:
    """Say whether a network isn't sold as a whole now."""
    return world.now.monotonic_s < world.resold.split.get(PackedPrefix.of(destination), 0.0)


def terms(world: World, neighbour: Neighbour, address: Address, usual: SellTerms) -> SellTerms:
    """Return what to propose for an address. Args: usual: what is proposed if its network is sold as a whole."""
    if not is_split(world, usual.destination):
        return usual
    return ask_terms(world.settings, host_prefix(address), world.occasion(neighbour))


def has_dear(world: World, sale: Sale, seller: bytes) -> bool:
    """Say whether a part of a network, bought from a server, costs more than the network is sold for.

    If so, the network isn't sold as a whole for a while; the caller ends the sale.
    """
    if not (seller and sale.destination.is_network):
        return False
    inside = world.purchases.within(seller, sale.destination)
    is_dear = any(one.running and upstream.is_too_cheap(world, sale, one) for one in inside)
    if is_dear:
        _split(world, sale, SPLIT_S)
    return is_dear


def bought(world: World, purchase: Purchase) -> list[Sale]:
    """List the contracts that are too cheap for a part of them, or all of them, bought just now or dearer than before.

    They don't rest on that purchase, but their packets go by it: the kernel takes the narrowest purchase. The caller
    ends them. The networks of which only a part is bought aren't sold as a whole for a while.
    """
    part, found = purchase.destination, list[Sale]()
    for client in list(world.peers.by_identity):
        for sale in (*world.sales.all_covering(client, part.prefix), *world.sales.within(client, part)):
            is_around = not part.covers(sale.destination)
            goes_by_it = is_around or _goes_by(world, sale, purchase)
            may_end = _is_open(sale) and not sale.destination.is_default  # default routes have exceptions
            if may_end and goes_by_it and upstream.is_too_cheap(world, sale, purchase):
                found.append(sale)
                if is_around:
                    _split(world, sale, SPLIT_S)
    return found


def goes_apart(world: World, sale: Sale, onward: Onward) -> bool:
    """Say whether our routes lead a part of a network through another neighbour that sells to us, or may do so.

    If so, the network isn't sold as a whole for a while; the caller ends the sale. Likewise if they lead all of it
    through another one, of which we bought a part at a higher price; or to the client itself, which sells to us.
    """
    if not (sale.destination.is_network and _is_open(sale)):
        return False
    prefix = sale.destination.prefix
    whole = upstream.seller_to(world, prefix, onward.router)
    moved = whole if whole is not None and whole.identity != sale.seller else None
    if moved is not None and (moved.identity == sale.identity or has_dear(world, sale, moved.identity)):
        return True
    sellers = [upstream.seller_to(world, prefix, router) for router in onward.inside]
    if any(seller is not None and seller.identity != sale.seller for seller in sellers):
        _split(world, sale, SPLIT_S)
        return True
    if any(upstream.is_unknown(world, router) for router in onward.inside):
        _split(world, sale, UNKNOWN_SPLIT_S)
        return True
    return False


def _goes_by(world: World, sale: Sale, purchase: Purchase) -> bool:
    """Say whether a sale rests on a wider purchase from the same server than the one by which its packets go."""
    is_on_another = sale.seller == purchase.identity and sale.rests_on not in (b"", purchase.id)
    return is_on_another and world.purchases.covering(purchase.identity, sale.destination.prefix) is purchase


def _is_open(sale: Sale) -> bool:
    return sale.running or sale.state in (State.QUOTING, State.QUOTED)


def _split(world: World, sale: Sale, for_s: float) -> None:
    world.resold.split.note(sale.destination, world.now.monotonic_s + for_s)
    if for_s == SPLIT_S:
        text = f"{sale.destination} isn't sold as a whole: a part of it costs us more, or may do so"
        world.log_seldom(
            ("split", str(sale.destination).encode()), f"{text}; its addresses are sold by themselves", logging.INFO
        )
