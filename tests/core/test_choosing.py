"""Choosing among neighbours: what counts is the price of what arrives, and the present one is preferred."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngp.core.buying.fork import GAIN, Candidate, Forks, ForkState, Quality, choose
from ngp.core.kernel import Fork, Router

ROUTERS = [Router(f"mesh{number}", b"\2", ip_address(f"10.0.{number}.1")) for number in range(4)]


def candidate(number: int, price: int | None, quality: float = 1.0) -> Candidate:
    return Candidate(ROUTERS[number], price, quality)


candidates = st.lists(
    st.builds(candidate, st.integers(0, 3), st.none() | st.integers(0, 1 << 40), st.floats(0.001, 1.0)), min_size=1
)


def test_the_cheapest_is_chosen_and_of_equal_ones_the_operators_first() -> None:
    cheap, dear = candidate(0, 2), candidate(1, 5)
    assert choose([dear, cheap], None) is cheap
    assert choose([candidate(2, 5), dear], None).router == ROUTERS[2]
    assert choose([candidate(2, None), dear], None) is dear, "a price that isn't known is the last choice"


def test_what_is_lost_is_paid_for() -> None:
    lossy, dearer = candidate(0, 2000, 0.3), candidate(1, 5000)
    assert choose([lossy, dearer], lossy) is dearer
    free_but_mute, free = candidate(0, 0, 0.1), candidate(1, 0)
    assert choose([free_but_mute, free], free_but_mute) is free


@pytest.mark.parametrize(("price", "stays"), [(1000, True), (1099, True), (1101, False), (None, False)])
def test_the_present_one_stays_unless_it_costs_a_tenth_more(price: int | None, stays: bool) -> None:
    present, other = candidate(0, price), candidate(1, 1000)
    assert (choose([present, other], present) is present) == stays


@given(candidates, st.integers(0, 9))
def test_no_two_candidates_alternate(all_: list[Candidate], first: int) -> None:
    """Whatever is chosen stays chosen as long as prices and quality stay."""
    best = choose(all_, all_[first % len(all_)])
    assert choose(all_, best) is best
    assert best.cost <= min(one.cost for one in all_) * GAIN


def test_quality_falls_with_lost_hellos_and_with_delay() -> None:
    lossy, slow = Quality(), Quality()
    assert lossy.value(0.0) == 1.0
    for number in range(1, 400):
        lossy.asked_mono_s = slow.asked_mono_s = number
        (lossy.missed if number % 2 else lossy.heard)(float(number))
        slow.heard(number + 0.5)
    assert lossy.value(400.0) == pytest.approx(0.5, abs=0.02)
    assert slow.value(400.0) == pytest.approx(0.5, abs=0.02)


def test_a_silent_neighbour_is_worth_nothing_and_half_when_it_is_back() -> None:
    quality = Quality()
    quality.fell_silent(2.0)
    assert quality.value(2.0) == 0.0
    quality.heard(2.0)
    assert quality.value(2.0) == 0.5


def test_a_neighbour_that_lost_hellos_regains_its_quality_within_an_hour_without_being_asked() -> None:
    quality = Quality()
    quality.fell_silent(100.0)
    quality.heard(100.0)
    assert quality.value(100.0 + 1800) == pytest.approx(0.75)
    assert quality.value(100.0 + 3600) == 1.0


@given(st.lists(st.tuples(st.floats(0, 5000), st.sampled_from(["missed", "heard", "fell_silent", "is_mute"]))))
def test_quality_stays_between_0_and_1(deeds: list[tuple[float, str]]) -> None:
    quality, now = Quality(), 0.0
    for after_s, deed in deeds:
        quality.asked_mono_s = now
        now += after_s
        getattr(quality, deed)(now)
        assert 0.0 <= quality.value(now) <= quality.value(now + 4000) <= 1.0


def test_a_neighbour_that_brought_no_answers_regains_its_quality_within_an_hour() -> None:
    quality = Quality()
    quality.is_mute(100.0)
    assert quality.value(100.0) == pytest.approx(0.1)
    assert quality.value(100.0 + 1800) == pytest.approx(0.6)
    assert quality.value(100.0 + 3600) == 1.0


def test_the_longest_prefix_counts() -> None:
    forks = Forks()
    prefixes = [ip_network(text) for text in ("0.0.0.0/0", "198.51.100.0/24", "::/0")]
    forks.take({prefix: ForkState(Fork(prefix, ())) for prefix in prefixes})

    def found(text: str) -> str:
        state = forks.of(ip_network(text))
        return str(state.fork.prefix) if state is not None else ""

    assert found("198.51.100.7/32") == found("198.51.100.0/24") == "198.51.100.0/24"
    assert found("198.51.0.0/16") == found("192.0.2.1/32") == "0.0.0.0/0"
    assert found("2001:db8::1/128") == "::/0"
    forks.take({prefix: forks.all[prefix] for prefix in prefixes[:2]})
    assert found("2001:db8::1/128") == ""
