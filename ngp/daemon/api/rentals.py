"""Rentals: the landlord's answers: what is let, and what tenants may rent.

The field names are the JSON keys in docs/operators-guide.md and don't change. Money is msat, data bytes. Instants that
the core counts in seconds of service are shown as if the machine had run all the time.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from ngp import identity
from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.records import AccountRecord
from ngp.core.rental.records import RentalRecord
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.rental.status import ends_s, room, status
from ngp.core.rental.terms import LettingSettings, Offer
from ngp.core.values import Now
from ngp.core.world import World
from ngp.daemon.api.plain import instant
from ngp.ports.letting import PeerReading

_NO_READING = PeerReading(b"", 0, 0, 0, "")


@dataclass(frozen=True, slots=True)
class RentalRow:
    """A rental: paid = activation fee + charged + refunded + credit, always.

    Attributes:
        role: `landlord`.
        peer: the neighbour that rents over the mesh link; None: another face.
        activation_fee_msat: as far as the fee was charged, so 0 until the first payment.
        used_to_bytes, used_from_bytes: towards the tenant and from it. If the rental's traffic is metered, all that was
            counted so far; else what the tunnel counts since it has the peer.
    """

    id: str
    role: str
    state: str
    reason: str
    peer: str | None
    wireguard_key: str
    networks: tuple[str, ...]
    offer: str
    face: str
    rent_msat_per_month: int
    price_msat_per_gib: int
    activation_fee_msat: int
    paid_msat: int
    charged_msat: int
    refunded_msat: int
    credit_msat: int
    payments: int
    started_at: datetime | None
    rate_since: datetime | None
    paid_until: datetime | None
    reserved_until: datetime | None
    unpaid_invoice: str | None
    used_to_bytes: int
    used_from_bytes: int
    endpoint: str | None
    last_handshake: datetime | None
    real_money: bool


def rental_row(world: World, rental: Rental, now: Now, reading: PeerReading | None) -> RentalRow:
    """Return the row of a rental that the daemon holds. Args: reading: None if the tunnel doesn't have the tenant."""
    found, read = status(world, rental, now), reading or _NO_READING
    is_metered = rental.price_msat_per_gib > 0 or rental.used_bytes > 0

    def clock(service_s: int | None) -> datetime | None:
        return None if service_s is None else instant(now.utc_s + service_s - world.letting.clock.at_s(now))

    paid_until_s: int | None = None
    if found.state is RentalState.ACTIVE:
        paid_until_s = ends_s(world, rental)
    elif found.state is RentalState.RESERVED:
        paid_until_s = rental.reserved_since_s
    return replace(
        record_row(rental.record(), world.client(rental.id).record(), world.node.real_money),
        charged_msat=found.charged_msat,
        credit_msat=found.credit_msat,
        rate_since=clock(rental.rate_since_s if rental.period.contract else None),
        paid_until=clock(paid_until_s),
        reserved_until=instant(now.utc_s + found.reserved_until_s - found.now_at_s if found.reserved_until_s else 0),
        unpaid_invoice=found.unpaid_invoice or None,
        used_to_bytes=found.used_to_bytes if is_metered else read.sent_bytes,
        used_from_bytes=found.used_from_bytes if is_metered else read.received_bytes,
        endpoint=read.endpoint or None,
        last_handshake=instant(read.handshake_at_s),
    )


def record_row(record: RentalRecord, account: AccountRecord, real_money: bool) -> RentalRow:
    """Return the row of a rental in the ledger, without the rent since the last write and what only a daemon knows."""
    fee_msat = min(record.activation_fee_msat, account.charged_msat)
    owed_msat = record.owed_msat + record.traffic_units // UNITS_PER_MSAT
    credit_msat = account.paid_msat - account.charged_msat - account.refunded_msat - owed_msat
    return RentalRow(
        id=identity.text(record.rental),
        role="landlord",
        state=record.state,
        reason=record.reason,
        peer=identity.text(record.peer) if record.peer else None,
        wireguard_key=b64encode(record.wireguard_key).decode(),
        networks=tuple(record.networks.split()),
        offer=record.offer,
        face=record.face,
        rent_msat_per_month=record.rent_msat,
        price_msat_per_gib=record.price_msat_per_gib,
        activation_fee_msat=fee_msat,
        paid_msat=account.paid_msat,
        charged_msat=account.charged_msat - fee_msat + owed_msat,
        refunded_msat=account.refunded_msat,
        credit_msat=credit_msat,
        payments=record.payments,
        started_at=instant(record.started_at_s),
        rate_since=instant(record.period_opened_at_s),
        paid_until=None,
        reserved_until=None,
        unpaid_invoice=None,
        used_to_bytes=record.used_to_bytes,
        used_from_bytes=record.used_from_bytes,
        endpoint=None,
        last_handshake=None,
        real_money=real_money,
    )


# --- offers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OfferRow:
    """What tenants may rent.

    Attributes:
        networks: sizes, `IPv4 /32`.
        free: how many such rentals the pools have room for now.
        refused_by: a tenant's limit; None with the landlord.
    """

    landlord: str
    name: str
    networks: tuple[str, ...]
    free: int
    rent_msat_per_month: int
    price_msat_per_gib: int
    activation_fee_msat: int
    initial_credit_min_msat: int
    payment_min_msat: int
    credit_max_msat: int
    reserved_s: int
    refused_by: str | None


def offer_row(world: World, offer: Offer, landlord: bytes) -> OfferRow:
    """Return the row of one of our offers. Args: landlord: our identity."""
    return OfferRow(
        landlord=identity.text(landlord),
        name=offer.name,
        networks=tuple(f"IPv{version} /{bits}" for version, bits in offer.sizes),
        free=room(world, offer),
        rent_msat_per_month=offer.rent_msat,
        price_msat_per_gib=offer.price_msat_per_gib,
        activation_fee_msat=offer.activation_fee_msat,
        initial_credit_min_msat=offer.initial_credit_min_msat,
        payment_min_msat=offer.payment_min_msat,
        credit_max_msat=offer.credit_max_msat,
        reserved_s=offer.reserved_s,
        refused_by=None,
    )


# --- status -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LettingStatus:
    """Letting in numbers: rentals by state, and how many more of the first offer there is room for.

    Attributes: tunnel: which implementation is in use. faces: where tenants may ask.
    """

    active: int
    reserved: int
    off: int
    pending: int
    free: int
    tunnel: Mapping[str, str]
    faces: tuple[str, ...]


def letting_status(world: World, tunnel: Mapping[str, str]) -> LettingStatus | None:
    """Describe letting; None if nothing is let."""
    settings = world.settings.letting
    if settings is None:
        return None
    states = [one.state for one in world.letting.rentals.values()]
    faces = [f"{name} {address} port {port}" for name, where in _listening(settings) for address, port in where]
    if settings.mesh and world.settings.mesh_interfaces:
        faces.append("mesh")
    return LettingStatus(
        active=states.count(RentalState.ACTIVE),
        reserved=states.count(RentalState.RESERVED),
        off=states.count(RentalState.OFF),
        pending=states.count(RentalState.PENDING),
        free=room(world, settings.offers[0]),
        tunnel=tunnel,
        faces=tuple(faces),
    )


def _listening(settings: LettingSettings) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    return (("https", settings.https), ("grpc", settings.grpc))
