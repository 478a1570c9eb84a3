"""Parts: what a part of a network costs us, if that is more than we sell the network for.

A network is sold as a whole for what it costs us, plus our margin. A part of it may cost more: our route leads there
through another neighbour, or we bought it by itself when its server asked more. The kernel excepts such a dear part
from the contracts that are too cheap for it. So a packet to it is held, and the part is sold by itself, never below
cost, while the network's contract goes on.

What a server offers us without being asked, its kernel holds packets for. They may be our clients', and were charged at
the network's price. So a dear part isn't bought for them: the server drops these few, and is asked anew. The next ones
that clients send are held by us.

A dear part stays excepted as long as a network around it is sold: sold by itself, it has its right price anyway.
"""

from __future__ import annotations

import logging

from ngp.core import elsewhere, upstream
from ngp.core.buying.negotiation import ask
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason
from ngp.core.messages import Address, Prefix, Propose, Reject, RejectReason
from ngp.core.peers import Neighbour
from ngp.core.policy import SellTerms, ask_terms
from ngp.core.prefixes import PackedPrefix, host_prefix
from ngp.core.pricing import about_price
from ngp.core.selling.sale import Sale
from ngp.core.world import World

SPLIT_S = 3600.0
"""A network with too many dear parts isn't sold as a whole for this time."""


def bought(world: World, purchase: Purchase) -> None:
    """Except what we bought just now, or at a higher price than before, from networks that are too cheap for it."""
    if purchase.running:
        cost = purchase.highest_msat_per_gib
        _except(world, purchase.destination, cost, _too_cheap(world, purchase.identity, purchase.destination, cost))


def sold(world: World, sale: Sale) -> bool:
    """Except the parts for which a network's sale is too cheap, before it is granted at a new price.

    Returns False if there are too many of them: then the network can't be sold as a whole.
    """
    if sale.id not in world.resold.networks:
        return True
    costs = {part: cost for part, cost in world.resold.dear.items() if sale.destination.has_part(part)}
    for one in world.purchases.within(sale.destination):
        if one.running and one.identity != sale.identity:
            costs[one.destination] = max(one.highest_msat_per_gib, costs.get(one.destination, 0))
    dear = {part: cost for part, cost in costs.items() if _is_below(world, sale, cost)}
    if dear and not _note(world, dear, [sale]):
        return False
    sale.excepts = sale.excepts or bool(dear)
    return True


def restore(world: World) -> set[bytes]:
    """Find dear parts anew after a start. Returns the ids of the sales to be granted anew, as they except some."""
    for sale in list(world.resold.networks.values()):
        if sale.running and not sold(world, sale):
            world.halt(sale, CloseReason.UPSTREAM)
    return {sale.id for sale in world.resold.networks.values() if sale.excepts}


def excepts(world: World, sale: Sale, address: Address) -> bool:
    """Say whether a client's contract doesn't cover an address in it, so that packets to it are held."""
    return sale.destination.is_default or (sale.excepts and elsewhere.is_excepted(world, host_prefix(address)))


def terms(world: World, neighbour: Neighbour, address: Address, usual: SellTerms, excepting: Sale | None) -> SellTerms:
    """Return what to propose for an address: a dear part, or the address alone, where a network doesn't do.

    Args:
        usual: what is proposed otherwise.
        excepting: the client's contract that excepts the address, if there is one.
    """
    if excepting is None or excepting.destination.is_default:
        does = not is_split(world, usual.destination)
    else:
        known = world.sales.exact(neighbour.identity, usual.destination) is not None
        does = elsewhere.is_excepted(world, usual.destination) and not known
    return usual if does else ask_terms(world.settings, host_prefix(address), world.occasion(neighbour))


def is_split(world: World, destination: Prefix) -> bool:
    """Say whether a network isn't sold as a whole now, since too many of its parts cost more."""
    until_mono_s = world.resold.split.get(PackedPrefix.of(destination), 0.0)
    return world.now.monotonic_s < until_mono_s


def declines(world: World, neighbour: Neighbour, propose: Propose, message_id: int, sends_to: Prefix | None) -> bool:
    """Decline an offer for a dear part, and ask for it.

    Args: sends_to: the part of the destination to which our traffic goes through this neighbour, as in a proposal.

    Returns: whether the offer was declined.
    """
    if not world.resold.networks or sends_to is None or propose.contract in world.contracts:
        return False
    destination, cost = propose.destination, propose.price_msat_per_gib
    running = world.purchases.exact(neighbour.identity, destination)
    if upstream.was_asked(world, neighbour.identity, destination) or (running is not None and running.running):
        return False
    part, known = PackedPrefix.of(destination), elsewhere.is_excepted(world, destination)
    sales = [one for one in _too_cheap(world, neighbour.identity, part, cost) if not (one.excepts and known)]
    if not sales:
        return False
    _except(world, part, cost, sales)
    world.send(neighbour, Reject(propose.contract, RejectReason.NOT_BUYING), message_id)
    ask(world, neighbour, destination)
    text = f"{neighbour.identity.hex()[:8]} asks {about_price(cost)} for {destination}, more than we sell it for"
    world.log_seldom(("dear", neighbour.identity), f"{text} in a network: clients buy that by itself", logging.INFO)
    return True


def _is_below(world: World, sale: Sale, cost_msat_per_gib: int) -> bool:
    return sale.least_msat_per_gib < upstream.least_above(world, sale, cost_msat_per_gib)


def _too_cheap(world: World, server: bytes, part: PackedPrefix, cost_msat_per_gib: int) -> list[Sale]:
    """List the running sales of networks that are cheaper than a part of them that a server sells us."""
    networks = (one for one in world.resold.networks.values() if one.running and one.identity != server)
    return [one for one in networks if one.destination.has_part(part) and _is_below(world, one, cost_msat_per_gib)]


def _except(world: World, part: PackedPrefix, cost_msat_per_gib: int, sales: list[Sale]) -> None:
    """Except a part from running sales; if there are too many parts, the sales end."""
    if not sales:
        return
    fits = _note(world, {part: cost_msat_per_gib}, sales)
    for sale in sales:
        if not fits:
            world.halt(sale, CloseReason.UPSTREAM)
        elif not sale.excepts:
            sale.excepts = True
            world.grant(sale)


def _note(world: World, costs: dict[PackedPrefix, int], sales: list[Sale]) -> bool:
    """Tell the kernel of dear parts of some sales. Returns False if there are too many: the networks are split then."""
    dear = world.resold.dear
    if len(dear.keys() | costs.keys()) > elsewhere.MOST_PARTS:
        for sale in sales:
            world.resold.split.note(sale.destination, world.now.monotonic_s + SPLIT_S)
        return False
    for part, cost in costs.items():
        dear[part] = max(cost, dear.get(part, 0))
    elsewhere.tell(world)
    return True
