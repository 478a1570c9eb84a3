"""Periods: contracts of kind `subnet`. A period lasts from one payment of a rental to the next, and has its charges."""

from __future__ import annotations

from ngp.core.effects import Persist
from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.messages import Role
from ngp.core.records import ContractRecord
from ngp.core.rental.pools import networks_text
from ngp.core.rental.rental import Period, Rental
from ngp.core.world import World


def open_period(world: World, rental: Rental) -> None:
    """Begin a period now. `open_record` is its record."""
    rental.period = Period(
        world.new_id(),
        world.now.utc_s,
        began_to_bytes=rental.used_to_bytes,
        began_from_bytes=rental.used_from_bytes,
    )
    world.client(rental.id).running += 1


def close_period(world: World, rental: Rental, reason: str) -> None:
    """End the present period, if there is one, and charge its traffic. From then on the period's charges are final."""
    if rental.period.contract:
        _charge_traffic(world, rental)
        world.do(Persist(_record(rental, "closed", reason, world.now.utc_s)))
        world.client(rental.id).running -= 1
        rental.period = Period()


def open_record(rental: Rental) -> ContractRecord | None:
    """Return the present period's record for the ledger; None: no period is open."""
    return _record(rental, "active", "", 0) if rental.period.contract else None


def _record(rental: Rental, state: str, reason: str, closed_at_s: int) -> ContractRecord:
    used_to_bytes = rental.used_to_bytes - rental.period.began_to_bytes
    used_from_bytes = rental.used_from_bytes - rental.period.began_from_bytes
    return ContractRecord(
        contract=rental.period.contract,
        role=Role.SERVER,
        identity=rental.id,
        interface="",
        link_address=rental.wireguard_key,
        destination=str(rental.networks[0]),
        state=state,
        reason=reason,
        prices=((0, rental.price_msat_per_gib),) if rental.price_msat_per_gib else (),
        data_limit_bytes=0,
        lifetime_s=0,
        used_to_bytes=used_to_bytes,
        used_from_bytes=used_from_bytes,
        charged_msat=rental.period.charged_msat,
        billed_bytes=used_to_bytes + used_from_bytes,
        opened_at_s=rental.period.opened_at_s,
        expires_at_s=0,
        closed_at_s=closed_at_s,
        kind="subnet",
    )


def charge_owed(world: World, rental: Rental) -> None:
    """Charge what is owed for traffic and for rent, as far as the balance covers it."""
    _charge_traffic(world, rental)
    amount_msat = max(0, min(rental.owed_msat, world.client(rental.id).balance_msat))
    rental.owed_msat -= amount_msat
    charge(world, rental, amount_msat, "rent")


def _charge_traffic(world: World, rental: Rental) -> None:
    amount_msat = max(0, min(rental.traffic_msat, world.client(rental.id).balance_msat))
    rental.traffic_units -= amount_msat * UNITS_PER_MSAT
    charge(world, rental, amount_msat, "charge")


def charge(world: World, rental: Rental, amount_msat: int, kind: str) -> None:
    """Charge a sum to the present period and write it to the journal. Args: kind: the journal's word for it."""
    if amount_msat:
        world.client(rental.id).charged_msat += amount_msat
        rental.period.charged_msat += amount_msat
        world.journal(kind, rental.id, networks_text(rental.networks), -amount_msat, rental.period.contract)
