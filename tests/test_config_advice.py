"""Values that let little traffic pass are reported with their key and a better value; sensible ones aren't."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngp.config import parse, unwise
from ngp.core.settings import Settings
from ngp.errors import ConfigError

PATH = Path("/etc/ngp/net.conf")
DEMONSTRATION = ("CONTRACT_DATA: 1", "CONTRACT_TIME: 60", "PAYMENT_AMOUNT: 1000", "DATA_RENEWAL: 0", "TIME_RENEWAL: 5")
"""What the first Network Gatekeeper shipped: its 14 pings of 64 bytes pass."""


def settings(*lines: str) -> Settings:
    return parse("\n".join(("MESH_INTERFACES: eth1", *lines)), PATH)


@pytest.mark.parametrize(
    ("lines", "key", "says"),
    [
        (DEMONSTRATION, "CONTRACT_DATA", "1 kB is less than two full packets (2 x 1,500 bytes): these"),
        (["CONTRACT_DATA: 2999 B"], "CONTRACT_DATA", "these wait for renewals or never pass"),
        (["DATA_RENEWAL: 1499"], "DATA_RENEWAL", "a little more left isn't renewed, and the next packet doesn't fit"),
        (["FREE_DESTINATIONS: 0.0.0.0/0"], "FREE_DESTINATIONS", "0.0.0.0/0 leaves nearly nothing to sell"),
        (["FREE_DESTINATIONS: ['::/0', 192.0.2.0/24]"], "FREE_DESTINATIONS", "::/0 leaves"),
        (["FREE_DESTINATIONS: [0.0.0.0/1 tcp, 128.0.0.0/1]"], "FREE_DESTINATIONS", "0.0.0.0/1 tcp, 128.0.0.0/1 leaves"),
        (
            ["NETWORK_INTERFACE: ip4", "PRICES: [{prefix: '2001:db8::/32', sell: 1}, {prefix: 192.0.2.0/24, sell: 1}]"],
            "PRICES", "2001:db8::/32 has no effect: NETWORK_INTERFACE: ip4 neither gates nor charges IPv6",
        ),
        (["NETWORK_INTERFACE: ip6", "FREE_DESTINATIONS: 192.0.2.0/24"], "FREE_DESTINATIONS", "nor charges IPv4"),
        (["NETWORK_INTERFACE: ip6", "PAYMENT_SERVICES: 192.0.2.7 9735"], "PAYMENT_SERVICES", "nor charges IPv4"),
        (["GRACE_DATA: 1 kB"], "GRACE_DATA", "(1,500 bytes): no full packet passes on credit"),
        (["DEFAULT_PRICE: 1 sat", "PAYMENT_AMOUNT: 1 sat"], "PAYMENT_AMOUNT", "2930 msat: traffic waits"),
        (["PRICES: [{prefix: 0.0.0.0/0, buy_max: 1 sat}]", "PAYMENT_AMOUNT: 1 sat"], "PAYMENT_AMOUNT", "1465 msat"),
    ],
)  # fmt: skip
def test_what_lets_little_pass_is_a_warning_with_what_is_right(lines: list[str], key: str, says: str) -> None:
    (one,) = unwise(settings(*lines))
    assert (one.name, one.ok) == (key, True)
    assert says in one.found
    assert one.remedy


@pytest.mark.parametrize(
    "lines",
    [
        [], ["DATA_RENEWAL: 0"], ["GRACE_DATA: 0", "GRACE_TIME: 0"], ["CONTRACT_DATA: 3"],
        ["FREE_DESTINATIONS: [10.0.0.0/8, 0.0.0.0/0 udp 123, 0.0.0.0/0 icmp]"],
        ["FREE_DESTINATIONS: 0.0.0.0/0", "SELL: no"],
    ],
)  # fmt: skip
def test_what_an_operator_keeps_is_no_warning(lines: list[str]) -> None:
    assert unwise(settings(*lines)) == []


def test_prices_of_what_is_not_done_do_not_count() -> None:
    assert unwise(settings("SELL: no", "SELL_PRICE: 1 sat", "PAYMENT_AMOUNT: 1 sat")) == []


def test_a_payment_amount_of_part_of_a_sat_is_held_against_budgets_as_the_sat_that_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="PAYMENT_AMOUNT.*above BUDGET_PAYMENT"):
        settings("PAYMENT_AMOUNT: 500 msat", "BUDGET_PAYMENT: 999 msat")
