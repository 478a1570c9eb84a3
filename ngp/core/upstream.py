"""Upstream: what a sale rests on. Traffic that goes on to a neighbour that sells to us is bought there first.

The price of such a sale is the price of the purchase plus RESALE_MARGIN. The purchase may be one that runs already. If
there is none, the server is asked for a quote, and the quote is kept as long as the server honours it. Nothing is
bought before the client's accept is covered by money or credit, so questions alone make nobody buy.

Routes may form a loop: then each node would ask the next one, without end. So each node adds its mark to the path of an
`Ask`, and refuses one that has its mark already; proposals carry the marks of all sellers in the same way. The time in
which an answer is awaited gets shorter with each node, so those further up give up first.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core import elsewhere, networks
from ngp.core.buying import choosing, means
from ngp.core.buying.memory import Quote
from ngp.core.buying.negotiation import accept_quote
from ngp.core.buying.purchase import Purchase
from ngp.core.buying.renewal import ask_renewal
from ngp.core.contract import CloseReason, State
from ngp.core.kernel import FULL_PACKET_BYTES, Router
from ngp.core.messages import MOST_DATA_BYTES, MOST_HOPS, Ask, Prefix, Propose, Role, mark
from ngp.core.peers import Neighbour
from ngp.core.policy import least_above_cost
from ngp.core.selling.sale import Sale
from ngp.core.world import World

ANSWER_S = 3.0  # how long the first node of a path waits for a quote
HOP_S = 0.15  # by so much less does each further node wait
LATE_S = 10.0  # an answer that comes so much later is still kept for our clients, and nothing is bought
LEAST_VALID_S = 2.0  # a quote that is valid for less isn't used any more: its accept might come too late
LEAST_LIFETIME_S = 30  # a purchase that lasts for less is renewed before anything rests on it


@dataclass(frozen=True, slots=True)
class Basis:
    """What a sale can rest on: a purchase that runs, or the quote for one.

    Attributes:
        contract: id of the purchase. cost_msat_per_gib: the highest price of the bytes that it may still carry.
        free_bytes: what it may carry beside the sales that rest on it; negative if they need more than it has.
        lifetime_s: how long it lasts. valid_s: the most time that a client may take to accept what rests on it.
        path: marks of its sellers.
        is_bought: False for a quote. lasts: False if it is near its end, and should be renewed first.
    """

    contract: bytes
    cost_msat_per_gib: int
    free_bytes: int
    lifetime_s: int
    valid_s: float
    path: tuple[bytes, ...]
    is_bought: bool = False
    lasts: bool = True


def seller_to(world: World, destination: Prefix, router: Router | None) -> Neighbour | None:
    """Return the neighbour from which we would have to buy a destination; None: it costs us nothing.

    A neighbour's own addresses are local to it, so it doesn't charge for them.
    """
    found = world.peers.at(router) if router is not None and world.settings.buys else None
    if found is None or not found.sells:
        return None
    is_own = destination.network_address in found.addresses and destination.num_addresses == 1
    account = world.servers.get(found.identity)
    is_unheard = not found.network and account is not None and account.running > 0  # since a start
    is_ours = is_unheard or networks.is_same(found.network, world.node.network)
    return found if is_ours and not is_own else None


def is_unknown(world: World, router: Router | None) -> bool:
    """Say whether we can't tell yet if the next router is a neighbour: the kernel must find its link address first.

    Until then we can't know what the traffic costs.
    """
    return router is not None and router.link_address is None and world.peers.at(router) is None


def basis(world: World, sale: Sale) -> Basis | None:
    """Return what a sale rests on, or could rest on now; None: first a quote is needed."""
    now = world.now.monotonic_s
    running = _purchase(world, sale)
    if running is not None:
        left_s = int(running.expires_mono_s - now)
        free_bytes = free(world, running)
        others = other_ways(world, sale, running) if sale.running else ()  # what isn't sold yet goes by the new way
        cost = max(one.highest_msat_per_gib for one in (running, *others))
        lasts = left_s >= min(LEAST_LIFETIME_S, running.lifetime_s // 2)
        return Basis(running.id, cost, free_bytes, left_s, float("inf"), running.path, True, lasts)
    quote = _quote(world, sale)
    if quote is None or quote.until_mono_s - now < LEAST_VALID_S:
        return None
    offered, valid_s = quote.propose, quote.until_mono_s - now
    terms = offered.price_msat_per_gib, offered.data_limit_bytes, offered.lifetime_s
    return Basis(offered.contract, *terms, valid_s, offered.path)


def _purchase(world: World, sale: Sale) -> Purchase | None:
    """Find the running purchase on which a sale rests or can rest."""
    return world.running_purchase(sale.rests_on) if sale.rests_on else bought_from(world, sale, sale.seller)


def bought_from(world: World, sale: Sale, server: bytes) -> Purchase | None:
    """Find the running purchase from a server on which a sale can rest."""
    destination = sale.destination.prefix
    exact = world.purchases.exact(server, destination)
    if exact is not None and exact.running:
        return exact
    found = _covering(world, sale, server)
    is_excepted = found is not None and found.destination.is_default and elsewhere.is_elsewhere(world, destination)
    return None if is_excepted else found


def _covering(world: World, sale: Sale, server: bytes) -> Purchase | None:
    found = world.purchases.covering(server, sale.destination.prefix)
    return found if found is not None and found.running else None


def other_ways(world: World, sale: Sale, purchase: Purchase) -> list[Purchase]:
    """List the purchases, beside the one on which a sale rests, by which its traffic may go too.

    There are some after a change of routes, or while a route has several next routers. A narrower purchase is counted,
    as a route to a narrower prefix comes first. One from the same server counts also if it isn't in use yet, as the
    kernel takes the narrowest.
    """
    return [
        one
        for one in ways(world, sale)
        if one is not purchase
        and (one.identity == purchase.identity or one.in_use(world.now.monotonic_s))
        and purchase.destination.covers(one.destination)
    ]


def ways(world: World, sale: Sale) -> list[Purchase]:
    """List the purchases that cover a sale's destination: more than one after a change of routes."""
    return [one for server in world.servers if (one := _covering(world, sale, server)) is not None]


