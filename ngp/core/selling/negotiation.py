"""Negotiation, as the seller: answer what a client says about a quote, agree or refuse, and renew.

A first packet is held, a contract is proposed and accepted, and then the kernel, which knows both contract and account,
lets the packet through. A contract that rests on a purchase (`quoting`) waits where that must be renewed first.
"""

from __future__ import annotations

from itertools import islice

from ngp.core import basis_changed, elsewhere, losses, networks, parts, rerouting, upstream
from ngp.core.contract import CloseReason, State
from ngp.core.kernel import Onward
from ngp.core.messages import MOST_DATA_BYTES, Accept, Ask, Cancel, Prefix, Reject, RejectReason, Role
from ngp.core.peers import Neighbour
from ngp.core.policy import answer_counter, ask_terms, is_sold_whole
from ngp.core.pricing import about_price
from ngp.core.selling import grace, invoicing, metering
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.quoting import (
    REFUSAL_S,
    SILENCE_S,
    Wish,
    find_basis,
    forget,
    may_propose_again,
    offer_again,
    propose,
    quote,
    refuse,
    refuse_or_forget,
    terms_of,
)
from ngp.core.selling.sale import Offer, Sale
from ngp.core.timers import Due
from ngp.core.world import World

MOST_QUOTES_PER_NEIGHBOUR = 4096
MOST_QUOTED_AGAIN, MOST_QUOTED_STRANGER_AGAIN = 256, 16
_WHY_DECLINED = {
    RejectReason.PRICE: "too expensive for it; SELL_PRICE_MIN and PRICES set our lowest price",
    RejectReason.TERMS: "it disputes our bill, until its operator runs `ngp unblock`",
    RejectReason.BLOCKED: "its operator blocked us",
    RejectReason.NOT_BUYING: "it doesn't buy that",
    RejectReason.NOT_RENEWING: "it has renewal switched off, and bought that already",
    RejectReason.BUSY: "it has too many contracts",
}


def trades(world: World, neighbour: Neighbour) -> bool:
    """Say whether we sell to a neighbour."""
    return (
        world.settings.sells
        and neighbour.buys
        and neighbour.identity not in world.peers.blocked
        and networks.is_same(neighbour.network, world.node.network)
    )


