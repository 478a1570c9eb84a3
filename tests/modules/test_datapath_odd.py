"""The meter and odd packets: fragments, headers with wrong values, tunnels, forged sources and forged ICMP errors."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from crafted import BITS, ICMP, quoting, send, with_options
from kernel_lab import CLIENT, INTERNET, desired, passes, python, sh
from meter_lab import TCP_ECHO, World, metered, received, true_wire, wait_until

from core_tests.hostile import ip_packet, udp
from ngp.core.messages import Role
from ngp.ports.network import FreeRule

NAME_SERVER = {4: "192.0.2.53", 6: "2001:db8::53"}
FIRST, LATER = 0x2000, 0x2000 | 20  # IPv4's flags and offset: more fragments follow; the same, at offset 160 bytes
HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS, UDP, NOTHING = 0, 43, 44, 60, 17, 59
PADDING = bytes([1, 4, 0, 0, 0, 0])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as built:
        yield built


def odd_v4() -> list[bytes]:
    """Build packets that a router may meet: fragments in any order, some alone, some overlapping; options; padding."""
    whole = udp(CLIENT[4], INTERNET[4], 9, bytes(300))

    def fragment(at: int, size: int, more: bool = True) -> bytes:
        return ip_packet(CLIENT[4], INTERNET[4], UDP, bytes(size), flags=0x2000 * more | at // 8)

    return [
        *(fragment(0, 160), fragment(160, 160), fragment(320, 33, more=False)),
        *(fragment(320, 33, more=False), fragment(0, 8), fragment(8, 200), fragment(8, 1000), fragment(65512, 16)),
        with_options(whole, bytes([7, 39, 4]) + bytes(37)),  # record route, all of the 40 bytes
        with_options(fragment(160, 160), bytes([1, 1, 1, 0])),
        whole + bytes(64),  # a frame longer than its packet
        ip_packet(CLIENT[4], INTERNET[4], UDP, b""),
        ip_packet(CLIENT[4], INTERNET[4], 1, b"\x03"),  # an ICMP error that quotes nothing
        ip_packet(CLIENT[4], INTERNET[4], 253, bytes(77)),
    ]


def odd_v6() -> list[bytes]:
    """Build the same for IPv6, with extension headers, some of which claim to be longer than they are."""

    def packet(first: int, payload: bytes) -> bytes:
        return ip_packet(CLIENT[6], INTERNET[6], first, payload)

    def fragment(at: int, size: int, more: bool = True) -> bytes:
        return packet(FRAGMENT, struct.pack("!BBHI", UDP, 0, at | more, 7) + bytes(size))

    inner = udp(CLIENT[6], INTERNET[6], 9, bytes(300))[40:]
    return [
        *(fragment(0, 160), fragment(160, 160), fragment(320, 33, more=False)),
        *(fragment(320, 33, more=False), fragment(0, 8), fragment(8, 1000), fragment(0, 100, more=False)),
        packet(HOP_BY_HOP, bytes([UDP, 0]) + PADDING + inner),
        packet(OPTIONS, (bytes([OPTIONS, 0]) + PADDING) * 9 + bytes([UDP, 0]) + PADDING + inner),
        packet(ROUTING, bytes([UDP, 2, 4, 0]) + bytes(20) + inner),
        packet(OPTIONS, bytes([UDP, 255]) + PADDING),  # it claims 2,048 bytes
        packet(FRAGMENT, bytes([ICMP[6]])),
        packet(ICMP[6], b"\x01"),
        packet(UDP, inner) + bytes(64),
        packet(NOTHING, b""),
        packet(253, bytes(77)),
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_odd_packets_are_billed_as_they_arrive_and_cut(world: World, family: int) -> None:
    true_wire(world)
    packets = odd_v4() if family == 4 else odd_v6()
    contract = world.grant(f"{INTERNET[family]}/{BITS[family]}")
    send(world, packets)
    wait_until(lambda: received(world.lab.internet, family)[0] == len(packets), "all arrived")
    carried = received(world.lab.internet, family)[1]
    assert world.used(contract)[0] == carried
    world.datapath.revoke([contract])
    contract = world.grant(f"{INTERNET[family]}/{BITS[family]}", limit_bytes=5 * (160 + 20) + 100)
    send(world, [ip_packet(CLIENT[4], INTERNET[4], UDP, bytes(160), flags=LATER)] if family == 4 else packets, times=20)
    used = world.used(contract)[0]
    assert used <= 5 * (160 + 20) + 100 and world.reading(contract).exhausted
    wait_until(lambda: received(world.lab.internet, family)[1] == carried + used, "not a byte more")


@pytest.mark.parametrize("family", [4, 6])
def test_a_free_destination_opens_no_way_to_another(world: World, family: int) -> None:
    """Forged sources and quotes make nothing free, nor does it that a client's own address is in a free prefix."""
    client, internet, free = CLIENT[family], INTERNET[family], NAME_SERVER[family]
    world.grant(f"{internet}/{BITS[family]}", limit_bytes=0)
    rules = (FreeRule(ip_network(free), UDP, 53), FreeRule(ip_network(client)))
    world.datapath.apply(desired(free=rules))
    query, reply = udp(client, free, 53, bytes(100)), udp(free, client, 5000, bytes(100), 53)
    ups = [
        udp(free, internet, 9, bytes(500), 53),
        udp(client, internet, 9, bytes(500), 53),
        quoting(family, client, internet, udp(internet, free, 53, bytes(500))),
    ]
    send(world, ups)
    wait_until(lambda: world.refused() == len(ups), "the uploads are refused")
    downs = [udp(internet, client, 9, bytes(500), 53), udp(internet, client, 53, bytes(500), 53)]
    send(world, downs, upload=False)
    refused = len(ups) + len(downs)
    wait_until(lambda: world.refused() == refused, "the downloads are refused")
    true_wire(world)
    for command in ("iptables", "ip6tables"):
        sh(f"{command} -t raw -F PREROUTING", world.lab.client)
    errors = {4: "iptables {} -p icmp --icmp-type 3", 6: "ip6tables {} -p ipv6-icmp --icmpv6-type 1"}[family]
    sh(errors.format(f"-t raw -A PREROUTING -d {client}"), world.lab.client)
    sh(f"ip route add {free}/{BITS[family]} via {internet}")
    send(world, [query, quoting(family, client, free, reply)])
    send(world, [reply, quoting(family, internet, client, query)], upload=False)
    wait_until(lambda: received(world.lab.client, family)[0] == 1, "an error about the question")
    assert world.datapath.counters()["passed_to_queue"] == 0, "an error about the answer is free as well"
    assert world.refused() == refused


