"""Units: parses the numbers of net.conf exactly, or refuses them.

Money is never a float. A price of `0.1 msat` isn't a whole number of msat per GiB, and if it were rounded, the router
would ask another price than its operator wrote. So an inexact value is refused, and the error gives the nearest exact
values. Leading zeros, hexadecimal, exponents, `10:30` and thousands separators are refused too: YAML reads some of them
as octal or base 60, people read them differently, and the difference would be somebody's money.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from ngp.core.pricing import BYTES_PER_KILOBYTE, GIB, KILOBYTES_PER_GIB, SAT_MSAT, show_price
from ngp.core.rental.terms import MONTH_S
from ngp.errors import ConfigError

ALL_MONEY_MSAT = 21_000_000 * 100_000_000 * SAT_MSAT  # all the bitcoin there will ever be
MOST_PRICE_MSAT_PER_GIB = 1_000_000 * KILOBYTES_PER_GIB  # 1,000 sat a kilobyte: a higher price is a typing error
MOST_DATA_BYTES = 1 << 50
_PPM_PER_PERCENT = 10_000
MOST_TIME_S = 120 * MONTH_S

KILOBYTE = BYTES_PER_KILOBYTE
MEGABYTE = KILOBYTE * 1024
DATA_UNITS: Mapping[str, int] = {
    "B": 1, "byte": 1, "bytes": 1,
    "kB": KILOBYTE, "KB": KILOBYTE, "KiB": KILOBYTE,
    "MB": MEGABYTE, "MiB": MEGABYTE,
    "GB": GIB, "GiB": GIB,
    "TB": GIB * 1024, "TiB": GIB * 1024,
}  # fmt: skip
TIME_UNITS: Mapping[str, int] = {
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "week": 604800, "weeks": 604800,
    "month": MONTH_S, "months": MONTH_S,
}  # fmt: skip
MONEY_UNITS: Mapping[str, int] = {"msat": 1, "sat": SAT_MSAT}
PRICE_UNITS: Mapping[str, Fraction] = {
    f"{money}{per}": Fraction(factor * GIB, size)
    for money, factor in MONEY_UNITS.items()
    for per, size in [("", KILOBYTE), *((f"/{unit}", DATA_UNITS[unit]) for unit in DATA_UNITS if unit.endswith("B"))]
}

_QUANTITY = re.compile(r"(?P<number>(?:0|[1-9][0-9]*)(?:\.[0-9]+)?) *(?P<unit>%|[A-Za-z]*(?:/[A-Za-z]+)?)", re.ASCII)
_MOST_DIGITS = 40


def whole_number(text: str, least: int, most: int) -> int:
    """Read a plain decimal number.

    Args:
        text: digits, without sign, separator, leading zero or unit.
        least, most: allowed range, both included.

    Raises:
        ConfigError: saying what would be right.
    """
    right = f"write a whole number from {least} to {most}"
    if len(text) > _MOST_DIGITS or re.fullmatch(r"0|[1-9][0-9]*", text, re.ASCII) is None:
        raise ConfigError(f"is not a plain whole number: {right}")
    number = int(text)
    if not least <= number <= most:
        raise ConfigError(f"is out of range: {right}")
    return number


def money_msat(text: str) -> int:
    """Read an amount: bare msat, `5 msat` or `100 sat`. Returns msat. Raises ConfigError."""
    amount = _quantity(text, MONEY_UNITS, 1, "an amount of money", "5000 msat or 100 sat")
    return _whole(amount, ALL_MONEY_MSAT, "msat", "all the bitcoin there will ever be")


def share_ppm(text: str, most_percent: int = 100) -> int:
    """Read a share: `1 %`, `0.25 %`. Returns millionths. Raises ConfigError."""
    share = _quantity(text, {"%": _PPM_PER_PERCENT}, _PPM_PER_PERCENT, "a share", "1 % or 0.25 %")
    if share > most_percent * _PPM_PER_PERCENT:
        raise ConfigError(f"is too high: the most is {most_percent} %")
    if share.denominator != 1:
        raise ConfigError("has more than four decimals: write for example 1 % or 0.25 %")
    return share.numerator


def price_msat_per_gib(text: str) -> int:
    """Read a price: per kilobyte (`5`, `0.5 msat`, `1 sat`) or with its own measure (`5243 sat/GB`).

    Returns:
        msat per GiB, exact: 1 msat/kB is 1,048,576 msat/GiB.

    Raises:
        ConfigError: it isn't a whole number of msat per GiB; the text has the nearest exact prices.
    """
    price = _quantity(text, PRICE_UNITS, PRICE_UNITS["msat"], "a price", "5 msat (per kilobyte) or 5243 sat/GB")
    if price > MOST_PRICE_MSAT_PER_GIB:
        raise ConfigError(f"is too high: the highest price is {show_price(MOST_PRICE_MSAT_PER_GIB)}")
    if price.denominator != 1:
        below = price.numerator // price.denominator
        raise ConfigError(
            f"can't be charged exactly, as prices are whole msat per GB: write {below} msat/GB or {below + 1} msat/GB"
        )
    return price.numerator


def data_bytes(text: str, bare: int = KILOBYTE) -> int:
    """Read an amount of data; a number without unit counts `bare` bytes. Returns bytes. Raises ConfigError."""
    data = _quantity(text, DATA_UNITS, bare, "an amount of data", "256 kB, 20 MB or 1 GB")
    return _whole(data, MOST_DATA_BYTES, "bytes", show_data(MOST_DATA_BYTES))


def data_rate_bytes_s(text: str) -> int:
    """Read a data rate: `32 kB/s`; a bare number is kB/s. Returns bytes per second. Raises ConfigError."""
    data = _quantity(text.removesuffix("/s"), DATA_UNITS, KILOBYTE, "data a second", "16 kB/s or 2 MB/s")
    return _whole(data, MOST_DATA_BYTES, "bytes", f"{show_data(MOST_DATA_BYTES)}/s")


def time_s(text: str) -> int:
    """Read a duration: bare seconds, `10 min`, `1 h`, `1 day`, `1 month`. Returns seconds. Raises ConfigError."""
    duration = _quantity(text, TIME_UNITS, 1, "a duration", "30 s, 10 min, 1 h or 1 day")
    return _whole(duration, MOST_TIME_S, "seconds", "120 months")


def _quantity(
    text: str, units: Mapping[str, int] | Mapping[str, Fraction], bare: int | Fraction, noun: str, example: str
) -> Fraction:
    if text.startswith("-"):
        raise ConfigError(f"is negative: write {noun} from 0 on, for example {example}")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"is not {noun}: write for example {example} "
            "(digits with a point for decimals; no leading zero, no thousands separator)"
        )
    if len(match["number"]) > _MOST_DIGITS:
        raise ConfigError(f"has too many digits: write {noun}, for example {example}")
    unit = match["unit"]
    if unit and unit not in units:
        raise ConfigError(f"has an unknown unit {unit[:20]!r}: write for example {example}; units: {', '.join(units)}")
    return Fraction(match["number"]) * (units[unit] if unit else bare)


def _whole(amount: Fraction, most: int, unit: str, most_shown: str) -> int:
    if amount > most:
        raise ConfigError(f"is too high: the most is {most_shown}")
    if amount.denominator != 1:
        below = amount.numerator // amount.denominator  # may be 0, which not all keys take
        raise ConfigError(f"is not a whole number of {unit}: write {below} {unit} or {below + 1} {unit}")
    return amount.numerator


def show_data(size_bytes: int) -> str:
    """Write an amount of data in the largest unit that is whole."""
    for unit in ("GB", "MB", "kB"):
        if size_bytes and size_bytes % DATA_UNITS[unit] == 0:
            return f"{size_bytes // DATA_UNITS[unit]} {unit}"
    return f"{size_bytes} bytes"


def show_time(duration_s: int) -> str:
    """Write a duration in the largest unit that is whole."""
    for unit in ("day", "h", "min"):
        if duration_s and duration_s % TIME_UNITS[unit] == 0:
            return f"{duration_s // TIME_UNITS[unit]} {unit}"
    return f"{duration_s} s"
