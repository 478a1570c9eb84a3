"""What we paid for and refused, as its receiver hadn't bought it, is counted by the purchase by which it came."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from crafted import quoting, send
from kernel_lab import desired, passes, sh
from meter_lab import NEIGHBOUR, wait_until
from star_lab import ADDRESSES, BITS, EVERYTHING, SECOND, UP_BYTES, Star, neighbours, once, star, table

from core_tests.hostile import udp
from ngp.modules.network import layout
from ngp.modules.network.datapath import Datapath

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Star]:
    """A star whose gateway knows its neighbours' MACs: a packet that waits for one may leave on another processor."""
    with star(tmp_path) as one:
        for name in ("A", "B"):
            assert all(passes(one.world.lab.gateway, address) for address in ADDRESSES[name].values())
        yield one


def host(name: str, family: int) -> str:
    return f"{ADDRESSES[name][family]}/{BITS[family]}"


def unasked(built: Star, family: int, to: str) -> None:
    """Let the host behind B send a packet to another one that didn't ask for it."""
    with built.socket("behind B", family) as source:
        source.sendto(bytes(UP_BYTES), (ADDRESSES[to][family], 9))


def refused(built: Star, size: int) -> dict[bytes, int]:
    """Wait until so many bytes in all were refused as unsold; return those since the last call, by purchase."""
    wait_until(lambda: built.world.datapath.unsold_bytes() == size, "refused")
    return built.world.datapath.unsold_by_purchase()


@FAMILIES
def test_it_is_counted_by_the_longest_prefix_that_we_bought(built: Star, family: int) -> None:
    (size, _), there = once(family), ADDRESSES["behind B"][family]
    bought = built.buy(SECOND, host("behind B", family))
    wider = built.buy(SECOND, str(ip_network((there, BITS[family] - 8), strict=False)))
    built.buy(NEIGHBOUR, EVERYTHING[family])
    for to in ("A", "behind A"):
        unasked(built, family, to)
    assert refused(built, 2 * size) == {bought: 2 * size}
    built.world.datapath.revoke([bought])
    unasked(built, family, "A")
    assert refused(built, 3 * size) == {wider: size}


@FAMILIES
def test_what_a_client_bought_and_what_is_for_our_lan_is_not_counted(built: Star, family: int) -> None:
    built.buy(SECOND, host("behind B", family))
    built.sell(NEIGHBOUR, host("behind B", family))
    built.talk("A", "behind B", family)
    built.talk("LAN", "behind B", family)
    with built.socket("LAN", family, 9) as lan:
        lan.settimeout(30)
        unasked(built, family, "LAN")
        assert len(lan.recv(2048)) == UP_BYTES
    assert refused(built, 0) == {}


@FAMILIES
def test_what_a_client_refused_to_buy_is_counted(built: Star, family: int) -> None:
    bought, (size, _) = built.buy(SECOND, host("behind B", family)), once(family)
    built.sell(NEIGHBOUR, host("behind B", family), blocked=True, account=b"")
    unasked(built, family, "A")
    assert refused(built, size) == {bought: size}


@FAMILIES
def test_errors_above_their_rate_are_counted(built: Star, family: int) -> None:
    here, there, times = ADDRESSES["behind A"][family], ADDRESSES["behind B"][family], 2000
    bought = built.buy(NEIGHBOUR, host("behind A", family))
    error = quoting(family, here, there, udp(there, here, 9, bytes(1100)))
    send(built.world, [error], times=times)
    wait_until(lambda: built.world.used(bought) == (0, times * len(error)), "all came")
    losses = built.world.datapath.unsold_by_purchase()
    assert losses == {bought: built.world.datapath.unsold_bytes()} and losses[bought] > times * len(error) // 2


@FAMILIES
def test_a_neighbour_that_sends_under_an_address_that_we_bought_elsewhere_is_not_counted(
    built: Star, family: int
) -> None:
    """Else it could end what others have bought, with an accomplice that had asked that address before."""
    sold, (size, _) = built.sell(NEIGHBOUR, host("behind B", family)), once(family)
    with built.socket("A", family) as asked, built.socket("behind B", family) as answers:
        built.ask(asked, answers)
        built.world.datapath.revoke([sold])
        built.buy(NEIGHBOUR, host("behind B", family))
        answers.sendto(bytes(UP_BYTES), asked.getsockname()[:2])
        assert refused(built, size) == {}


@FAMILIES
def test_what_was_counted_before_a_start_or_by_an_entry_that_was_forgotten_is_not_counted_twice(
    built: Star, family: int
) -> None:
    bought, (size, _) = built.buy(SECOND, host("behind B", family)), once(family)
    unasked(built, family, "A")
    wait_until(lambda: built.world.datapath.unsold_bytes() == size, "refused")
    built.world.datapath.close()
    again = built.world.datapath = Datapath(built.world.state, None)
    again.set_up(desired(buys=True, lan_interfaces=("lan0",)))
    again.set_neighbours(neighbours(built))
    assert refused(built, size) == {}
    for number in (2, 3):
        unasked(built, family, "A")
        assert refused(built, number * size) == {bought: size}
    table(built, layout.UNSOLD).delete(bought)
    unasked(built, family, "A")
    assert refused(built, 4 * size) == {bought: size}


@FAMILIES
def test_a_return_that_waited_for_its_next_hop_and_leaves_on_another_processor_is_refused_too(
    tmp_path: Path, family: int
) -> None:
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        pytest.skip("this machine has one processor")
    silent = {4: "10.77.1.77", 6: "fd00:77:1::77"}[family]
    with star(tmp_path) as built:
        built.buy(SECOND, host("behind B", family))
        try:
            os.sched_setaffinity(0, processors[:1])
            with built.socket("behind B", family) as source:
                source.sendto(bytes(UP_BYTES), (silent, 9))
            os.sched_setaffinity(0, processors[1:2])
            wait_until(lambda: silent in sh("ip neigh show dev m0"), "the packet waits for the MAC")
            sh(f"ip neigh replace {silent} lladdr {built.world.mac.hex(':')} dev m0")
        finally:
            os.sched_setaffinity(0, processors)
        wait_until(lambda: built.world.datapath.unsold_bytes() == once(family)[0], "refused", 10)