def may_quote(world: World, neighbour: Neighbour) -> bool:
    """Say whether we may quote: one neighbour, or all together, must not fill our tables with quotes and refusals.

    If too many of the neighbour's contracts weren't used, the log says so.
    """
    most = world.settings.contracts_max
    account = world.clients.get(neighbour.identity)
    if account is not None and account.running >= max(16, most // 2):
        return False
    if not world.may_open(Role.SERVER, neighbour):
        return False
    if world.is_full(Role.SERVER, neighbour.identity):
        return False
    return neighbour.quotes < min(MOST_QUOTES_PER_NEIGHBOUR, max(16, most // 16))


def answered(world: World, identity: bytes, destination: Prefix, grew: bool = False, refused: bool = False) -> None:
    """Go on with the contracts that waited for a server's answer about a destination.

    Args:
        grew: the purchase there carries more now; contracts for which it isn't enough yet wait for more.
        refused: nothing is sold there to the first of those that wait, who asked. The others ask for themselves: the
            reason may be the path that the first one named.
    """
    waited = list(world.awaited.get((identity, destination), {}).values())
    for sale in waited:
        world.stop_waiting(sale)
    for number, sale in enumerate(waited):
        neighbour = world.peers.of(sale)
        if neighbour is None:
            continue
        if sale.state is State.QUOTING:
            find_basis(world, neighbour, sale, upstream.ANSWER_S if grew or (refused and number) else 0.0)
        elif sale.state is State.QUOTED:  # its client has accepted
            if not _opened(world, sale, may_wait=grew):
                _take_back(world, neighbour, sale)
        elif sale.wanted is not None and sale.running:
            (ask, onward), sale.wanted = sale.wanted, None
            _renewal_asked(world, neighbour, ask, 0, onward, may_wait=grew)


def quote_again(world: World, neighbour: Neighbour) -> None:
    """Repeat the open quotes to a neighbour that was away when they were sent."""
    traded = world.has_traded(Role.SERVER, neighbour.identity)
    for sale in islice(neighbour.contracts.values(), MOST_QUOTED_AGAIN if traded else MOST_QUOTED_STRANGER_AGAIN):
        if isinstance(sale, Sale) and sale.state is State.QUOTED and may_propose_again(world, sale):
            propose(world, neighbour, sale)


def asked(world: World, neighbour: Neighbour, ask: Ask, message_id: int, onward: Onward) -> None:
    """Answer a client that wants a quote before it sends, or a renewal.

    Args: onward: where traffic to the destination goes on from here.
    """
    destination = None if ask.contract else ask.destination
    if not trades(world, neighbour):
        blocked = neighbour.identity in world.peers.blocked
        reason = RejectReason.BLOCKED if blocked else RejectReason.NOT_SELLING
        world.send(neighbour, Reject(ask.contract, reason, destination=destination), message_id)
        return
    if ask.contract:
        _renewal_asked(world, neighbour, ask, message_id, onward)
        return
    if (why_not := _why_not_as_asked(world, ask.destination, onward)) is not None:
        world.send(neighbour, Reject(b"", why_not, destination=destination), message_id)
        return
    terms = ask_terms(world.settings, ask.destination, world.occasion(neighbour))
    existing = world.sales.exact(neighbour.identity, terms.destination)
    if existing is not None and existing.state is State.QUOTING:
        existing.asked = message_id
        return
    if existing is not None and existing.state is State.QUOTED:
        if may_propose_again(world, existing):
            propose(world, neighbour, existing, message_id)
            existing.asked = message_id
            if existing.held:
                offer_again(world, existing)
            return
        forget(world, existing)
        existing = None
    if existing is not None and existing.running and _is_lost(world, existing):
        world.halt(existing, CloseReason.CANCELLED)
    covering = existing or world.sales.covering(neighbour.identity, terms.destination)
    # A client that refused a destination and asks now has other terms, or wants only a part of that destination.
    if covering is not None and covering.refused:
        forget(world, covering)
        existing = world.sales.exact(neighbour.identity, terms.destination)
    unknown = upstream.is_unknown(world, onward.router)
    if existing is not None or unknown or not may_quote(world, neighbour):
        world.send(neighbour, Reject(b"", RejectReason.BUSY, destination=destination), message_id)
        return
    wait_s = min(ask.wait_ms / 1000 or upstream.ANSWER_S, upstream.ANSWER_S)
    quote(world, neighbour, Wish(terms, onward, None, message_id, ask.path, wait_s))


def _is_lost(world: World, sale: Sale) -> bool:
    """Say whether a client has lost a contract, as it asks for one, and this one isn't only just agreed.

    Its clock may have been wrong, so that the contract was over for it, or its ledger is from a backup. Until the
    contract was over here, too, it would get no other one.
    """
    return world.now.monotonic_s - sale.begun_mono_s > upstream.ANSWER_S


def _why_not_as_asked(world: World, destination: Prefix, onward: Onward) -> RejectReason | None:
    """Return why a prefix isn't sold to a client that asks for it; None: it may be.

    A contract for a default route covers what leaves this node upstream or to a LAN of ours; if we buy the default
    route ourselves, also what goes on there. All other parts are sold by themselves, also to that client: each may cost
    us something else.
    """
    if destination.prefixlen:
        sells = is_sold_whole(destination) and not parts.is_split(world, destination)
        return None if sells else RejectReason.NOT_SELLING
    if onward.router is None:
        return None
    seller = upstream.seller_to(world, destination, onward.router)
    may = seller is not None and elsewhere.may_resell(world, destination.version, seller.identity)
    return None if may else RejectReason.UPSTREAM


def _renewal_asked(
    world: World, neighbour: Neighbour, ask: Ask, message_id: int, onward: Onward, may_wait: bool = True
) -> None:
    sale = _own_contract(world, neighbour, ask.contract)
    # The accept is late, or what it rests on isn't bought yet: a renewal would go beyond what we were offered.
    if sale is not None and (sale.state is State.QUOTED or sale.unbought):
        world.send(neighbour, Reject(ask.contract, RejectReason.BUSY), message_id)
        return
    if sale is None or not sale.running:
        why = sale.reason if sale is not None and sale.state is State.HALTING else CloseReason.CANCELLED.value
        world.send(neighbour, Cancel(ask.contract, why), message_id)
        return
    if ask.destination != sale.destination.prefix:  # our route to another one mustn't decide about this one
        world.send(neighbour, Reject(ask.contract, RejectReason.TERMS), message_id)
        return
    rerouting.follow(world, sale)
    least = basis_changed.least_by_route(world, sale, onward)
    if sale.least_msat_per_gib < least:
        world.halt(sale, CloseReason.UPSTREAM)
    if not sale.running:  # it can't go on by the way that its traffic goes now
        world.send(neighbour, Reject(ask.contract, RejectReason.LAPSED), message_id)
        return
    if sale.renewal_offer is not None and not may_propose_again(world, sale):
        _renewal_over(world, sale)
    if sale.renewal_offer is None:  # an open offer is only repeated: its accept may be on its way
        if sale.since_renewal_bytes <= 0 and not world.may_open(Role.SERVER, neighbour):
            world.send(neighbour, Reject(ask.contract, RejectReason.BUSY), message_id)
            return
        most = min(sale.data_limit_bytes + world.settings.contract_data_bytes, MOST_DATA_BYTES)
        limit = min(max(ask.data_limit_bytes, sale.data_limit_bytes), most) if ask.data_limit_bytes else most
        found = upstream.basis(world, sale) if sale.rests_on else None
        lifetime_s = world.settings.contract_time_s
        if found is not None:
            grows = limit - sale.data_limit_bytes
            lacks = grows > found.free_bytes or not found.lasts
            if lacks and may_wait and upstream.extend(world, sale, grows - found.free_bytes):
                sale.wanted = ask, onward
                return
            limit = sale.data_limit_bytes + max(0, min(grows, found.free_bytes))
            lifetime_s = min(lifetime_s, found.lifetime_s)
            if lacks and limit == sale.data_limit_bytes:
                world.send(neighbour, Reject(ask.contract, RejectReason.UPSTREAM), message_id)
                return
        terms = terms_of(world, sale, found)
        same = min(terms.ask_msat_per_gib, max(terms.least_msat_per_gib, sale.price_msat_per_gib))  # if possible
        sale.renewal_offer, sale.kept_until_mono_s = Offer(limit, lifetime_s, max(least, same)), 0.0
        world.move(sale, State.RENEWING)
    propose(world, neighbour, sale, message_id)


def _own_contract(world: World, neighbour: Neighbour, contract_id: bytes) -> Sale | None:
    """Find a contract of this neighbour, whichever of its links the contract was agreed on.

    A router that got a new link address can't send from the old one any more.
    """
    sale = world.sale(contract_id)
    return sale if sale is not None and sale.identity == neighbour.identity else None


def accepted(world: World, neighbour: Neighbour, accept: Accept, message_id: int) -> bool:
    """Handle an accept. Returns whether a message was sent in answer; if not, the accept is to be acknowledged."""
    sale = _own_contract(world, neighbour, accept.contract)
    if sale is None:
        world.send(neighbour, Cancel(accept.contract), message_id)
        return True
    blocked = neighbour.identity in world.peers.blocked
    if sale.state is State.HALTING or blocked:
        reason = RejectReason.BLOCKED if blocked else RejectReason.LAPSED
        world.send(neighbour, Reject(accept.contract, reason), message_id)
        return True
    offer = sale.renewal_offer
    agreed = offer or sale
    if (accept.price_msat_per_gib, accept.data_limit_bytes) != (agreed.price_msat_per_gib, agreed.data_limit_bytes):
        if sale.running and accept.data_limit_bytes <= sale.data_limit_bytes:
            return False  # it answers a proposal that was repeated, and was agreed since
        world.send(neighbour, Reject(accept.contract, RejectReason.TERMS), message_id)
        return True
    if offer is not None:
        _renew(world, sale, offer)
        return False
    if sale.running:
        return False
    if sale.state is not State.QUOTED:
        world.send(neighbour, Reject(accept.contract, RejectReason.LAPSED), message_id)
        return True
    if not world.may_open(Role.SERVER, neighbour):  # the client may accept thousands of quotes at once
        world.send(neighbour, Reject(accept.contract, RejectReason.BUSY), message_id)
        world.move(sale, State.REJECTED, RejectReason.BUSY.value)
        refuse(world, sale, SILENCE_S)
        return True
    if _opened(world, sale, may_wait=True):
        return False
    world.send(neighbour, Reject(sale.id, RejectReason.LAPSED), message_id)
    forget(world, sale)
    return True


def _opened(world: World, sale: Sale, may_wait: bool) -> bool:
    """Open a contract that its client accepted, or let it wait until there is room on what it rests on.

    Returns False if neither is possible.
    """
    room = upstream.room(world, sale)
    if parts.has_dear(world, sale, sale.seller) or (sale.rests_on and losses.is_withheld(world, sale)):
        return False
    if room is not None and room >= sale.data_limit_bytes:
        _open(world, sale)
        return True
    return room is not None and may_wait and upstream.extend(world, sale, sale.data_limit_bytes - room)


def _open(world: World, sale: Sale) -> None:
    account = world.client(sale.identity)
    quoted_to = world.peers.of(sale)
    if quoted_to is not None:
        quoted_to.quotes -= 1
    world.timers.clear(Due.QUOTE, sale.id)
    account.priced += sale.priced
    world.open(sale)
    _run(world, account, sale, "")
    parts.look_up_for(world, sale)  # our routes may have changed since the quote


def _run(world: World, account: ClientAccount, sale: Sale, journalled: str) -> None:
    """Start a contract that was agreed or renewed: on money, or on credit until money comes."""
    has_means = True
    world.begin_lifetime(sale)
    if account.funds_msat > 0 or not sale.price_msat_per_gib:
        world.move(sale, State.ACTIVE)
        account.unpaid.pop(sale.id, None)
    else:
        world.move(sale, State.ACCEPTED)
        grace.accepted_unpaid(world, account, sale)
        has_means = grace.offer(world, account, sale)
    world.journal("contract", sale.identity, journalled or sale.state.value, contract=sale.id)
    world.save(sale)
    world.limit(account)
    metering.release(world, sale, is_new=True)
    if has_means:  # so have those that waited for it
        metering.release_unbought(world, account)
    invoicing.top_up_if_low(world, account)


def _renew(world: World, sale: Sale, offer: Offer) -> None:
    account = world.client(sale.identity)
    sale.renewal_offer = None
    if sale.since_renewal_bytes <= 0:  # an idle renewal costs a line in the ledger, like an opening
        world.count_idle(sale)
    account.priced -= sale.priced
    before_msat_per_gib = sale.price_msat_per_gib
    sale.renew(offer.price_msat_per_gib, offer.data_limit_bytes, offer.lifetime_s)
    world.tell_price(sale, before_msat_per_gib)
    account.priced += sale.priced
    world.timers.clear(Due.QUOTE, sale.id)
    world.timers.clear(Due.EXHAUSTED, sale.id)
    if sale.price_msat_per_gib < before_msat_per_gib and parts.has_dear(world, sale, sale.seller):
        world.halt(sale, CloseReason.UPSTREAM)
        return
    _run(world, account, sale, "renewed")


def rejected(world: World, neighbour: Neighbour, reject: Reject, message_id: int) -> bool:
    """Handle a client's refusal or counter-offer. Returns whether a message was sent in answer."""
    sale = _own_contract(world, neighbour, reject.contract)
    if sale is None:
        return False
    if sale.state is State.RENEWING:
        _renewal_over(world, sale)
    if sale.state is not State.QUOTED:
        return False
    found, price = upstream.basis(world, sale) if sale.rests_on else None, None
    if reject.counter_msat_per_gib is not None and (found is not None or not sale.rests_on):
        price = answer_counter(terms_of(world, sale, found), reject.counter_msat_per_gib, sale.round)
        if price is not None:  # our terms may have risen meanwhile, but not above what we quoted
            price = min(price, sale.price_msat_per_gib)
    world.move(sale, State.REJECTED, reject.reason.value)
    if price is None:
        why = _WHY_DECLINED.get(reject.reason, reject.reason.value)
        if reject.reason is RejectReason.PRICE and found is not None:
            cost = about_price(found.cost_msat_per_gib)
            why = f"too expensive for it; we pay {cost}, add RESALE_MARGIN, and ask SELL_PRICE_MIN at least"
        world.log(
            f"neighbour {neighbour.identity.hex()[:8]} declined {sale.destination} at "
            f"{about_price(sale.price_msat_per_gib)}: {why}"
        )
        # A client with renewal off learns only from proposals that the destination is in use; so another follows soon.
        renewal_off = reject.reason is RejectReason.NOT_RENEWING
        refuse(world, sale, min(REFUSAL_S, sale.lifetime_s / 4) if renewal_off else REFUSAL_S)
        if reject.reason is RejectReason.PRICE:
            upstream.too_dear(world, sale)
        return False
    sale.prices, sale.kept_until_mono_s = ((0, price),), 0.0
    sale.round += 1
    world.move(sale, State.QUOTED, f"round {sale.round}")
    propose(world, neighbour, sale, message_id)
    return True


def cancelled(world: World, neighbour: Neighbour, contract_id: bytes) -> None:
    """End a contract that its client has ended: the client doesn't meter it any more."""
    sale = _own_contract(world, neighbour, contract_id)
    if sale is None:
        return
    if sale.state is State.RENEWING:
        _renewal_over(world, sale)
    if sale.running:
        world.halt(sale, CloseReason.CANCELLED)
    elif sale.state is State.QUOTED:
        world.move(sale, State.REJECTED, CloseReason.CANCELLED.value)
        refuse(world, sale, REFUSAL_S)


def _renewal_over(world: World, sale: Sale) -> None:
    """Give up a renewal: the terms stay those that were agreed before."""
    sale.renewal_offer, sale.wanted = None, None
    world.timers.clear(Due.QUOTE, sale.id)
    unpaid = world.client(sale.identity).unpaid
    world.move(sale, State.ACCEPTED if sale.id in unpaid else State.ACTIVE)


def quote_due(world: World, sale: Sale) -> None:
    """Let a quote or a renewal lapse. A quote's held packets are dropped, and so are later ones, for SILENCE_S."""
    if sale.state is State.RENEWING:
        _renewal_over(world, sale)
        return
    neighbour = world.peers.of(sale)
    if sale.state is State.QUOTING:
        if sale.asked and neighbour is not None:
            world.send(neighbour, Reject(b"", RejectReason.UPSTREAM, destination=sale.destination.prefix), sale.asked)
        world.move(sale, State.LAPSED)
        refuse_or_forget(world, sale)
    elif sale.agreed:
        _take_back(world, neighbour, sale)
    elif sale.state is State.QUOTED and sale.asked and neighbour is not None:
        sale.asked = 0
        if not sale.held:
            forget(world, sale)  # nobody sends there
        elif may_propose_again(world, sale):
            propose(world, neighbour, sale)
        else:  # its accept may be on its way
            least_mono_s = world.now.monotonic_s + upstream.LEAST_VALID_S
            world.timers.set(Due.QUOTE, sale.id, max(sale.offered_until_mono_s, least_mono_s))
    elif sale.state is State.QUOTED:
        world.move(sale, State.LAPSED)
        refuse(world, sale, SILENCE_S)


def _take_back(world: World, neighbour: Neighbour | None, sale: Sale) -> None:
    """Let a quote lapse that its client has accepted, as the purchase has no room for it."""
    if neighbour is not None:
        world.send(neighbour, Cancel(sale.id, CloseReason.UPSTREAM.value))
    world.move(sale, State.LAPSED)
    refuse(world, sale, SILENCE_S)


def forget_refusals(world: World, identity: bytes | None = None) -> None:
    """Forget what one client, or all, refused: our terms changed, and they may agree now."""
    for sale in [one for one in world.contracts.values() if isinstance(one, Sale)]:
        if sale.refused and (identity is None or sale.identity == identity):
            forget(world, sale)
