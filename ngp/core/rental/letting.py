"""Letting: the landlord's state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ngp.core.messages import Prefix
from ngp.core.rental.pools import FreeNetworks
from ngp.core.rental.rental import Quote, Rental, RentalState
from ngp.core.rental.service import ServiceClock
from ngp.core.rental.terms import Offer, Pool


def are_within(pools: Sequence[Pool], networks: Iterable[Prefix]) -> bool:
    """Say whether all of these networks may be let from these pools."""
    return all(any(pool.holds(network) for pool in pools) for network in networks)


@dataclass(slots=True, eq=False)
class Letting:
    """All rentals that aren't over, and those that are over but have money left.

    Attributes:
        by_key: the tenant's newest rental, by WireGuard key.
        all_by_key: all rentals of the tenant, by WireGuard key.
        asking: rentals for which our payment node is making an invoice, with the number of the tenant's request, and
            the terms of the invoice.
        metered: rentals whose traffic is metered, or will be if their invoice is paid, by the contracts in the kernel.
        free: what isn't let or held, as far as this landlord knows.
        others: networks that other landlords with the same database let or hold, as far as we know: the ledger names
            them at the start, and whenever it refuses a network that seemed free here.
    """

    clock: ServiceClock = field(default_factory=ServiceClock)
    rentals: dict[bytes, Rental] = field(default_factory=dict)
    by_key: dict[bytes, Rental] = field(default_factory=dict)
    all_by_key: dict[bytes, list[Rental]] = field(default_factory=dict)
    metered: dict[bytes, Rental] = field(default_factory=dict)
    asking: dict[bytes, tuple[int, Quote]] = field(default_factory=dict)
    free: FreeNetworks = field(default_factory=lambda: FreeNetworks(()))
    others: tuple[Prefix, ...] = ()

    def add(self, rental: Rental) -> None:
        """Enter a rental; its networks are taken."""
        self.rentals[rental.id] = rental
        self.by_key[rental.wireguard_key] = rental
        self.all_by_key.setdefault(rental.wireguard_key, []).append(rental)
        for network in rental.networks if rental.holds_networks else ():
            self.free.take(network)

    def remove(self, rental: Rental) -> None:
        """Take a rental that is over out of the tables."""
        self.rentals.pop(rental.id, None)
        if self.by_key.get(rental.wireguard_key) is rental:
            del self.by_key[rental.wireguard_key]
        left = [one for one in self.all_by_key.pop(rental.wireguard_key, ()) if one is not rental]
        if left:
            self.all_by_key[rental.wireguard_key] = left

    def change_key(self, former: bytes, new: bytes) -> list[Rental]:
        """Give all rentals of a tenant another WireGuard key. Returns the rentals."""
        self.by_key[new] = self.by_key.pop(former)
        changed = self.all_by_key.pop(former)
        for rental in changed:
            rental.wireguard_key = new
        self.all_by_key.setdefault(new, []).extend(changed)
        return changed

    def use_pools(self, pools: Iterable[Pool]) -> None:
        """Let from these pools from now on, without what is let or held already."""
        held = [network for one in self.rentals.values() if one.holds_networks for network in one.networks]
        self.free = FreeNetworks(tuple(pools), [*held, *self.others])

    def paid_for(self) -> list[Rental]:
        """Return the rentals that hold networks and were paid. Those that were only asked for don't count."""
        return [one for one in self.rentals.values() if one.holds_networks and one.state is not RentalState.PENDING]

    def outside(self, pools: Iterable[Pool]) -> list[Rental]:
        """Return the paid rentals with a network that isn't in these pools."""
        pools = tuple(pools)
        return [one for one in self.paid_for() if not are_within(pools, one.networks)]

    def allocate(self, offer: Offer) -> tuple[Prefix, ...] | None:
        """Take the networks that an offer promises; None if the pools haven't all of them."""
        networks: list[Prefix] = []
        for version, bits in offer.sizes:
            found = self.free.find(version, bits, offer.pools)
            if found is None:
                self.give_back(networks)
                return None
            self.free.take(found)
            networks.append(found)
        return tuple(networks)

    def take_again(self, networks: tuple[Prefix, ...]) -> bool:
        """Take networks that were given back; False, and nothing is taken, if some of them aren't free any more."""
        if not all(map(self.free.is_free, networks)):
            return False
        for network in networks:
            self.free.take(network)
        return True

    def give_back(self, networks: Iterable[Prefix]) -> None:
        """Make networks free for others."""
        for network in networks:
            self.free.give_back(network)

    @property
    def pending(self) -> int:
        """How many rentals wait for their first payment."""
        return sum(one.state is RentalState.PENDING for one in self.rentals.values())
