"""Policy: the prices that this node asks, offers and agrees to, by net.conf.

A negotiation has at most `MOST_ROUNDS` proposals. The seller begins at its price and comes down to its least price in
equal steps. The buyer begins at its offer and goes up to its highest price. The negotiation ends as soon as one side
can agree to the other's price. Whatever the neighbour says, we stay within the limits that our operator set.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Address, Prefix
from ngp.core.prefixes import covers, host_prefix
from ngp.core.settings import Margin, PriceRule, Settings

MOST_ROUNDS = 4
LEAST_NETWORK_BITS = {4: 8, 6: 16}
"""By IP version: the shortest prefix of a route that is sold as a whole.

A route with a shorter prefix (0.0.0.0/1, 2000::/3) counts as part of a default route: only the address is sold.
"""


@dataclass(frozen=True, slots=True)
class Occasion:
    """With whom, where and when a price is agreed: that decides which entries of PRICES hold.

    Attributes:
        identity, interface: of the neighbour.
        local_s: time of day, seconds since midnight.
        load_ppm: of our upstream interface, in millionths; only selling prices depend on it.
    """

    identity: bytes
    interface: str
    local_s: int
    load_ppm: int = 0


@dataclass(frozen=True, slots=True)
class SellTerms:
    """The prices that we ask for a destination, msat per GiB."""

    destination: Prefix
    ask_msat_per_gib: int
    least_msat_per_gib: int


@dataclass(frozen=True, slots=True)
class BuyTerms:
    """The prices that we pay for a destination, msat per GiB."""

    offer_msat_per_gib: int
    most_msat_per_gib: int


def _holds(rule: PriceRule, occasion: Occasion) -> bool:
    return (
        rule.interface in (None, occasion.interface)
        and (rule.neighbour is None or occasion.identity.hex().startswith(rule.neighbour))
        and (rule.hours is None or rule.hours.include(occasion.local_s))
    )


def _rule(settings: Settings, destination: Prefix, occasion: Occasion) -> PriceRule | None:
    """Find the PRICES entry for a destination: `PriceRule.exactness` decides between several."""
    holding = (rule for rule in settings.prices if covers(rule.prefix, destination) and _holds(rule, occasion))
    return max(holding, key=lambda rule: rule.exactness, default=None)


def _inner_rules(settings: Settings, destination: Prefix, occasion: Occasion) -> list[PriceRule]:
    """Find the entries for parts of a destination: of several with one prefix, the one that holds there."""
    parts = {
        rule.prefix: _rule(settings, rule.prefix, occasion)
        for rule in settings.prices
        if rule.prefix != destination and covers(destination, rule.prefix) and _holds(rule, occasion)
    }
    return [rule for rule in parts.values() if rule is not None]


def sell_terms(settings: Settings, address: Address, occasion: Occasion, route: Prefix | None) -> SellTerms:
    """Decide what to propose for a destination.

    Args:
        address: destination of the held packet.
        occasion: of the neighbour that sent it.
        route: our route to the address; if it is None, or a default route or part of one, only the address is sold.

    Returns:
        The terms. Their destination is the PRICES entry's prefix, else the route's. It is the address alone if that
        prefix is too wide, or if a part of it has a price of its own.
    """
    host = host_prefix(address)
    rule = _rule(settings, host, occasion)
    ask, least = _sell_prices(settings, rule, occasion)
    destination = host
    if rule is not None and is_sold_whole(rule.prefix):
        destination = rule.prefix
    elif rule is None and route is not None and is_sold_whole(route):
        destination = route
    if _inner_rules(settings, destination, occasion):  # a part of it has a price of its own
        destination = host
    return SellTerms(destination, ask, least)


def is_sold_whole(prefix: Prefix) -> bool:
    """Say whether a prefix is no default route, and no part of one."""
    return prefix.prefixlen >= LEAST_NETWORK_BITS[prefix.version]


def ask_terms(
    settings: Settings, destination: Prefix, occasion: Occasion, cost_msat_per_gib: int | None = None
) -> SellTerms:
    """Decide what to propose for a destination that a client names: no wider one, for the client knows its routes.

    A prefix costs as much as its most expensive part. Otherwise a client could reach that part at the wider prefix's
    lower price.

    Args: cost_msat_per_gib: what the destination costs us; None: it costs us nothing.
    """
    rules = _rules(settings, destination, occasion)
    prices = [_sell_prices(settings, rule, occasion, cost_msat_per_gib) for rule in rules]
    return SellTerms(destination, max(ask for ask, _ in prices), max(least for _, least in prices))


def least_above_cost(settings: Settings, destination: Prefix, occasion: Occasion, cost_msat_per_gib: int) -> int:
    """Return the least at which we sell on what costs us this much: this cost plus the margin, msat per GiB."""
    margins = (_margin(settings, rule) for rule in _rules(settings, destination, occasion))
    return max(margin.least_msat_per_gib(cost_msat_per_gib) for margin in margins)


def _rules(settings: Settings, destination: Prefix, occasion: Occasion) -> list[PriceRule | None]:
    """Return the entry for a destination, None if there is none, and those for its parts."""
    return [_rule(settings, destination, occasion), *_inner_rules(settings, destination, occasion)]


def _margin(settings: Settings, rule: PriceRule | None) -> Margin:
    return settings.resale_margin if rule is None or rule.margin is None else rule.margin


def _sell_prices(
    settings: Settings, rule: PriceRule | None, occasion: Occasion, cost_msat_per_gib: int | None = None
) -> tuple[int, int]:
    """Return what is asked, and the least that is accepted: never below cost and margin, and more under load."""
    ask, least = settings.sell_msat_per_gib, settings.sell_min_msat_per_gib
    if rule is not None and rule.sell_msat_per_gib is not None:
        ask = least = rule.sell_msat_per_gib
    if rule is not None and rule.sell_min_msat_per_gib is not None:
        least = rule.sell_min_msat_per_gib
    floor = 0 if cost_msat_per_gib is None else _margin(settings, rule).least_msat_per_gib(cost_msat_per_gib)
    ask, least = max(ask, floor), max(min(least, ask), floor)
    load = settings.load_price
    if load is None:
        return ask, least
    return load.raised_msat_per_gib(ask, occasion.load_ppm), load.raised_msat_per_gib(least, occasion.load_ppm)


def buy_terms(settings: Settings, destination: Prefix, occasion: Occasion) -> BuyTerms:
    """Decide what to pay for a destination. For a prefix, pay no more than for the part that is worth least to us."""
    parts = [_terms_of(settings, rule) for rule in _rules(settings, destination, occasion)]
    most = min(terms.most_msat_per_gib for terms in parts)
    return BuyTerms(min(most, *(terms.offer_msat_per_gib for terms in parts)), most)


def _terms_of(settings: Settings, rule: PriceRule | None) -> BuyTerms:
    offer, most = settings.buy_msat_per_gib, settings.buy_max_msat_per_gib
    if rule is not None:
        if rule.buy_msat_per_gib is not None:
            offer = rule.buy_msat_per_gib
            most = offer if rule.buy_max_msat_per_gib is None else rule.buy_max_msat_per_gib
        elif rule.buy_max_msat_per_gib is not None:
            most = rule.buy_max_msat_per_gib
    return BuyTerms(min(offer, most), most)


def first_round(terms: SellTerms) -> int:
    """Return the round of our first proposal: the last one if we can't come down, so that nobody haggles in vain."""
    return 1 if terms.least_msat_per_gib < terms.ask_msat_per_gib else MOST_ROUNDS


