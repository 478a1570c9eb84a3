"""What a landlord charges for traffic, compared with what the tenant's own machine counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.tenant import traffic
from ngp.core.tenant.account import Account
from ngp.core.tenant.answers import Status
from ngp.core.tenant.traffic import TOLERATED_BYTES, Traffic

PRICE = 1000 << 20  # msat per GiB: a sat for a kilobyte
MEGABYTE = 1 << 20
ACCOUNT = Account(True, paid_msat=10_000_000, payments=1, carried_msat=10_000_000)


def status(credit_msat: int, paid_msat: int = 10_000_000, rate_sat_s: float = 0.0, now_s: int = 0) -> Status:
    return Status((), 0, now_s, 0, credit_msat, rate_sat_s, paid_msat, 1, 0, "", price_msat_per_gib=PRICE)


def cost(size: int) -> int:
    return size * PRICE // UNITS_PER_MSAT


# --- the own count ----------------------------------------------------------------------------------------------------


def test_what_passed_before_the_first_look_does_not_count() -> None:
    assert traffic.count(None, ("boot/7", 5000), PRICE) == Traffic("boot/7", 5000, price_msat_per_gib=PRICE)
    assert traffic.count(None, None, PRICE) == Traffic(price_msat_per_gib=PRICE)


@pytest.mark.parametrize(
    ("reading", "new_bytes"),
    [(("boot/7", 5300), 300), (("boot/8", 6000), 6000), (("boot/7", 4999), 4999), (("again/7", 100), 100), (None, 0)],
)
def test_counters_that_begin_anew_lose_nothing_that_they_show(reading: tuple[str, int] | None, new_bytes: int) -> None:
    """The interface was made anew, or the machine has started again."""
    before = replace(traffic.count(None, ("boot/7", 5000), PRICE), counted_bytes=10, cost_units=10 * PRICE)
    now = traffic.count(before, reading, PRICE)
    assert now.counted_bytes == 10 + new_bytes and now.cost_units == now.counted_bytes * PRICE
    after = traffic.count(now, ("boot/7", 5400) if reading is None else (reading[0], reading[1] + 50), PRICE)
    assert after.counted_bytes - now.counted_bytes == (400 if reading is None else 50)


@pytest.mark.parametrize(("before", "then"), [(PRICE, 2 * PRICE), (2 * PRICE, PRICE)])
def test_between_two_prices_the_higher_one_counts(before: int, then: int) -> None:
    first = traffic.count(None, ("boot/7", 0), before)
    assert traffic.count(first, ("boot/7", 100), then).cost_units == 100 * 2 * PRICE


# --- the landlord's charge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, MEGABYTE])
def test_a_tenth_and_64_kb_more_are_tolerated_once(size: int) -> None:
    counted = traffic.count(traffic.count(None, ("boot/7", 0), PRICE), ("boot/7", size), PRICE)
    most = cost(size * 11 // 10 + TOLERATED_BYTES)
    for charged, is_wrong in ((most - 1001, False), (most + 1001, True)):
        left = status(10_000_000 - charged)
        assert bool(traffic.overcharge(traffic.charge(counted, ACCOUNT, left), left)) == is_wrong
    accepted = status(10_000_000 - most + 1001)
    charged_before = traffic.charge(counted, ACCOUNT, accepted)
    account = traffic.up_to_date(ACCOUNT, accepted)
    more = status(accepted.credit_msat - cost(TOLERATED_BYTES) // 2)
    said = traffic.overcharge(traffic.charge(charged_before, account, more), more)
    assert f"counted {size} bytes" in said and "or up on another machine" in said and "ngp rent add" in said
    again = traffic.count(charged_before, ("boot/7", size + TOLERATED_BYTES), PRICE)
    assert not traffic.overcharge(traffic.charge(again, account, more), more), "they were counted since"


def test_rent_is_no_traffic() -> None:
    account = replace(ACCOUNT, rate_sat_s=1.0)
    left = status(10_000_000 - 3_600_000, rate_sat_s=1.0, now_s=3600)
    assert traffic.charge(Traffic(), account, left).charged_msat == 0


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=8))
def test_payments_that_a_landlord_makes_up_hide_no_charge(looks: list[tuple[int, int, int]]) -> None:
    """Each look: what it charges, a payment of somebody else, and how much of that it doesn't count as credit."""
    account, known, total = ACCOUNT, Traffic(), 0
    paid_msat, credit_msat = account.paid_msat, 10_000_000
    for charged, others, kept_back in looks:
        paid_msat, credit_msat = paid_msat + others, credit_msat + others - charged - min(kept_back, others)
        total += charged + min(kept_back, others)
        left = status(credit_msat, paid_msat)
        known = traffic.charge(known, account, left)
        account = replace(traffic.up_to_date(account, left), paid_msat=paid_msat)
    assert known.charged_msat == total


def test_without_money_for_a_packet_the_tunnel_is_off() -> None:
    packet_msat = cost(1500)
    assert traffic.is_cut_off(status(packet_msat)) and not traffic.is_cut_off(status(packet_msat + 1))
    assert traffic.is_cut_off(status(packet_msat + 60_000, rate_sat_s=1.0)), "rent is kept back"
    free = replace(status(1), price_msat_per_gib=0)
    assert not traffic.is_cut_off(free) and traffic.is_cut_off(replace(free, credit_msat=0))
