"""Metering: what a rental's traffic costs, and what the kernel may still let through.

A rental whose offer has a price has a contract in the kernel for each of its networks, and one account for both. The
account holds what the tenant has paid, without the rent so far and without that of the next minute. Each minute the
limit is lowered by the rent. So whatever passes is covered, and the kernel cuts at the byte. Without a daemon the limit
isn't lowered: a tenant may then spend on traffic what it comes to owe as rent, but never more than it paid.
When less is left than a full packet costs, the service ends.

The counters are cumulative and are kept for the rental's whole life, whatever its periods. What is new in a reading is
priced and owed; it is charged together with the rent (`ngp.core.rental.periods`).

A new price holds from the payment of its invoice on, for what the meter reports from then on. What the kernel carried
while no daemon ran is charged at the price that the kernel had, because the kernel's limit covered no more.

A tenant that pays for traffic has networks in the tunnel only while its contracts are in the kernel
(`ngp.daemon.landlord`). So if any step in between fails, nothing passes uncharged.
"""

from __future__ import annotations

from collections.abc import Mapping

from ngp.core.effects import CountAccount, ForgetAccount, GrantContract, HaltContract, LimitAccount, RevokeContract
from ngp.core.kernel import (
    FULL_PACKET_BYTES,
    TENANTS,
    UNITS_PER_MSAT,
    AccountLimit,
    AdoptedAccount,
    AdoptedContract,
    Grant,
    Reading,
)
from ngp.core.messages import Prefix, Role
from ngp.core.prefixes import PackedPrefix
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.world import World

RENT_AHEAD_S = 60
"""The kernel's limit keeps back the rent of this time, so that no packet spends money that rent needs meanwhile."""
UNLIMITED_BYTES, ENDLESS_S = 1 << 62, 1e9
MOST_ACCOUNTS = 65_000
"""Most accounts that we make in the kernel, whose table has 65,536. A tenant without one would pay for no traffic."""


def enter(world: World, rental: Rental) -> None:
    """Keep room in the kernel for a rental whose traffic is metered, or will be if its invoice is paid."""
    for contract, _ in rental.contracts:
        world.letting.metered[contract] = rental


def is_entered(world: World, rental: Rental) -> bool:
    """Say whether room in the kernel is kept for a rental."""
    return rental.id[:16] in world.letting.metered


def leave(world: World, rental: Rental) -> None:
    """Give back the room in the kernel that was kept for a rental."""
    for contract, _ in rental.contracts:
        world.letting.metered.pop(contract, None)


def has_room(world: World) -> bool:
    """Say whether the kernel's tables have room for one more rental."""
    return world.free_slots >= 2 and len(world.clients) < MOST_ACCOUNTS


# --- what was carried -------------------------------------------------------------------------------------------------


def count(world: World, rental: Rental, reading: Reading, price_msat_per_gib: int | None = None) -> None:
    """Price what a contract's cumulative counters show more than before.

    Args: price_msat_per_gib: the price of that traffic; None: the rental's present price.
    """
    before = rental.counts.get(reading.contract, (0, 0))
    now = max(before[0], reading.used_to_bytes), max(before[1], reading.used_from_bytes)
    if now == before:
        return
    price = rental.price_msat_per_gib if price_msat_per_gib is None else price_msat_per_gib
    cost_units = (sum(now) - sum(before)) * price
    rental.counts[reading.contract] = now
    rental.traffic_units += cost_units
    rental.meter.spent_units += cost_units
    world.save_later(reading.contract)


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
    """Bring the account's limit in the kernel up to date. While the service is off, the limit is 0."""
    meter = rental.meter
    if not meter.is_in_kernel:
        return
    units = meter.spent_units + left_units(world, rental) if rental.state is RentalState.ACTIVE else 0
    if meter.told_units != units:
        meter.told_units = units
        world.do(LimitAccount(AccountLimit(rental.id, units)))


def grant(world: World, rental: Rental) -> None:
    """Bring a rental's account and contracts in the kernel up to date, or make them, unless it was never metered."""
    if not needed(rental):
        return
    enter(world, rental)
    rental.meter.is_in_kernel = True
    limit(world, rental)
    for contract, network in rental.contracts:
        world.do(GrantContract(_grant(rental, contract, network)))


def _grant(rental: Rental, contract: bytes, network: Prefix) -> Grant:
    to_bytes, from_bytes = rental.counts.get(contract, (0, 0))
    is_over = rental.state is RentalState.RELEASED
    return Grant(
        contract=contract,
        neighbour=TENANTS,
        role=Role.SERVER,
        destination=PackedPrefix.of(network),
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
    if rental.meter.is_in_kernel:
        world.do(CountAccount(rental.id, tuple(contract for contract, _ in rental.contracts)))


def counted(world: World, rental: Rental, spent_units: int, readings: tuple[Reading, ...]) -> None:
    """Compute the limit anew from what was read."""
    for reading in readings:
        count(world, rental, reading)
    rental.meter.spent_units, rental.meter.told_units = spent_units, None
    limit(world, rental)


def needed(rental: Rental) -> tuple[bytes, ...]:
    """Return the ids of the contracts without which the tunnel must let nothing pass; () if traffic was always free."""
    is_metered = rental.price_msat_per_gib or rental.meter.is_in_kernel
    return tuple(contract for contract, _ in rental.contracts) if is_metered else ()


# --- begin and end ----------------------------------------------------------------------------------------------------


def restore(
    world: World, rental: Rental, contracts: Mapping[bytes, AdoptedContract], account: AdoptedAccount | None
) -> None:
    """Go on with what the kernel has, and count what it carried while no daemon ran.

    Args: contracts: those found in the kernel, by id. account: the rental's account in the kernel; None: it has none.
    """
    found = [contracts[contract] for contract, _ in rental.contracts if contract in contracts]
    is_over = rental.state is RentalState.RELEASED and not rental.period.contract
    if is_over or not (found or rental.price_msat_per_gib or rental.used_bytes):
        return
    enter(world, rental)
    if rental.state is RentalState.PENDING and not found:
        return
    for one in found:
        count(world, rental, one.reading, one.grant.price_msat_per_gib)
    rental.meter.is_in_kernel = True
    rental.meter.spent_units = account.reading.spent_units if account is not None else 0


def halt(world: World, rental: Rental) -> bool:
    """Stop a rental's contracts in the kernel for good. Returns whether there are any: then `halted` will follow."""
    for contract, network in rental.contracts if rental.meter.is_in_kernel else ():
        world.do(HaltContract(_grant(rental, contract, network)))
    return rental.meter.is_in_kernel


def halted(world: World, rental: Rental, contract: bytes, reading: Reading | None) -> bool:
    """Count a contract's last reading. Returns whether it was the rental's last one: then it has left the kernel."""
    meter = rental.meter
    if reading is not None:
        count(world, rental, reading)
    meter.halted.add(contract)
    contracts = [each for each, _ in rental.contracts]
    if not meter.halted.issuperset(contracts):
        return False  # if we die now, the next start reads both again
    for each in contracts:
        world.do(RevokeContract(each))
    world.do(ForgetAccount(rental.id))
    meter.is_in_kernel = False
    leave(world, rental)
    return True
