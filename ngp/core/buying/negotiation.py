"""Negotiation, as the buyer: answer proposals by the operator's policy.

A buyer never holds its own packets, and relies on no bill: its own meter counts at its own interface, by the seller's
rule and with the seller's limit, so both sides get the same number.

Anybody can propose a contract, and a contract lets its seller send us traffic that we pay for. So we buy a destination
only from the neighbour to which our own traffic for it goes, as the kernel says. We never buy an address on the link
itself, a network that is wider than our route, or a default route that neither the operator (BUY_DEFAULT_ROUTE) nor a
client of ours wants.
"""

from __future__ import annotations

import logging

from ngp.core import networks
from ngp.core.buying import bills, default_route
from ngp.core.buying.memory import Quote
from ngp.core.buying.payments import pay_now
from ngp.core.buying.purchase import Purchase
from ngp.core.buying.renewal import MOST_QUOTED_LIFETIME_S, live_until, renewal_over, renewal_proposed
from ngp.core.contract import CloseReason, State
from ngp.core.messages import Accept, Address, Ask, Cancel, Prefix, Propose, Reject, RejectReason, Role, mark
from ngp.core.peers import Neighbour
from ngp.core.policy import MOST_ROUNDS, answer_proposal, buy_terms, is_sold_whole
from ngp.core.prefixes import PackedPrefix, host_prefix
from ngp.core.pricing import about_price
from ngp.core.world import World

MOST_DECLINED = 256
DECLINED_S = 30.0  # how long we remember what we declined; no server remembers a refusal longer
_WHY_NOT_SOLD = {
    RejectReason.NOT_SELLING: "it doesn't sell to us",
    RejectReason.BLOCKED: "its operator blocks us",
    RejectReason.BUSY: "it has too many contracts, or we refused the same destination lately",
    RejectReason.LOOP: "its route to there comes back to us, or is too long",
    RejectReason.UPSTREAM: "it can't buy it for us further up",
}
_MOMENTARY = (RejectReason.BUSY, RejectReason.UPSTREAM)  # reasons that may be over in a moment


def proposed(world: World, neighbour: Neighbour, propose: Propose, message_id: int, sends_to: Prefix | None) -> bool:
    """Answer a server's proposal.

    Args:
        sends_to: the part of the destination to which our traffic goes through this server: all, one host, or None.

    Returns:
        Whether a message was sent in answer.
    """
    if propose.contract in world.contracts:
        renewal_proposed(world, neighbour, world.purchase(propose.contract), propose, message_id)
        return True
    if propose.contract in world.buying.ended:  # a new contract can't have the id of one that ended
        world.send(neighbour, Cancel(propose.contract), message_id)
        return True
    about = neighbour.identity, propose.destination
    late = world.buying.asked.pop(about, 0.0) > world.now.monotonic_s  # then nobody may wait any more
    for_clients = late or bool(world.awaited.get(about))
    if for_clients:
        sends_to = propose.destination  # we asked because our route leads there
    objection = _objection(world, neighbour, propose, sends_to, for_clients)
    if objection is not None:
        reason, why = objection
        world.send(neighbour, Reject(propose.contract, reason), message_id)
        if sends_to == propose.destination:
            _note_decline(world, neighbour, propose.destination, why)
        elif sends_to is not None and reason is RejectReason.NOT_BUYING:
            ask(world, neighbour, sends_to)
        return True
    world.buying.quotes.pop(about, None)
    terms = buy_terms(world.settings, propose.destination, world.occasion(neighbour))
    # What we sell on isn't haggled over: each round would cost each node of the path a round trip.
    round = MOST_ROUNDS if for_clients else propose.round
    price = answer_proposal(terms, propose.price_msat_per_gib, round)
    if price == propose.price_msat_per_gib and for_clients:
        _keep_quote(world, neighbour, propose)
        return False
    if price == propose.price_msat_per_gib:
        _accept(world, neighbour, propose, message_id)
    else:
        world.send(neighbour, Reject(propose.contract, RejectReason.PRICE, price), message_id)
        if price is None:
            key = "BUY_PRICE_MAX" if terms.most_msat_per_gib == world.settings.buy_max_msat_per_gib else "PRICES"
            why = f"{about_price(propose.price_msat_per_gib)} is above {key} {about_price(terms.most_msat_per_gib)}"
            _note_decline(world, neighbour, propose.destination, why)
            world.log(f"proposal of {neighbour.identity.hex()[:8]} for {propose.destination} declined: {why}")
    return True


