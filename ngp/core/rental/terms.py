"""Terms: what an offer asks for, and the one place that turns time into rent.

Money is msat, time seconds, both ints. A month is a twelfth of 365.25 days, as the published StaticWire client has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Prefix
from ngp.core.pricing import SAT_MSAT, ceil_to_sat_msat, show_money

MONTH_S = 2_629_800


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a rental costs, and how long it lasts.

    Attributes:
        rent_msat: for a month. price_msat_per_gib: for traffic, besides the rent.
        rate_bytes_s: most bytes a second; None: no limit.
        activation_fee_msat: once, not refunded.
        initial_credit_min_msat: least first credit. payment_min_msat: least later payment.
        credit_max_msat: most credit.
        reserved_s: how long the addresses are kept without credit.
    """

    rent_msat: int
    price_msat_per_gib: int
    rate_bytes_s: int | None
    activation_fee_msat: int
    initial_credit_min_msat: int
    payment_min_msat: int
    credit_max_msat: int
    reserved_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(Terms):
    """One entry of LANDLORD_OFFERS: what a tenant gets, and on which terms.

    Attributes:
        ipv4_bits, ipv6_bits: prefix lengths of the networks; None: no network of this family.
        pools: numbers of the pools in LANDLORD_POOLS that the networks may come from; empty: all.
    """

    name: str
    ipv4_bits: int | None
    ipv6_bits: int | None
    pools: tuple[int, ...]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """IP version and prefix length of each network."""
        sizes = (4, self.ipv4_bits), (6, self.ipv6_bits)
        return tuple((version, bits) for version, bits in sizes if bits is not None)

    def refuse_first(self, amount_msat: int) -> str:
        """Return why an amount can't be the first credit of a rental; "" if it can."""
        return self._refuse(amount_msat, self.initial_credit_min_msat, 0, "the first credit")

    def refuse_later(self, amount_msat: int, credit_msat: int) -> str:
        """Return why an amount can't be paid now; "" if it can. Args: credit_msat: before the payment."""
        return self._refuse(amount_msat, self.payment_min_msat, credit_msat, "a payment")

    def _refuse(self, amount_msat: int, least_msat: int, credit_msat: int, what: str) -> str:
        if amount_msat % SAT_MSAT:
            whole = show_money(ceil_to_sat_msat(amount_msat))
            return f"{amount_msat} msat: {what} is a whole number of sat; give {whole}"
        if amount_msat < least_msat:
            return f"{show_money(amount_msat)}: {what} is at least {show_money(least_msat)}"
        room_msat = (self.credit_max_msat - credit_msat) // SAT_MSAT * SAT_MSAT  # back rent comes on top
        if amount_msat > room_msat:
            credit = f" and there is credit of {show_money(credit_msat)}" if credit_msat > 0 else ""
            most = f"at most {show_money(room_msat)} now" if room_msat >= least_msat else "nothing now, but later"
            limit = f"the credit of a rental is at most {show_money(self.credit_max_msat)}"
            return f"{show_money(amount_msat)}: {limit}{credit}; pay {most}"
        return ""


@dataclass(frozen=True, slots=True)
class Pool:
    """One entry of LANDLORD_POOLS: a prefix, without some parts of it (a router's own addresses)."""

    prefix: Prefix
    excluded: tuple[Prefix, ...] = ()

    def holds(self, network: Prefix) -> bool:
        """Say whether all of a network may be let from this pool."""
        if network.version != self.prefix.version or not network.subnet_of(self.prefix):  # type: ignore[arg-type]
            return False
        return not any(part.overlaps(network) for part in self.excluded)


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """The landlord's tunnel: the LANDLORD_ keys of net.conf with the same names.

    Attributes:
        outside: interface towards the internet.
        routing: `routed` or `proxy`.
        kind: `auto`, `kernel` or `userspace`.
    """

    interface: str
    port: int
    outside: str
    routing: str
    kind: str
    mtu: int


@dataclass(frozen=True, slots=True)
class LettingSettings:
    """What net.conf says about letting.

    Attributes:
        offers: the first one is for tenants that name none.
        terms: those of the LANDLORD_ keys, which hold where an offer has none of its own. Kept only so that a reload
            can name its changes; None only in tests of the core.
        invoice_s: how long an invoice can be paid, and how long its networks are held.
        invoices_max: rentals that may wait for their first payment at a time.
        tunnel: where and how the tunnel is; None only in tests of the core.
        https, grpc: (address, port) pairs of these faces; empty: the face is off.
        https_certificate, https_key: files; "": made once in STATE_DIR.
        mesh: neighbours may rent over the mesh link.
        hold: hold invoices: `auto`, `yes` or `no`.
        endpoints: where tenants reach the tunnel, (host, port) pairs; port None: the tunnel's port; no pairs: the
            addresses of the interface towards the internet.
        dns: name servers told to tenants.
        keepalive_s: seconds between keepalive packets, told to tenants; 0: none are sent.
    """

    pools: tuple[Pool, ...]
    offers: tuple[Offer, ...]
    invoice_s: int
    invoices_max: int
    terms: Terms | None = None
    tunnel: TunnelSettings | None = None
    https: tuple[tuple[str, int], ...] = ()
    https_certificate: str = ""
    https_key: str = ""
    grpc: tuple[tuple[str, int], ...] = ()
    mesh: bool = True
    hold: str = "auto"
    endpoints: tuple[tuple[str, int | None], ...] = ()
    dns: tuple[str, ...] = ()
    keepalive_s: int = 25

    def offer(self, name: str) -> Offer | None:
        """Return an offer by its name, the first one for ""; None if no offer has this name."""
        return next((one for one in self.offers if not name or one.name == name), None)

    def no_offer(self, name: str) -> str:
        """Return the error text for a name that no offer has; it lists the names of all offers."""
        return f"there is no offer {name!r}; the offers are {', '.join(one.name for one in self.offers)}"


def rent_msat(month_msat: int, seconds: int) -> int:
    """Return the rent for some seconds, rounded down to one msat. The only place that rounds."""
    return month_msat * seconds // MONTH_S


def lasts_s(credit_msat: int, month_msat: int) -> int:
    """Return after how many seconds a credit is used up by the rent: the least with credit - rent <= 0.

    Args:
        credit_msat: 0 or less is used up already.
        month_msat: the rent of a month, above 0.
    """
    return max(0, -(-credit_msat * MONTH_S // month_msat))
