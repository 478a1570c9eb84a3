"""Rental records: what of a landlord must survive the process, as `ngp.core.records` is for neighbours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RentalRecord:
    """One rental. Key: rental. `networks` are separated by spaces; `_s` without `_at` are seconds of service.

    `second_to_bytes` and `second_from_bytes` are the part of the used bytes that belongs to the second network.
    `traffic_units` are msat / 2^30, as in the kernel, and never more than a signed word of 8 bytes holds.
    """

    rental: bytes
    wireguard_key: bytes
    face: str
    offer: str
    networks: str
    state: str
    reason: str
    rent_msat: int
    activation_fee_msat: int
    rate_since_s: int
    owed_msat: int
    reserved_since_s: int
    asked_msat: int
    asked_rent_msat: int
    period: bytes
    period_charged_msat: int
    period_opened_at_s: int
    started_at_s: int
    started_s: int
    payments: int
    price_msat_per_gib: int = 0
    asked_price_msat_per_gib: int = 0
    used_to_bytes: int = 0
    used_from_bytes: int = 0
    second_to_bytes: int = 0
    second_from_bytes: int = 0
    traffic_units: int = 0
    period_began_to_bytes: int = 0
    period_began_from_bytes: int = 0
    peer: bytes = b""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """Service time (`ngp.core.rental.service`): `before_ms` when the monotonic clock of `boot` showed `since_ms`."""

    boot: int
    before_ms: int
    since_ms: int