def _keep_quote(world: World, neighbour: Neighbour, propose: Propose) -> None:
    """Keep an offer that we asked for on behalf of a client: it is accepted when the client accepts ours."""
    until = world.now.monotonic_s + propose.quote_valid_s
    world.buying.quotes.note((neighbour.identity, propose.destination), Quote(propose, neighbour.link, until))


def accept_quote(world: World, identity: bytes, quote: Quote, client: bytes = b"") -> bool:
    """Accept an offer that was kept. Args: client: the client for which we buy; b"": for ourselves.

    Returns False if we don't deal with the server any more, or not at this price.
    """
    propose = quote.propose
    neighbour = world.peers.neighbours.get((identity, quote.link))
    del world.buying.quotes[identity, propose.destination]
    # Our traffic went through this server when it offered.
    if neighbour is None or not neighbour.up or _objection(world, neighbour, propose, propose.destination, True):
        return False
    terms = buy_terms(world.settings, propose.destination, world.occasion(neighbour))
    if propose.price_msat_per_gib > terms.most_msat_per_gib:
        return False
    _accept(world, neighbour, propose, 0, client)
    return True


def _note_decline(world: World, neighbour: Neighbour, destination: Prefix, why: str) -> None:
    neighbour.why_not_bought = f"{destination}: {why}"
    key = (neighbour.identity, neighbour.link, destination)
    world.buying.declined.pop(key, None)  # so that it moves to the end
    world.buying.declined[key] = world.now.monotonic_s
    if len(world.buying.declined) > MOST_DECLINED:
        del world.buying.declined[next(iter(world.buying.declined))]


def ask_again(world: World, identity: bytes | None = None) -> None:
    """Ask one server, or all, again for what we declined lately: our terms changed, but servers remember a refusal."""
    for key, at_mono_s in list(world.buying.declined.items()):
        who, link, destination = key
        if identity is not None and who != identity:
            continue
        del world.buying.declined[key]
        neighbour, bought = world.peers.neighbours.get((who, link)), world.purchases.exact(who, destination)
        if bought is not None and bought.running:
            continue
        if neighbour is not None and world.now.monotonic_s - at_mono_s < DECLINED_S:
            world.send(neighbour, Ask(destination, 0, 0))


def ask_for(world: World, number: int, destination: Address) -> None:
    """Ask a server to offer us a contract for traffic that we already send to it, if it won't offer one by itself.

    The hosts that send through us choose the destinations, so the number of questions a second is limited.
    """
    neighbour = next((one for one in world.peers.by_link.values() if one.number == number), None)
    if neighbour is not None and world.purchases.find(neighbour.identity, destination) is None:
        ask(world, neighbour, host_prefix(destination))


def ask(world: World, neighbour: Neighbour, destination: Prefix) -> bool:
    """Ask a server for a contract, if we may buy from it; the number of questions a second is limited.

    Returns whether we asked.
    """
    if not (_may_ask(world, neighbour) and neighbour.asked.take(world.now.monotonic_s)):
        return False
    world.send(neighbour, Ask(destination, 0, 0))
    return True


def _may_ask(world: World, neighbour: Neighbour) -> bool:
    usable = neighbour.up and neighbour.sells and world.settings.buys
    return usable and neighbour.identity not in world.peers.blocked


