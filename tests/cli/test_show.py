"""Output for people is exact: amounts and data can be read back from the text, and prices unless one is marked."""

from __future__ import annotations

import io
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from rich.console import Console

from ngp.cli import contracts, top
from ngp.cli.show import clean, data, money, price
from ngp.config.units import MOST_PRICE_MSAT_PER_GIB, price_msat_per_gib
from ngp.core.pricing import KILOBYTES_PER_GIB
from tests.cli.fake_daemon import fake_main

FAST = effort(derandomize=True, database=None)


@pytest.mark.parametrize(
    ("msat_per_gib", "text"),
    [
        (0, "0 msat/kB"), (1 << 20, "1 msat/kB"), (2_202_010, "~2.1 msat/kB"), (1 << 19, "0.5 msat/kB"),
        (10 << 20, "10 msat/kB"), (1000 << 20, "1000 msat/kB"), (1_153_434, "~1.1 msat/kB"),
        ((5 << 20) + 1, "~5 msat/kB"),
        (700, "~0.00067 msat/kB"), (1, "~0.00000095 msat/kB"), (MOST_PRICE_MSAT_PER_GIB, "1000000 msat/kB"),
    ],
)  # fmt: skip
def test_prices_of_a_table_are_all_in_one_unit_and_rounded_ones_are_marked(msat_per_gib: int, text: str) -> None:
    assert price(msat_per_gib) == text
    (column,) = [each for each in contracts.COLUMNS if each.title == "price"]
    assert column.show(fake_main.CONTRACT | {"price_msat_per_gib": msat_per_gib}) == text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_top_tells_what_is_sold_from_what_is_bought_on_a_narrow_terminal_too(width: int) -> None:
    out = Console(file=io.StringIO(), width=width)
    rates = {f"{name}_per_s": 123_456.0 for name in top._USED}
    rows = [fake_main.CONTRACT | rates | {"role": role} for role in ("client", "server")]
    out.print(top._picture(top.Sample(0.0, rows, []), out))
    shown = [line for line in out.file.getvalue().splitlines() if "198.51.100.0/24" in line]
    assert "client" in shown[0] and "server" in shown[1]


def test_what_an_offer_lists_reads_as_a_list() -> None:
    assert clean(("IPv4 /32", "IPv6 /64")) == clean(["IPv4 /32", "IPv6 /64"]) == "IPv4 /32, IPv6 /64"


@FAST
@given(st.integers(0, MOST_PRICE_MSAT_PER_GIB))
def test_a_price_can_be_read_back_unless_it_is_marked_as_rounded(msat_per_gib: int) -> None:
    text = price(msat_per_gib)
    if text.startswith("~"):
        shown = Decimal(text[1:].partition(" ")[0]) * KILOBYTES_PER_GIB
        assert abs(shown - msat_per_gib) <= max(Decimal("0.0005") * KILOBYTES_PER_GIB, msat_per_gib / Decimal(20))
    else:
        assert price_msat_per_gib(text) == msat_per_gib


@FAST
@given(st.integers(-(10**18), 10**18))
def test_money_and_data_can_be_read_back_to_the_last_unit(amount: int) -> None:
    assert int(re.sub(r"[,. sat]", "", money(amount))) == amount
    exact = re.search(r"\((.*)\)", data(amount))
    assert int((exact[1] if exact else data(amount)).strip(" B").replace(",", "")) == amount


def test_top_shows_what_was_used_to_the_byte() -> None:
    shown = {column.title: column.show(fake_main.CONTRACT) for column in top._CONTRACTS[5:] if "/s" not in column.title}
    assert shown == {"used, bytes": "1,234,574", "of": "104,857,600", "charged": "1,234.567 sat"}


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_top_leaves_columns_out_on_a_narrow_terminal_and_cuts_no_number(width: int) -> None:
    out = Console(file=io.StringIO(), width=width)
    account = fake_main.ACCOUNT | {"balance_msat": 12_345_678_901, "charged_msat": 98_765_432_109}
    contract = fake_main.CONTRACT | {f"{name}_per_s": 123_456.0 for name in top._USED}
    out.print(top._picture(top.Sample(0.0, [contract], [account]), out))
    text = out.file.getvalue()
    assert "\u2026" not in text
    assert "12,345,678.901 sat" in text and "98,765,432.109 sat" in text and "198.51.100.0/24" in text
    assert all(len(line) <= width for line in text.splitlines()[2:])