def _quote(world: World, sale: Sale) -> Quote | None:
    quote = world.buying.quotes.get((sale.seller, sale.destination.prefix))
    return None if quote is None or sale.rests_on not in (b"", quote.propose.contract) else quote


def cost(world: World, server: bytes, propose: Propose) -> int:
    """Return what a purchase costs by the latest terms, those of the kept quote if it isn't bought; 0: it's neither."""
    running = world.running_purchase(propose.contract)
    if running is not None:
        return running.price_msat_per_gib
    quote = world.buying.quotes.get((server, propose.destination))
    known = quote is not None and quote.propose.contract == propose.contract
    return quote.propose.price_msat_per_gib if quote is not None and known else 0


def free(world: World, purchase: Purchase) -> int:
    """Return what a purchase may carry beside all sales that rest on it; negative if they need more than it has."""
    promised = sum(sale.reserved_bytes for sale in world.resting.get(purchase.id, {}).values())
    return purchase.data_limit_bytes - purchase.used_bytes - promised


def least_above(world: World, sale: Sale, cost_msat_per_gib: int) -> int:
    """Return the least price of a sale whose traffic costs us this much."""
    return least_above_cost(world.settings, sale.destination.prefix, world.occasion(sale), cost_msat_per_gib)


def is_too_cheap(world: World, sale: Sale, purchase: Purchase) -> bool:
    """Say whether a sale whose traffic goes by a purchase would be sold below its cost and our margin."""
    return sale.least_msat_per_gib < least_above(world, sale, purchase.highest_msat_per_gib)


def room(world: World, sale: Sale) -> int | None:
    """Return how much what a sale rests on may carry for it; None if that is over."""
    if not sale.rests_on:
        return sale.data_limit_bytes
    running = world.running_purchase(sale.rests_on)
    if running is not None:
        return free(world, running)
    quote = _quote(world, sale)
    return quote.propose.data_limit_bytes if quote is not None and quote.until_mono_s > world.now.monotonic_s else None


def valid_s(world: World, sale: Sale) -> float:
    """Return how long a client may take to accept a sale; infinite if nothing limits it, 0 if it is too late."""
    if not sale.rests_on or world.running_purchase(sale.rests_on) is not None:
        return float("inf")
    quote = _quote(world, sale)
    return max(0.0, quote.until_mono_s - world.now.monotonic_s) if quote is not None else 0.0


def router_of(world: World, sale: Sale) -> Router | None:
    """Return the link of the neighbour from which we would buy for a sale."""
    seller = world.peers.any_link(sale.seller)
    return Router(*seller.link) if seller is not None else None


def is_loop(world: World, sale: Sale, path: tuple[bytes, ...]) -> bool:
    """Say whether a sale's traffic would come back to one of those on whose behalf we sell, or take too many hops.

    Args: path: marks of the sellers further up, as far as they are known.
    """
    below = {*sale.asked_by, mark(world.identity)}
    is_back = mark(world.identity) in sale.asked_by or mark(sale.seller) in sale.asked_by
    return is_back or not below.isdisjoint(path) or len(below) + len(path) >= MOST_HOPS


