"""The units of net.conf: money, prices, data and time are read exactly, or refused with what would be right."""

from __future__ import annotations

import pytest

from ngp.config.units import (
    ALL_MONEY_MSAT,
    MONTH_S,
    data_bytes,
    money_msat,
    price_msat_per_gib,
    show_data,
    show_time,
    time_s,
)
from ngp.core.pricing import show_money, show_price
from ngp.errors import ConfigError

KB_PRICE = 1024 * 1024  # 1 msat per kB, in msat per GiB


@pytest.mark.parametrize(
    ("text", "msat"),
    [
        ("0", 0),
        ("1000", 1000),
        ("5 msat", 5),
        ("5msat", 5),
        ("100 sat", 100_000),
        ("0.5 sat", 500),
        ("1.000 sat", 1000),
    ],
)
def test_an_amount_of_money_is_read_as_msat(text: str, msat: int) -> None:
    assert money_msat(text) == msat


@pytest.mark.parametrize(
    ("text", "msat_per_gib"),
    [
        ("5", 5 * KB_PRICE),
        ("5 msat", 5 * KB_PRICE),
        ("0.5 msat", KB_PRICE // 2),
        ("0.5 msat/kB", KB_PRICE // 2),
        ("1 sat", 1000 * KB_PRICE),
        ("1 sat/MB", 1000 * 1024),
        ("5243 sat/GB", 5_243_000),
        ("1 msat/GiB", 1),
        ("0.00000095367431640625", 1),  # 1 / 1,048,576
        ("0", 0),
    ],
)
def test_prices_are_exact(text: str, msat_per_gib: int) -> None:
    assert price_msat_per_gib(text) == msat_per_gib


def test_a_price_that_is_not_whole_msat_per_gib_names_its_neighbours() -> None:
    with pytest.raises(ConfigError, match="104857 msat/GB or 104858 msat/GB"):
        price_msat_per_gib("0.1 msat")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1024),
        ("256 kB", 262_144),
        ("256 KiB", 262_144),
        ("20 MB", 20 << 20),
        ("20 MiB", 20 << 20),
        ("1.5 GB", 3 << 29),
        ("1 TB", 1 << 40),
        ("1500 bytes", 1500),
        ("1500 B", 1500),
        ("0.5", 512),
    ],
)
def test_an_amount_of_data_is_read_as_bytes(text: str, size_bytes: int) -> None:
    assert data_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("60", 60),
        ("10 s", 10),
        ("10 min", 600),
        ("1.5 h", 5400),
        ("1 day", 86400),
        ("2 weeks", 1_209_600),
        ("1 month", MONTH_S),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, duration_s: int) -> None:
    assert time_s(text) == duration_s
    assert MONTH_S * 12 == 365.25 * 86400


NO_NUMBER = (
    "-1", "+1", "1e3", "0x10", "0123", "1_000", "1,000", "10:30", ".5", "5.", "", " ", "five", "5 5", "nan", "inf",
    "\u0665", "1\n2", "9" * 41, "1/2", "5 msat sat", "5 MSAT",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_NUMBER)
def test_what_is_no_quantity_is_refused_by_every_unit(text: str) -> None:
    for read in (money_msat, price_msat_per_gib, data_bytes, time_s):
        with pytest.raises(ConfigError):
            read(text)


@pytest.mark.parametrize("text", ["20 Mb", "20 mb", "20 m", "1 msat"])
def test_ambiguous_data_units_are_refused_with_the_list(text: str) -> None:
    with pytest.raises(ConfigError, match=r"units: B, byte, .*MB"):
        data_bytes(text)


@pytest.mark.parametrize("text", ["5 m", "500 ms", "1 M", "1 kB"])
def test_ambiguous_time_units_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="units: s, sec"):
        time_s(text)


def test_parts_of_the_smallest_unit_are_refused() -> None:
    for read, text, right in (
        (money_msat, "0.5 msat", "0 msat or 1 msat"),
        (data_bytes, "2.5 B", "2 bytes or 3 bytes"),
        (time_s, "0.5 s", "0 seconds or 1 seconds"),
    ):
        with pytest.raises(ConfigError, match=f"is not a whole number of [a-z]+: write {right}"):
            read(text)


def test_absurd_amounts_are_refused() -> None:
    assert money_msat(f"{ALL_MONEY_MSAT} msat") == ALL_MONEY_MSAT
    for read, text in (
        (money_msat, f"{ALL_MONEY_MSAT + 1} msat"),
        (price_msat_per_gib, "1000001 msat"),
        (data_bytes, "1025 TB"),
        (time_s, "121 months"),
    ):
        with pytest.raises(ConfigError, match="is too high"):
            read(text)


def test_what_is_shown_can_be_read_back() -> None:
    for price in (0, 1, KB_PRICE, KB_PRICE // 2, 5 * KB_PRICE, 104_857, 123_456_789):
        assert price_msat_per_gib(show_price(price)) == price
    assert show_price(KB_PRICE // 2) == "0.5 msat/kB"
    for number in (0, 1, 999, 1000, 1024, 3600, 86400, 1 << 20, 3 << 30, 123_456_789):
        assert money_msat(show_money(number)) == number
        assert data_bytes(show_data(number)) == number
        if number < 120 * MONTH_S:
            assert time_s(show_time(number)) == number
