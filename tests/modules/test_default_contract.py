"""A neighbour's contract for a default route: for traffic with upstream and our LANs; with the mesh if we resell it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from crafted import quoting, send
from kernel_lab import CLIENT, INTERNET, desired, passes
from meter_lab import NEIGHBOUR, World, metered, received, true_wire, wait_until
from star_lab import ADDRESSES, BITS, EVERYTHING, SECOND, UP_BYTES, Star, neighbours, once, star

from core_tests.hostile import udp
from ngp.modules.network.datapath import Datapath

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Star]:
    with star(tmp_path) as one:
        yield one


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as one:
        yield one


def queued(of: World) -> int:
    return of.datapath.counters()["passed_to_queue"]


def host(name: str, family: int) -> str:
    return f"{ADDRESSES[name][family]}/{BITS[family]}"


@FAMILIES
def test_it_pays_for_traffic_with_upstream_and_lans_whoever_begins(built: Star, family: int) -> None:
    sold, free = built.sell(NEIGHBOUR, EVERYTHING[family]), once(family)
    for begins, answers in (("A", "internet"), ("behind A", "internet"), ("A", "LAN")):
        built.talk(begins, answers, family)
    assert built.world.used(sold) == (3 * free[0], 3 * free[1]) and queued(built.world) == 0
    for begins in ("internet", "LAN"):
        built.talk(begins, "A", family)
    assert built.world.used(sold) == (3 * free[0] + 2 * free[1], 3 * free[1] + 2 * free[0])


@FAMILIES
def test_what_goes_on_to_the_mesh_is_asked_about_and_has_a_contract_of_its_own(built: Star, family: int) -> None:
    whole, there = built.sell(NEIGHBOUR, EVERYTHING[family]), ADDRESSES["behind B"][family]
    bought = built.buy(SECOND, f"{there}/{BITS[family]}")
    send(built.world, [udp(CLIENT[family], there, 9, bytes(UP_BYTES))])
    wait_until(lambda: queued(built.world) == 1, "the daemon is asked")
    assert built.world.used(bought) == (0, 0), "nothing is carried below its price"
    part = built.sell(NEIGHBOUR, f"{there}/{BITS[family]}")
    built.talk("A", "behind B", family)
    assert built.world.used(part) == built.world.used(bought) == once(family)
    assert built.world.used(whole) == (0, 0) and queued(built.world) == 1


@FAMILIES
def test_it_pays_for_nothing_that_comes_from_the_mesh(built: Star, family: int) -> None:
    """A host behind B answers to nothing: the gate takes that for a return, as we bought the host of B."""
    whole, there = built.sell(NEIGHBOUR, EVERYTHING[family]), host("behind B", family)
    built.buy(SECOND, there)
    with built.socket("behind B", family) as begins:
        begins.sendto(bytes(UP_BYTES), (CLIENT[family], 9))
    wait_until(lambda: built.world.datapath.counters()["uncovered"] == 1, "refused")
    assert built.world.used(whole) == (0, 0)


@FAMILIES
def test_a_neighbour_that_begins_a_conversation_with_its_owner_pays_as_before(built: Star, family: int) -> None:
    whole = built.sell(NEIGHBOUR, EVERYTHING[family])
    visit = built.sell(SECOND, host("behind A", family))
    other_whole = built.sell(SECOND, EVERYTHING[family])
    built.talk("behind B", "behind A", family)
    assert built.world.used(visit) == once(family), "both directions"
    assert built.world.used(whole) == built.world.used(other_whole) == (0, 0)


@FAMILIES
def test_without_data_its_packets_are_dropped_and_the_daemon_is_not_asked_about_each(world: World, family: int) -> None:
    whole = world.grant(EVERYTHING[family], limit_bytes=0)
    send(world, [udp(CLIENT[family], INTERNET[family], 9, bytes(UP_BYTES))], times=5)
    wait_until(lambda: world.refused() == 5, "refused at the limit")
    assert queued(world) == 0 and world.used(whole) == (0, 0)


@FAMILIES
def test_a_longer_prefix_and_a_refused_one_win(world: World, family: int) -> None:
    whole, other = world.grant(EVERYTHING[family]), str(ip_address(INTERNET[family]) + 1)
    packets = [udp(CLIENT[family], to, 9, bytes(UP_BYTES)) for to in (INTERNET[family], other)]
    size = len(packets[0])
    single = world.grant(f"{INTERNET[family]}/{BITS[family]}")
    send(world, packets, times=2)
    wait_until(lambda: world.used(single) == world.used(whole) == (2 * size, 0), "each by its longest prefix")
    world.grant(f"{other}/{BITS[family]}", blocked=True, account=b"")
    send(world, packets)
    wait_until(lambda: world.datapath.counters()["refused_blocked"] == 1, "refused")
    assert (world.used(single), world.used(whole)) == ((3 * size, 0), (2 * size, 0))


@FAMILIES
def test_forged_errors_use_up_no_more_than_a_trickle_of_it(world: World, family: int) -> None:
    """For it every source is a destination of its owner, so that none has a right to send errors at any rate."""
    client, internet, router = CLIENT[family], INTERNET[family], {4: "10.77.2.9", 6: "fd00:77:2::9"}[family]
    whole = world.grant(EVERYTHING[family])
    true_wire(world)
    about = udp(client, internet, 9, bytes(1100))
    wait_until(lambda: passes(world.lab.internet, client), "next hops are known")
    before = world.used(whole)[1]
    error = quoting(family, router, client, about)
    send(world, [error], upload=False, times=3000)
    assert 50 * len(error) < world.used(whole)[1] - before < 1500 * len(error), "a burst, and then some a second"


@FAMILIES
def test_after_a_restart_it_is_still_none_for_the_mesh(built: Star, family: int) -> None:
    built.sell(NEIGHBOUR, EVERYTHING[family])
    built.world.datapath.close()
    again = built.world.datapath = Datapath(built.world.state, None)
    again.set_up(desired(buys=True, lan_interfaces=("lan0",)))
    again.set_neighbours(neighbours(built))
    send(built.world, [udp(CLIENT[family], ADDRESSES["behind B"][family], 9, bytes(UP_BYTES))])
    wait_until(lambda: queued(built.world) == 1, "the daemon is asked")


@FAMILIES
def test_one_that_we_buy_ourselves_also_pays_for_what_goes_on_by_that(built: Star, family: int) -> None:
    whole = built.sell(NEIGHBOUR, EVERYTHING[family], resold=True)
    bought = built.buy(SECOND, EVERYTHING[family])
    for begins in ("A", "behind A"):
        built.talk(begins, "behind B", family)
    both = tuple(2 * each for each in once(family))
    assert built.world.used(whole) == built.world.used(bought) == both and queued(built.world) == 0
    built.talk("A", "internet", family)
    assert built.world.used(whole) == tuple(3 * each for each in once(family))
    built.talk("behind B", "A", family)
    up, down = once(family)
    assert built.world.used(whole) == (3 * up + down, 3 * down + up), "its owner has bought what others begin, too"


@FAMILIES
def test_parts_that_are_elsewhere_are_excepted_from_it_in_both_directions(built: Star, family: int) -> None:
    there, datapath = ADDRESSES["behind B"][family], built.world.datapath
    part = ip_network((there, BITS[family] - 8), strict=False)
    whole, bought = built.sell(NEIGHBOUR, EVERYTHING[family], resold=True), built.buy(SECOND, EVERYTHING[family])
    other = ip_network({4: "10.99.0.0/16", 6: "fd00:99::/32"}[family])
    datapath.set_elsewhere([part, other])
    send(built.world, [udp(CLIENT[family], there, 9, bytes(UP_BYTES))])
    wait_until(lambda: queued(built.world) == 1, "the daemon is asked")
    with built.socket("behind B", family) as begins:
        begins.sendto(bytes(UP_BYTES), (CLIENT[family], 9))
    wait_until(lambda: datapath.unsold_bytes() == once(family)[0], "refused")
    assert built.world.used(whole) == (0, 0) and built.world.used(bought) == (0, once(family)[0])
    datapath.set_elsewhere([other])
    built.talk("A", "behind B", family)
    assert built.world.used(whole) == once(family) and queued(built.world) == 1


@FAMILIES
def test_what_we_paid_for_and_nobody_bought_is_counted(built: Star, family: int) -> None:
    bought, (size, _) = built.buy(SECOND, EVERYTHING[family]), once(family)
    for number, name in enumerate(("A", "behind A"), 1):
        with built.socket("behind B", family) as begins:
            begins.sendto(bytes(UP_BYTES), (ADDRESSES[name][family], 9))
        wait_until(lambda number=number: built.world.datapath.unsold_bytes() == number * size, "counted")  # type: ignore[misc]
    assert built.world.used(bought) == (0, 2 * size)
    with built.socket("internet", family) as begins:
        begins.sendto(bytes(UP_BYTES), (CLIENT[family], 9))
    wait_until(lambda: built.world.datapath.counters()["uncovered"] == 3, "refused")
    assert built.world.datapath.counters()["unsold_bytes"] == 2 * size, "what comes from upstream costs us nothing"


@FAMILIES
def test_after_a_restart_it_still_covers_the_mesh_and_its_exceptions_still_hold(built: Star, family: int) -> None:
    there, datapath = ADDRESSES["behind B"][family], built.world.datapath
    whole = built.sell(NEIGHBOUR, EVERYTHING[family], resold=True)
    built.buy(SECOND, EVERYTHING[family])
    datapath.set_elsewhere([ip_network(there)])
    datapath.close()
    again = built.world.datapath = Datapath(built.world.state, None)
    found = again.set_up(desired(buys=True, lan_interfaces=("lan0",)))
    assert {one.grant.contract: one.grant.resold for one in found.contracts}[whole]
    again.set_neighbours(neighbours(built))
    send(built.world, [udp(CLIENT[family], there, 9, bytes(UP_BYTES))])
    wait_until(lambda: queued(built.world) == 1, "the daemon is asked")
    built.talk("A", "B", family)
    assert built.world.used(whole) == once(family)


@FAMILIES
def test_it_is_billed_as_receivers_count(world: World, family: int) -> None:
    true_wire(world)
    whole = world.grant(EVERYTHING[family])
    world.tcp_both_ways(INTERNET[family], 300_000)
    wait_until(
        lambda: world.used(whole) == (received(world.lab.internet, family)[1], received(world.lab.client, family)[1]),
        "the meter and the receivers agree",
    )
    found = {one.address: one for one in world.datapath.inside(20)[whole]}
    assert sum(one.used_to_bytes for one in found.values()) == world.used(whole)[0]
    assert sum(one.used_from_bytes for one in found.values()) == world.used(whole)[1]
