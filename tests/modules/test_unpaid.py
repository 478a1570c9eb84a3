"""UNPAID_RATE: what nobody pays for passes slowly, uncharged, and takes nothing from those who pay.

Bounds are the burst plus the rate times the time that passed, so they hold however long a test takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from crafted import BITS, send
from kernel_lab import CLIENT, INTERNET, desired
from meter_lab import NEIGHBOUR, World, drop_datagrams, metered, received, true_wire, wait_until

from core_tests.hostile import udp
from ngp.modules.network.datapath import Datapath
from ngp.ports.network import DesiredNetwork, FreeRule

RATE, BURST = 1024, 20_000
SIZE = 1028
OTHER, OTHER_MAC = 8, bytes.fromhex("020000000008")
STRANGER_MAC = bytes.fromhex("020000000009")
FEW = {"stranger_rate": 1, "stranger_burst": 1, "neighbour_rate": 1, "neighbour_burst": 1}  # the daemon is asked once


def slowing(**changes: object) -> DesiredNetwork:
    return desired(**{"unpaid_bytes_s": RATE, "unpaid_burst_bytes": BURST, **FEW, **changes})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path, **FEW) as built:
        true_wire(built)
        drop_datagrams(built.lab.client)
        yield built


def upload(family: int) -> bytes:
    return udp(CLIENT[family], INTERNET[family], 9, bytes(1000 if family == 4 else 980), 4000)


def download(family: int) -> bytes:
    return udp(INTERNET[family], CLIENT[family], 4000, bytes(1000 if family == 4 else 980), 9)


def arrived(world: World, family: int) -> tuple[int, int]:
    """Return the bytes that arrived at the internet, and at the client."""
    return received(world.lab.internet, family)[1], received(world.lab.client, family)[1]


def decided(world: World) -> int:
    """Count the packets that were dropped above the rate, and the bytes that passed, as packets of one size."""
    found = world.datapath.counters()
    return found["unpaid_over_rate"] + found["unpaid_bytes"] // SIZE


def send_and_wait(world: World, packet: bytes, times: int, up: bool = True, held: int = 0, **how: object) -> None:
    expected = decided(world) + times - held
    send(world, [packet], up, times=times, **how)  # type: ignore[arg-type]
    wait_until(lambda: decided(world) >= expected, f"{expected} packets are decided about")
    assert decided(world) == expected


def bounds(began_s: float) -> int:
    """Return the most bytes that may have passed since a full bucket."""
    return int(BURST + RATE * (time.monotonic() - began_s + 0.1))


def test_nothing_passes_unless_there_is_a_rate(world: World) -> None:
    send(world, [upload(4)], times=5)
    send(world, [download(4)], False, times=5)
    wait_until(lambda: world.datapath.counters()["uncovered"] == 5, "downloads are refused")
    assert arrived(world, 4) == (0, 0) and decided(world) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_both_directions_share_one_rate_and_nothing_is_charged(world: World, family: int) -> None:
    contract = world.grant(f"{INTERNET[family]}/{BITS[family]}")
    world.limit(0)  # it has a contract and no money
    began = time.monotonic()
    world.datapath.apply(slowing())
    send_and_wait(world, upload(family), 10)
    send_and_wait(world, download(family), 30, up=False)
    up, down = arrived(world, family)
    assert up == 10 * SIZE and down > BURST - 11 * SIZE and up + down <= bounds(began)
    assert world.datapath.counters()["unpaid_bytes"] == up + down
    assert world.used(contract) == (0, 0) and world.account().spent_units == 0
    world.limit()  # money has come
    send(world, [upload(family)], times=20)
    wait_until(lambda: world.used(contract) == (20 * SIZE, 0), "all is charged again")
    assert world.datapath.counters()["unpaid_bytes"] == up + down


def test_first_packets_are_asked_about_and_others_pass_meanwhile(world: World) -> None:
    world.datapath.apply(slowing())
    before = world.datapath.counters()
    send_and_wait(world, upload(4), 12, held=8)
    after = world.datapath.counters()
    assert after["passed_to_queue"] - before["passed_to_queue"] == 8
    assert arrived(world, 4)[0] == 4 * SIZE
    time.sleep(1.1)  # the window in which packets are held; the same destination isn't asked about again at once
    send_and_wait(world, upload(4), 3)
    assert world.datapath.counters()["passed_to_queue"] == after["passed_to_queue"]


def test_all_that_never_paid_share_one_rate_and_one_that_paid_has_its_own(world: World) -> None:
    world.datapath.set_neighbours([world.neighbour(neighbour=OTHER, link_address=OTHER_MAC)])
    for number in (NEIGHBOUR, OTHER):
        world.grant(f"{INTERNET[4]}/32", neighbour=number, limit_bytes=0)
    began, asked = time.monotonic(), world.datapath.counters()["passed_to_queue"]
    world.datapath.apply(slowing())
    send_and_wait(world, upload(4), 12)
    send_and_wait(world, upload(4), 12, source=OTHER_MAC)
    assert BURST - SIZE < arrived(world, 4)[0] <= bounds(began)
    send(world, [upload(4)], times=40, source=STRANGER_MAC)
    wait_until(lambda: decided(world) + world.datapath.counters()["passed_to_queue"] == asked + 64, "a stranger's too")
    assert world.datapath.counters()["passed_to_queue"] - asked == 8 and arrived(world, 4)[0] <= bounds(began)
    world.datapath.set_neighbours([world.neighbour(neighbour=OTHER, link_address=OTHER_MAC, has_paid=True)])
    before, began = arrived(world, 4)[0], time.monotonic()
    send_and_wait(world, upload(4), 40, source=OTHER_MAC)
    assert BURST - SIZE < arrived(world, 4)[0] - before <= bounds(began)


def test_a_payer_is_neither_slowed_nor_helped_and_a_blocked_neighbour_gets_nothing(world: World) -> None:
    world.datapath.apply(slowing())
    contract = world.grant(f"{INTERNET[4]}/32")
    send(world, [upload(4)], times=100)
    wait_until(lambda: world.used(contract)[0] == 100 * SIZE, "the payer's packets")
    assert arrived(world, 4)[0] == 100 * SIZE and decided(world) == 0
    world.datapath.set_neighbours([world.neighbour(blocked=True, buys_from_us=False)])
    world.datapath.revoke([contract])
    send(world, [download(4)], False, times=5)
    wait_until(lambda: world.datapath.counters()["uncovered"] == 5, "downloads are refused")
    send(world, [upload(4)], times=30)
    time.sleep(0.3)
    assert arrived(world, 4) == (100 * SIZE, 0) and decided(world) == 0


def test_what_a_payment_services_lane_has_no_room_for_takes_no_other_way(world: World) -> None:
    services = (FreeRule(ip_network(INTERNET[4]), 17, 9),)
    world.datapath.apply(slowing(services=services, lane_bytes_s=1, lane_burst_bytes=3 * SIZE))
    send(world, [upload(4)], times=20)
    wait_until(lambda: world.datapath.counters()["lane_over_rate"] == 17, "the lane is full")
    assert arrived(world, 4)[0] == 3 * SIZE and decided(world) == 0


def test_the_rate_goes_on_when_the_daemon_is_killed_and_keeps_its_bucket(world: World) -> None:
    began = time.monotonic()
    world.datapath.apply(slowing())
    world.grant(f"{INTERNET[4]}/32", limit_bytes=0)
    send_and_wait(world, upload(4), 30)
    world.datapath.close()
    send(world, [upload(4)], times=30)
    again = world.datapath = Datapath(world.state, None)
    again.set_up(slowing())
    again.set_neighbours([world.neighbour()])
    send_and_wait(world, upload(4), 10)
    assert BURST - 2 * SIZE < arrived(world, 4)[0] <= bounds(began)
    assert again.counters()["unpaid_bytes"] == arrived(world, 4)[0]


def test_what_goes_on_to_another_neighbour_passes_in_no_case(tmp_path: Path) -> None:
    """We would have to buy it there."""
    middle = {"buys": True, "mesh_interfaces": ("m0", "up0"), "upstream_interfaces": ()}
    with metered(tmp_path, **middle, **FEW) as world:
        true_wire(world)
        world.datapath.apply(slowing(**middle))
        before = world.datapath.counters()["passed_to_queue"]
        send(world, [upload(4)], times=30)
        send(world, [download(4)], False, times=30)
        wait_until(lambda: world.datapath.counters()["passed_to_queue"] - before >= 8, "they are asked about")
        time.sleep(0.3)
        assert arrived(world, 4) == (0, 0) and decided(world) == 0
