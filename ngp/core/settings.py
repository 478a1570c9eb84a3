"""Settings: net.conf as frozen values. `ngp.config` makes them out of YAML; everything behind it only sees these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ngp.core.messages import Prefix

ModuleId = tuple[str, str]
"""A module: the group of its entry point (`ngp.payment`) and its name."""


@dataclass(frozen=True, slots=True)
class PriceRule:
    """One entry of PRICES; None leaves the general price in force.

    Prices are msat per GiB; `interface` limits the rule to one interface.
    """

    prefix: Prefix
    sell_msat_per_gib: int | None
    sell_min_msat_per_gib: int | None
    buy_msat_per_gib: int | None
    buy_max_msat_per_gib: int | None
    interface: str | None


@dataclass(frozen=True, slots=True)
class Budgets:
    """Most that is spent, msat with fees: a payment, on a neighbour, in an hour, in a day, ever (None: no limit)."""

    payment_msat: int
    neighbour_msat: int | None
    hour_msat: int
    day_msat: int
    total_msat: int | None


@dataclass(frozen=True, slots=True)
class FeeLimit:
    """Most that routing a payment may cost: a share of it, in millionths, and `least_msat` where that is more.

    A plain amount is a share of nothing. Over a direct channel nothing is paid, whatever stands here.
    """

    share_ppm: int
    least_msat: int

    def of_msat(self, amount_msat: int) -> int:
        """Return the most that routing a payment may cost."""
        return max(self.least_msat, amount_msat * self.share_ppm // 1_000_000)

    def fits_msat(self, room_msat: int) -> int:
        """Return the largest payment that fits together with its fee, >= 0."""
        return max(0, min(room_msat - self.least_msat, room_msat * 1_000_000 // (1_000_000 + self.share_ppm)))


@dataclass(frozen=True, slots=True)
class FreeDestination:
    """One entry of FREE_DESTINATIONS, or of PAYMENT_SERVICES: then one address, protocol and port."""

    prefix: Prefix
    protocol: str | None
    port: int | None


@dataclass(frozen=True, slots=True)
class Settings:
    """All of net.conf, in units. Keys and their meaning: docs/operators-guide.md; defaults: the shipped net.conf.

    `default_msat_per_gib` is there for a reload to name: the four prices below it are complete without it.
    `lan_interfaces` None means `auto`.
    `data_renewal_bytes` and `time_renewal_s` None mean `auto`; `never_renews` is True where both are 0.
    `modules` has what modules brought to the file, by key, but for what is None there.
    """

    link_modules: tuple[str, ...]
    network_module: str
    payment_module: str
    mesh_interfaces: tuple[str, ...]
    ignore_interfaces: tuple[str, ...]
    lan_interfaces: tuple[str, ...] | None
    ngp_addresses: tuple[str, ...]
    account_id: str | None
    csv_delay_blocks: int
    sells: bool
    buys: bool
    default_msat_per_gib: int
    sell_msat_per_gib: int
    sell_min_msat_per_gib: int
    buy_msat_per_gib: int
    buy_max_msat_per_gib: int
    prices: tuple[PriceRule, ...]
    contract_data_bytes: int
    contract_time_s: int
    data_renewal_bytes: int | None
    time_renewal_s: int | None
    payment_amount_msat: int
    grace_data_bytes: int
    grace_time_s: int
    refund_when_asked: bool
    budgets: Budgets
    fee_limit: FeeLimit
    free_destinations: tuple[FreeDestination, ...]
    payment_services: tuple[FreeDestination, ...]
    payment_services_bytes_s: int
    closed_when_stopped: bool
    queue_number: int
    state_dir: str
    contracts_max: int
    modules: Mapping[ModuleId, Mapping[str, Any]] = field(repr=False)  # may hold a macaroon

    def of_module(self, group: str, name: str) -> Mapping[str, Any]:
        """Return what a module brought to the file, by key, but for what is None."""
        return self.modules.get((group, name), {})

    @property
    def spends(self) -> bool:
        """True where payments go out by themselves: for what we buy, or back to clients that ask."""
        return self.buys or self.refund_when_asked

    @property
    def never_mesh(self) -> tuple[str, ...]:
        """Names and patterns of the interfaces that `all` and patterns in MESH_INTERFACES don't mean."""
        return (*self.ignore_interfaces, *(self.lan_interfaces or ()))

    @property
    def never_renews(self) -> bool:
        """True where both renewal keys are 0: a destination is bought once."""
        return self.data_renewal_bytes == 0 and self.time_renewal_s == 0
