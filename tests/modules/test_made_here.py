"""What this host sends by itself needs no contract, and nothing that it forwards passes as its own."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from crafted import BITS, quoting, send
from kernel_lab import CLIENT, GATEWAY_TO_CLIENT, INTERNET, desired, passes, python, sh
from meter_lab import NEIGHBOUR, World, metered, received, wait_until
from star_lab import ADDRESSES, DOWN_BYTES, UP_BYTES, Star, neighbours, star

from core_tests.hostile import ip_packet, udp

COMMAND = {4: "iptables", 6: "ip6tables"}
CONNECT = """
import socket, sys
print(socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET).connect_ex((sys.argv[1], 7)))
"""
REFUSED = 111  # ECONNREFUSED
GROUP = {4: "239.1.2.3", 6: "ff15::77"}
REPORT = {4: "-p igmp", 6: "-p ipv6-icmp --icmpv6-type 143"}
FRAGMENT, OPTIONS = 44, 60
CUT_BYTES, DATA_BYTES, FIRST_BYTES = 64, 2192, 800
# Linux joins the two fragments and cuts the packet again, for a link that carries 1,500 bytes. Both new fragments have
# IPv6's header, the options and the fragment's header.
CUT_ANEW_BYTES = 8 + DATA_BYTES + 2 * (40 + CUT_BYTES + 8)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as built:
        built.datapath.apply(desired())  # all addresses are there by now
        yield built


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Star]:
    with star(tmp_path) as built:
        yield built


def _connect(world: World, address: str) -> int:
    words = python(world.lab.client, CONNECT, address)
    return int(subprocess.run(words, check=True, timeout=60, capture_output=True, text=True).stdout)


def _await_refused(world: World, number: int) -> None:
    wait_until(lambda: world.datapath.counters()["uncovered"] == number, "nobody pays for them")


@pytest.mark.parametrize("family", [4, 6])
def test_what_the_kernel_sends_without_a_socket_needs_no_contract(world: World, family: int) -> None:
    """Resets, SYN cookies, reports of group membership, and a tunnel's outer packets."""
    own = GATEWAY_TO_CLIENT[family]
    assert passes(world.lab.client, own)
    sh(f"{COMMAND[family]} -A FORWARD -p tcp --dport 7 -j REJECT --reject-with tcp-reset")
    assert _connect(world, INTERNET[family]) == REFUSED, "under the other end's address"
    assert _connect(world, own) == REFUSED
    sh("sysctl -qw net.ipv4.tcp_syncookies=2")
    with socket.create_server((own, 7), family=socket.AF_INET if family == 4 else socket.AF_INET6):
        assert _connect(world, own) == 0
    sh(f"{COMMAND[family]} -t raw -A PREROUTING {REPORT[family]}", world.lab.client)
    with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as member:
        index, group = socket.if_nametoindex("m0"), ip_address(GROUP[family]).packed
        if family == 4:
            member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + struct.pack("=4xI", index))
        else:
            member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("=I", index))
        wait_until(lambda: received(world.lab.client, family)[0] > 0, "a report arrived")
    for namespace, ours, other, address in (
        ("", own, CLIENT[family], "10.99.0.1/24"),
        (world.lab.client, CLIENT[family], own, "10.99.0.2/24"),
    ):
        sh(f"ip link add t0 type vxlan id 7 dstport 4789 local {ours} remote {other}", namespace)
        sh(f"ip addr add {address} dev t0 && ip link set t0 up", namespace)
    sh(f"ip route add {INTERNET[4]}/32 via 10.99.0.1", world.lab.client)
    assert passes(world.lab.internet, "10.99.0.2"), "the tunnel carries what was forwarded into it"
    assert world.datapath.counters()["uncovered"] == 0