def _objection(
    world: World, neighbour: Neighbour, propose: Propose, sends_to: Prefix | None, for_clients: bool
) -> tuple[RejectReason, str] | None:
    """Return why a proposal isn't accepted, as a word for the server and a text for our operator; None: no reason.

    Args: for_clients: we asked for it on behalf of our clients.
    """
    destination, who = propose.destination, neighbour.identity.hex()[:8]
    if not world.settings.buys:
        return RejectReason.NOT_BUYING, "BUY is no"
    if neighbour.identity in world.peers.blocked:
        return RejectReason.BLOCKED, "we block this neighbour, until `ngp unblock`"
    if not networks.is_same(neighbour.network, world.node.network):
        return RejectReason.NETWORK, "it pays on another network than we do"
    if unwanted := _why_unwanted(world, neighbour, destination, sends_to, for_clients):
        text = f"proposal of {who} on {neighbour.link[0]} for {destination} declined: {unwanted}"
        world.log_seldom(("unwanted", neighbour.link[0].encode()), text, logging.INFO)
        return RejectReason.NOT_BUYING, unwanted
    account = world.server(neighbour.identity)
    if account.disputed:
        return RejectReason.TERMS, "its bill is in dispute, until `ngp unblock`"
    too_many = account.running >= world.settings.contracts_max // 2
    if too_many or world.is_full(Role.CLIENT, neighbour.identity):
        return RejectReason.BUSY, "we have too many contracts: raise CONTRACTS_MAX"
    if propose.lifetime_s > MOST_QUOTED_LIFETIME_S:
        return RejectReason.BUSY, f"it offers a contract for {propose.lifetime_s} s, longer than ngp agrees to"
    if _sells_it_the_same(world, neighbour, destination) or mark(world.identity) in propose.path:
        why = "that neighbour gets the same destination from us, so our routes form a loop"
        world.log(f"proposal of {who} for {destination} declined: {why}")
        return RejectReason.NOT_BUYING, why
    if world.settings.never_renews and _bought_before(world, neighbour, destination):
        why = "renewal is off (DATA_RENEWAL and TIME_RENEWAL are 0), so no destination is bought again"
        return RejectReason.NOT_RENEWING, why
    if not world.may_open(Role.CLIENT, neighbour):
        return RejectReason.BUSY, "too many of its contracts were never used"
    return None


def _why_unwanted(
    world: World, neighbour: Neighbour, destination: Prefix, sends_to: Prefix | None, for_clients: bool
) -> str:
    """Return why not to buy a destination from a neighbour; "" if our traffic goes there, or it is bought already."""
    # A destination that we buy from this neighbour already needs no `sends_to`: that contract counts our traffic.
    bought = world.purchases.exact(neighbour.identity, destination)
    if bought is None and sends_to is None:
        return "our traffic to there doesn't go through that neighbour; if it should, look at our route"
    if bought is None and sends_to != destination:
        return f"only a part of this destination is routed through that neighbour, so we ask for {sends_to} alone"
    is_wanted = for_clients and not destination.prefixlen
    if not (is_sold_whole(destination) or is_wanted or default_route.is_for_us(world, destination)):
        return "that is a default route or a part of one"
    return ""


def _sells_it_the_same(world: World, neighbour: Neighbour, destination: Prefix) -> bool:
    """Say whether the neighbour buys the same destination from us now: then our routes form a loop.

    Each of us would charge the other for every round of a packet. A contract that carried nothing lately doesn't count:
    it may be left from an earlier route.
    """
    sold = world.sales.exact(neighbour.identity, destination)
    return sold is not None and sold.running and sold.in_use(world.now.monotonic_s)


def _bought_before(world: World, neighbour: Neighbour, destination: Prefix) -> bool:
    """Say whether we bought a destination that was in use within CONTRACT_TIME: with renewal off we don't buy it again.

    Every proposal shows that the destination is in use, so the time begins anew.
    """
    who, ended = neighbour.identity, reversed(world.buying.ended.values())
    last = world.purchases.exact(who, destination)
    packed = PackedPrefix.of(destination)
    last = last or next((one for one in ended if one.identity == who and one.destination == packed), None)
    if last is None or world.now.monotonic_s - last.rate.at_mono_s > world.settings.contract_time_s:
        return False
    last.rate.at_mono_s = world.now.monotonic_s
    return True


