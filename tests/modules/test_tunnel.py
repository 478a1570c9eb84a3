"""The landlord's tunnel over real packets: which of them pass, and which tenant has which network."""

from __future__ import annotations

import errno
import os
import signal
import socket
import statistics
import time
from ipaddress import ip_address

import pytest
from tunnel_lab import (
    LANDLORD,
    ONE,
    OUTSIDE,
    TWO,
    Built,
    answers,
    let,
    many_peers,
    networks,
    new_key,
    timed,
)

from core_tests import traffic
from core_tests.host import Host
from core_tests.shell import await_until
from core_tests.traffic_ends import family
from ngp.core.rental.tunnel import TunnelPeer
from ngp.errors import KernelError
from ngp.modules.tunnel import owners

RECEIVE_ERRORS = {  # linux/in.h, linux/in6.h: else a refusal isn't told
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH}


# --- packets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [4, 6])
def test_tenants_are_reached_at_their_networks_and_reach_each_other_by_them(built: Built, endpoint: int) -> None:
    lab, tunnel = built
    one, two = lab.tenant(*ONE, endpoint=endpoint), lab.tenant(*TWO, endpoint=endpoint)
    let(built, one, two)
    for version in (4, 6):
        for tenant in (one, two):
            assert traffic.ping(lab.outside, tenant.address(version)).received == 1
            assert traffic.ping(tenant.host, OUTSIDE[version]).received == 1
        assert traffic.ping(one.host, two.address(version)).received == 1
    read = {reading.wireguard_key: reading for reading in tunnel.read()}
    assert set(read) == {one.peer.wireguard_key, two.peer.wireguard_key}
    for reading in read.values():
        assert reading.received_bytes > 0 and reading.sent_bytes > 0
        assert abs(reading.handshake_at_s - time.time()) < 60
        host, _, port = reading.endpoint.rpartition(":")
        assert ip_address(host.strip("[]")).version == endpoint and int(port) > 0
    assert tunnel.describe()["implementation"] in ("kernel", "wireguard-go")
    assert {str(each) for each in tunnel.addresses("wan0")} == set(LANDLORD.values())


def test_a_tenant_sends_from_its_networks_only(built: Built) -> None:
    lab, _ = built
    foreign = ("198.51.100.99/32", "2001:db8:ffff:9::1/128")
    one = lab.tenant(*ONE, more=foreign)
    let(built, one)
    count = lab.outside.counter("wan0", "in")
    for version, false in zip((4, 6), foreign, strict=True):
        own, address = one.address(version), false.partition("/")[0]
        for source in (address, own):  # if the last arrives, the first would have arrived before it
            send_from(one.host, source, OUTSIDE[version])
        await_until(lambda own=own: count.total("in", source=own).packets == 1, what="the true source's packet")  # type: ignore[misc]
        assert count.total("in", source=address).packets == 0


def send_from(host: Host, source: str, destination: str) -> None:
    with host.socket_inside(lambda: socket.socket(family(source), socket.SOCK_DGRAM)) as sock:
        sock.bind((source, 0))
        sock.sendto(b"packet", (destination, 9))


def test_a_tenant_reaches_nothing_in_anothers_tunnel_but_its_networks(built: Built) -> None:
    lab, _ = built
    one, two = lab.tenant(*ONE), lab.tenant(*TWO, more=("10.9.9.9/32", "fd00:9::9/128"))
    let(built, one, two)
    for version, hidden in ((4, "10.9.9.9"), (6, "fd00:9::9")):
        public = two.address(version)
        sinks = {address: traffic.udp_sink(two.host, address, 9) for address in (hidden, public)}
        for destination in (hidden, public):  # if the last arrives, the first would have arrived before it
            send_from(one.host, one.address(version), destination)
        await_until(lambda sink=sinks[public]: sink.received()[0] == 1, what="the let address's packet")  # type: ignore[misc]
        assert sinks[hidden].received()[0] == 0


def test_what_is_not_let_is_refused_and_not_routed_back(built: Built) -> None:
    lab, tunnel = built
    one = lab.tenant(*ONE)
    let(built, one)
    tunnel.remove_peers([one.peer.wireguard_key])
    count = lab.outside.counter("wan0", "in")
    for address in ("198.51.100.200", "2001:db8:ffff:3::1", one.address(4), one.address(6)):
        assert await_until(lambda to=address: refusal(lab.outside, to)) in UNREACHABLE  # type: ignore[misc]
        assert count.total("in", destination=address).packets == 0, "it came back"


