"""Payment services on the gateway itself: a neighbour's traffic with them is limited to its lane's rate.

The kernel's count must be what the service's socket receives, and no more than the burst plus the rate times the time
that passed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
from crafted import send, with_options
from kernel_lab import CLIENT, GATEWAY_TO_CLIENT, GATEWAY_TO_INTERNET, desired, sh
from meter_lab import NEIGHBOUR, World, drop_datagrams, metered, wait_until

from core_tests.hostile import ip_packet, udp
from ngp.modules.network.datapath import Datapath
from ngp.ports.network import DesiredNetwork, FreeRule

UDP, PORT, OTHER_PORT = 17, 9, 10
RATE, BURST = 1024, 20_000
OTHER, OTHER_MAC = 8, bytes.fromhex("020000000008")
STRANGER_MAC = bytes.fromhex("020000000009")
SIZE = 100
_SO_RCVBUFFORCE = 33


def with_own_service(**changes: object) -> DesiredNetwork:
    """A service at one port of the gateway, named by its address in one family."""
    values: dict[str, object] = {
        "own_services": (FreeRule(ip_network(GATEWAY_TO_CLIENT[4]), UDP, PORT),),
        "lane_bytes_s": RATE,
        "lane_burst_bytes": BURST,
    }
    return desired(**{**values, **changes})


@dataclass(slots=True)
class Service:
    """A program on the gateway that listens at all of its addresses."""

    listening: socket.socket
    packets: int = 0

    def heard(self) -> int:
        """Count the packets that have come so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.listening.recv(1 << 16)
                self.packets += 1
        return self.packets


@contextlib.contextmanager
def service(port: int) -> Iterator[Service]:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as listening:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        listening.bind(("::", port))
        listening.setblocking(False)
        yield Service(listening)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as built:
        built.datapath.apply(with_own_service())
        built.datapath.set_neighbours([built.neighbour(neighbour=OTHER, link_address=OTHER_MAC)])
        drop_datagrams(built.lab.client)  # the rule also counts what the client gets
        yield built


@pytest.fixture
def node(world: World) -> Iterator[Service]:
    with service(PORT) as listening:
        yield listening


def to_node(family: int, from_port: int = 4000, port: int = PORT, size: int = SIZE, at: str = "") -> bytes:
    return udp(CLIENT[family], at or GATEWAY_TO_CLIENT[family], port, bytes(size), from_port)


def decided(world: World, node: Service) -> int:
    return node.heard() + world.datapath.counters()["lane_over_rate"]


def flood(world: World, node: Service, packet: bytes, times: int) -> int:
    """Send a packet so many times, and wait until all are decided about; returns how many reached the service."""
    before, heard = decided(world, node), node.heard()
    send(world, [packet], times=times)
    wait_until(lambda: decided(world, node) == before + times, "all are decided about")
    return node.heard() - heard


@pytest.mark.parametrize("family", [4, 6])
def test_a_flood_at_a_port_of_the_gateway_is_limited_to_its_neighbours_rate(
    world: World, node: Service, family: int
) -> None:
    """Other traffic of the same neighbour isn't limited, nor is that of other neighbours."""
    packet = to_node(family)
    began = time.monotonic()
    passed = flood(world, node, packet, 2000)
    assert BURST - len(packet) < passed * len(packet) <= BURST + RATE * (time.monotonic() - began)
    assert world.datapath.lane_bytes(NEIGHBOUR) == world.datapath.counters()["lane_bytes"] == passed * len(packet)
    elsewhere = [to_node(family, at=GATEWAY_TO_INTERNET[family]), to_node(10 - family)]
    send(world, elsewhere, times=500)
    wait_until(lambda: decided(world, node) == 3000, "at another address it is the same port")
    assert len(packet) * node.heard() <= BURST + RATE * (time.monotonic() - began)
    with service(OTHER_PORT) as none_of_ours:
        send(world, [to_node(family, port=OTHER_PORT)], times=500)
        wait_until(lambda: none_of_ours.heard() == 500, "a port that is no service is left alone")
    for source in (OTHER_MAC, STRANGER_MAC):
        before = node.heard()
        send(world, [packet], times=20, source=source)
        wait_until(lambda: node.heard() == before + 20, "another one has its own rate")  # noqa: B023
    assert world.datapath.lane_bytes(OTHER) == 20 * len(packet)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("buys", [False, True])
