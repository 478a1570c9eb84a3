"""Metering: what a rental's traffic costs, and what the kernel may still let through.

A rental whose offer has a price has a contract in the kernel for each of its networks, and one account for both. The
account holds what the tenant has paid, without the rent so far and without that of the next minute. Each minute the
limit is lowered by the rent. So whatever passes is covered, also by a kernel without a daemon, and the kernel cuts at
the byte. When less is left than a full packet costs, the service ends.

The counters are cumulative and are kept for the rental's whole life, whatever its periods. What is new in a reading is
priced and owed; it is charged together with the rent (`ngp.core.rental.periods`). The ledger has one pair of counters
for both networks: the first network's contract begins with it, should the kernel know nothing, the other's with zero.

A new price holds from the payment of its invoice on, for what the meter reports from then on.
"""

from __future__ import annotations

from collections.abc import Mapping

from ngp.core.effects import CountAccount, ForgetAccount, GrantContract, HaltContract, LimitAccount, RevokeContract
from ngp.core.messages import Prefix, Role
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.values import (
    FULL_PACKET_BYTES,
    TENANTS,
    UNITS_PER_MSAT,
    AccountLimit,
    AdoptedAccount,
    AdoptedContract,
    Grant,
    Reading,
)
from ngp.core.world import World

RENT_AHEAD_S = 60
"""For so long the kernel's limit is right without a change: the rent of this time is kept back."""
UNLIMITED_BYTES, ENDLESS_S = 1 << 62, 1e9


def contracts_of(rental: Rental) -> tuple[tuple[bytes, Prefix], ...]:
    """Return the rental's contracts in the kernel, with their networks. A rental has one network of each family."""
    halves = (rental.id[:16], rental.id[16:])
    return tuple(zip(halves, rental.networks, strict=False))


def enter(world: World, rental: Rental) -> None:
    """Keep room in the kernel for a rental whose traffic is metered, or will be if its invoice is paid."""
    for contract, _ in contracts_of(rental):
        world.letting.metered[contract] = rental


def is_entered(world: World, rental: Rental) -> bool:
    """Say whether there is room for a rental in the kernel."""
    return rental.id[:16] in world.letting.metered


def leave(world: World, rental: Rental) -> None:
    """Give that room back."""
    for contract, _ in contracts_of(rental):
        world.letting.metered.pop(contract, None)


def has_room(world: World) -> bool:
    """Say whether the kernel's table has room for one more rental."""
    return len(world.contracts) + len(world.letting.metered) + 2 <= world.settings.contracts_max


# --- what was carried -------------------------------------------------------------------------------------------------


def count(world: World, rental: Rental, reading: Reading) -> None:
    """Price what a contract's cumulative counters show more than before. Args: reading: of one of its contracts."""
    shown = rental.meter.shown
    before_to, before_from = shown.get(reading.contract, (0, 0))
    now_to, now_from = max(before_to, reading.used_to_bytes), max(before_from, reading.used_from_bytes)
    shown[reading.contract] = now_to, now_from
    if _add(rental, now_to - before_to, now_from - before_from):
        world.unflushed.add(reading.contract)


def _add(rental: Rental, to_bytes: int, from_bytes: int) -> bool:
    """Count bytes, at the present price. Returns whether there are any."""
    cost_units = (to_bytes + from_bytes) * rental.price_msat_per_gib
    rental.used_to_bytes += to_bytes
    rental.used_from_bytes += from_bytes
    rental.traffic_units += cost_units
    rental.meter.spent_units += cost_units
    return to_bytes + from_bytes > 0


# --- what may pass ----------------------------------------------------------------------------------------------------


def left_units(world: World, rental: Rental) -> int:
    """Return what may be spent on traffic before the limit is changed again, in the kernel's units of money."""
    account, service_s = world.client(rental.id), world.letting.clock.at_s(world.now)
    money_msat = account.balance_msat - account.refund.promised_msat - rental.rent_owed_msat(service_s + RENT_AHEAD_S)
    return money_msat * UNITS_PER_MSAT - rental.traffic_units


def pays_a_packet(world: World, rental: Rental) -> bool:
    """Say whether what is left pays for a full packet; true if traffic costs nothing."""
    price = rental.price_msat_per_gib
    return not price or left_units(world, rental) >= price * FULL_PACKET_BYTES