def ask(world: World, sale: Sale, wait_s: float) -> bool:
    """Ask for a quote, unless the same question is on its way. Returns False if we can't ask."""
    seller = world.peers.any_link(sale.seller)
    if seller is None or sale.seller in world.peers.blocked or wait_s <= HOP_S:
        return False
    key = sale.seller, sale.destination.prefix
    choosing.wanted(world, key[1])
    # Two clients may take turns to wait, so that somebody always does: that mustn't hide that an answer was lost.
    if not world.awaited.get(key) or world.now.monotonic_s >= world.buying.asked.get(key, 0.0) - LATE_S:
        path = (*sale.asked_by, mark(world.identity))
        world.buying.asked.note(key, world.now.monotonic_s + wait_s + LATE_S)
        world.send(seller, Ask(key[1], 0, 0, wait_ms=int((wait_s - HOP_S) * 1000), path=path))
    world.wait_for(sale, *key)
    return True


def extend(world: World, sale: Sale, more_bytes: int) -> bool:
    """Have the purchase under a sale renewed, so that it carries more. Returns False if that isn't possible now.

    Args: more_bytes: what the purchase lacks for all that is to rest on it.
    """
    purchase = _purchase(world, sale)
    if purchase is None or world.settings.never_renews:
        return False
    if purchase.state is not State.RENEWING:
        limit = min(purchase.data_limit_bytes + max(0, more_bytes), MOST_DATA_BYTES)
        if not ask_renewal(world, purchase, limit, sale.identity):
            return False
    world.wait_for(sale, purchase.identity, purchase.destination.prefix)
    return True


def move(world: World, sale: Sale, purchase: Purchase) -> bool:
    """Rest a running sale on the purchase by which its traffic goes now; its price follows at the next renewal.

    Returns False if it can't rest there, as it may carry more or lasts longer: then it must be agreed anew.
    """
    seller, sale.seller = sale.seller, purchase.identity
    lacks = sale.reserved_bytes - free(world, purchase)
    fits = lacks <= 0 or (
        not world.settings.never_renews
        and ask_renewal(world, purchase, purchase.data_limit_bytes + lacks, sale.identity)
    )
    if not fits or sale.expires_mono_s > purchase.expires_mono_s or is_loop(world, sale, purchase.path):
        sale.seller = seller
        return False
    world.stop_waiting(sale)
    sale.wanted = None
    sale.path = (mark(world.identity), *purchase.path)
    world.rest(sale, purchase.id)
    world.save(sale)
    world.grant(sale)  # the kernel ends it no later than what it rests on
    return True


def keep_up(world: World, purchase: Purchase) -> None:
    """Renew a purchase if our own traffic used what is promised to those who buy from us."""
    if world.resting.get(purchase.id) and not world.settings.never_renews and (lacks := -free(world, purchase)) > 0:
        ask_renewal(world, purchase, purchase.data_limit_bytes + lacks + world.settings.contract_data_bytes)


def is_unpayable(world: World, sale: Sale) -> bool:
    """Say whether the server from which we would buy carries nothing for us, since we can't pay it now."""
    return bool(means.why_unpayable(world, sale.seller))


def end_unpayable(world: World, identity: bytes) -> None:
    """End the sales that rest on a server's purchases if it carries nothing more for us until we pay, and we can't.

    Otherwise our clients would pay us for packets that the server drops.
    """
    why = means.why_unpayable(world, identity) if world.resting else ""
    if not why:
        return
    bought = (world.running_purchase(contract) for contract in world.resting)
    theirs = [one for one in bought if one is not None and one.identity == identity]
    sales = [sale for one in theirs for sale in world.resting[one.id].values() if sale.running]
    if sales:
        world.log_seldom(
            ("unpayable", identity),
            f"our money with {identity.hex()[:8]} is used up and we can't pay: {why}. The contracts that rest on what "
            f"we buy there end, and no new ones are agreed until we can pay",
        )
    for sale in sales:
        world.halt(sale, CloseReason.UPSTREAM)


def too_dear(world: World, sale: Sale) -> None:
    """End the idle purchase under a quote that its client found too dear: its server may ask less by now.

    Not one that we used ourselves: our hosts may wait for something to come by it.
    """
    purchase = world.running_purchase(sale.rests_on)
    if purchase is not None and purchase.ours_bytes <= FULL_PACKET_BYTES:
        choosing.end_if_idle(world, purchase)


def secure(world: World, sale: Sale) -> bool:
    """Buy what a sale rests on, if that isn't done yet. Returns False if it can't be bought any more."""
    if not sale.rests_on or world.running_purchase(sale.rests_on) is not None:
        return True
    quote = _quote(world, sale)
    if quote is None or quote.until_mono_s <= world.now.monotonic_s:
        return False
    server = world.peers.neighbours.get((sale.seller, quote.link))
    sellers = len(quote.propose.path)
    if server is None or not world.may_open(Role.CLIENT, server, sale.identity, sellers):
        return False
    destination = sale.destination
    if destination.is_default and not elsewhere.may_resell(world, destination.version, sale.seller):
        return False
    accepted = accept_quote(world, sale.seller, quote, sale.identity)
    if world.resold.purchases:
        elsewhere.tell(world)
    return accepted
