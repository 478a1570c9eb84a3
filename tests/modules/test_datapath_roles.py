"""The meter as a client, in the middle of a mesh, and on interfaces without link addresses."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from crafted import send
from kernel_lab import CLIENT, INTERNET, desired, dropped, passes, sh
from meter_lab import NEIGHBOUR, World, metered, received, wait_until

from core_tests.hostile import udp
from ngp.core.kernel import KernelNeighbour
from ngp.core.messages import Role
from ngp.modules.network import neighbours
from ngp.modules.network.datapath import Datapath
from ngp.modules.network.meter import read_interfaces

BEHIND = {4: "10.77.5.5", 6: "fd00:77:5::5"}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
PING = {4: 84, 6: 104}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A gateway that buys: the lab's client sells to it, and routes to addresses behind it."""
    with metered(tmp_path, buys=True, sells=False) as built:
        for family in (4, 6):
            length = {4: 32, 6: 128}[family]
            sh(f"ip addr add {BEHIND[family]}/{length} dev lo", built.lab.client)
            sh(f"ip route add {BEHIND[family]}/{length} via {CLIENT[family]}")
        own = tuple(ip_address(CLIENT[family]) for family in (4, 6))
        built.datapath.set_neighbours([built.neighbour(sells_to_us=True, buys_from_us=False, local_addresses=own)])
        yield built


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_counts_what_it_bought_and_nothing_else(world: World, family: int) -> None:
    wait_until(lambda: _ping(CLIENT[family]), "the next hop is known")
    contract = world.grant(EVERYTHING[family], role=Role.CLIENT)
    assert _ping(BEHIND[family])
    each = PING[family]
    wait_until(lambda: world.used(contract) == (each, each), "one ping both ways")
    assert _ping(CLIENT[family]), "the neighbour's own address"
    with socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.sendto(b"hello", (BEHIND[family], 10325))
    if family == 6:
        local = sh("cat /proc/net/if_inet6 | awk '$6 == \"c0\" && $1 ~ /^fe80/ {print $1}'", world.lab.client).strip()
        groups = ":".join(local[at : at + 4] for at in range(0, 32, 4))
        assert _ping(f"{groups}%m0")
    # The datagram to port 10325 counts, although that is the port of ngp's messages: it goes to an address that isn't
    # the neighbour's own, so the neighbour may forward and bill it. The port is closed, so an ICMP error comes back.
    to, back = world.used(contract)
    assert to == each + 5 + {4: 28, 6: 48}[family]
    assert back in (each, each + 20 + 8 + 33, each + 40 + 8 + 53)


def test_every_purchase_is_counted_from_its_first_packet_whatever_came_before(world: World) -> None:
    """While we have no purchases, the kernel doesn't look for any.

    So user space must tell it when there is a first one, also after the last one was revoked, and after a restart.
    """
    wait_until(lambda: _ping(CLIENT[4]), "the next hop is known")
    came_back = []
    for _ in range(2):
        contract = world.grant(EVERYTHING[4], role=Role.CLIENT)
        assert _ping(BEHIND[4])
        came_back.append(world.used(contract)[1])
        world.datapath.revoke([contract])
        assert _ping(BEHIND[4]), "uncounted"
    for _ in range(2):
        contract = world.grant(EVERYTHING[4], role=Role.CLIENT)
        world.datapath.close()
        world.datapath.set_up(desired(buys=True, sells=False))
        world.datapath.set_neighbours([world.neighbour(sells_to_us=True, buys_from_us=False)])
        assert _ping(BEHIND[4])
        came_back.append(world.used(contract)[1])
        world.datapath.revoke([contract])
    assert came_back == [PING[4]] * 4


@pytest.mark.parametrize("changes", [{"limit_bytes": 0}, {"expires_in_s": -1}, {"blocked": True}])
def test_a_client_lets_pass_what_it_does_not_count(world: World, changes: dict[str, int]) -> None:
    contract = world.grant(EVERYTHING[4], role=Role.CLIENT, **changes)
    assert _ping(BEHIND[4])
    assert world.used(contract) == (0, 0)
    assert world.reading(contract).exhausted == ("limit_bytes" in changes), "met as a limit, and no more"
    counters = world.datapath.counters()
    assert not any(counters[name] for name in counters if name.startswith("refused")), "refused by nobody here"


@pytest.mark.parametrize("family", [4, 6])
def test_a_household_behind_the_client_is_metered(world: World, family: int) -> None:
    wait_until(lambda: not dropped(world.lab.internet, CLIENT[family]), "next hops are known")
    contract = world.grant(EVERYTHING[family], role=Role.CLIENT)
    each, sent = PING[family], count(1)
    # On a busy machine Linux may give up finding the LAN's host before it answers, and drop the ping.
    wait_until(lambda: bool(next(sent)) and passes(world.lab.internet, BEHIND[family]), "a ping is answered")
    pings = next(sent) - 1
    wait_until(lambda: min(world.used(contract)) >= each, "the LAN's pings are on our bill")
    assert all(used in range(each, pings * each + 1, each) for used in world.used(contract))


