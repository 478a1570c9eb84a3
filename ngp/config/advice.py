"""Advice: warnings, in `ngp check` and the log, about values of net.conf that are valid but let little traffic pass.

A contract of a kilobyte sells a few pings, which suits a demonstration. On a router it is a mistake: a download's
packets don't fit into it, and nothing shows why the download stalls. Values that let nothing pass are refused by
`checks`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ngp.config.units import show_data
from ngp.core.kernel import FULL_PACKET_BYTES
from ngp.core.listing import listed
from ngp.core.policy import is_sold_whole
from ngp.core.pricing import amount_due_msat, show_money
from ngp.core.rental.terms import Offer
from ngp.core.settings import FreeDestination, PriceRule, Settings
from ngp.core.values import Check

_KEPT_CREDIT_MSAT = 6_000_000  # as the published StaticWire client keeps it by default; `_unsellable` has its limits
_FULL = f"a full packet ({FULL_PACKET_BYTES:,} bytes)"


def unwise(settings: Settings) -> list[Check]:
    """Return a line for each value that hinders traffic, with a better value."""
    return [Check(key, True, f"{value} {why}", remedy) for key, value, why, remedy in _found(settings)]


def _found(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    limit, renewal, grace = settings.contract_data_bytes, settings.data_renewal_bytes, settings.grace_data_bytes
    if limit < 2 * FULL_PACKET_BYTES:
        why = f"is less than two full packets (2 x {FULL_PACKET_BYTES:,} bytes): these wait for renewals or never pass"
        yield "CONTRACT_DATA", show_data(limit), why, "100 MB, as shipped"
    if renewal is not None and 0 < renewal < FULL_PACKET_BYTES:
        why = f"is less than {_FULL}: a contract with a little more left isn't renewed, and the next packet doesn't fit"
        yield "DATA_RENEWAL", show_data(renewal), why, "auto, as shipped; 0 for no renewal by data"
    if 0 < grace < FULL_PACKET_BYTES:
        why = f"is less than {_FULL}: no full packet passes on credit"
        yield "GRACE_DATA", show_data(grace), why, "256 kB, as shipped; 0 for no credit"
    cost_msat = amount_due_msat(FULL_PACKET_BYTES, ((0, _dearest_msat_per_gib(settings)),))
    if cost_msat > settings.payment_amount_msat:
        why = f"is less than the price of {_FULL}, {show_money(cost_msat)}: traffic waits for payments"
        yield "PAYMENT_AMOUNT", show_money(settings.payment_amount_msat), why, "a multiple of that, or lower prices"
    if settings.sells and (given := list(filter(_is_nearly_all, settings.free_destinations))):
        named = listed(" ".join(filter(None, (str(one.prefix), one.protocol))) for one in given)
        why = "leaves nearly nothing to sell: what neighbours send there, and the answers, pass for nothing"
        yield "FREE_DESTINATIONS", named, why, "the prefixes alone that are to cost nothing, or none"
    yield from _of_other_version(settings)
    if settings.letting is not None and settings.letting.https:
        yield from _unsellable(settings.letting.offers[0])


def _is_nearly_all(free: FreeDestination) -> bool:
    """Say whether an entry gives away a default route, or a part of one such as 0.0.0.0/1."""
    return not is_sold_whole(free.prefix) and free.port is None and free.protocol in (None, "tcp", "udp")


def _of_other_version(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    """Find entries for the IP version that isn't gated, since NETWORK_INTERFACE is ip4 or ip6."""
    gated = {"ip4": 4, "ip6": 6}.get(settings.network_module)
    entries: tuple[tuple[str, tuple[PriceRule, ...] | tuple[FreeDestination, ...]], ...] = (
        ("PRICES", settings.prices),
        ("FREE_DESTINATIONS", settings.free_destinations),
        ("PAYMENT_SERVICES", settings.payment_services),
    )
    for key, all_of_key in entries if gated else ():
        other = dict.fromkeys(str(one.prefix) for one in all_of_key if one.prefix.version != gated)
        if other:
            without = f"NETWORK_INTERFACE: {settings.network_module} neither gates nor charges IPv{10 - (gated or 0)}"
            yield key, listed(other), f"has no effect: {without}", "NETWORK_INTERFACE: ip, or take it out"


def _unsellable(offer: Offer) -> Iterator[tuple[str, str, str, str]]:
    """Compare the offer that is sold over HTTPS with what the published client accepts as shipped."""
    of = f"in the offer {offer.name}"
    for key, asked_msat, most_msat in (
        ("LANDLORD_RENT", offer.rent_msat, 48_000_000),
        ("LANDLORD_ACTIVATION_FEE", offer.activation_fee_msat, 64_000_000),
        ("LANDLORD_INITIAL_CREDIT_MIN", offer.initial_credit_min_msat, 1_999_000),  # the client pays no more than that
        ("LANDLORD_PAYMENT_MIN", offer.payment_min_msat, 1_500_000),
    ):
        if asked_msat > most_msat:
            why = f"{of} is more than the published client pays by itself, unless its user raises its limits"
            yield key, show_money(asked_msat), why, f"{show_money(most_msat)} or less"
    if offer.credit_max_msat < _KEPT_CREDIT_MSAT:
        why = f"{of} is less than the credit that the published client keeps: its payments would fail"
        right = f"{show_money(_KEPT_CREDIT_MSAT)} or more"
        yield "LANDLORD_CREDIT_MAX", show_money(offer.credit_max_msat), why, right


def _dearest_msat_per_gib(settings: Settings) -> int:
    """Return the highest price at which we may sell or buy."""
    prices: list[int] = []
    if settings.sells:
        prices += [settings.sell_msat_per_gib, *(one.sell_msat_per_gib or 0 for one in settings.prices)]
    if settings.buys:
        prices += [settings.buy_max_msat_per_gib, *(one.buy_max_msat_per_gib or 0 for one in settings.prices)]
    return max(prices, default=0)
