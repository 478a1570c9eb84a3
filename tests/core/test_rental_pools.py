"""The networks that a landlord lets: cut from its pools, held, given back, and never let twice."""

from __future__ import annotations

from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from let import Landlord, letting, offer

from ngp.core.rental.events import ReleaseRental
from ngp.core.rental.pools import FreeNetworks
from ngp.core.rental.rental import RentalState
from ngp.core.rental.terms import Pool


def test_a_network_is_cut_from_the_smallest_block_that_holds_it() -> None:
    free = FreeNetworks([Pool(ip_network("192.0.2.0/24"))])
    first = free.find(4, 32)
    assert first == ip_network("192.0.2.0/32") and free.is_free(first)
    free.take(first)
    assert not free.is_free(first)
    assert free.find(4, 32) == ip_network("192.0.2.1/32")
    assert free.find(4, 25) == ip_network("192.0.2.128/25"), "a large block is still whole"
    assert free.find(4, 24) is None
    free.give_back(first)
    assert free.find(4, 24) == ip_network("192.0.2.0/24"), "what is given back joins again"


def test_the_blocks_of_what_is_free_leave_out_what_is_excluded() -> None:
    pools = [Pool(ip_network("2001:db8::/47"), (ip_network("2001:db8:1::/48"),)), Pool(ip_network("192.0.2.0/30"))]
    free = FreeNetworks([*pools, Pool(ip_network("198.51.100.0/30"), (ip_network("198.51.100.1/32"),))])
    wanted = ("192.0.2.0/30", "198.51.100.0/32", "198.51.100.2/31", "2001:db8::/48")
    assert free.blocks() == tuple(map(ip_network, wanted))


def test_excluded_parts_are_never_let_even_when_given_back() -> None:
    pool = Pool(ip_network("192.0.2.0/30"), (ip_network("192.0.2.1/32"),))
    free = FreeNetworks([pool])
    free.give_back(ip_network("192.0.2.0/31"))
    assert free.count(4, 32) == 3
    assert free.find(4, 31) == ip_network("192.0.2.2/31")


def test_pools_inside_a_network_that_is_let_have_nothing_free_until_it_is_given_back() -> None:
    first = Pool(ip_network("192.0.2.0/30"), (ip_network("192.0.2.1/32"),))
    pools = [first, Pool(ip_network("192.0.2.4/30")), Pool(ip_network("2001:db8::/64"))]
    wider = ip_network("192.0.2.0/29")
    free = FreeNetworks(pools, [wider])
    assert free.blocks() == (ip_network("2001:db8::/64"),) and not free.is_free(wider)
    free.give_back(wider)
    assert free.blocks() == FreeNetworks(pools).blocks()


BIG = offer(ipv4_bits=29, ipv6_bits=None, name="big"), offer(ipv4_bits=32, ipv6_bits=None, name="one")


@pytest.mark.parametrize("starts_anew", [False, True])
@pytest.mark.parametrize("is_paid", [False, True])
def test_nothing_of_a_network_that_is_held_is_let_after_its_pool_was_split(
    tmp_path: Path, starts_anew: bool, is_paid: bool
) -> None:
    split = letting(*BIG, pools=("203.0.113.0/30", "203.0.113.4/30"))
    with closing(Landlord(tmp_path, letting(*BIG, pools=("203.0.113.0/29",)))) as landlord:
        first = landlord.ask(1, 1000, "big")
        assert first is not None and (not is_paid or landlord.pay(first.bolt11))
        if starts_anew:
            landlord.terms = split
            landlord.crash()
        else:
            landlord.reload(split)
        second = landlord.ask(2, 1000, "one")
        assert second is not None and "all addresses" in second.why_not
        landlord.happen(ReleaseRental(landlord.rental(1).id))
        third = landlord.ask(2, 1000, "one")
        assert third is not None and not third.why_not and landlord.pay(third.bolt11)
        landlord.check()


def test_a_landlord_whose_pool_is_within_what_another_has_let_refuses(tmp_path: Path) -> None:
    with closing(Landlord(tmp_path, letting(offer(ipv6_bits=None), pools=("203.0.113.0/30",)))) as landlord:
        landlord.let_by_others(["203.0.113.0/29"])
        answer = landlord.ask(1, 1000)
        assert answer is not None and "all addresses" in answer.why_not


def test_a_first_payment_for_networks_that_may_no_longer_be_let_is_kept_for_the_tenant(landlord: Landlord) -> None:
    asked = landlord.ask(1, 1000)
    assert asked is not None
    landlord.reload(letting(pools=("198.51.100.0/29", "2001:db8:f::/61")))
    assert landlord.pay(asked.bolt11) and not landlord.peers
    landlord.check()
    landlord.crash()
    assert landlord.rental(1).state is RentalState.RELEASED and "net.conf no longer" in landlord.rental(1).reason
    answer = landlord.fetch(1, 1000)
    assert answer is not None and not answer.why_not
    landlord.check()


@given(st.data())
@effort(max_examples=effort.default.max_examples // 2)
def test_no_network_is_found_twice_and_nothing_is_lost(data: st.DataObject) -> None:
    pools = [
        Pool(ip_network("192.0.2.0/26"), (ip_network("192.0.2.4/31"),)),
        Pool(ip_network("198.51.100.0/27")),
        Pool(ip_network("2001:db8::/56")),
    ]
    free, taken = FreeNetworks(pools), []
    all_32, all_64 = free.count(4, 32), free.count(6, 64)
    for _ in range(data.draw(st.integers(1, 60))):
        if taken and data.draw(st.booleans()):
            free.give_back(taken.pop(data.draw(st.integers(0, len(taken) - 1))))
            continue
        version = data.draw(st.sampled_from((4, 6)))
        bits = data.draw(st.integers(27, 32) if version == 4 else st.integers(56, 64))
        found = free.find(version, bits)
        if found is not None:
            assert not any(one.version == found.version and one.overlaps(found) for one in taken)
            assert not found.overlaps(ip_network("192.0.2.4/31")) if version == 4 else True
            assert free.is_free(found)
            free.take(found)
            assert not free.is_free(found)
            taken.append(found)
    assert FreeNetworks(pools, taken).count(4, 32) == free.count(4, 32)
    for one in taken:
        free.give_back(one)
    assert (free.count(4, 32), free.count(6, 64)) == (all_32, all_64)
    assert free.find(4, 27) == ip_network("192.0.2.32/27"), "the smallest block that is large enough"