def refusal(host: Host, address: str) -> int:
    """Send a packet and return the error that comes back, if it comes within 2 s: Linux sends few errors a second."""
    kind = family(address)
    with host.socket_inside(lambda: socket.socket(kind, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(2)
        sock.setsockopt(*RECEIVE_ERRORS[kind], 1)
        sock.connect((address, 9))
        sock.send(b"packet")
        try:
            sock.recv(100)
        except OSError as error:
            return error.errno or 0
    return 0


def test_segments_fit_into_the_tunnel_whatever_the_tenant_thinks(built: Built) -> None:
    """The tenant's interface has too large an MTU, and nobody is told when a packet is too large."""
    lab, _ = built
    one = lab.tenant(*ONE, mtu=1500)
    let(built, one)
    chain = "type filter hook output priority 0; meta l4proto { icmp, icmpv6 } drop"
    for version in (4, 6):
        for host, peer in ((one.host, OUTSIDE[version]), (lab.outside, one.address(version))):
            assert traffic.ping(host, peer).received == 1  # neighbours are known from here on
    lab.landlord.sh("nft", "-f", "-", text_in=f"table inet silent {{\nchain out {{\n{chain}\n}}\n}}\n")
    for version in (4, 6):
        traffic.tcp_sink(one.host, one.address(version), 5001)
        traffic.tcp_sink(lab.outside, OUTSIDE[version], 5002)
        assert traffic.tcp_send(lab.outside, one.address(version), 5001, size_bytes=300_000).intact
        assert traffic.tcp_send(one.host, OUTSIDE[version], 5002, size_bytes=300_000).intact
    lab.landlord.sh("nft", "delete", "table", "inet", "silent")


# --- peers ------------------------------------------------------------------------------------------------------------


def test_a_thousand_peers_come_and_go_without_a_packet_lost_by_others(built: Built) -> None:
    lab, tunnel = built
    one = lab.tenant(*ONE)
    let(built, one)
    sink, count = traffic.udp_sink(one.host, one.address(4), 7000), lab.outside.counter("wan0", "out")
    sender = traffic.start(lab.outside, "udp-send", one.address(4), 7000, 1_000_000, 100, 500, 0)
    took = []
    peers = many_peers(1000)
    for peer in peers:
        took.append(timed(lambda peer=peer: tunnel.set_peers([peer])))  # type: ignore[misc]
    assert len(tunnel.read()) == 1001
    for peer in peers:
        took.append(timed(lambda peer=peer: tunnel.remove_peers([peer.wireguard_key])))  # type: ignore[misc]
    await_until(lambda: sink.received()[0] > 200, what="packets meanwhile")
    os.killpg(sender.pid, signal.SIGKILL)
    sender.wait()
    sent = count.total("out", destination=one.address(4)).packets
    await_until(lambda: sink.received()[0] >= sent, timeout_s=5, what=f"all {sent} packets")
    print(f"a change took {statistics.median(took) * 1e3:.1f} ms, at most {max(took) * 1e3:.1f} ms; {sent} packets")
    assert statistics.quantiles(took, n=100)[97] < 0.05
    assert lab.allowed() == {owners.key_text(one.peer.wireguard_key): set(ONE)}


def test_a_tenant_without_networks_gets_nothing_and_is_reached_at_once_when_it_has_them_again(built: Built) -> None:
    """The tenant sends nothing by itself: a new session would begin only with its next handshake."""
    lab, tunnel = built
    one = lab.tenant(*ONE)
    let(built, one)
    assert answers(one.host, OUTSIDE[4])
    idle = TunnelPeer(one.peer.wireguard_key, ())
    for cut in (lambda: tunnel.set_peers([idle]), lambda: tunnel.set_up(lab.desired(), [idle])):
        cut()
        assert lab.allowed() == {owners.key_text(idle.wireguard_key): set()}
        assert not answers(lab.outside, one.address(4)) and not answers(lab.outside, one.address(6))
        assert not answers(one.host, OUTSIDE[4])
        tunnel.set_peers([one.peer])
        assert answers(lab.outside, one.address(4)) and answers(lab.outside, one.address(6))


def test_a_network_is_never_moved_from_one_tenant_to_another(built: Built) -> None:
    lab, tunnel = built
    first, second = (TunnelPeer(new_key()[1], networks(*each)) for each in (ONE, TWO))
    tunnel.set_up(lab.desired(), [first, second])
    before = lab.allowed()
    for stolen in ("198.51.100.7/32", "198.51.100.0/28", "2001:db8:ffff:7:1::/80"):
        thief = TunnelPeer(second.wireguard_key, networks(stolen, "198.51.100.128/32"))
        with pytest.raises(KernelError) as refused:
            tunnel.set_peers([thief])
        for key in (first.wireguard_key, second.wireguard_key):
            assert owners.key_text(key) in str(refused.value)
        assert lab.allowed() == before
        with pytest.raises(KernelError):
            tunnel.set_up(lab.desired(), [first, thief])
        assert lab.allowed() == before
    tunnel.remove_peers([first.wireguard_key, b"unknown"])
    tunnel.set_peers([TunnelPeer(second.wireguard_key, networks(*ONE))])  # it is free now
    assert lab.allowed() == {owners.key_text(second.wireguard_key): set(ONE)}
