"""Pricing: the one place that turns bytes into money and money into bytes.

Both neighbours run this code over the same cumulative byte counts, so both compute the same charge to the msat. A
renewal at another price names the cumulative byte offset from which it holds, so bytes are priced by their offset in
the contract, and no packet has to wait while the price changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

SAT_MSAT = 1000
GIB = 1 << 30
BYTES_PER_KILOBYTE = 1024
KILOBYTES_PER_GIB = GIB // BYTES_PER_KILOBYTE

PriceSchedule = Sequence[tuple[int, int]]
"""(from_offset_bytes, price_msat_per_gib) in rising order of offset; the first offset is 0."""


def cost_units(used_bytes: int, prices: PriceSchedule) -> int:
    """Price traffic by its offsets, exactly, in the kernel's unit of money: msat / 2^30 (a byte at 1 msat per GiB).

    Args:
        used_bytes: L3 bytes since the contract began, both directions together, >= 0.
        prices: the contract's price schedule, prices >= 0.

    Raises:
        ValueError: if the bytes or a price are negative, or the schedule is empty.
    """
    if used_bytes < 0 or not prices:
        raise ValueError(f"can't price {used_bytes} bytes under the schedule {prices!r}")
    total = before = 0
    for start, price in prices:
        if price < 0:
            raise ValueError(f"price can't be negative: {price} msat/GiB")
        if used_bytes > start:  # all bytes above the offset cost so much more, or less
            total += (used_bytes - start) * (price - before)
        before = price
    return total


def amount_due_msat(used_bytes: int, prices: PriceSchedule) -> int:
    """Price traffic by its offsets, rounded up to one msat. Arguments and errors are those of `cost_units`.

    The only place that rounds. It rounds the whole sum once, so both neighbours get the same result.
    """
    return -(-cost_units(used_bytes, prices) // GIB)


def floor_to_sat_msat(amount_msat: int) -> int:
    """Round down to whole sat."""
    return amount_msat // SAT_MSAT * SAT_MSAT


def ceil_to_sat_msat(amount_msat: int) -> int:
    """Round up to whole sat."""
    return -(-amount_msat // SAT_MSAT) * SAT_MSAT


def show_money(msat: int) -> str:
    """Write an amount in sat if it is a whole number of sat, else in msat."""
    return f"{msat} msat" if msat % SAT_MSAT else f"{msat // SAT_MSAT} sat"


def affordable_bytes(amount_msat: int, from_bytes: int, upto_bytes: int, prices: PriceSchedule) -> int:
    """Find how many bytes an amount pays for, on a contract that has used `from_bytes`.

    Args:
        amount_msat: what may be spent; a negative amount pays for nothing.
        from_bytes, upto_bytes: bytes used so far, and the most to pay for, `from_bytes <= upto_bytes`.
        prices: the contract's price schedule.

    Returns:
        The largest n <= upto_bytes - from_bytes for which the charge grows by no more than the amount.
    """
    if upto_bytes <= from_bytes:
        return 0
    most_msat = amount_due_msat(from_bytes, prices) + max(0, amount_msat)
    if amount_due_msat(upto_bytes, prices) <= most_msat:
        return upto_bytes - from_bytes
    low, high = from_bytes, upto_bytes
    while high - low > 1:
        middle = (low + high) // 2
        if amount_due_msat(middle, prices) <= most_msat:
            low = middle
        else:
            high = middle
    return low - from_bytes


def show_price(msat_per_gib: int) -> str:
    """Write a price as net.conf does: per kilobyte if that is exact with three decimals, else per GB."""
    thousandths, inexact = divmod(msat_per_gib * 1000, KILOBYTES_PER_GIB)
    if not inexact:
        whole, rest = divmod(thousandths, 1000)
        return f"{whole}{f'.{rest:03}'.rstrip('0') if rest else ''} msat/kB"
    return f"{msat_per_gib} msat/GB"


def about_price(msat_per_gib: int) -> str:
    """Write a price per kilobyte with three decimals at most, so that several can be compared by eye.

    A rounded price has a ~ before it. One below 0.001 msat/kB has as many decimals as its first two figures need.
    """
    exact = Decimal(msat_per_gib) / KILOBYTES_PER_GIB
    decimals = max(3, 1 - exact.adjusted()) if msat_per_gib else 0
    rounded = round(exact, decimals)
    text = f"{rounded:f}"
    return f"{'' if rounded == exact else '~'}{text.rstrip('0').rstrip('.') if '.' in text else text} msat/kB"
