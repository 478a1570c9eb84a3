"""Terms: what a landlord asks, what its tenant allows, and how much is paid at a time.

The limits bind automatic payments. Each refusal names the limit, so that the tenant knows which value to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from ngp.core.pricing import SAT_MSAT, about_price, ceil_to_sat_msat, floor_to_sat_msat, show_money
from ngp.core.rental.terms import MONTH_S
from ngp.core.tenant.way import Way

NEVER_S = 1 << 40  # time until the next payment if none is needed any more


@dataclass(frozen=True, slots=True)
class SaleTerms:
    """What a landlord asks. Money msat.

    Attributes:
        rate_sat_s: the rent in sat a second, exactly as the landlord gave it.
        activation_fee_msat: once; 0 in the terms of a later payment.
        price_msat_per_gib: for traffic in both directions, besides the rent.
    """

    rate_sat_s: float
    activation_fee_msat: int
    initial_credit_min_msat: int
    payment_min_msat: int
    credit_max_msat: int
    price_msat_per_gib: int = 0

    @property
    def rent_msat(self) -> int:
        """The rent of a month."""
        return rent_of_month_msat(self.rate_sat_s)

    @property
    def asked(self) -> str:
        """Rent and price of traffic, in words."""
        traffic = f" and {about_price(self.price_msat_per_gib)} for traffic" if self.price_msat_per_gib else ""
        return f"{show_money(self.rent_msat)} a month{traffic}"


@dataclass(frozen=True, slots=True)
class OnSale:
    """One of a landlord's offers. Attributes: all but `terms` are None where the face doesn't say them.

    networks: sizes, `IPv4 /32`. free: how many such rentals there is room for.
    """

    terms: SaleTerms
    name: str | None = None
    networks: tuple[str, ...] | None = None
    free: int | None = None
    reserved_s: int | None = None


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """What net.conf says about renting: the TENANT_ keys of the same names, with their defaults.

    `probe`: a shell command that shows that the tunnel works; `auto`: the landlord answers an echo through it.
    """

    rent_max_msat: int = 48_000_000
    price_max_msat_per_gib: int = 0
    activation_max_msat: int = 64_000_000
    initial_max_msat: int = 2_000_000
    payment_min_msat: int = 550_000
    payment_max_msat: int = 1_500_000
    target_credit_msat: int = 6_000_000
    target_time_s: int = 5 * 86_400
    warn_time_s: int = 86_400
    probe: str = "auto"
    all_traffic: bool = False
    beside: tuple[Way, ...] = ()

    @property
    def limits(self) -> Limits:
        """The limits, by their names in net.conf."""
        return Limits(
            rent_max=Limit(self.rent_max_msat, "TENANT_RENT_MAX"),
            price_max=Limit(self.price_max_msat_per_gib, "TENANT_PRICE_MAX"),
            activation_max=Limit(self.activation_max_msat, "TENANT_ACTIVATION_MAX"),
            initial_max=Limit(self.initial_max_msat, "TENANT_INITIAL_MAX"),
            payment_min=Limit(self.payment_min_msat, "TENANT_PAYMENT_MIN"),
            payment_max=Limit(self.payment_max_msat, "TENANT_PAYMENT_MAX"),
            target_credit=Limit(self.target_credit_msat, "TENANT_TARGET_CREDIT"),
            target_time_s=Limit(self.target_time_s, "TENANT_TARGET_TIME"),
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit with the name of its setting. Attributes: value: msat, seconds, or msat for a GiB."""

    value: int
    name: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant allows: most rent a month, price of traffic, activation fee and first credit; least and most of a
    later payment.

    `target_credit` and `target_time_s` say up to which credit to pay; the smaller one counts.
    """

    rent_max: Limit
    price_max: Limit
    activation_max: Limit
    initial_max: Limit
    payment_min: Limit
    payment_max: Limit
    target_credit: Limit
    target_time_s: Limit


def rent_of_month_msat(rate_sat_s: float) -> int:
    """Return the rent of a month for a rate in sat a second."""
    return round(rate_sat_s * SAT_MSAT * MONTH_S)


def stricter(one: Limits, other: Limits) -> Limits:
    """Join two sets of limits: of each limit the stricter one holds."""
    joined = {}
    for each in fields(Limits):
        both = getattr(one, each.name), getattr(other, each.name)
        chosen = max if each.name == "payment_min" else min
        joined[each.name] = chosen(both, key=lambda limit: limit.value)
    return Limits(**joined)


def refusals(terms: SaleTerms, limits: Limits, is_first: bool) -> list[str]:
    """Return why a landlord's terms can't be accepted, each naming the limit; empty if they can.

    Args: is_first: there is no rental yet.
    """
    return list(_refusals(terms, limits, is_first))


def _refusals(terms: SaleTerms, limits: Limits, is_first: bool) -> Iterator[str]:
    if terms.price_msat_per_gib > limits.price_max.value:
        yield (
            f"the landlord asks {about_price(terms.price_msat_per_gib)} for traffic, above {limits.price_max.name} "
            f"({about_price(limits.price_max.value)})"
        )
    yield from _above("rent of a month", terms.rent_msat, limits.rent_max)
    if is_first:
        yield from _above("activation fee", terms.activation_fee_msat, limits.activation_max)
        yield from _above("least first credit", terms.initial_credit_min_msat, limits.initial_max)
    yield from _above("least payment", terms.payment_min_msat, limits.payment_max)
    if limits.payment_min.value > limits.payment_max.value:
        yield f"{limits.payment_min.name} is above {limits.payment_max.name}: no payment fits; change one of them"
    if terms.credit_max_msat < max(2 * terms.payment_min_msat, terms.initial_credit_min_msat):
        yield (
            f"the landlord's terms contradict each other: its largest credit, {show_money(terms.credit_max_msat)}, "
            "leaves no room for its smallest payments; ask the landlord"
        )


def _above(what: str, asked_msat: int, limit: Limit) -> Iterator[str]:
    if asked_msat > limit.value:
        yield f"the {what} is {show_money(asked_msat)}, above {limit.name} ({show_money(limit.value)})"


def top_up_msat(credit_msat: int, terms: SaleTerms, limits: Limits, is_first: bool) -> int:
    """Return which credit to buy now, whole sat; 0: none. The terms must have been accepted by `refusals`.

    The first payment is the landlord's least: more is paid only when the tunnel works. Later payments reach the target
    in parts, each at most `payment_max`. The target is at least two payments, as credit would end before the next
    payment otherwise.

    Args: credit_msat: now; negative while back rent is owed.
    """
    if is_first:
        return ceil_to_sat_msat(terms.initial_credit_min_msat)
    least_msat, target_msat = _least_msat(terms, limits), _target_msat(terms, limits)
    room_msat = floor_to_sat_msat(terms.credit_max_msat - max(0, credit_msat))
    wanted_msat = ceil_to_sat_msat(target_msat - credit_msat)
    amount_msat = min(wanted_msat, floor_to_sat_msat(limits.payment_max.value), room_msat)
    return amount_msat if amount_msat >= least_msat else 0


def most_bought_msat(limits: Limits, age_s: float, is_proven: bool) -> int:
    """Return the most credit that may be bought for a rental in all, including the payment that is due now.

    A landlord may claim at any time that the credit is used up. So our loss is bounded by our own clock and limits
    alone: by the highest rent since the user last paid by hand, and one payment. The credit that we want to keep is
    added only if the tunnel works.

    Args: age_s: time since then, or else since the first payment. is_proven: the tunnel is proven to work.
    """
    rent_msat = math.ceil(limits.rent_max.value * max(0.0, age_s) / MONTH_S)
    wanted = (limits.target_credit, limits.initial_max, limits.payment_max)  # the target is at least two payments
    return rent_msat + limits.payment_max.value + (max(one.value for one in wanted) if is_proven else 0)


def lasts_until_due_s(credit_msat: int, terms: SaleTerms, limits: Limits) -> int:
    """Return after how many seconds the next payment is due by the rent alone; 0: now."""
    spare_msat = credit_msat - (_target_msat(terms, limits) - _least_msat(terms, limits))
    if not terms.rate_sat_s:
        return NEVER_S if spare_msat > 0 else 0
    return max(0, math.floor(spare_msat / (terms.rate_sat_s * SAT_MSAT)))


def _least_msat(terms: SaleTerms, limits: Limits) -> int:
    """Return the least payment, >= 1 sat: else nothing would be due where neither side asks for more than nothing."""
    return max(SAT_MSAT, ceil_to_sat_msat(max(terms.payment_min_msat, limits.payment_min.value)))


def _target_msat(terms: SaleTerms, limits: Limits) -> int:
    by_time_msat = math.ceil(limits.target_time_s.value * terms.rate_sat_s * SAT_MSAT)
    if terms.price_msat_per_gib:  # how long the credit lasts isn't known
        by_time_msat = limits.target_credit.value
    wanted_msat = max(min(limits.target_credit.value, by_time_msat), 2 * _least_msat(terms, limits))
    return min(wanted_msat, terms.credit_max_msat)