def test_what_is_answered_takes_room_too_and_what_else_the_gateway_sends_does_not(
    world: World, node: Service, family: int, buys: bool
) -> None:
    world.datapath.apply(with_own_service(buys=buys))
    size, began = 1000 + (28 if family == 4 else 48), time.monotonic()
    answer(node, family, 5)
    wait_until(lambda: got_by_client(world, family) == 5, "while there is room, answers pass")
    answer(node, family, 95)  # about five times as many bytes as the burst allows
    wait_until(lambda: world.datapath.counters()["lane_over_rate"] + got_by_client(world, family) == 100, "all decided")
    carried = size * got_by_client(world, family)
    assert BURST - size < carried <= BURST + RATE * (time.monotonic() - began)
    assert world.datapath.lane_bytes(NEIGHBOUR) == carried
    before = got_by_client(world, family)
    with service(OTHER_PORT) as none_of_ours:
        answer(none_of_ours, family, 100)
    wait_until(lambda: got_by_client(world, family) == before + 100, "from a port that is no service")
    passed = flood(world, node, to_node(family), 500)
    assert carried + passed * len(to_node(family)) <= BURST + RATE * (time.monotonic() - began), "both ways"


def answer(node: Service, family: int, times: int) -> None:
    """Have a program on the gateway send to the client."""
    for _ in range(times):
        node.listening.sendto(bytes(1000), (f"::ffff:{CLIENT[4]}" if family == 4 else CLIENT[6], 4000))


def got_by_client(world: World, family: int) -> int:
    command = "iptables" if family == 4 else "ip6tables"
    return int(sh(f"{command} -nvxL INPUT", world.lab.client).splitlines()[2].split()[0])


def test_options_extension_headers_and_fragments_are_no_way_round_the_rate(world: World, node: Service) -> None:
    """All of these reach a service while the bucket has room, and none does when it is empty."""
    world.datapath.apply(with_own_service(lane_burst_bytes=150_000))
    inner, options = to_node(6)[40:], bytes([0, 0, 1, 4, 0, 0, 0, 0])
    whole = udp(CLIENT[6], GATEWAY_TO_CLIENT[6], PORT, bytes(1000))[40:]
    many = b"".join(bytes([60 if n < 7 else UDP]) + options[1:] for n in range(8))
    odd = [
        with_options(to_node(4), bytes([1] * 40)),
        ip_packet(CLIENT[6], GATEWAY_TO_CLIENT[6], 60, bytes([UDP]) + options[1:] + inner),
        ip_packet(CLIENT[6], GATEWAY_TO_CLIENT[6], 60, many + inner),
    ]
    for packet in odd:
        assert flood(world, node, packet, 1) == 1
    assert world.datapath.lane_bytes(NEIGHBOUR) == sum(map(len, odd))
    pieces = fragments(whole)
    send(world, pieces)
    wait_until(lambda: node.heard() == 4, "put together, since there was room for the longest packet")
    assert world.datapath.lane_bytes(NEIGHBOUR) == sum(map(len, odd)) + len(pieces[0])
    over = world.datapath.counters()["lane_over_rate"]
    send(world, pieces)
    wait_until(lambda: world.datapath.counters()["lane_over_rate"] == over + 1, "the second time there is none")
    began = time.monotonic()
    flood(world, node, to_node(4), 2000)
    carried = sum(flood(world, node, packet, 1000) * len(packet) for packet in odd)
    assert carried <= max(map(len, odd)) + RATE * (time.monotonic() - began), "the bucket was empty"


def test_a_first_fragment_behind_more_headers_than_are_followed_needs_the_same_room(
    world: World, node: Service
) -> None:
    world.datapath.apply(with_own_service(lane_burst_bytes=100_000))
    first, later = fragments(udp(CLIENT[6], GATEWAY_TO_CLIENT[6], PORT, bytes(1000))[40:])
    padding = bytes([0, 1, 4, 0, 0, 0, 0])
    hidden = b"".join(bytes([60 if n < 5 else 44]) + padding for n in range(6)) + first[40:]
    pieces = [ip_packet(CLIENT[6], GATEWAY_TO_CLIENT[6], 60, hidden), later]
    send(world, pieces)
    wait_until(lambda: node.heard() == 1, "put together, since there was room for the longest packet")
    send(world, pieces)
    wait_until(lambda: world.datapath.counters()["lane_over_rate"] == 1, "the second time there is none")


