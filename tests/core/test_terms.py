"""Prices, policies and budgets: exact, monotone, and within the limits of either operator."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import HOST_ADDRESS, settings

from ngp.core.budget import Spending, broken_limit, room_msat
from ngp.core.policy import (
    MOST_ROUNDS,
    BuyTerms,
    Occasion,
    SellTerms,
    answer_counter,
    answer_proposal,
    ask_in_round,
    ask_terms,
    buy_terms,
    first_round,
    least_above_cost,
    sell_terms,
)
from ngp.core.prefixes import PackedPrefix, host_prefix
from ngp.core.pricing import GIB, affordable_bytes, amount_due_msat
from ngp.core.selling.sale import Sale
from ngp.core.settings import Budgets, Hours, LoadPrice, Margin, PriceRule
from ngp.core.timers import Due, Timers
from ngp.core.values import Now

FAST = effort(derandomize=True, database=None)
HERE = Occasion(b"\x7f" * 32, "mesh0", 12 * 3600)
price = st.integers(0, 1 << 40)
size = st.integers(0, 1 << 40)


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, int]]:
    offsets = sorted(draw(st.sets(st.integers(1, 1 << 40), max_size=4)))
    return [(offset, draw(price)) for offset in (0, *offsets)]


@FAST
@given(schedules(), size, size)
def test_due_is_exact_and_grows(prices: list[tuple[int, int]], used: int, more: int) -> None:
    exact = 0
    for position, (start, per_gib) in enumerate(prices):
        end = prices[position + 1][0] if position + 1 < len(prices) else used
        exact += max(0, min(end, used) - start) * per_gib
    assert amount_due_msat(used, prices) == -(-exact // GIB)
    assert amount_due_msat(used, prices) <= amount_due_msat(used + more, prices)
    assert amount_due_msat(0, prices) == 0


@FAST
@given(schedules(), st.integers(-10, 1 << 50), size, size)
def test_affordable_is_the_most_that_fits(prices: list[tuple[int, int]], amount: int, start: int, span: int) -> None:
    bought = affordable_bytes(amount, start, start + span, prices)
    assert 0 <= bought <= span
    before = amount_due_msat(start, prices)
    assert amount_due_msat(start + bought, prices) - before <= max(0, amount)
    assert bought == span or amount_due_msat(start + bought + 1, prices) - before > max(0, amount)


@FAST
@given(price, st.lists(st.tuples(st.integers(0, 1 << 20), price), max_size=6), size)
def test_repricing_leaves_earlier_bytes_alone(first: int, changes: list[tuple[int, int]], used: int) -> None:
    contract = Sale(
        id=b"c", identity=b"i", link=("e", b""), link_number=1, destination=PackedPrefix.of(host_prefix(HOST_ADDRESS)),
        prices=((0, first),), data_limit_bytes=0, lifetime_s=0,
    )  # fmt: skip
    offset = 0
    for further, per_gib in changes:
        offset += further
        before = amount_due_msat(min(used, offset), contract.prices)
        contract.reprice(offset, per_gib)
        assert amount_due_msat(min(used, offset), contract.prices) == before
        assert contract.price_msat_per_gib == per_gib
        assert [at for at, _ in contract.prices] == sorted({at for at, _ in contract.prices})


@FAST
@given(price, price, price, price)
def test_a_negotiation_ends_inside_both_limits(ask: int, least: int, offer: int, most: int) -> None:
    sell = SellTerms(host_prefix(HOST_ADDRESS), ask, min(ask, least))
    buy = BuyTerms(min(offer, most), most)
    number = first_round(sell)
    proposed = ask_in_round(sell, number)
    assert proposed == ask
    while True:
        assert number <= MOST_ROUNDS and sell.least_msat_per_gib <= proposed <= sell.ask_msat_per_gib
        counter = answer_proposal(buy, proposed, number)
        if counter in (proposed, None):
            break
        assert counter is not None and counter <= buy.most_msat_per_gib
        reply = answer_counter(sell, counter, number)
        if reply is None:
            break
        proposed, number = reply, number + 1
    agreed = counter == proposed
    assert agreed == (sell.least_msat_per_gib <= buy.most_msat_per_gib)
    assert not agreed or proposed <= buy.most_msat_per_gib


@FAST
@given(price, price, st.lists(price, max_size=300))
def test_whatever_counter_offers_come_the_seller_stays_inside_its_limits(
    ask: int, least: int, counters: list[int]
) -> None:
    sell = SellTerms(host_prefix(HOST_ADDRESS), ask, min(ask, least))
    number = first_round(sell)
    for counter in counters:
        reply = answer_counter(sell, counter, number)
        if reply is None:
            break
        assert sell.least_msat_per_gib <= reply <= sell.ask_msat_per_gib
        number += 1
    assert number <= MOST_ROUNDS


payment = st.tuples(st.integers(0, 3000), st.integers(1, 500), st.booleans())


@FAST
@given(st.lists(payment, max_size=40))
def test_no_window_holds_more_than_its_budget(payments: list[tuple[int, int, bool]]) -> None:
    budgets, spending, now, kept = Budgets(400, 5000, 1000, 3000, 10_000), Spending(), Now(0, 0.0), []
    for passes_s, amount, fails in payments:
        now = Now(now.utc_s + passes_s, now.monotonic_s + passes_s)
        room = room_msat(budgets, spending, b"n", now)
        refused = broken_limit(budgets, spending, b"n", amount, now)
        assert (refused is None) == (amount <= room)
        if refused is None:
            spending.add(b"n", amount, now.utc_s, now)
            if fails:
                spending.add(b"n", -amount, now.utc_s, now)
            else:
                kept.append((now.utc_s, amount))
        for window, limit in ((3600, 1000), (86_400, 3000)):
            spent_msat = sum(msat for at_s, msat in kept if at_s > now.utc_s - window)
            assert 0 <= spending.within_msat(window, now) == spent_msat <= limit


def test_a_broken_budget_is_named_as_in_net_conf_and_with_a_remedy() -> None:
    budgets, spending = Budgets(20_000_000, None, 50_000_000, 200_000_000, 1_700_000), Spending()
    spending.add(b"n", 1_699_500, 0, Now(0, 0.0))
    assert broken_limit(budgets, spending, b"n", 101_000, Now(0, 0.0)) == (
        "BUDGET_TOTAL 1700 sat (spent 1699500 msat, this payment 101 sat with its fee): "
        "raise BUDGET_TOTAL in net.conf, then ngp reload"
    )


@FAST
@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 50)), max_size=300), st.integers(0, 50))
def test_timers_ring_as_set_last_and_stay_small(changes: list[tuple[int, int | None]], now: int) -> None:
    timers, expected = Timers(), {}
    for name, at in changes:
        key = bytes([name])
        if at is None:
            timers.clear(Due.QUOTE, key)
            expected.pop(key, None)
        else:
            timers.set(Due.QUOTE, key, float(at))
            expected[key] = float(at)
    assert len(timers._heap) <= 64 + 4 * max(1, len(timers._at)) + 1
    assert {key for _, key in timers.ring(float(now))} == {key for key, at in expected.items() if at <= now}
    assert timers.next_mono_s() == min((at for at in expected.values() if at > now), default=None)


@pytest.mark.parametrize(
    ("address", "route", "sold"),
    [
        ("198.51.100.7", "198.51.100.0/24", "198.51.100.0/24"),
        ("10.9.0.1", "10.0.0.0/8", "10.0.0.0/8"),
        ("198.51.100.7", "128.0.0.0/1", "198.51.100.7/32"),
        ("9.9.9.9", "8.0.0.0/7", "9.9.9.9/32"),
        ("198.51.100.7", "0.0.0.0/0", "198.51.100.7/32"),
        ("2001:db8::7", "2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::7", "2000::/3", "2001:db8::7/128"),
        ("2001:db8::7", "::/1", "2001:db8::7/128"),
    ],
)
def test_a_default_route_is_never_sold_whole_nor_a_part_of_one(address: str, route: str, sold: str) -> None:
    terms = sell_terms(settings(), ip_address(address), HERE, ip_network(route))
    assert terms.destination == ip_network(sold)


def test_a_prefix_is_never_sold_below_the_price_of_a_part_of_it() -> None:
    def entry(prefix: str, msat: int, interface: str | None = None) -> PriceRule:
        return PriceRule(ip_network(prefix), msat, None, None, None, interface)

    cheap, dear = entry("10.0.0.0/8", 1), entry("10.1.0.0/16", 100)
    both, apart = settings(prices=(cheap, dear)), settings(prices=(cheap, replace(dear, interface="mesh1")))
    held = {each: sell_terms(both, ip_address(each), HERE, None) for each in ("10.1.0.1", "10.2.0.1")}
    assert held["10.1.0.1"] == SellTerms(ip_network("10.1.0.0/16"), 100, 100)
    assert held["10.2.0.1"] == SellTerms(ip_network("10.2.0.1/32"), 1, 1)
    assert sell_terms(apart, ip_address("10.2.0.1"), HERE, None) == SellTerms(ip_network("10.0.0.0/8"), 1, 1)
    asked = {each: ask_terms(both, ip_network(each), HERE) for each in ("10.0.0.0/8", "10.0.0.0/15", "10.2.0.0/16")}
    assert [terms.ask_msat_per_gib for terms in asked.values()] == [100, 100, 1]
    assert all(terms.destination == ip_network(each) for each, terms in asked.items())
    assert ask_terms(apart, ip_network("10.2.0.0/16"), HERE) == SellTerms(ip_network("10.2.0.0/16"), 1, 1)


@pytest.mark.parametrize(
    ("load_ppm", "ask", "least"), [(0, 100, 80), (700_000, 100, 80), (850_000, 200, 160), (1_000_000, 300, 240)]
)
def test_under_load_prices_rise_evenly_up_to_the_factor_also_above_cost(load_ppm: int, ask: int, least: int) -> None:
    conf = settings(sell_msat_per_gib=100, sell_min_msat_per_gib=80, load_price=LoadPrice(700_000, 3_000_000))
    there, then = ip_network("192.0.2.0/24"), replace(HERE, load_ppm=load_ppm)
    assert ask_terms(conf, there, then) == SellTerms(there, ask, least)
    assert sell_terms(conf, ip_address("192.0.2.1"), then, there) == SellTerms(there, ask, least)
    assert ask_terms(conf, there, then, 1000) == SellTerms(there, 11 * ask, 11 * ask)
    assert least_above_cost(conf, there, then, 1000) == 1100  # what was agreed without load stays
    assert buy_terms(conf, there, then) == buy_terms(conf, there, HERE)


NET = ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("others", "wins"),
    [
        ([], 1),
        ([PriceRule(ip_network("10.0.0.0/16"), 2)], 2),
        ([PriceRule(NET, 2, neighbour="7f" * 8), PriceRule(NET, 3, interface="mesh0", hours=Hours(0, 86400))], 2),
        ([PriceRule(NET, 2, interface="mesh0"), PriceRule(NET, 3, hours=Hours(11 * 3600, 13 * 3600))], 2),
        ([PriceRule(NET, 2, hours=Hours(22 * 3600, 13 * 3600))], 2),
        ([PriceRule(NET, 2, hours=Hours(13 * 3600, 14 * 3600)), PriceRule(NET, 3, neighbour="70" * 8)], 1),
        ([PriceRule(NET, 2, hours=Hours(9 * 3600, 12 * 3600))], 1),
        ([PriceRule(NET, 2, neighbour="7f" * 8), PriceRule(ip_network("10.0.0.0/9"), 3)], 3),
    ],
)
def test_the_longest_prefix_wins_then_the_neighbour_the_interface_and_the_time(
    others: list[PriceRule], wins: int
) -> None:
    for rules in ((PriceRule(NET, 1), *others), (*others, PriceRule(NET, 1))):
        conf = settings(prices=rules)
        assert ask_terms(conf, ip_network("10.0.0.1/32"), HERE).ask_msat_per_gib == wins
        paying = settings(prices=tuple(replace(rule, buy_max_msat_per_gib=rule.sell_msat_per_gib) for rule in rules))
        assert buy_terms(paying, ip_network("10.0.0.1/32"), HERE).most_msat_per_gib == wins


@FAST
@given(st.integers(0, 86399), st.integers(1, 86399), st.integers(0, 86399), st.integers(1, 86399))
def test_parts_of_the_day_overlap_where_a_second_is_in_both(one: int, length: int, other: int, span: int) -> None:
    ours, theirs = Hours(one, (one + length) % 86400 or 86400), Hours(other, (other + span) % 86400 or 86400)
    ends = [second % 86400 for each in (ours, theirs) for second in (each.from_s, each.to_s - 1)]
    assert ours.overlap(theirs) == theirs.overlap(ours) == any(ours.include(s) and theirs.include(s) for s in ends)
    assert sum(ours.include(second) for second in range(0, 86400, 60)) in (length // 60, length // 60 + 1)


def test_a_part_that_is_cheap_for_this_neighbour_makes_nothing_around_it_dearer() -> None:
    part = ip_network("10.1.0.0/16")
    conf = settings(prices=(PriceRule(NET, 1), PriceRule(part, 100), PriceRule(part, 2, neighbour="7f" * 8)))
    assert ask_terms(conf, NET, HERE).ask_msat_per_gib == 2
    assert ask_terms(conf, NET, replace(HERE, identity=b"\x01" * 32)).ask_msat_per_gib == 100


def test_a_margin_of_an_entry_replaces_the_general_one_and_a_prefix_takes_the_highest() -> None:
    part = ip_network("10.1.0.0/16")
    conf = settings(sell_msat_per_gib=0, sell_min_msat_per_gib=0, prices=(
        PriceRule(NET, margin=Margin(500_000, 0)), PriceRule(part, margin=Margin(0, 3)),
    ))  # fmt: skip
    for destination, least in ((part, 103), (NET, 150), (ip_network("192.0.2.0/24"), 110)):
        assert ask_terms(conf, destination, HERE, 100) == SellTerms(destination, least, least)
        assert least_above_cost(conf, destination, HERE, 100) == least
    assert ask_terms(conf, NET, HERE) == SellTerms(NET, 0, 0)


@pytest.mark.parametrize(("prefix", "sold"), [("198.51.100.0/24", "198.51.100.0/24"), ("128.0.0.0/1", None)])
def test_a_price_for_a_part_of_a_default_route_holds_for_each_host_in_it(prefix: str, sold: str | None) -> None:
    rule = PriceRule(ip_network(prefix), 7, None, None, None, None)
    terms = sell_terms(settings(prices=(rule,)), ip_address("198.51.100.7"), HERE, None)
    assert terms.ask_msat_per_gib == 7 and terms.destination == ip_network(sold or "198.51.100.7/32")
    asked = ask_terms(settings(prices=(rule,)), ip_network("198.51.100.7/32"), HERE)
    assert asked == replace(terms, destination=ip_network("198.51.100.7/32"))