def ask_in_round(terms: SellTerms, round: int) -> int:
    """Return the seller's price in a round, from 1 on: it falls in equal steps to the least price."""
    return terms.ask_msat_per_gib - _concession(terms.ask_msat_per_gib - terms.least_msat_per_gib, round)


def _concession(between_msat_per_gib: int, round: int) -> int:
    return between_msat_per_gib * (min(round, MOST_ROUNDS) - 1) // (MOST_ROUNDS - 1)


def answer_counter(terms: SellTerms, counter_msat_per_gib: int, round: int) -> int | None:
    """Answer a counter-offer to the proposal of a round.

    Returns:
        The price to propose next: the counter-offer itself if it isn't below our least price, else the next step.
        None if the rounds are used up.
    """
    if round >= MOST_ROUNDS:
        return None  # the last proposal is final, whatever the buyer offers: otherwise the rounds would never end
    if terms.least_msat_per_gib <= counter_msat_per_gib:
        return min(counter_msat_per_gib, terms.ask_msat_per_gib)
    return ask_in_round(terms, round + 1)


def answer_proposal(terms: BuyTerms, price_msat_per_gib: int, round: int) -> int | None:
    """Answer a proposal of a round.

    Returns:
        The price that we would pay: the proposed one itself if we accept it, else a lower one as our counter-offer.
        None if the rounds are used up.
    """
    willing = terms.offer_msat_per_gib + _concession(terms.most_msat_per_gib - terms.offer_msat_per_gib, round)
    if price_msat_per_gib <= willing:
        return price_msat_per_gib
    return willing if round < MOST_ROUNDS else None