def _accept(world: World, neighbour: Neighbour, propose: Propose, message_id: int, client: bytes = b"") -> None:
    existing = world.purchases.exact(neighbour.identity, propose.destination)
    if existing is not None and existing.running:
        world.halt(existing, CloseReason.CANCELLED)  # the server forgot it, and proposes its destination again
    account = world.server(neighbour.identity)
    paid = account.balance_msat > 0 or not propose.price_msat_per_gib
    purchase = Purchase(
        id=propose.contract,
        identity=neighbour.identity,
        link=neighbour.link,
        link_number=neighbour.number,
        destination=PackedPrefix.of(propose.destination),
        prices=((0, propose.price_msat_per_gib),),
        data_limit_bytes=propose.data_limit_bytes,
        lifetime_s=propose.lifetime_s,
        path=propose.path,
        opened_for=client,
        state=State.ACTIVE if paid else State.ACCEPTED,
    )
    missed = world.buying.missed.get((neighbour.identity, propose.destination))
    if missed is not None and missed.purchase.needed_at is not None:
        purchase.needed_at = (0, 0)  # somebody may go on sending to a client of ours that is gone
    neighbour.why_not_bought = ""
    default_route.bought(world, neighbour, propose.destination)
    world.add_contract(purchase)
    world.buying.bought.append(purchase)
    world.open(purchase)
    if not paid:
        account.unpaid[purchase.id] = purchase
    world.tell_state(purchase)
    live_until(world, purchase)
    world.journal("contract", purchase.identity, purchase.state.value, contract=purchase.id)
    world.save(purchase)
    world.grant(purchase)
    world.send(neighbour, Accept(purchase.id, propose.price_msat_per_gib, propose.data_limit_bytes), message_id)
    pay_now(world, account)


def rejected(world: World, neighbour: Neighbour, reject: Reject) -> None:
    """Handle a refusal: the server withdraws a quote that we accepted, declines a renewal, or sells us nothing.

    A refusal to renew may come late, when the renewal is over and the contract runs. It looks like a withdrawal, so the
    contract ends on both sides: otherwise the server would go on, and bill what our meter doesn't count. `lapsed` says
    that the server is closing the contract; its `Cancel` follows.
    """
    if not reject.contract:
        _ask_rejected(world, neighbour, reject)
        return
    purchase = world.purchase(reject.contract)
    if purchase is None or purchase.identity != neighbour.identity:
        return
    # `terms` refuses an accept: if that came late, the server has another limit than we.
    if purchase.state is State.RENEWING and reject.reason not in (RejectReason.LAPSED, RejectReason.TERMS):
        renewal_over(world, purchase, f"renewal declined: {reject.reason.value}")
    elif purchase.running:
        bills.end_refused(world, purchase)


def _ask_rejected(world: World, neighbour: Neighbour, reject: Reject) -> None:
    """Remember why a server doesn't sell what we asked for: the server drops our traffic to that destination.

    What a default route leads to can still be bought piece by piece.
    """
    why = _WHY_NOT_SOLD.get(reject.reason, reject.reason.value)
    if reject.destination is not None:
        world.buying.asked.pop((neighbour.identity, reject.destination), None)
        if reject.reason not in _MOMENTARY:
            world.buying.missed.pop((neighbour.identity, reject.destination), None)
        why = f"{reject.destination}: {why}"
        if not reject.destination.prefixlen:
            text = f"{neighbour.identity.hex()[:8]} doesn't sell its default route as a whole now: {why}"
            world.log_seldom(("default route", neighbour.identity), text, logging.INFO)
            return
    neighbour.why_not_bought = f"{why} (its answer: {reject.reason.value})"
    about = ("not sold", neighbour.identity)
    world.log_seldom(about, f"{neighbour.identity.hex()[:8]} sells us nothing now: {neighbour.why_not_bought}")
