"""Lanes: what passes uncharged so that a neighbour can pay, how much of it, and that nothing else passes.

The kernel's count of a lane's bytes must be what was delivered, and no more than the burst plus the rate times the time
that passed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from crafted import BITS, quoting, send, with_options
from kernel_lab import CLIENT, INTERNET, desired, passes, sh
from meter_lab import NEIGHBOUR, World, drop_datagrams, metered, received, true_wire, wait_until

from core_tests.hostile import ip_packet, udp
from ngp.core.kernel import KernelNeighbour
from ngp.modules.network.datapath import Datapath
from ngp.ports.network import DesiredNetwork, FreeRule

UDP, PORT = 17, 9
RATE, BURST = 1024, 20_000
OTHER, OTHER_MAC = 8, bytes.fromhex("020000000008")
STRANGER_MAC = bytes.fromhex("020000000009")
LATER = 20  # IPv4's fragment offset, behind 160 bytes


def with_services(**changes: object) -> DesiredNetwork:
    """A service at one port of the lab's far host, in both families."""
    services = tuple(FreeRule(ip_network(address), UDP, PORT) for address in INTERNET.values())
    values: dict[str, object] = {"services": services, "lane_bytes_s": RATE, "lane_burst_bytes": BURST}
    return desired(**{**values, **changes})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as built:
        built.datapath.apply(with_services())
        built.datapath.set_neighbours([built.neighbour(neighbour=OTHER, link_address=OTHER_MAC)])
        drop_datagrams(built.lab.client)
        true_wire(built)
        yield built


def question(family: int, from_port: int = 4000, size: int = 100, port: int = PORT) -> bytes:
    return udp(CLIENT[family], INTERNET[family], port, bytes(size), from_port)


def answer(family: int, to_port: int = 4000, size: int = 100, port: int = PORT) -> bytes:
    return udp(INTERNET[family], CLIENT[family], to_port, bytes(size), port)


def arrived(world: World, family: int) -> tuple[int, int]:
    """Return the numbers of packets that arrived at the internet, and at the client."""
    return received(world.lab.internet, family)[0], received(world.lab.client, family)[0]


def ask(world: World, times: int) -> None:
    """Send the same question so many times from the client, and wait until the kernel has decided about all of them."""

    def decided() -> int:
        return world.datapath.counters()["lane_over_rate"] + arrived(world, 4)[0]

    expected = decided() + times
    send(world, [question(4)], times=times)
    wait_until(lambda: decided() == expected, "all are decided about")


@pytest.mark.parametrize("family", [4, 6])
def test_questions_to_a_service_pass_with_their_answers_and_nothing_else_does(world: World, family: int) -> None:
    far = INTERNET[family]
    contract = world.grant(f"{far}/{BITS[family]}", limit_bytes=0)
    send(world, [answer(family)], upload=False)
    wait_until(lambda: world.refused() == 1, "an answer that nobody asked for")
    send(world, [question(family), question(family, 4001)])
    wait_until(lambda: arrived(world, family)[0] == 2, "the questions pass")
    send(world, [answer(family), answer(family, 4001)], upload=False)
    wait_until(lambda: arrived(world, family) == (2, 2), "the answers pass")
    size = len(question(family))
    assert world.used(contract) == (0, 0) and world.datapath.counters()["lane_bytes"] == 4 * size
    assert world.datapath.lane_bytes(NEIGHBOUR) == 4 * size
    others = [
        [question(family, port=10), ip_packet(CLIENT[family], far, 253, bytes(size))],
        [answer(family, 4002), answer(family, port=10), answer(family, 4000, port=4000)],
    ]
    refused = world.refused()
    for packets, upload in zip(others, (True, False), strict=True):
        send(world, packets, upload)
        refused += len(packets)
        wait_until(lambda refused=refused: world.refused() == refused, "all else is refused")
    send(world, [question(family, 4003)], source=OTHER_MAC)
    wait_until(lambda: world.datapath.lane_bytes(OTHER) == size, "asked by another, under the client's address")
    send(world, [answer(family, 4003)], upload=False)
    wait_until(lambda: world.refused() == refused + 1, "answered to nobody")
    assert arrived(world, family) == (3, 2) and world.datapath.counters()["lane_bytes"] == 5 * size


@pytest.mark.parametrize("family", [4, 6])
def test_errors_about_a_conversation_pass_and_others_do_not(world: World, family: int) -> None:
    client, far, router = CLIENT[family], INTERNET[family], {4: "10.77.2.9", 6: "fd00:77:2::9"}[family]
    send(world, [question(family)])
    wait_until(lambda: arrived(world, family)[0] == 1, "the question passes")
    others = [question(family, 4001), question(family, port=7), question(family, size=1300)]
    before = world.datapath.counters()["uncovered"]
    send(world, [quoting(family, router, client, other) for other in others], upload=False)
    wait_until(lambda: world.datapath.counters()["uncovered"] == before + 3, "other errors are refused")
    about_question, about_answer = (
        quoting(family, router, client, question(family)),
        quoting(family, client, far, answer(family)),
    )
    before = world.datapath.counters()["lane_bytes"]
    send(world, [about_question], upload=False)
    send(world, [quoting(family, client, far, answer(family, size=1300)), about_answer])  # the first one is too long
    wait_until(
        lambda: world.datapath.counters()["lane_bytes"] == before + len(about_question) + len(about_answer), "both pass"
    )