def test_low_water_is_told_to_a_client_as_well(world: World) -> None:
    contract = world.grant(EVERYTHING[4], role=Role.CLIENT, low_water_bytes=100)
    assert _ping(BEHIND[4])
    assert world.used(contract) == (84, 84)
    assert world.datapath.counters()["hints_lost"] == 0


def test_own_addresses_can_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_OWN_EVERY_S", 0.0)
    contract = world.grant(f"{CLIENT[4]}/32", role=Role.CLIENT)
    assert _ping(CLIENT[4]) and world.used(contract) == (0, 0)
    world.datapath.set_neighbours([world.neighbour(sells_to_us=True, local_addresses=())])
    assert _ping(CLIENT[4]) and world.used(contract) == (84, 84), "now it is a destination like any other"


def test_own_addresses_hold_over_a_restart_until_the_neighbour_says_them_again(world: World) -> None:
    contract = world.grant(EVERYTHING[4], role=Role.CLIENT)
    world.datapath.close()
    world.datapath = Datapath(world.state, None)
    world.datapath.set_up(desired(buys=True, sells=False))
    world.datapath.set_neighbours([world.neighbour(sells_to_us=True, buys_from_us=False, local_addresses=None)])
    assert _ping(CLIENT[4]) and world.used(contract) == (0, 0)
    world.datapath.set_neighbours([world.neighbour(sells_to_us=True, buys_from_us=False, local_addresses=())])
    assert _ping(CLIENT[4]) and world.used(contract) == (84, 84)


