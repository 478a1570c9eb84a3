"""Quoting: propose a contract to a client, or refuse it for a while.

If the contract's traffic goes on to a neighbour that sells to us, the contract rests on a purchase there
(`ngp.core.upstream`): then a quote is first asked for, or more data or time, and meanwhile the client waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core import losses, parts, upstream
from ngp.core.contract import State
from ngp.core.kernel import HeldPacket, Onward, Verdict
from ngp.core.messages import Prefix, Propose, Reject, RejectReason, Role, mark
from ngp.core.peers import Neighbour
from ngp.core.policy import SellTerms, ask_terms, first_round
from ngp.core.prefixes import PackedPrefix, host_prefix
from ngp.core.selling import metering
from ngp.core.selling.sale import Sale
from ngp.core.timers import Due
from ngp.core.world import World

QUOTE_VALID_S = 10
KEPT_S = 30  # terms that are sent again, since an answer may have been lost, are kept for no longer
REFUSAL_S = 30.0  # how long the kernel drops a client's packets to a destination that the client refused
SILENCE_S = 5.0  # how long the kernel drops them if the client didn't answer in time, or may open no more contracts
ASKED_AGAIN_S = 0.05  # a client that sends without accepting what it asked for may have asked for others: offer again
LEAST_WORTH_BYTES = 64 * 1024  # least that a contract carries, if the purchase that it rests on has little room


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants a quote for: it sent a first packet, or it asked.

    Attributes:
        onward: where the traffic goes on from here.
        packet: the packet, which waits; None if the client asked. reply_to: id of its question; 0 if it sent.
        path: marks of those on whose behalf the client asks, as it says.
        wait_s: how long the client waits.
    """

    terms: SellTerms
    onward: Onward = Onward()
    packet: HeldPacket | None = None
    reply_to: int = 0
    path: tuple[bytes, ...] = ()
    wait_s: float = upstream.ANSWER_S


def quote(world: World, neighbour: Neighbour, wish: Wish) -> None:
    """Propose a new contract, or find out first what it would rest on. Count it among the neighbour's open quotes."""
    terms, packet = wish.terms, wish.packet
    seller = upstream.seller_to(world, terms.destination, wish.onward.router)
    sale = Sale(
        id=world.new_id(),
        identity=neighbour.identity,
        link=neighbour.link,
        link_number=neighbour.number,
        destination=PackedPrefix.of(terms.destination),
        prices=((0, terms.ask_msat_per_gib),),
        data_limit_bytes=world.settings.contract_data_bytes,
        lifetime_s=world.settings.contract_time_s,
        state=State.QUOTED if seller is None else State.QUOTING,
        path=(mark(world.identity),),
        held=[] if packet is None else [packet.handle],
        first=None if packet is None else packet.destination,
        asked=wish.reply_to,
        asked_by=tuple(dict.fromkeys((*wish.path, mark(neighbour.identity)))),
        seller=b"" if seller is None else seller.identity,
        round=first_round(terms),
    )
    world.add_contract(sale)
    parts.look_up_for(world, sale)
    neighbour.quotes += 1
    if seller is None:
        propose(world, neighbour, sale, wish.reply_to)
    elif not _covers(wish.onward.route, terms.destination):
        give_up(world, neighbour, sale, RejectReason.UPSTREAM)
    else:
        find_basis(world, neighbour, sale, wish.wait_s)


def _covers(route: Prefix | None, destination: Prefix) -> bool:
    """Say whether a route is one for all of a destination: parts of the destination may go another way."""
    return route is not None and route.prefixlen <= destination.prefixlen


def find_basis(world: World, neighbour: Neighbour, sale: Sale, wait_s: float = 0.0) -> None:
    """Quote a contract that rests on a purchase. If that isn't possible yet, ask the server for what is missing.

    Args: wait_s: how long the client waits for our answer; 0: we asked already, and it didn't help.
    """
    if losses.is_withheld(world, sale) or upstream.is_unpayable(world, sale):
        give_up(world, neighbour, sale, RejectReason.UPSTREAM)
        return
    found = upstream.basis(world, sale)
    if upstream.is_loop(world, sale, found.path if found is not None else ()):
        give_up(world, neighbour, sale, RejectReason.LOOP)
        return
    wanted = world.settings.contract_data_bytes
    fits = found is not None and found.lasts and found.free_bytes >= wanted // 2
    if not fits and wait_s and _may_ask(world, neighbour, sale):
        world.timers.set_if_unset(Due.QUOTE, sale.id, world.now.monotonic_s + wait_s)
        asked = upstream.extend(world, sale, wanted - found.free_bytes) if found else upstream.ask(world, sale, wait_s)
        if asked:
            return
    least = min(wanted, LEAST_WORTH_BYTES) if found is not None and found.is_bought else 1
    if found is None or found.free_bytes < least or found.lifetime_s <= 0:
        give_up(world, neighbour, sale, RejectReason.UPSTREAM)
        return
    terms = terms_of(world, sale, found)
    sale.prices = ((0, terms.ask_msat_per_gib),)
    sale.round = first_round(terms)
    sale.data_limit_bytes = min(wanted, found.free_bytes)
    sale.lifetime_s = min(world.settings.contract_time_s, found.lifetime_s)
    sale.path = (mark(world.identity), *found.path)
    world.rest(sale, found.contract)
    world.move(sale, State.QUOTED)
    propose(world, neighbour, sale, sale.asked)
    if sale.asked and sale.held:
        offer_again(world, sale)


