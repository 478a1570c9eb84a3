"""Tenant's keys: what ngp pays landlords without asking, and which traffic uses a rented tunnel."""

from __future__ import annotations

from typing import Any

from ngp.config import destinations, values
from ngp.config.document import Node, refuse
from ngp.config.key import Key
from ngp.config.units import money_msat, price_msat_per_gib, time_s

_MOST_COMMAND = 4096
_money = values.quantity(money_msat)
_time = values.quantity(time_s)
_price = values.quantity(price_msat_per_gib)


def _command(node: Node) -> str:
    text = values.scalar(node, "auto, or a command").text
    if len(text) > _MOST_COMMAND or not text.isprintable():
        raise refuse(node, f"is no command: write up to {_MOST_COMMAND} characters in one line, or auto")
    return text


RENT_MAX = Key(
    "TENANT_RENT_MAX", "money", _money, "48000 sat", "most rent of a month that autopay pays",
    ("tenant.rent_max_msat",),
)  # fmt: skip
PRICE_MAX = Key(
    "TENANT_PRICE_MAX", "price", _price, "0",
    "per kilobyte: most price of traffic that autopay pays; 0 = no offer with a price",
    ("tenant.price_max_msat_per_gib",),
)  # fmt: skip
ACTIVATION_MAX = Key(
    "TENANT_ACTIVATION_MAX", "money", _money, "64000 sat", "most activation fee", ("tenant.activation_max_msat",)
)
INITIAL_MAX = Key("TENANT_INITIAL_MAX", "money", _money, "2000 sat", "most first credit", ("tenant.initial_max_msat",))
PAYMENT_MIN = Key(
    "TENANT_PAYMENT_MIN", "money", _money, "550 sat", "least later payment at a time", ("tenant.payment_min_msat",)
)
PAYMENT_MAX = Key(
    "TENANT_PAYMENT_MAX", "money", _money, "1500 sat", "most later payment at a time; larger sums come in parts",
    ("tenant.payment_max_msat",),
)  # fmt: skip
TARGET_CREDIT = Key(
    "TENANT_TARGET_CREDIT", "money", _money, "6000 sat",
    "credit that autopay keeps, or the rent of TENANT_TARGET_TIME if that is less",
    ("tenant.target_credit_msat",),
)  # fmt: skip
TARGET_TIME = Key(
    "TENANT_TARGET_TIME", "time", _time, "5 days", "autopay keeps no more credit than for this time",
    ("tenant.target_time_s",),
)  # fmt: skip
WARN_TIME = Key(
    "TENANT_WARN_TIME", "time", _time, "1 day", "how long before the end of the credit the log warns",
    ("tenant.warn_time_s",),
)  # fmt: skip
PROBE = Key(
    "TENANT_PROBE",
    "auto, or a command",
    _command,
    "auto",
    "what proves that the tunnel works, before more is paid: auto = the landlord answers an echo through it; a command "
    "ends with 0 if the rented address is reached from outside",
    ("tenant.probe",),
)
ALL_TRAFFIC = Key(
    "TENANT_ALL_TRAFFIC",
    "yes or no",
    values.yes_or_no,
    "no",
    "`ngp rent up` leads all traffic of this machine into the tunnel; until `ngp rent down`, also while the tunnel is "
    "down, what would leave beside it is dropped",
    ("tenant.all_traffic",),
)
BESIDE = Key(
    "TENANT_BESIDE",
    "list of prefix, prefix protocol, or prefix protocol port; tcp or udp",
    values.or_none(destinations.ways),
    "none",
    "what may leave beside the tunnel with TENANT_ALL_TRAFFIC, besides the LAN, the landlord and ngp's messages",
    ("tenant.beside",),
)

KEYS: tuple[Key[Any], ...] = (
    RENT_MAX, PRICE_MAX, ACTIVATION_MAX, INITIAL_MAX, PAYMENT_MIN, PAYMENT_MAX, TARGET_CREDIT, TARGET_TIME, WARN_TIME,
    PROBE, ALL_TRAFFIC, BESIDE,
)  # fmt: skip