@pytest.mark.parametrize("family", [4, 6])
def test_forged_errors_use_up_no_more_than_a_trickle(world: World, family: int) -> None:
    client, internet, router = CLIENT[family], INTERNET[family], {4: "10.77.2.9", 6: "fd00:77:2::9"}[family]
    contract = world.grant(f"{internet}/{BITS[family]}")
    about = udp(client, internet, 9, bytes(1100))
    wait_until(lambda: passes(world.lab.internet, client), "next hops are known")
    send(world, [quoting(family, router, client, about)], upload=False, times=3000)
    size = len(quoting(family, router, client, about))
    back = world.used(contract)[1]
    assert 50 * size < back < 1500 * size, "a burst, and then some a second"
    send(world, [quoting(family, router, client, about + bytes(300))], upload=False)
    wait_until(lambda: world.datapath.counters()["uncovered"] > 0, "refused")
    before = world.datapath.counters()["uncovered"]
    send(world, [quoting(family, internet, client, about + bytes(100))], upload=False, times=200)
    wait_until(lambda: world.used(contract)[1] >= back + 200 * size, "what the destination itself says is its traffic")
    assert world.datapath.counters()["uncovered"] == before


def test_a_tunnels_superpackets_are_billed_as_the_receivers_count_them(world: World) -> None:
    """Each segment also repeats the headers inside the tunnel: 70 bytes of VXLAN's 1,500."""
    true_wire(world)
    for namespace, own, other, number in (
        (world.lab.client, CLIENT[4], INTERNET[4], 1),
        (world.lab.internet, INTERNET[4], CLIENT[4], 2),
    ):
        sh("iptables -I INPUT -p udp -j ACCEPT", namespace)
        sh(f"ip link add vx0 type vxlan id 7 local {own} remote {other} dstport 4789", namespace)
        sh(f"ip addr add 10.99.0.{number}/24 dev vx0 && ip link set vx0 up", namespace)
    contract = world.grant(f"{INTERNET[4]}/32")
    world.tcp_both_ways("10.99.0.2", 1_000_000)
    wait_until(
        lambda: world.used(contract) == (received(world.lab.internet, 4)[1], received(world.lab.client, 4)[1]),
        "the meter and the receivers agree",
    )
    assert received(world.lab.internet, 4)[0] > 700, "superpackets would hide headers: the lab is not a wire"


def test_packets_above_64_kb_are_billed_without_the_stacks_own_option(tmp_path: Path) -> None:
    """BIG TCP over IPv6: the superpacket has a jumbo option of 8 bytes, its segments don't."""
    with metered(tmp_path, buys=True, sells=False) as world:
        world.datapath.set_neighbours([world.neighbour(sells_to_us=True, buys_from_us=False)])
        contract = world.grant("::/0", role=Role.CLIENT)
        sh("ip link set m0 gso_max_size 200000")
        sh("nft 'table ip6 big { chain out { type filter hook output priority 0; meta length > 66000 counter; }; }'")
        with subprocess.Popen(
            python(world.lab.client, TCP_ECHO, CLIENT[6]), stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            sent, segments = segments_sent(CLIENT[6], 8_000_000)
        assert "packets 0 " not in sh("nft list table ip6 big"), "no packet above 64 kB was sent"
        wire = sent + 72 * segments + 8  # headers with TCP's time stamps; the first segment has 8 bytes of options more
        # Up to 2,000 bytes are a last ACK, and SACK options. A jumbo option in each segment would be 45 kB.
        wait_until(lambda: wire <= world.used(contract)[0] <= wire + 2000, "what was sent, with few options more")


def segments_sent(address: str, size: int) -> tuple[int, int]:
    """Send this many bytes and receive as many.

    Returns the kernel's count of bytes and segments sent, repeated ones included.

    Source: include/uapi/linux/tcp.h, struct tcp_info, tcpi_bytes_sent and tcpi_segs_out.
    """
    with socket.create_connection((address, 7000), timeout=30) as stream:
        stream.sendall(bytes(size))
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(1 << 16):
            pass
        info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[200:208], sys.byteorder), int.from_bytes(info[136:140], sys.byteorder)