def test_packets_that_could_hide_a_port_or_be_forwarded_on_stay_gated(world: World) -> None:
    """Later fragments, options and extension headers, above all routing headers."""
    contracts = [world.grant(f"{INTERNET[family]}/{BITS[family]}", limit_bytes=0) for family in (4, 6)]
    odd4 = [
        ip_packet(CLIENT[4], INTERNET[4], UDP, question(4)[20:], flags=LATER),
        with_options(question(4), bytes([7, 39, 4]) + bytes(37)),  # record route; a source route is dropped before
    ]
    inner = question(6)[40:]
    odd6 = [
        ip_packet(CLIENT[6], INTERNET[6], 43, bytes([UDP, 2, 4, 0]) + bytes(20) + inner),
        ip_packet(CLIENT[6], INTERNET[6], 44, bytes([UDP, 0, 0, 1, 0, 0, 0, 7]) + inner),
    ]
    for packets in (odd4, odd6):
        sent = world.refused() + len(packets)
        send(world, packets)
        wait_until(lambda n=sent: world.refused() == n, "refused like all else")
    assert all(world.reading(contract).exhausted for contract in contracts)
    assert world.datapath.counters()["lane_bytes"] == 0


def test_a_neighbours_flood_meets_its_rate_and_leaves_the_others_alone(world: World) -> None:
    """A thousand bursts, from many ports: if lanes shared their memory, others' questions would be forgotten."""
    size, contract = len(question(4)), world.grant("10.77.2.0/24")
    send(world, [question(4, 77)], source=OTHER_MAC)
    wait_until(lambda: world.datapath.lane_bytes(OTHER) == size, "the other one asks")
    began = time.monotonic()
    send(world, [question(4, port) for port in range(1000, 3000)], times=10)
    send(world, [question(4, port=10)])
    wait_until(lambda: world.used(contract)[0] == size, "paid traffic passes, and all before it was decided")
    carried = world.datapath.lane_bytes(NEIGHBOUR)
    most = BURST + RATE * (time.monotonic() - began)
    assert BURST - size < carried <= most
    wait_until(lambda: received(world.lab.internet, 4)[1] == carried + 2 * size, "delivered is what was counted")
    counters = world.datapath.counters()
    assert counters["lane_over_rate"] == 2000 * 10 - carried // size and counters["passed_to_queue"] == 0
    sh(f"ip neigh replace {CLIENT[4]} lladdr {OTHER_MAC.hex(':')} dev m0")
    send(world, [answer(4, 77)], upload=False)
    wait_until(lambda: world.datapath.lane_bytes(OTHER) == 2 * size, "the other one still gets its answer")


def test_answers_count_on_the_lane_of_their_receiver(world: World) -> None:
    size = len(answer(4, size=1000))
    send(world, [question(4, size=1000)])
    wait_until(lambda: arrived(world, 4)[0] == 1, "asked")
    began = time.monotonic()
    send(world, [answer(4, size=1000)], upload=False, times=200)
    wait_until(
        lambda: world.datapath.counters()["lane_over_rate"] + arrived(world, 4)[1] == 200, "all are decided about"
    )
    carried = world.datapath.lane_bytes(NEIGHBOUR)
    assert BURST - size < carried <= BURST + RATE * (time.monotonic() - began)
    assert carried == size * sum(arrived(world, 4)) and world.datapath.lane_bytes(OTHER) == 0


def test_strangers_share_a_lane_and_newcomers_a_few(world: World) -> None:
    """Keys and MACs cost nothing: all newcomers together get the room of 16 lanes. Who has paid has a whole lane."""
    size = len(question(4, size=1000))
    began = time.monotonic()
    for number in range(4):
        send(world, [question(4, size=1000)], times=20, source=STRANGER_MAC[:5] + bytes([0x10 + number]))
    wait_until(lambda: world.datapath.counters()["lane_over_rate"] + arrived(world, 4)[0] == 80, "strangers")
    carried = size * arrived(world, 4)[0]
    assert BURST - size < carried <= BURST + RATE * (time.monotonic() - began)
    assert world.datapath.counters()["passed_to_queue"] == 0, "packets above the rate aren't negotiated about"
    sh(f"ip neigh replace {CLIENT[4]} lladdr {STRANGER_MAC.hex(':')} dev m0")
    before = world.datapath.counters()["uncovered"]
    send(world, [answer(4)], upload=False)
    wait_until(lambda: world.datapath.counters()["uncovered"] > before, "another stranger asked")
    macs = [bytes([2, 1, 0, 0, 0, number]) for number in range(30)]
    known = [world.neighbour(neighbour=100 + number, link_address=mac) for number, mac in enumerate(macs)]
    world.datapath.set_neighbours(known)
    for mac in macs:
        send(world, [question(4, size=1000)], times=20, source=mac)
    wait_until(lambda: world.datapath.counters()["lane_over_rate"] + arrived(world, 4)[0] == 680, "newcomers")
    carried = size * arrived(world, 4)[0]
    assert 15 * (BURST - size) < carried <= 16 * (BURST + RATE * (time.monotonic() - began))
    world.datapath.set_neighbours([replace(known[-1], has_paid=True)])
    before = world.datapath.lane_bytes(129)
    wait_until(lambda: send(world, [question(4)], source=macs[-1]) or world.datapath.lane_bytes(129) > before, "paid")