def test_addresses_that_change_all_the_time_wait_and_touch_no_other_contract(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour can announce other addresses hundreds of times a second, and may have thousands of contracts."""
    world.limit()
    for n in range(100):
        world.grant(f"10.1.{n}.1/32")
    hidden = world.grant(f"{CLIENT[4]}/32", role=Role.CLIENT)
    running: Any = world.datapath._running
    places: list[int] = []
    place = running.contracts._place
    monkeypatch.setattr(running.contracts, "_place", lambda slot: places.append(slot) or place(slot))
    monkeypatch.setattr(neighbours, "_OWN_EVERY_S", 1e9)
    for n in range(100):
        others = (ip_address(f"10.2.{n}.1"),)
        world.datapath.set_neighbours([world.neighbour(sells_to_us=True, local_addresses=others)])
    world.datapath._expire()
    assert not places and running.neighbours.is_own(NEIGHBOUR, ip_address(CLIENT[4]).packed), "too early"
    monkeypatch.setattr(neighbours, "_OWN_EVERY_S", 0.0)
    world.datapath._expire()
    assert len(set(places)) == 1 and running.neighbours.is_own(NEIGHBOUR, ip_address("10.2.99.1").packed)
    assert not running.neighbours.is_own(NEIGHBOUR, ip_address("10.2.98.1").packed)
    assert _ping(CLIENT[4]) and world.used(hidden) == (84, 84)


def _ping(address: str) -> bool:
    try:
        sh(f"ping -n -q -c 1 -W 30 {address}")
    except AssertionError:
        return False
    return True


@pytest.fixture
def middle(tmp_path: Path) -> Iterator[World]:
    """The gateway buys from the internet's router (on a mesh interface here) and sells to the client."""
    with metered(tmp_path, buys=True, sells=True, mesh_interfaces=("m0", "up0"), upstream_interfaces=()) as built:
        mac = bytes.fromhex(sh("cat /sys/class/net/i0/address", built.lab.internet).strip().replace(":", ""))
        own = (ip_address("10.77.2.1"),)
        built.datapath.set_neighbours([KernelNeighbour(8, "up0", mac, own, False, True)])
        yield built


def test_return_traffic_in_the_middle_is_the_downstream_clients(middle: World) -> None:
    sold = middle.grant(f"{INTERNET[4]}/32")
    bought = middle.grant("0.0.0.0/0", neighbour=8, role=Role.CLIENT)
    assert passes(middle.lab.client, INTERNET[4])
    assert middle.used(sold) == (84, 84)
    assert middle.used(bought) == (84, 84)
    middle.datapath.revoke([sold])
    assert dropped(middle.lab.internet, CLIENT[4]), "what comes from a seller is not free for who has no contract"
    assert middle.datapath.counters()["uncovered"] == 1


def test_a_seller_cannot_send_through_our_other_purchases(middle: World) -> None:
    """A packet from one seller passes the gate as a return. It must not leave as our purchase from another seller."""
    middle.grant("0.0.0.0/0", neighbour=8, role=Role.CLIENT)
    middle.datapath.set_neighbours([middle.neighbour(buys_from_us=False, sells_to_us=True)])
    other = middle.grant("10.77.1.0/24", role=Role.CLIENT)
    assert dropped(middle.lab.internet, CLIENT[4])
    assert middle.used(other) == (0, 0)


def test_packets_without_a_contract_are_asked_about_and_not_let_through(middle: World) -> None:
    sold = middle.grant("10.77.2.0/24")
    send(middle, [udp(INTERNET[4], CLIENT[4], 9, bytes(56))], upload=False)
    wait_until(lambda: middle.datapath.counters()["passed_to_queue"] == 1, "neither sold to its sender nor bought")
    assert middle.used(sold) == (0, 0)
    assert passes(middle.lab.client, INTERNET[4]), "what the client began it pays for, both ways"
    assert middle.used(sold) == (84, 84)
    assert middle.datapath.counters()["passed_to_queue"] == 1


def test_returns_that_wait_for_their_next_hop_do_not_pass_uncharged_either(middle: World) -> None:
    """The kernel keeps some 90 packets for each address of a neighbour whose MAC it must find out first."""
    middle.grant("0.0.0.0/0", neighbour=8, role=Role.CLIENT)
    client = middle.lab.client
    addresses = [f"10.77.1.{100 + last}" for last in range(8)]
    for address in addresses:
        sh(f"ip addr add {address}/24 dev c0", client)
    sh("iptables -t raw -A PREROUTING -p udp --dport 9", client)
    sh("sysctl -qw net.ipv4.conf.all.arp_ignore=8", client)
    packets = [udp(INTERNET[4], address, 9, bytes(100)) for address in addresses]
    send(middle, packets, upload=False, times=20)
    sh("sysctl -qw net.ipv4.conf.all.arp_ignore=0", client)
    wait_until(lambda: sh("ip neigh show dev m0").count("REACHABLE") >= len(addresses), "all are resolved", 10)
    wait_until(lambda: middle.datapath.counters()["uncovered"] >= 20 * len(addresses), "all came to the hook")
    assert received(client, 4) == (0, 0)


TUNSETIFF, IFF_TUN_NO_PI = 0x400454CA, 0x1001


@pytest.mark.parametrize("family", [4, 6])
def test_layer_3_interfaces_are_told_apart_by_interface(tmp_path: Path, family: int) -> None:
    with metered(tmp_path) as world:
        tun = os.open("/dev/net/tun", os.O_RDWR)
        try:
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun9", IFF_TUN_NO_PI))
            sh("sysctl -qw net.ipv6.conf.tun9.addr_gen_mode=1 && ip link set tun9 up")
            sh("ip route add 10.77.7.0/24 dev tun9 && ip route add fd00:77:7::/64 dev tun9")
            world.datapath.apply(desired(mesh_interfaces=("m0", "tun9")))
            world.datapath.set_neighbours([KernelNeighbour(9, "tun9", b"", (), True, False)])
            contract = world.grant(EVERYTHING[family], neighbour=9)
            over_ethernet = world.grant(EVERYTHING[family])
            source = {4: "10.77.7.2", 6: "fd00:77:7::2"}[family]
            os.write(tun, _echo_request(family, source, INTERNET[family]))
            assert len(_answer(tun, family)) == PING[family]
            assert world.used(contract) == (PING[family], PING[family])
            assert passes(world.lab.client, INTERNET[family])
            assert world.used(over_ethernet) == (PING[family], PING[family])
        finally:
            os.close(tun)


def _answer(tun: int, family: int) -> bytes:
    """Read until the echo reply comes; the kernel sends other packets as well."""
    while select.select([tun], [], [], 5)[0]:
        packet = os.read(tun, 2048)
        if packet[0] >> 4 == family and packet[{4: 20, 6: 40}[family]] == {4: 0, 6: 129}[family]:
            return packet
    raise AssertionError("no echo reply came")


def _echo_request(family: int, source: str, destination: str) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    echo = bytes([8 if family == 4 else 128, 0, 0, 0]) + bytes(60)
    pseudo = b"" if family == 4 else addresses + struct.pack("!II", len(echo), 58)
    echo = echo[:2] + _checksum(pseudo + echo) + echo[4:]
    if family == 6:
        return struct.pack("!IHBB", 6 << 28, len(echo), 58, 64) + addresses + echo
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(echo), 0, 0, 64, 1, 0) + addresses
    return head[:10] + _checksum(head) + head[12:] + echo


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def test_a_lan_that_becomes_upstream_is_that_for_the_meter_before_it_is_for_the_gate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else answers from there to a conversation that the gate doesn't remember any more look like our own purchase."""
    gate, seen = world.datapath._gate, list[dict[int, int]]()
    assert gate is not None
    apply = gate.apply

    def watched(*words: Any) -> bool:
        seen.append(read_interfaces(world.datapath._required().tables))
        return apply(*words)

    monkeypatch.setattr(gate, "apply", watched)
    up = socket.if_nametoindex("up0")
    for lans in (("up0",), ()):
        world.datapath.apply(desired(buys=True, lan_interfaces=lans, upstream_interfaces=()))
    assert [up in interfaces for interfaces in seen] == [True, False]
