"""Policy: what this node asks, offers and agrees to, out of net.conf and nothing else.

A negotiation has at most `MOST_ROUNDS` proposals. The seller begins at its price and comes down to its least in equal
steps, the buyer begins at its offer and goes up to its most; a counter-offer that the other can take ends it at once.
Both stay inside what their operator wrote, whatever the neighbour says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from ngp.core.messages import Address, Prefix
from ngp.core.settings import PriceRule, Settings

MOST_ROUNDS = 4
LEAST_NETWORK_BITS = {4: 8, 6: 16}
"""A wider route is a part of a default route (0.0.0.0/1, 2000::/3), which is never sold whole."""


@dataclass(frozen=True, slots=True)
class SellTerms:
    """What we ask for a destination; prices msat per GiB."""

    destination: Prefix
    ask_msat_per_gib: int
    least_msat_per_gib: int


@dataclass(frozen=True, slots=True)
class BuyTerms:
    """What we pay for a destination; prices msat per GiB."""

    offer_msat_per_gib: int
    most_msat_per_gib: int


class Answer(Enum):
    """What a buyer does with a proposal."""

    ACCEPT = "accept"
    COUNTER = "counter"
    DECLINE = "decline"


def host_prefix(address: Address) -> Prefix:
    """Return the /32 or /128 of an address, out of its bytes: ip_network() would write it as text and read it again."""
    if isinstance(address, IPv4Address):
        return IPv4Network((address.packed, 32))
    return IPv6Network((address.packed, 128))


def _covers(outer: Prefix, inner: Prefix) -> bool:
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and (int(inner.network_address) >> (inner.max_prefixlen - outer.prefixlen))
        == (int(outer.network_address) >> (outer.max_prefixlen - outer.prefixlen))
    )


def price_rule(settings: Settings, destination: Prefix, interface: str) -> PriceRule | None:
    """Find the PRICES entry for a destination: the longest prefix wins, then one that names the interface."""
    best: PriceRule | None = None
    for rule in settings.prices:
        if rule.interface not in (None, interface) or not _covers(rule.prefix, destination):
            continue
        if best is None or (rule.prefix.prefixlen, rule.interface is not None) > (
            best.prefix.prefixlen,
            best.interface is not None,
        ):
            best = rule
    return best


def sell_terms(settings: Settings, address: Address, interface: str, route: Prefix | None) -> SellTerms:
    """Decide what to propose for a destination.

    Args:
        address: where the held packet goes.
        interface: where the neighbour is.
        route: the route that carries it; None, or a default route or a part of one: then the address alone is sold.

    Returns:
        The terms; their destination is the PRICES entry's prefix, else the route's, else the address.
    """
    host = host_prefix(address)
    rule = price_rule(settings, host, interface)
    ask, least = _sell_prices(settings, rule)
    destination = host
    if rule is not None and rule.prefix.prefixlen > 0:
        destination = rule.prefix
    elif rule is None and route is not None and route.prefixlen >= LEAST_NETWORK_BITS[route.version]:
        destination = _without_other_prices(settings, route, host)
    return SellTerms(destination, ask, least)


def _without_other_prices(settings: Settings, route: Prefix, host: Prefix) -> Prefix:
    """Sell a route whole only where no PRICES entry prices a part of it differently."""
    return host if any(_covers(route, rule.prefix) for rule in settings.prices) else route


def ask_terms(settings: Settings, destination: Prefix, interface: str) -> SellTerms:
    """Decide what to propose for a destination that a client names.

    A prefix costs what its dearest part costs: else the wide one would be the cheap way to the dear one.
    """
    covering = price_rule(settings, destination, interface)
    ask, least = _sell_prices(settings, covering)
    if covering is not None and covering.prefix.prefixlen > 0:
        return SellTerms(covering.prefix, ask, least)
    for rule in _inner_rules(settings, destination, interface):
        inner_ask, inner_least = _sell_prices(settings, rule)
        ask, least = max(ask, inner_ask), max(least, inner_least)
    return SellTerms(destination, ask, least)


def _sell_prices(settings: Settings, rule: PriceRule | None) -> tuple[int, int]:
    ask, least = settings.sell_msat_per_gib, settings.sell_min_msat_per_gib
    if rule is not None and rule.sell_msat_per_gib is not None:
        ask = least = rule.sell_msat_per_gib
    if rule is not None and rule.sell_min_msat_per_gib is not None:
        least = rule.sell_min_msat_per_gib
    return ask, min(least, ask)


def _inner_rules(settings: Settings, destination: Prefix, interface: str) -> list[PriceRule]:
    return [
        rule
        for rule in settings.prices
        if rule.interface in (None, interface) and rule.prefix != destination and _covers(destination, rule.prefix)
    ]


def buy_terms(settings: Settings, destination: Prefix, interface: str) -> BuyTerms:
    """Decide what to pay for a destination: for a prefix no more than for the part of it that is worth least to us."""
    whole = _terms_of(settings, price_rule(settings, destination, interface))
    inner = [_terms_of(settings, rule) for rule in _inner_rules(settings, destination, interface)]
    most = min(terms.most_msat_per_gib for terms in (whole, *inner))
    return BuyTerms(min(most, *(terms.offer_msat_per_gib for terms in (whole, *inner))), most)


def _terms_of(settings: Settings, rule: PriceRule | None) -> BuyTerms:
    offer, most = settings.buy_msat_per_gib, settings.buy_max_msat_per_gib
    if rule is not None:
        if rule.buy_msat_per_gib is not None:
            offer = rule.buy_msat_per_gib
            most = offer if rule.buy_max_msat_per_gib is None else rule.buy_max_msat_per_gib
        elif rule.buy_max_msat_per_gib is not None:
            most = rule.buy_max_msat_per_gib
    return BuyTerms(min(offer, most), most)


def ask_in_round(terms: SellTerms, round: int) -> int:
    """Return the seller's price in a round, 1 to MOST_ROUNDS: down in equal steps to the least."""
    step = min(round, MOST_ROUNDS) - 1
    return terms.ask_msat_per_gib - (terms.ask_msat_per_gib - terms.least_msat_per_gib) * step // (MOST_ROUNDS - 1)


def answer_counter(terms: SellTerms, counter_msat_per_gib: int, round: int) -> int | None:
    """Answer a counter-offer to the proposal of a round.

    Returns:
        The price to propose next: the counter itself if it is not below the least accepted, else the next step;
        None when the rounds are used up.
    """
    if round >= MOST_ROUNDS:
        return None  # the last proposal is taken or left, whatever is offered: else the rounds would never end
    if terms.least_msat_per_gib <= counter_msat_per_gib:
        return min(counter_msat_per_gib, terms.ask_msat_per_gib)
    return ask_in_round(terms, round + 1)


def answer_proposal(terms: BuyTerms, price_msat_per_gib: int, round: int) -> tuple[Answer, int]:
    """Answer a proposal of a round.

    Returns:
        The answer, and for COUNTER the price offered instead.
    """
    step = min(round, MOST_ROUNDS) - 1
    willing = terms.offer_msat_per_gib + (terms.most_msat_per_gib - terms.offer_msat_per_gib) * step // (
        MOST_ROUNDS - 1
    )
    if price_msat_per_gib <= willing:
        return Answer.ACCEPT, price_msat_per_gib
    if round >= MOST_ROUNDS:
        return Answer.DECLINE, 0
    return Answer.COUNTER, willing