def _may_ask(world: World, neighbour: Neighbour, sale: Sale) -> bool:
    """Take a question to others on a neighbour's behalf.

    Keys cost nothing, so all neighbours on an interface that never paid us share one allowance besides.
    """
    now, is_newcomer = world.now.monotonic_s, not world.has_traded(Role.SERVER, neighbour.identity)
    if is_newcomer and not world.peers.newcomers_questions.take(neighbour.link[0], now):
        return False
    return neighbour.questions.take(sale.asker, now)


def give_up(world: World, neighbour: Neighbour, sale: Sale, reason: RejectReason) -> None:
    """Refuse a quote, since what it would rest on isn't sold to us. For a network, try the packet's address alone."""
    destination = sale.destination.prefix
    if reason is not RejectReason.LOOP and sale.first is not None and destination.prefixlen < destination.max_prefixlen:
        terms = ask_terms(world.settings, host_prefix(sale.first), world.occasion(sale))
        packet = HeldPacket(sale.held.pop(0), sale.link, sale.first)
        router = upstream.router_of(world, sale)
        forget(world, sale)
        quote(world, neighbour, Wish(terms, Onward(terms.destination, router), packet))
        return
    # Also a client that only sent a packet is told, so that its operator learns why nothing comes back.
    world.send(neighbour, Reject(b"", reason, destination=destination), sale.asked)
    world.move(sale, State.REJECTED, reason.value)
    refuse_or_forget(world, sale)


def refuse_or_forget(world: World, sale: Sale) -> None:
    """Refuse what can't be sold now for a moment; forget it if the client only asked.

    A client may ask again and again until it can be sold. These questions mustn't have the kernel drop what the client
    sends then.
    """
    if sale.held:
        refuse(world, sale, SILENCE_S)
    else:
        forget(world, sale)


def terms_of(world: World, sale: Sale, found: upstream.Basis | None) -> SellTerms:
    cost = None if found is None else found.cost_msat_per_gib
    return ask_terms(world.settings, sale.destination.prefix, world.occasion(sale), cost)


def propose(world: World, neighbour: Neighbour, sale: Sale, reply_to: int = 0) -> None:
    """Send the terms that wait for the client's answer: of a new contract, or of a renewal.

    Sent again and again, they are kept for KEPT_S: a client that always asks would keep an old price for ever.
    """
    terms, renews, now = sale.renewal_offer or sale, sale.renewal_offer is not None, world.now.monotonic_s
    if not sale.kept_until_mono_s:
        sale.kept_until_mono_s, sale.offered_until_mono_s = now + KEPT_S, 0.0
    valid_s = int(min(QUOTE_VALID_S, sale.kept_until_mono_s - now, upstream.valid_s(world, sale)))
    sale.offered_until_mono_s = max(sale.offered_until_mono_s, now + valid_s)
    world.timers.set(Due.QUOTE, sale.id, sale.offered_until_mono_s)
    world.send(
        neighbour,
        Propose(
            contract=sale.id,
            destination=sale.destination.prefix,
            price_msat_per_gib=terms.price_msat_per_gib,
            data_limit_bytes=terms.data_limit_bytes,
            lifetime_s=terms.lifetime_s,
            quote_valid_s=valid_s,
            from_offset_bytes=sale.data_limit_bytes if renews else 0,
            round=1 if renews else sale.round,
            path=() if renews else sale.path,
        ),
        reply_to,
    )


def may_propose_again(world: World, sale: Sale) -> bool:
    """Say whether the terms that were proposed are kept long enough to send them once more, and still last as long."""
    terms, purchase, now = sale.renewal_offer or sale, world.running_purchase(sale.rests_on), world.now.monotonic_s
    if purchase is not None and purchase.expires_mono_s - now < terms.lifetime_s - QUOTE_VALID_S:
        return False
    return min(sale.kept_until_mono_s - now, upstream.valid_s(world, sale)) >= upstream.LEAST_VALID_S


def offer_again(world: World, sale: Sale) -> None:
    """Repeat, in a moment, a quote that the client asked for, unless it accepts: the client sends there already."""
    world.timers.set(Due.QUOTE, sale.id, world.now.monotonic_s + ASKED_AGAIN_S)


def refuse(world: World, sale: Sale, for_s: float) -> None:
    """Have the kernel drop packets to a refused destination for a while, so that a flood costs us nothing.

    The packets that are held for the contract get their verdict now. A refused default route is forgotten: each of its
    destinations is for sale.
    """
    if sale.destination.is_default:
        forget(world, sale)
        return
    world.timers.clear(Due.QUOTE, sale.id)
    world.stop_waiting(sale)
    refusal = Verdict.PROHIBIT if sale.state is State.REJECTED else Verdict.DROP
    slowed = world.settings.unpaid_bytes_s and not sale.seller and sale.identity not in world.peers.blocked
    metering.decide(world, sale, Verdict.REPEAT if slowed else refusal)  # the refusal stands when it comes again
    sale.expires_mono_s = world.now.monotonic_s + for_s
    world.grant(sale)
    world.timers.set(Due.REFUSAL, sale.id, sale.expires_mono_s)


def forget(world: World, sale: Sale) -> None:
    """Forget a quote or a refusal: the next packet starts a new negotiation."""
    metering.decide(world, sale, Verdict.DROP)
    neighbour = world.peers.of(sale)
    if neighbour is not None:
        neighbour.quotes -= 1
    world.remove_contract(sale)
