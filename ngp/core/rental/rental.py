"""Rental: networks that a tenant rents, and the only moves that a rental can make.

    pending -> active -> reserved -> active ... -> released
    active -> off -> active, pending -> released

A rental is `pending` until its first payment, `active` while it has credit, `reserved` without, `off` when the operator
switched it off, and `released` when its networks are free for others. docs/rental-protocol.md is drawn from `MOVES`.

Rent counts seconds of service (`ngp.core.rental.service`), not of the clock, so no jump of a clock costs anybody
anything. It is charged when it is covered: at a payment, at the end of the credit, and when the rental is switched off.
Until then it is only owed: credit = paid - charged - refunded - owed. Metered traffic is owed and charged like rent
(`ngp.core.rental.metering`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ngp.core.contract import IllegalMove
from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.messages import Prefix
from ngp.core.rental.pools import networks_of, networks_text
from ngp.core.rental.records import RentalRecord
from ngp.core.rental.terms import rent_msat


class RentalState(StrEnum):
    """How far a rental has come."""

    PENDING = "pending"  # its first invoice isn't paid; the networks are held for it
    ACTIVE = "active"  # the tunnel is up
    OFF = "off"  # the operator switched it off; no rent is owed meanwhile
    RESERVED = "reserved"  # its credit is used up; the networks are kept, and rent goes on
    RELEASED = "released"  # over; the networks may be let to others


MOVES: dict[RentalState, frozenset[RentalState]] = {
    RentalState.PENDING: frozenset({RentalState.ACTIVE, RentalState.RELEASED}),
    RentalState.ACTIVE: frozenset({RentalState.OFF, RentalState.RESERVED, RentalState.RELEASED}),
    RentalState.OFF: frozenset({RentalState.ACTIVE, RentalState.RESERVED, RentalState.RELEASED}),
    RentalState.RESERVED: frozenset({RentalState.ACTIVE, RentalState.OFF, RentalState.RELEASED}),
    RentalState.RELEASED: frozenset({RentalState.ACTIVE}),
}
"""A rental that was released before its first payment arrived may still become active."""

PAID_LATE = "paid late"
"""Reason of a released rental whose first payment has just come: it may begin if the ledger still has its networks."""

ACCRUES = frozenset({RentalState.ACTIVE, RentalState.RESERVED})


@dataclass(slots=True)
class Period:
    """A contract of kind `subnet`: a rental from one payment to the next.

    Attributes:
        contract: id, 16 bytes; b"": no period is open.
        opened_at_s: UTC.
        charged_msat: rent and traffic, and the activation fee in the first period.
        began_to_bytes, began_from_bytes: the rental's counters when the period began.
    """

    contract: bytes = b""
    opened_at_s: int = 0
    charged_msat: int = 0
    began_to_bytes: int = 0
    began_from_bytes: int = 0


@dataclass(slots=True)
class Meter:
    """What we know of a metered rental's contracts and account in the kernel; kept in memory only.

    Attributes:
        is_in_kernel: the kernel has the rental's contracts.
        spent_units: what the account has spent in the kernel for the bytes in `Rental.counts`.
        told_units: the account's limit as last set in the kernel; None: not known.
        is_refused: the kernel lacks a contract, so the tunnel lets nothing pass; it is tried again within a minute.
        is_closing: the credit has ended, but the tunnel still has the networks, for packets that are charged already.
        halted: contracts that were stopped for good and read for the last time.
    """

    is_in_kernel: bool = False
    spent_units: int = 0
    told_units: int | None = None
    is_refused: bool = False
    is_closing: bool = False
    halted: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Quote:
    """The terms of one invoice, which hold from its payment on.

    Attributes:
        amount_msat: the credit, without the activation fee.
        activation_fee_msat: 0 unless it is the rental's first invoice, or replaces it.
        asked_s: when the tenant asked for the invoice, seconds of service.
    """

    amount_msat: int
    activation_fee_msat: int
    rent_msat: int
    price_msat_per_gib: int
    asked_s: int


@dataclass(slots=True, eq=False, kw_only=True)
class Rental:
    """One rental. Its money is on a client's account with the rental's id as identity, so audits cover it, too.

    Attributes:
        id: 32 random bytes, also the identity of its account.
        wireguard_key: the tenant's public key, 32 bytes.
        face: where the tenant rents: https, grpc or mesh.
        peer: the neighbour that rents over the mesh link; b"" for another face.
        offer: name of the offer.
        networks: IPv4 first.
        rent_msat: for a month, in the present period. activation_fee_msat: agreed at the start, and never more
            than was paid first.
        price_msat_per_gib: for traffic, in the present period.
        rate_since_s: when the present period began, seconds of service.
        owed_msat: rent of earlier periods that isn't charged yet, as no credit covers it.
        reserved_since_s: when the credit ended, seconds of service; only while `reserved`.
        asked_msat, asked_rent_msat, asked_price_msat_per_gib: of the invoice that was made or paid last: its sum
            without the activation fee, and the rent and the price that hold from its payment on.
        payable: the invoices that may still be paid, by payment hash, with their terms. Terms are kept in memory only;
            None: it has those of the invoice that was made last, as after a start.
        counts: bytes metered so far, to the tenant and from it, by the contract of each network in the kernel.
        traffic_units: what metered traffic costs that isn't charged yet, in the kernel's units of money.
        meter: what we know of the rental's contracts and account in the kernel.
        period: the present period.
        started_at_s: when the first invoice was asked for, UTC. started_s: the same instant in seconds of service.
        payments: number of payments that arrived.
    """

    id: bytes
    wireguard_key: bytes
    face: str
    offer: str
    networks: tuple[Prefix, ...]
    state: RentalState
    reason: str = ""
    rent_msat: int
    activation_fee_msat: int
    price_msat_per_gib: int = 0
    rate_since_s: int = 0
    owed_msat: int = 0
    reserved_since_s: int = 0
    asked_msat: int = 0
    asked_rent_msat: int = 0
    asked_price_msat_per_gib: int = 0
    payable: dict[bytes, Quote | None] = field(default_factory=dict)
    counts: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    traffic_units: int = 0
    meter: Meter = field(default_factory=Meter)
    period: Period = field(default_factory=lambda: Period())
    started_at_s: int
    started_s: int
    payments: int = 0
    peer: bytes = b""

    def move(self, state: RentalState, reason: str = "") -> None:
        """Change state. Raises: IllegalMove: if the table doesn't have the move; the rental stays as it is."""
        if state not in MOVES[self.state]:
            raise IllegalMove(f"rental {self.id.hex()[:8]} can't go from {self.state} to {state}")
        self.state, self.reason = state, reason

    def agree(self, quote: Quote) -> None:
        """Note the terms of the invoice that was made or paid last; before the first payment they hold at once."""
        self.asked_msat, self.asked_rent_msat = quote.amount_msat, quote.rent_msat
        self.asked_price_msat_per_gib = quote.price_msat_per_gib
        if not self.payments:
            self.rent_msat, self.price_msat_per_gib = quote.rent_msat, quote.price_msat_per_gib
            self.activation_fee_msat = quote.activation_fee_msat

    @property
    def holds_networks(self) -> bool:
        """True while nobody else may get the networks."""
        return self.state is not RentalState.RELEASED or self.reason == PAID_LATE

    @property
    def contracts(self) -> tuple[tuple[bytes, Prefix], ...]:
        """Ids and networks of the contracts that the kernel has if traffic is metered, one for each of two networks."""
        return tuple(zip((self.id[:16], self.id[16:]), self.networks, strict=False))

    @property
    def used_to_bytes(self) -> int:
        """Bytes metered so far, to the tenant."""
        return sum(to_bytes for to_bytes, _ in self.counts.values())

    @property
    def used_from_bytes(self) -> int:
        """Bytes metered so far, from the tenant."""
        return sum(from_bytes for _, from_bytes in self.counts.values())

    @property
    def used_bytes(self) -> int:
        """Bytes metered so far, both directions."""
        return self.used_to_bytes + self.used_from_bytes

    @property
    def traffic_msat(self) -> int:
        """What metered traffic costs that isn't charged yet, in whole msat; a fraction of a msat is charged later."""
        return self.traffic_units // UNITS_PER_MSAT

    def owed_at_msat(self, service_s: int) -> int:
        """Return what is owed and not charged, for rent and traffic, at an instant in seconds of service."""
        return self.rent_owed_msat(service_s) + self.traffic_msat

    def rent_owed_msat(self, service_s: int) -> int:
        """Return the rent that is owed and not charged, at an instant in seconds of service."""
        if self.state not in ACCRUES:
            return self.owed_msat
        return self.owed_msat + rent_msat(self.rent_msat, service_s - self.rate_since_s)

    def accrue(self, service_s: int) -> None:
        """Note the rent that is owed so far; from then on rent counts from this instant, in seconds of service."""
        self.owed_msat, self.rate_since_s = self.rent_owed_msat(service_s), service_s

    def lower_rent(self, quote: Quote, service_s: int) -> None:
        """Let a lower rent count from the invoice on that promised it, when this has been paid.

        Tenants count it from then on: after a slow payment they would find less credit than is due, and pay no more.
        """
        if quote.rent_msat < self.rent_msat:
            self.accrue(max(self.rate_since_s, min(quote.asked_s, service_s)))
            self.rent_msat = quote.rent_msat

    def record(self) -> RentalRecord:
        """Return the rental's record for the ledger."""
        second_to_bytes, second_from_bytes = self.counts.get(self.id[16:], (0, 0))
        return RentalRecord(
            rental=self.id,
            wireguard_key=self.wireguard_key,
            face=self.face,
            offer=self.offer,
            networks=networks_text(self.networks),
            state=self.state.value,
            reason=self.reason,
            rent_msat=self.rent_msat,
            activation_fee_msat=self.activation_fee_msat,
            rate_since_s=self.rate_since_s,
            owed_msat=self.owed_msat,
            reserved_since_s=self.reserved_since_s,
            asked_msat=self.asked_msat,
            asked_rent_msat=self.asked_rent_msat,
            period=self.period.contract,
            period_charged_msat=self.period.charged_msat,
            period_opened_at_s=self.period.opened_at_s,
            started_at_s=self.started_at_s,
            started_s=self.started_s,
            payments=self.payments,
            peer=self.peer,
            price_msat_per_gib=self.price_msat_per_gib,
            asked_price_msat_per_gib=self.asked_price_msat_per_gib,
            used_to_bytes=self.used_to_bytes,
            used_from_bytes=self.used_from_bytes,
            second_to_bytes=second_to_bytes,
            second_from_bytes=second_from_bytes,
            traffic_units=self.traffic_units,
            period_began_to_bytes=self.period.began_to_bytes,
            period_began_from_bytes=self.period.began_from_bytes,
        )

    @classmethod
    def of(cls, record: RentalRecord) -> Rental:
        """Make a rental from its record."""
        second = record.second_to_bytes, record.second_from_bytes
        first = record.used_to_bytes - second[0], record.used_from_bytes - second[1]
        return cls(
            id=record.rental,
            wireguard_key=record.wireguard_key,
            face=record.face,
            offer=record.offer,
            networks=networks_of(record.networks),
            state=RentalState(record.state),
            reason=record.reason,
            rent_msat=record.rent_msat,
            activation_fee_msat=record.activation_fee_msat,
            rate_since_s=record.rate_since_s,
            owed_msat=record.owed_msat,
            reserved_since_s=record.reserved_since_s,
            asked_msat=record.asked_msat,
            asked_rent_msat=record.asked_rent_msat,
            price_msat_per_gib=record.price_msat_per_gib,
            asked_price_msat_per_gib=record.asked_price_msat_per_gib,
            counts={record.rental[:16]: first, record.rental[16:]: second},
            traffic_units=record.traffic_units,
            period=Period(
                record.period,
                record.period_opened_at_s,
                record.period_charged_msat,
                record.period_began_to_bytes,
                record.period_began_from_bytes,
            ),
            started_at_s=record.started_at_s,
            started_s=record.started_s,
            payments=record.payments,
            peer=record.peer,
        )
