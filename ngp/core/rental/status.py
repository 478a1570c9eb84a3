"""Status: what is known of a rental at an instant, from one calculation for the rules and all faces."""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Prefix
from ngp.core.rental.refunds import fetchable_msat
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.rental.terms import Offer, lasts_s
from ngp.core.values import Now
from ngp.core.world import World


@dataclass(frozen=True, slots=True)
class RentalStatus:
    """A rental at one instant. Money msat. paid = activation fee + charged + refunded + credit, always.

    Attributes:
        id: 32 bytes.
        reason: why the rental is in this state; "" if the state says enough.
        price_msat_per_gib: for traffic, in the present period.
        charged_msat: rent and traffic so far, to this second, without the activation fee.
        started_at_s: UTC, of the first invoice.
        now_at_s: `started_at_s` plus the service time since then. A clock that was corrected doesn't show here.
        left_s: how long the credit lasts; negative: back rent is owed for so long; None: no rent is asked, so the
            credit lasts for any time.
        rate_since_s: when the present rent began, on the clock of `now_at_s`.
        reserved_until_s: on the clock of `now_at_s`; 0 unless the rental is reserved and its offer still exists.
        unpaid_invoice: the invoice that waits for its payment, BOLT11; "" if there is none.
        used_to_bytes, used_from_bytes: metered so far, to the tenant and from it; 0 if its traffic isn't metered.
        fetchable_msat: what the tenant may have paid back now, with one invoice: of this rental, or of an earlier one
            with the same key.
    """

    id: bytes
    wireguard_key: bytes
    face: str
    offer: str
    networks: tuple[Prefix, ...]
    state: RentalState
    reason: str
    rent_msat: int
    price_msat_per_gib: int
    activation_fee_msat: int
    paid_msat: int
    charged_msat: int
    refunded_msat: int
    credit_msat: int
    payments: int
    started_at_s: int
    now_at_s: int
    left_s: int | None
    rate_since_s: int
    reserved_until_s: int
    unpaid_invoice: str
    used_to_bytes: int
    used_from_bytes: int
    fetchable_msat: int


@dataclass(frozen=True, slots=True)
class Asked:
    """An invoice for a tenant.

    Attributes:
        is_first: it is for a new rental, and includes the activation fee.
        added_msat: the credit that its payment adds, without the activation fee.
        offer: the terms that hold from the payment on.
        status: the rental before the payment.
    """

    bolt11: str
    is_first: bool
    added_msat: int
    offer: Offer
    status: RentalStatus


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a tenant needs to reach its addresses: WireGuard's settings without the tenant's private key.

    Attributes:
        landlord_key: the landlord's public key, 32 bytes.
        endpoints: `host:port`, IPv6 addresses in brackets; never empty.
        keepalive_s: seconds between keepalive packets; 0: none are sent.
    """

    networks: tuple[Prefix, ...]
    landlord_key: bytes
    endpoints: tuple[str, ...]
    mtu: int
    dns: tuple[str, ...]
    keepalive_s: int


def status(world: World, rental: Rental, now: Now) -> RentalStatus:
    """Calculate a rental's status at an instant, in every state."""
    account, service_s = world.client(rental.id), world.letting.clock.at_s(now)
    left_msat = credit_msat(world, rental, now)
    began = rental.payments > 0
    fee_msat = min(rental.activation_fee_msat, account.charged_msat)  # the fee is charged first, in full or not at all
    left_s: int | None = None
    if rental.rent_msat:
        left_s = lasts_s(left_msat, rental.rent_msat) if left_msat > 0 else -lasts_s(-left_msat, rental.rent_msat)
    offer = offer_of(world, rental)
    reserved_s = offer.reserved_s if offer is not None else 0
    invoice = world.money.invoices.get(account.invoice.payment_hash)
    at_s = rental.started_at_s - rental.started_s
    return RentalStatus(
        id=rental.id,
        wireguard_key=rental.wireguard_key,
        face=rental.face,
        offer=rental.offer,
        networks=rental.networks,
        state=rental.state,
        reason=rental.reason,
        rent_msat=rental.rent_msat,
        price_msat_per_gib=rental.price_msat_per_gib,
        activation_fee_msat=rental.activation_fee_msat,
        paid_msat=account.paid_msat,
        charged_msat=account.paid_msat - account.refunded_msat - fee_msat - left_msat,
        refunded_msat=account.refunded_msat,
        credit_msat=left_msat,
        payments=rental.payments,
        started_at_s=rental.started_at_s,
        now_at_s=at_s + service_s,
        left_s=left_s,
        rate_since_s=at_s + rental.rate_since_s if began else rental.started_at_s,
        reserved_until_s=at_s + rental.reserved_since_s + reserved_s if rental.reserved_since_s and reserved_s else 0,
        unpaid_invoice=invoice.bolt11 if invoice is not None and invoice.state == "open" else "",
        used_to_bytes=rental.used_to_bytes,
        used_from_bytes=rental.used_from_bytes,
        fetchable_msat=fetchable_msat(world, rental.wireguard_key),
    )


def offer_of(world: World, rental: Rental) -> Offer | None:
    """Return a rental's offer; None: net.conf has it no longer, or nothing is let."""
    settings = world.settings.letting
    return settings.offer(rental.offer) if settings is not None else None


def credit_msat(world: World, rental: Rental, now: Now) -> int:
    """Return what a tenant has left; negative while back rent is owed."""
    return world.client(rental.id).balance_msat - rental.owed_at_msat(world.letting.clock.at_s(now))


def ends_s(world: World, rental: Rental) -> int | None:
    """Return when an active rental's credit is used up, seconds of service; None: never, as no rent is asked."""
    if not rental.rent_msat:
        return None
    left_msat = world.client(rental.id).balance_msat - rental.owed_msat - rental.traffic_msat
    return rental.rate_since_s + lasts_s(left_msat, rental.rent_msat)


def room(world: World, offer: Offer) -> int:
    """Return how many more rentals of an offer the pools have room for."""
    networks = world.letting.free
    return min((networks.count(version, bits, offer.pools) for version, bits in offer.sizes), default=0)