def _cut(source: str, destination: str, port: int, number: int) -> list[bytes]:
    """Cut a datagram into fragments that Linux, once it has joined them, can't send as they were."""
    whole = udp(source, destination, port, bytes(DATA_BYTES))[40:]
    heads = [struct.pack("!BBHI", socket.IPPROTO_UDP, 0, *each, number) for each in ((1,), (FIRST_BYTES,))]
    options = bytes([FRAGMENT, CUT_BYTES // 8 - 1, 0x1E, CUT_BYTES - 4]) + bytes(CUT_BYTES - 4)
    return [
        ip_packet(source, destination, OPTIONS, options + heads[0] + whole[:FIRST_BYTES]),
        ip_packet(source, destination, FRAGMENT, heads[1] + whole[FIRST_BYTES:]),
    ]


def test_fragments_that_are_cut_anew_are_charged_like_others(hub: Star) -> None:
    """Linux forgets by which interface they came, as if it had made them itself."""
    sh("ip6tables -A FORWARD -m conntrack --ctstate INVALID -j DROP")  # so connections are tracked
    remote, number = INTERNET[6], 20
    sold = hub.sell(NEIGHBOUR, f"{remote}/{BITS[6]}")
    with hub.socket("A", 6) as client, hub.socket("internet", 6, 5000) as server:
        hub.ask(client, server)
        before, to = hub.world.used(sold)[1], client.getsockname()[1]
        for source in (GATEWAY_TO_CLIENT[6], "fd00:77:2::9", remote):
            packets = [packet for each in range(number) for packet in _cut(source, ADDRESSES["A"][6], to, each)]
            send(hub.world, packets, upload=False)
        for _ in range(number):
            data, seen = client.recvfrom(4096)
            assert (len(data), seen[0]) == (DATA_BYTES, remote), "nobody has bought the other two"
    assert hub.world.used(sold)[1] - before == number * CUT_ANEW_BYTES
    assert hub.world.datapath.counters()["uncovered"] >= 2 * number


def test_nothing_from_elsewhere_is_sold_under_our_own_address(world: World) -> None:
    """Linux accepts IPv6 packets under its own address. The client counts nothing from there: a bill would be wrong."""
    sold = world.grant("::/0")
    own, client = GATEWAY_TO_CLIENT[6], CLIENT[6]
    assert passes(world.lab.client, INTERNET[6])
    before = world.used(sold)
    about = quoting(6, own, client, udp(client, INTERNET[6], 9, bytes(500)))
    send(world, [about, udp(own, client, 9, bytes(500))], upload=False, times=5)
    _await_refused(world, 10)
    assert world.used(sold) == before


def test_what_comes_from_upstream_under_our_own_address_is_no_answer_of_a_forwarded_port(hub: Star) -> None:
    ours, port = GATEWAY_TO_CLIENT[6], 53
    sh(f"ip6tables -t nat -A PREROUTING -i m0 -p udp --dport {port} -j DNAT --to [{ADDRESSES['LAN'][6]}]:5353")
    sh(f"ip6tables -t raw -A PREROUTING -i up0 -s {ours} -j NOTRACK")  # as if conntrack had forgotten the conversation
    hub.world.datapath.apply(desired(buys=True, lan_interfaces=("lan0",)))
    assert hub.world.datapath.counters()["gate_restored"] == 0, "we changed it ourselves"
    hub.world.datapath.set_neighbours(neighbours(hub))
    with hub.socket("A", 6) as client, hub.socket("LAN", 6, 5353) as server:
        for one in (client, server):
            one.settimeout(30)
        refused = 0
        for _ in range(2):
            client.sendto(bytes(UP_BYTES), (ours, port))
            server.sendto(bytes(DOWN_BYTES), server.recvfrom(2048)[1])
            assert len(client.recv(2048)) == DOWN_BYTES, "an answer is free"
            free = udp(ours, ADDRESSES["A"][6], client.getsockname()[1], b"free?", from_port=port)
            send(hub.world, [free], upload=False, times=5)
            refused += 5
            _await_refused(hub.world, refused)
