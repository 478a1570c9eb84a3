"""Traffic: whether a landlord charges no more for traffic than the tenant's own machine has counted.

The landlord's word alone says what its meter counted. So AutoPay compares what is charged with the counters of the
tunnel's interface, from its first look at the rental on. The sums of both, charges and counts, go on for the rental's
whole life: what a landlord charged too much isn't forgotten at a payment, nor at a payment that the landlord makes up.

An interface counts some bytes more, or fewer, than the IP packets have (wireguard-go counts the headers of joined
segments once). What is lost on the way to the tenant, and what comes while its tunnel is down, is charged but not
counted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ngp.core.kernel import FULL_PACKET_BYTES, UNITS_PER_MSAT
from ngp.core.pricing import SAT_MSAT, show_money
from ngp.core.tenant.account import CREDIT_SHORT_S, Account
from ngp.core.tenant.answers import Status

# A landlord's count of traffic may exceed ours by this percentage, and by these bytes besides.
TOLERATED_PERCENT = 10
TOLERATED_BYTES = 64 << 10
OFF_S = 120
"""A landlord may end the service while the credit still covers the rent of this time: that money is kept back."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is known of a rental's traffic since AutoPay's first look.

    Attributes:
        source, seen_bytes: the interface that was read last, different after each start of machine or tunnel, and what
            its counters showed. "": no interface was read yet.
        counted_bytes: counted by this machine, both directions. cost_units: what they cost, msat / 2^30.
        price_msat_per_gib: at the last look.
        charged_msat: what the landlord charged for traffic.
    """

    source: str = ""
    seen_bytes: int = 0
    counted_bytes: int = 0
    cost_units: int = 0
    price_msat_per_gib: int = 0
    charged_msat: int = 0


def count(before: Traffic | None, reading: tuple[str, int] | None, price_msat_per_gib: int) -> Traffic:
    """Count what an interface shows more than at the last look, at the higher one of the prices then and now.

    Args: before: None: this is the first look. reading: the interface and its bytes; None: it doesn't exist now.
    """
    traffic = replace(before or Traffic(), price_msat_per_gib=price_msat_per_gib)
    if reading is None:
        return traffic
    source, seen_bytes = reading
    traffic = replace(traffic, source=source, seen_bytes=seen_bytes)
    if before is None:
        return traffic
    goes_on = source == before.source and seen_bytes >= before.seen_bytes
    new_bytes = seen_bytes - before.seen_bytes if goes_on else seen_bytes
    price = max(before.price_msat_per_gib, price_msat_per_gib)
    return replace(
        traffic,
        counted_bytes=before.counted_bytes + new_bytes,
        cost_units=before.cost_units + new_bytes * price,
    )


def charge(traffic: Traffic, account: Account, status: Status) -> Traffic:
    """Count what the landlord charged for traffic since the account was last brought up to date.

    That is the credit by the account, plus what was paid meanwhile, less the credit that the landlord states.
    """
    came_msat = status.paid_msat - account.paid_msat
    charged_msat = account.credit_msat(status.now_s) + came_msat - status.credit_msat
    return replace(traffic, charged_msat=traffic.charged_msat + charged_msat)


def up_to_date(account: Account, status: Status) -> Account:
    """Return the account with the landlord's charges up to now."""
    return replace(account, since_s=status.now_s, paid_since_msat=0, carried_msat=status.credit_msat)


def allowed_msat(traffic: Traffic) -> int:
    """Return the most that a landlord may have charged for traffic, by this machine's own count."""
    tolerated_units = traffic.cost_units * TOLERATED_PERCENT // 100 + traffic.price_msat_per_gib * TOLERATED_BYTES
    return (traffic.cost_units + tolerated_units) // UNITS_PER_MSAT


def overcharge(traffic: Traffic, status: Status) -> str:
    """Say how a landlord charged more than this machine's own count allows; "" if it didn't."""
    rent_msat = math.ceil(CREDIT_SHORT_S * status.rate_sat_s * SAT_MSAT)
    if traffic.charged_msat <= allowed_msat(traffic) + rent_msat:
        return ""
    cost_msat = -(-traffic.cost_units // UNITS_PER_MSAT)
    return (
        f"{show_money(traffic.charged_msat)} were charged for traffic, but the tunnel's interface on this machine "
        f"counted {traffic.counted_bytes} bytes, which cost {show_money(cost_msat)}; if the tunnel was down meanwhile, "
        "or up on another machine, accept the charge by a payment by hand (ngp rent add); else ask the landlord"
    )


def is_cut_off(status: Status) -> bool:
    """Say whether the landlord has ended the service for want of credit: what is left pays for no packet."""
    rent_msat = math.ceil(OFF_S * status.rate_sat_s * SAT_MSAT)
    packet_msat = (status.price_msat_per_gib or 0) * FULL_PACKET_BYTES // UNITS_PER_MSAT
    return status.credit_msat <= (packet_msat + rent_msat if status.price_msat_per_gib else 0)