def fragments(payload: bytes) -> list[bytes]:
    """Cut a datagram into two of IPv6's fragments."""
    cut = len(payload) // 16 * 8
    return [
        ip_packet(CLIENT[6], GATEWAY_TO_CLIENT[6], 44, bytes([UDP, 0]) + struct.pack("!HI", offset_more, 7) + part)
        for offset_more, part in ((1, payload[:cut]), (cut, payload[cut:]))
    ]


def test_a_blocked_neighbour_still_reaches_the_node_at_the_rate(world: World, node: Service) -> None:
    """If a peer is locked out, its channel ends on the chain, with coins of the node in it."""
    world.datapath.set_neighbours([world.neighbour(blocked=True)])
    began, size = time.monotonic(), len(to_node(4))
    passed = flood(world, node, to_node(4), 1000)
    assert BURST - size < passed * size <= BURST + RATE * (time.monotonic() - began)


def test_the_rate_outlives_the_daemon_comes_back_after_a_flush_and_goes_with_a_stop(
    world: World, node: Service, tmp_path: Path
) -> None:
    began, size = time.monotonic(), len(to_node(4))
    sh("nft flush ruleset; iptables -A INPUT -i m0 -p udp -j ACCEPT")
    assert world.datapath.apply(with_own_service()), "it was removed, and is back"
    assert "NGP_OWN" in sh("iptables -t security -S INPUT")
    assert flood(world, node, to_node(4), 1000) * size <= BURST + RATE * (time.monotonic() - began)
    world.datapath.close()  # as after a kill
    before = node.heard()
    send(world, [to_node(4)], times=1000)
    send(world, [to_node(4)], source=OTHER_MAC)
    wait_until(lambda: node.heard() > before, "the other one's")
    world.datapath = Datapath(tmp_path)
    world.datapath.set_up(with_own_service())
    world.datapath.set_neighbours([world.neighbour()])
    flood(world, node, to_node(4), 1000)
    assert (node.heard() - 1) * size <= BURST + RATE * (time.monotonic() - began), "as empty as it was"
    world.datapath.apply(with_own_service(own_services=()))
    before = node.heard()
    send(world, [to_node(4)], times=1000)
    wait_until(lambda: node.heard() == before + 1000, "no service any more")
    world.datapath.apply(with_own_service())
    world.datapath.clean_up(leave_closed=True)
    for command in ("iptables", "ip6tables"):
        assert sh(f"{command} -t security -S INPUT") == "-P INPUT ACCEPT\n"
    before = node.heard()
    send(world, [to_node(4)], times=1000)
    wait_until(lambda: node.heard() == before + 1000, "after a stop, as if ngp weren't there")
    assert sh("iptables -S INPUT").splitlines()[1:] == ["-A INPUT -i m0 -p udp -j ACCEPT"]


def test_a_mesh_interface_is_gated_though_there_are_more_services_than_one_host_has_room_for(
    world: World, node: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """An address of a service may become ours while the daemon runs.

    Then this service takes room together with the services at our other addresses.
    """
    ours = [ip_network(GATEWAY_TO_CLIENT[version]) for version in (4, 6)]
    ten = tuple(FreeRule(ours[number % 2], UDP, 1 + number) for number in range(10))
    sh("ip link add mesh1 type veth peer name far1; ip link set mesh1 up")
    try:
        wanted = with_own_service(own_services=ten, mesh_interfaces=("m0", "mesh1"))
        world.datapath.apply(wanted)
        world.datapath.apply(wanted)
        assert "-i mesh1 -j NGP_GATE" in sh("iptables -t security -S FORWARD")
    finally:
        world.datapath.apply(with_own_service())
        sh("ip link del mesh1")
    (told,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "left out" in told and "payment service" in told
