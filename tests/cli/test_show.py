"""Output for people is exact: amounts, data and prices can be read back from the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from ngp.cli import top
from ngp.cli.show import data, money, price
from ngp.config.units import MOST_PRICE_MSAT_PER_GIB, price_msat_per_gib
from tests.cli.fake_daemon import fake_main

FAST = effort(derandomize=True, database=None)


@pytest.mark.parametrize(
    ("msat_per_gib", "text"),
    [(0, "0 msat/kB"), (5 << 20, "5 msat/kB"), (1 << 19, "0.5 msat/kB"), (1, "1 msat/GB"), (7000, "7000 msat/GB")],
)
def test_a_price_is_shown_as_it_was_written(msat_per_gib: int, text: str) -> None:
    assert price(msat_per_gib) == text


@FAST
@given(st.integers(0, MOST_PRICE_MSAT_PER_GIB))
def test_a_price_can_be_read_back(msat_per_gib: int) -> None:
    assert price_msat_per_gib(price(msat_per_gib)) == msat_per_gib


@FAST
@given(st.integers(-(10**18), 10**18))
def test_money_and_data_can_be_read_back_to_the_last_unit(amount: int) -> None:
    assert int(re.sub(r"[,. sat]", "", money(amount))) == amount
    exact = re.search(r"\((.*)\)", data(amount))
    assert int((exact[1] if exact else data(amount)).strip(" B").replace(",", "")) == amount


def test_top_shows_what_was_used_to_the_byte() -> None:
    shown = {column.title: column.show(fake_main.CONTRACT) for column in top._CONTRACTS[5:] if "/s" not in column.title}
    assert shown == {"used, bytes": "1,234,574", "of": "104,857,600", "charged": "1,234.567 sat"}
