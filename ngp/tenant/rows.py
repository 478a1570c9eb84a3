"""Rows: a rental as scripts and people get it; the keys are those of `ngp rentals`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ngp.core.tenant.answers import Status
from ngp.core.tenant.terms import rent_of_month_msat
from ngp.tenant.home import Tunnel

Row = dict[str, Any]


def rental_row(
    tunnel: Tunnel, landlord: str, face: str, status: Status, answered_at_s: float, real_money: bool | None
) -> Row:
    """Return a tenant's rental. What the landlord doesn't say, or what has no end, is None.

    Args:
        answered_at_s: when the landlord answered, UTC by our clock. The landlord's clock (`now_s` of the status) counts
            only seconds in which the landlord's machine has run.
        real_money: whether the amounts are real money; None: not known here.
    """
    told = "pending" if not status.payments else "active" if status.credit_msat > 0 else "reserved"
    state = status.state or told
    fee_msat = status.activation_fee_msat if status.payments else 0
    reserved_s = status.reserved_until_s - status.now_s if status.reserved_until_s else None
    # a landlord ends the service a little before the last msat, which a reserved rental then still has
    has_end = status.rate_sat_s > 0 and (state == "active" or (state == "reserved" and status.left_s <= 0))
    return {
        "id": tunnel.interface,
        "role": "tenant",
        "state": state,
        "reason": status.reason or ("credit is used up" if state == "reserved" else ""),
        "peer": landlord,
        "wireguard_key": tunnel.public_key,
        "networks": [str(one) for one in status.networks],
        "offer": status.offer or None,
        "face": face,
        "rent_msat_per_month": rent_of_month_msat(status.rate_sat_s),
        "price_msat_per_gib": status.price_msat_per_gib,
        "activation_fee_msat": fee_msat,
        "paid_msat": status.paid_msat,
        "charged_msat": status.paid_msat - fee_msat - status.refunded_msat - status.credit_msat,
        "refunded_msat": status.refunded_msat,
        "credit_msat": status.credit_msat,
        "fetchable_msat": status.fetchable_msat,
        "payments": status.payments,
        "started_at": iso(status.started_at_s),
        "rate_since": None,
        "paid_until": iso(answered_at_s + status.left_s) if has_end else None,
        "reserved_until": iso(answered_at_s + reserved_s) if reserved_s is not None else None,
        "unpaid_invoice": status.unpaid_invoice or None,
        "used_to_bytes": status.used_to_bytes,
        "used_from_bytes": status.used_from_bytes,
        "endpoint": None,
        "last_handshake": None,
        "real_money": real_money,
    }


def why_not_served(row: Row, name: str) -> str:
    """Return why the landlord doesn't serve a rental, and what to do; "" if it does. Args: row: of `rental_row`."""
    match row["state"]:
        case "pending":
            return f"it waits for its first payment: sudo ngp rent add {name}"
        case "reserved":
            return f"its credit is used up: sudo ngp rent add {name}"
        case "off":
            return "the landlord has switched it off: ask the landlord"
        case "released":
            return f"it is over: {row['reason'] or 'the landlord gives no reason'}"
        case _:
            return ""


def iso(time_s: float) -> str:
    """Write UTC seconds as ISO 8601; "" for a time that no calendar has."""
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return ""