def limit(world: World, rental: Rental) -> None:
    """Bring the account's limit in the kernel up to date. While the service is off it is nothing."""
    meter = rental.meter
    if not meter.shown:
        return
    units = meter.spent_units + left_units(world, rental) if rental.state is RentalState.ACTIVE else 0
    if meter.told_units != units:
        meter.told_units = units
        world.do(LimitAccount(AccountLimit(rental.id, units)))


def grant(world: World, rental: Rental) -> None:
    """Bring a rental's account and contracts in the kernel up to date, or make them. Not if it was never metered."""
    if not rental.price_msat_per_gib and not rental.meter.shown:
        return
    enter(world, rental)
    meter = rental.meter
    for contract, _ in contracts_of(rental) if not meter.shown else ():
        meter.shown[contract] = (0, 0) if meter.shown else (rental.used_to_bytes, rental.used_from_bytes)
    limit(world, rental)
    for contract, network in contracts_of(rental):
        world.do(GrantContract(_grant(rental, contract, network)))


def _grant(rental: Rental, contract: bytes, network: Prefix) -> Grant:
    to_bytes, from_bytes = rental.meter.shown[contract]
    is_over = rental.state is RentalState.RELEASED
    return Grant(
        contract=contract,
        neighbour=TENANTS,
        role=Role.SERVER,
        destination=network,
        limit_bytes=UNLIMITED_BYTES,
        expires_in_s=ENDLESS_S,
        account=b"" if is_over else rental.id,
        price_msat_per_gib=rental.price_msat_per_gib,
        blocked=is_over,
        used_to_base_bytes=to_bytes,
        used_from_base_bytes=from_bytes,
    )


def count_again(world: World, rental: Rental) -> None:
    """Have the account's sum and the contracts' counters read, as the kernel's limit may differ from the books."""
    if rental.meter.shown:
        world.do(CountAccount(rental.id, tuple(contract for contract, _ in contracts_of(rental))))


def counted(world: World, rental: Rental, spent_units: int, readings: tuple[Reading, ...]) -> None:
    """Compute the limit anew from what was read."""
    for reading in readings:
        count(world, rental, reading)
    rental.meter.spent_units, rental.meter.told_units = spent_units, None
    limit(world, rental)


# --- begin and end ----------------------------------------------------------------------------------------------------


def restore(
    world: World, rental: Rental, contracts: Mapping[bytes, AdoptedContract], account: AdoptedAccount | None
) -> None:
    """Go on with what the kernel has, and count what it carried while no daemon ran.

    Args: contracts: those found in the kernel, by id. account: the one found there.
    """
    mine = [contract for contract, _ in contracts_of(rental)]
    found = {one: contracts[one].reading for one in mine if one in contracts}
    is_over = rental.state is RentalState.RELEASED and not rental.period.contract
    if is_over or not (found or rental.price_msat_per_gib or rental.used_bytes):
        return
    enter(world, rental)
    if rental.state is RentalState.PENDING and not found:
        return
    meter = rental.meter
    to_bytes = sum(one.used_to_bytes for one in found.values())
    from_bytes = sum(one.used_from_bytes for one in found.values())
    if found and _add(rental, max(0, to_bytes - rental.used_to_bytes), max(0, from_bytes - rental.used_from_bytes)):
        world.unflushed.update(found)
    rest = rental.used_to_bytes - to_bytes, rental.used_from_bytes - from_bytes
    for contract in mine:
        if contract in found:
            meter.shown[contract] = found[contract].used_to_bytes, found[contract].used_from_bytes
        else:
            meter.shown[contract], rest = rest, (0, 0)
    meter.spent_units = account.reading.spent_units if account is not None else 0


def halt(world: World, rental: Rental) -> bool:
    """Stop a rental's contracts in the kernel for good. Returns whether there are any: then `halted` will follow."""
    for contract, network in contracts_of(rental) if rental.meter.shown else ():
        world.do(HaltContract(_grant(rental, contract, network)))
    return bool(rental.meter.shown)


def halted(world: World, rental: Rental, contract: bytes, reading: Reading | None) -> bool:
    """Count a contract's last reading. Returns whether it was the rental's last one: then it has left the kernel."""
    meter = rental.meter
    if reading is not None:
        count(world, rental, reading)
    meter.halted.add(contract)
    if meter.halted < meter.shown.keys():
        return False  # if we die now, the next start reads both again
    for each in meter.shown:
        world.do(RevokeContract(each))
    world.do(ForgetAccount(rental.id))
    meter.shown.clear()
    leave(world, rental)
    return True
