"""Settings: net.conf as frozen values. `ngp.config` makes them from the YAML file; the rest of ngp sees only these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ngp.core.messages import Prefix
from ngp.core.rental.terms import LettingSettings
from ngp.core.tenant.terms import TenantSettings

FULL_PPM = 1_000_000
ModuleId = tuple[str, str]
"""A module: the group of its entry point (`ngp.payment`) and its name."""


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of each day, seconds since midnight, local time; it crosses midnight if it ends before it begins."""

    from_s: int
    to_s: int

    def include(self, local_s: int) -> bool:
        """Say whether a time of day is in this part; its first second is, that of its end isn't."""
        if self.from_s < self.to_s:
            return self.from_s <= local_s < self.to_s
        return local_s >= self.from_s or local_s < self.to_s

    def overlap(self, other: Hours) -> bool:
        """Say whether two parts have a second in common."""
        return self.include(other.from_s) or other.include(self.from_s)


@dataclass(frozen=True, slots=True)
class Margin:
    """What is added to the cost of resold traffic: a share of that cost, in millionths, and an amount, msat per GiB."""

    share_ppm: int
    msat_per_gib: int

    def least_msat_per_gib(self, cost_msat_per_gib: int) -> int:
        """Return the least price, rounded up, of what costs us this much."""
        return cost_msat_per_gib - (-cost_msat_per_gib * self.share_ppm // FULL_PPM) + self.msat_per_gib


@dataclass(frozen=True, slots=True)
class PriceRule:
    """One entry of PRICES. Prices are msat per GiB; where one is None, the general price holds.

    Attributes:
        interface: the rule holds for neighbours on this interface alone; None: on all.
        neighbour: the first hexadecimal digits, at least 16, of the identity for which alone the rule holds; None: all.
        hours: the part of the day in which the rule holds; None: always.
        margin: RESALE_MARGIN for this destination; None: the general one.
    """

    prefix: Prefix
    sell_msat_per_gib: int | None = None
    sell_min_msat_per_gib: int | None = None
    buy_msat_per_gib: int | None = None
    buy_max_msat_per_gib: int | None = None
    interface: str | None = None
    neighbour: str | None = None
    hours: Hours | None = None
    margin: Margin | None = None

    @property
    def exactness(self) -> tuple[int, bool, bool, bool]:
        """What decides between two rules that both hold: the greater one wins."""
        named = self.neighbour is not None, self.interface is not None, self.hours is not None
        return (self.prefix.prefixlen, *named)

    def rivals(self, other: PriceRule) -> bool:
        """Say whether both rules may hold at once for a destination, and neither of them wins."""
        if (self.prefix, self.interface) != (other.prefix, other.interface) or self.exactness != other.exactness:
            return False
        ours, theirs = self.neighbour or "", other.neighbour or ""
        is_same = ours.startswith(theirs) or theirs.startswith(ours)
        return is_same and (self.hours is None or other.hours is None or self.hours.overlap(other.hours))


@dataclass(frozen=True, slots=True)
class LoadPrice:
    """How selling prices rise with the load of the upstream interface.

    Attributes:
        from_ppm: the load, in millionths of what the interface carries, above which they rise; below 1,000,000.
        factor_ppm: by how much they are multiplied at full load, in millionths, above 1,000,000; in between they rise
            evenly.
        bytes_s: what the interface carries in one direction; None: what its driver says.
    """

    from_ppm: int
    factor_ppm: int
    bytes_s: int | None = None

    def raised_msat_per_gib(self, price_msat_per_gib: int, load_ppm: int) -> int:
        """Return a price at a load, rounded down, never below the price itself or above the factor."""
        above_ppm = min(max(0, load_ppm - self.from_ppm), FULL_PPM - self.from_ppm)
        rise_ppm = (self.factor_ppm - FULL_PPM) * above_ppm // (FULL_PPM - self.from_ppm)
        return price_msat_per_gib + price_msat_per_gib * rise_ppm // FULL_PPM


@dataclass(frozen=True, slots=True)
class Budgets:
    """Spending limits, msat with fees: for a payment, for a neighbour, in an hour, in a day, in all. None: no limit."""

    payment_msat: int
    neighbour_msat: int | None
    hour_msat: int
    day_msat: int
    total_msat: int | None


@dataclass(frozen=True, slots=True)
class FeeLimit:
    """Most that routing a payment may cost: a share of it, in millionths, or `least_msat` if that is more.

    A fixed amount has the share 0. A payment over a direct channel costs no fee, whatever the limit.
    """

    share_ppm: int
    least_msat: int

    def of_msat(self, amount_msat: int) -> int:
        """Return the most that routing a payment may cost."""
        return max(self.least_msat, amount_msat * self.share_ppm // FULL_PPM)

    def fits_msat(self, room_msat: int) -> int:
        """Return the largest payment that fits into an amount together with its highest fee, >= 0."""
        return max(0, min(room_msat - self.least_msat, room_msat * FULL_PPM // (FULL_PPM + self.share_ppm)))


@dataclass(frozen=True, slots=True)
class FreeDestination:
    """One entry of FREE_DESTINATIONS, or of PAYMENT_SERVICES, which has one address, one protocol and one port."""

    prefix: Prefix
    protocol: str | None
    port: int | None


@dataclass(frozen=True, slots=True)
class Settings:
    """All of net.conf, in the units that the names end with. docs/operators-guide.md explains the keys.

    `default_msat_per_gib` is kept only so that a reload can name its change. The four prices below it are complete:
    those that net.conf doesn't set were computed from it.
    `lan_interfaces`, `data_renewal_bytes`, `time_renewal_s` and `trust_amount_msat` are None for `auto`.
    `mesh_interfaces` may be empty only if addresses are let.
    `letting` is None unless LANDLORD is yes.
    `buys_default_route` is only set if `buys` is, and `sells` isn't (`ngp.core.buying.default_route` says why).
    `route_table` and `route_priority` are those of our own routes, which are made if `choose_routes` is set.
    `ledger` is the URL of a database server, None for a file in the state directory.
    `modules` has the values of the modules' own keys, except those that are None.
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
    resale_margin: Margin
    load_price: LoadPrice | None
    prices: tuple[PriceRule, ...]
    contract_data_bytes: int
    contract_time_s: int
    data_renewal_bytes: int | None
    time_renewal_s: int | None
    payment_amount_msat: int
    trust_amount_msat: int | None
    grace_data_bytes: int
    grace_time_s: int
    refund_when_asked: bool
    budgets: Budgets
    fee_limit: FeeLimit
    verify_tolerance_ppm: int
    free_destinations: tuple[FreeDestination, ...]
    payment_services: tuple[FreeDestination, ...]
    payment_services_bytes_s: int
    unpaid_bytes_s: int
    closed_when_stopped: bool
    queue_number: int
    state_dir: str
    contracts_max: int
    modules: Mapping[ModuleId, Mapping[str, Any]] = field(repr=False)  # may hold a macaroon
    buys_default_route: bool = False
    choose_routes: bool = False
    route_table: int = 10325
    route_priority: int = 10325
    letting: LettingSettings | None = None
    tenant: TenantSettings = TenantSettings()
    ledger: str | None = field(default=None, repr=False)  # may hold a password

    def of_module(self, group: str, name: str) -> Mapping[str, Any]:
        """Return the values of a module's own keys, except those that are None."""
        return self.modules.get((group, name), {})

    @property
    def lets(self) -> bool:
        """True if addresses are let to tenants."""
        return self.letting is not None

    @property
    def tunnel_interface(self) -> str:
        """Name of the landlord's tunnel; "" if there is none."""
        tunnel = self.letting.tunnel if self.letting is not None else None
        return tunnel.interface if tunnel is not None else ""

    @property
    def spends(self) -> bool:
        """True if ngp pays without a command: for what we buy, or refunds to clients or tenants that ask."""
        return self.buys or self.refund_when_asked or self.letting is not None

    @property
    def never_mesh(self) -> tuple[str, ...]:
        """Names and patterns of the interfaces that `all` and patterns in MESH_INTERFACES don't include."""
        ours = (self.tunnel_interface,) if self.tunnel_interface else ()
        return (*self.ignore_interfaces, *(self.lan_interfaces or ()), *ours)

    @property
    def never_renews(self) -> bool:
        """True if both renewal keys are 0: then a destination is bought once."""
        return self.data_renewal_bytes == 0 and self.time_renewal_s == 0