def test_a_blocked_neighbour_has_no_lane_and_a_new_hello_brings_no_new_bucket(world: World) -> None:
    world.grant(f"{INTERNET[4]}/32", limit_bytes=0)
    world.datapath.set_neighbours([world.neighbour(blocked=True)])
    send(world, [question(4)])
    wait_until(lambda: world.refused() == 1, "gated like all else")
    world.datapath.set_neighbours([world.neighbour()])
    began = time.monotonic()
    ask(world, 300)
    world.datapath.set_neighbours([world.neighbour(sells_to_us=True), world.neighbour()])
    ask(world, 300)
    most = BURST + RATE * (time.monotonic() - began)
    assert len(question(4)) * arrived(world, 4)[0] <= most, "its bucket stayed as empty as it was"


def test_lanes_outlive_the_daemon_and_follow_net_conf(world: World, tmp_path: Path) -> None:
    began = time.monotonic()
    ask(world, 300)
    carried = world.datapath.lane_bytes(NEIGHBOUR)
    world.datapath.close()  # as after a kill
    before = arrived(world, 4)[0]
    send(world, [question(4)], source=OTHER_MAC)
    wait_until(lambda: arrived(world, 4)[0] == before + 1, "without a daemon")
    sh("iptables -t security -F FORWARD")  # another program removes the gate as well
    world.datapath = Datapath(tmp_path)
    world.datapath.set_up(with_services())
    anew = 50  # neighbours without contracts get new numbers
    world.datapath.set_neighbours([world.neighbour(neighbour=anew)])
    assert (world.datapath.lane_bytes(anew), world.datapath.lane_bytes(NEIGHBOUR)) == (carried, 0)
    ask(world, 300)
    most = BURST + RATE * (time.monotonic() - began)
    assert world.datapath.lane_bytes(anew) <= most, "its bucket is as empty as it was"
    world.datapath.apply(with_services(lane_bytes_s=2**20, lane_burst_bytes=2**20))
    before = arrived(world, 4)[0]

    def carried_more() -> bool:
        ask(world, 100)  # again and again, as the bucket was empty and fills with time
        return arrived(world, 4)[0] > before + 900  # at the former rate this would take almost two minutes

    wait_until(carried_more, "another rate")
    world.datapath.apply(with_services(services=()))
    world.grant(f"{INTERNET[4]}/32", limit_bytes=0, neighbour=anew)
    before = world.refused()
    send(world, [question(4)])
    wait_until(lambda: world.refused() == before + 1, "no service any more")


def test_in_the_middle_answers_of_a_sellers_service_reach_only_the_neighbour_that_asked(tmp_path: Path) -> None:
    """The service is behind our own gateway, which gives us a lane as we give one to our client."""
    with metered(tmp_path, buys=True, mesh_interfaces=("m0", "up0"), upstream_interfaces=()) as world:
        middle = with_services(buys=True, mesh_interfaces=("m0", "up0"), upstream_interfaces=())
        world.datapath.apply(middle)
        mac = bytes.fromhex(sh("cat /sys/class/net/i0/address", world.lab.internet).strip().replace(":", ""))
        seller = KernelNeighbour(OTHER, "up0", mac, (), False, True)
        world.datapath.set_neighbours([seller])
        drop_datagrams(world.lab.client)
        true_wire(world)
        send(world, [answer(4)], upload=False)
        wait_until(lambda: world.datapath.counters()["uncovered"] == 1, "nobody asked, and nobody pays for it")
        send(world, [question(4)])
        wait_until(lambda: arrived(world, 4)[0] == 1, "asked")
        send(world, [answer(4), answer(4, port=10)], upload=False)
        wait_until(lambda: arrived(world, 4)[1] == 1, "answered")
        wait_until(lambda: world.datapath.counters()["passed_to_queue"] == 1, "from another port: gated")
        world.datapath.set_neighbours([replace(seller, sells_to_us=False)])
        send(world, [answer(4)], upload=False)
        wait_until(lambda: world.datapath.counters()["passed_to_queue"] == 2, "it sells us nothing: gated")
        assert arrived(world, 4) == (1, 1)


def test_a_client_that_only_buys_elsewhere_gates_nothing(tmp_path: Path) -> None:
    with metered(tmp_path, buys=True, sells=False) as world:
        world.datapath.apply(with_services(buys=True, sells=False, lane_burst_bytes=1))
        assert passes(world.lab.client, INTERNET[4])
        true_wire(world)
        send(world, [question(4)], times=5)
        wait_until(lambda: arrived(world, 4)[0] == 5, "a node that sells nothing has no gate, and no lanes")
