"""The landlord's tunnel over real packets, with the kernel's WireGuard and with wireguard-go.

wireguard-go is tried on each kernel, and the kernel's WireGuard where there is one. With `--all-kinds`, as on a
distribution's own kernel, both are tried, and one that is missing fails.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from tunnel_lab import (
    LANDLORD,
    ONE,
    OUTSIDE,
    POOLS,
    PORT,
    TWO,
    Tenant,
    TunnelLab,
    many_peers,
    networks,
    new_key,
    tunnel_lab,
)

from core_tests import interface_kinds, traffic
from core_tests.host import Host
from core_tests.shell import await_until, sh
from ngp.core.values import TunnelPeer
from ngp.errors import KernelError, MomentError
from ngp.modules.tunnel import owners, userspace
from ngp.modules.tunnel.wireguard import WireGuard

RECEIVE_ERRORS = {  # linux/in.h, linux/in6.h: else a refusal isn't told
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH}
Built = tuple[TunnelLab, WireGuard]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try each implementation that there should be."""
    if "kind" in metafunc.fixturenames:
        has_kernel = metafunc.config.getoption("--all-kinds") or interface_kinds.has("wireguard")
        metafunc.parametrize("kind", ["userspace", *["kernel"] * has_kernel])


@pytest.fixture
def built(kind: str) -> Iterator[Built]:
    with tunnel_lab(kind) as made:
        made[0].route_pools()
        yield made


def let(built: Built, *tenants: Tenant) -> None:
    """Set the tunnel up with these tenants, and wait until it carries their packets."""
    lab, tunnel = built
    tunnel.set_up(lab.desired(), [tenant.peer for tenant in tenants])
    lab.await_tunnel(*tenants)


def answers(host: Host, address: str) -> bool:
    return traffic.ping(host, address, wait_s=1).received == 1


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
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with host.socket_inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
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
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.socket_inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(2)
        sock.setsockopt(*RECEIVE_ERRORS[family], 1)
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


RATE_BYTES_S, BURST_BYTES, FLOOD = 100_000, 128 << 10, 1500


def test_a_rate_is_kept_in_both_directions(built: Built) -> None:
    lab, tunnel = built
    one, two = lab.tenant(*ONE, rate_bytes_s=RATE_BYTES_S), lab.tenant(*TWO)
    let(built, one, two)
    for version in (4, 6):
        assert is_limited(lab.outside, one.host, one.address(version))
        assert is_limited(one.host, lab.outside, OUTSIDE[version])
    assert not is_limited(lab.outside, two.host, two.address(4)), "the other has no limit"
    tunnel.set_peers([TunnelPeer(one.peer.wireguard_key, one.peer.networks)])
    assert not is_limited(lab.outside, one.host, one.address(4)), "the limit is gone"
    tunnel.set_peers([one.peer])
    assert is_limited(lab.outside, one.host, one.address(4)), "it is back"


def is_limited(sender: Host, receiver: Host, address: str) -> bool:
    """Send five times the rate by UDP; say whether the limit was kept, or nearly all arrived."""
    sink, began = traffic.udp_sink(receiver, address, 7000), time.monotonic()
    traffic.udp_send(sender, address, 7000, count=FLOOD, payload_bytes=1000, rate_pps=500)
    took_s = time.monotonic() - began
    time.sleep(0.5)  # for packets under way; nobody says which the last one is
    count, _ = sink.received()
    sink.stop()
    if count > FLOOD * 0.9:  # a busy machine loses some by itself
        return False
    passed = traffic.l3_bytes(6 if ":" in address else 4, 1000, count)
    least, most = RATE_BYTES_S * 2, RATE_BYTES_S * (took_s + 1) + BURST_BYTES  # the limit saves up for one second
    assert least < passed < most * 1.05, f"{passed} bytes in {took_s} s"
    return True


def test_limits_that_change_one_by_one_are_those_of_a_set_up(built: Built) -> None:
    """The networks touch each other, and one ends with the last address that there is."""
    lab, tunnel = built
    keys = [new_key()[1] for _ in range(4)]
    first, second, third = (
        TunnelPeer(key, networks(*each), 1000 + number)
        for number, (key, *each) in enumerate(
            (
                (keys[0], "198.51.100.0/29", "2001:db8:ffff:7::/64"),
                (keys[1], "198.51.100.8/29", "2001:db8:ffff:8::/64", "198.51.100.16/32"),
                (keys[2], "255.255.255.240/28", "ffff:ffff:ffff:ffff::/64"),
            )
        )
    )
    states = []
    for peers in ([], [first], [first, second], [first, second, third]):
        tunnel.set_up(lab.desired(), [])
        tunnel.set_up(lab.desired(), peers)
        states.append(rules_in_force())
    tunnel.set_up(lab.desired(), [])
    for peer, state in zip((first, second, third), states[1:], strict=True):
        tunnel.set_peers([peer])
        assert rules_in_force() == state
    tunnel.set_peers([TunnelPeer(second.wireguard_key, networks("198.51.100.9/32"), 7)])
    assert '"rate": 7, ' in "".join(rules_in_force())
    tunnel.set_peers([second, TunnelPeer(keys[3], networks("198.51.100.200/32"))])
    for peer, state in zip((third, second, first), reversed(states[:-1]), strict=True):
        assert rules_in_force() != state
        tunnel.remove_peers([peer.wireguard_key])
        assert rules_in_force() == state


def rules_in_force() -> list[str]:
    """Return the tunnel's table; nft lists limits and networks in any order."""
    said = sh("nft", "-j", "list", "table", "inet", "ngp_let")
    found = []
    for each in json.loads(said)["nftables"]:
        for kind, values in each.items():
            values.pop("handle", None)
            if isinstance(values.get("elem"), list):
                values["elem"] = sorted(map(json.dumps, values["elem"]))
            found.append(f"{kind} {json.dumps(values)}")
    return sorted(line for line in found if not line.startswith("metainfo"))


def test_a_limited_tenants_stream_comes_whole(built: Built) -> None:
    lab, _ = built
    one = lab.tenant(*ONE, rate_bytes_s=500_000)
    let(built, one)
    traffic.tcp_sink(one.host, one.address(4), 5001)
    done = traffic.tcp_send(lab.outside, one.address(4), 5001, size_bytes=2_000_000)
    assert done.intact and 2.5 < done.seconds < 12


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


def timed(deed: object) -> float:
    began = time.perf_counter()
    deed()  # type: ignore[operator]
    return time.perf_counter() - began


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


# --- life -------------------------------------------------------------------------------------------------------------


def test_the_tunnel_of_a_killed_daemon_goes_on_and_is_taken_over(built: Built) -> None:
    lab, tunnel = built
    one, two = lab.tenant(*ONE), lab.tenant(*TWO)
    gone, swapped = (TunnelPeer(new_key()[1], networks(each)) for each in ("198.51.100.40/32", "198.51.100.41/32"))
    kill_after_set_up(lab, [one.peer, two.peer, gone, swapped])
    lab.await_tunnel(one, two)
    before, port = lab.handshakes(), lab.landlord.sh("wg", "show", lab.name, "listen-port")
    sink = traffic.udp_sink(one.host, one.address(4), 7000)
    sender = traffic.start(lab.outside, "udp-send", one.address(4), 7000, 400, 100, 200, 0)
    await_until(lambda: sink.received()[0] > 10, what="packets under way")
    new = TunnelPeer(new_key()[1], networks("198.51.100.40/32"))  # which the one that is gone had
    changed = TunnelPeer(swapped.wireguard_key, networks("198.51.100.42/32"))
    tunnel.set_up(lab.desired(), [one.peer, new, changed])
    assert lab.allowed() == {
        owners.key_text(each.wireguard_key): {str(network) for network in each.networks}
        for each in (one.peer, new, changed)
    }
    key = owners.key_text(one.peer.wireguard_key)
    assert lab.handshakes()[key] == before[key], "no new handshake: it was left alone"
    assert lab.landlord.sh("wg", "show", lab.name, "listen-port") == port
    sender.wait(60)
    await_until(lambda: sink.received()[0] == 400, timeout_s=5, what="all packets")
    assert not answers(lab.outside, two.address(4))
    routes = sh("ip", "route", "show", "dev", lab.name)
    assert "198.51.100.42" in routes and "198.51.100.41" not in routes and "198.51.100.16" not in routes


def kill_after_set_up(lab: TunnelLab, peers: list[TunnelPeer]) -> None:
    """Let another process set the tunnel up, and kill it."""
    holder = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tunnel_holder.py"))], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin and holder.stdout
    with holder:
        holder.stdin.write(pickle.dumps((lab.desired(), peers)))
        holder.stdin.close()
        assert holder.stdout.readline() == b"ready\n"
        holder.kill()


def test_another_key_port_or_mtu_is_taken_over_too(built: Built) -> None:
    lab, tunnel = built
    one = lab.tenant(*ONE)
    let(built, one)
    private_key, public_key = new_key()
    tunnel.set_up(lab.desired(private_key=private_key, port=PORT + 1, mtu=1400), [one.peer])
    assert lab.landlord.sh("wg", "show", lab.name, "public-key").strip() == owners.key_text(public_key)
    assert lab.landlord.sh("wg", "show", lab.name, "listen-port").strip() == str(PORT + 1)
    assert "mtu 1400" in sh("ip", "link", "show", lab.name)
    assert "1360" in sh("nft", "list", "table", "inet", "ngp_let")


def test_flushed_rules_are_noticed(built: Built) -> None:
    lab, tunnel = built
    tunnel.set_up(lab.desired(), [])
    assert tunnel.stands()
    sh("nft", "flush", "ruleset")
    assert not tunnel.stands()
    tunnel.set_up(lab.desired(), [])
    assert tunnel.stands()
    sh("ip", "link", "set", lab.name, "down")
    assert not tunnel.stands()


def test_only_interfaces_of_the_tunnel_need_to_forward(built: Built) -> None:
    lab, tunnel = built
    sh("sysctl", "-q", "-w", "net.ipv4.ip_forward=0", "net.ipv4.conf.wan0.forwarding=1")
    one = lab.tenant(*ONE)
    let(built, one)
    assert traffic.ping(lab.outside, one.address(4)).received == 1
    assert traffic.ping(one.host, OUTSIDE[4]).received == 1
    tunnel.clean_up()
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"


def test_a_route_in_the_way_of_one_tenant_stops_no_other(built: Built) -> None:
    lab, tunnel = built
    tenants = [lab.tenant(*ONE), lab.tenant(*TWO)]
    peers = [tenant.peer for tenant in tenants]
    tunnel.set_up(lab.desired(), [])
    for own in ("198.51.100.7/32", "198.51.100.16/29"):
        sh("ip", "route", "add", own, "via", OUTSIDE[4])
    with pytest.raises(KernelError, match="exists that isn't ngp's"):
        tunnel.set_up(lab.desired(), peers)
    sh("ip", "route", "del", "198.51.100.16/29")
    with pytest.raises(KernelError, match="a route to 198.51.100.7/32 exists"):
        tunnel.set_up(lab.desired(), peers)
    lab.await_tunnel(tenants[1])
    assert traffic.ping(lab.outside, tenants[0].address(6)).received == 1


def test_a_tunnel_with_another_name_replaces_the_former(built: Built) -> None:
    lab, tunnel = built
    kill_after_set_up(lab, [])
    other = f"{lab.name}b"
    tunnel.set_up(lab.desired(interface=other), [])
    names = sh("ip", "-br", "link")
    assert other in names and f"{lab.name} " not in names


def test_nothing_is_left_by_a_clean_up_and_the_operators_own_stays(built: Built) -> None:
    lab, tunnel = built
    sh("nft", "-f", "-", text_in="table inet mine {\nchain forward {\ntype filter hook forward priority 0\n}\n}\n")
    sh("ip", "route", "add", "unreachable", "198.51.100.0/24", "metric", "5000")
    sh("ip", "route", "add", "198.51.100.77/32", "via", OUTSIDE[4])
    sh("ip", "neigh", "add", "proxy", "203.0.113.9", "dev", "wan0")
    sh("ip", "link", "add", "dummy9", "type", "bridge")
    before = lab.state()
    peer = TunnelPeer(new_key()[1], networks(*ONE), 1000)
    tunnel.set_up(lab.desired(proxy=True), [peer])
    assert lab.state() != before
    tunnel.clean_up()
    assert lab.state() == before
    tunnel.clean_up()
    kill_after_set_up(lab, [peer])
    fresh = WireGuard()
    fresh.clean_up()
    fresh.close()
    assert lab.state() == before
    with pytest.raises(KernelError, match="there is no tunnel"):
        fresh.read()


def test_what_cant_be_set_up_leaves_nothing(built: Built) -> None:
    lab, tunnel = built
    before = lab.state()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", PORT))
        with pytest.raises(MomentError, match=f"UDP port {PORT}"):
            tunnel.set_up(lab.desired(), [])
    assert lab.state() == before
    for pool, whose in (("203.0.113.2/31", "the router at wan0"), ("2001:db8:2::/64", "this host's own address")):
        with pytest.raises(KernelError, match=f"pool {pool}: contains .*, {whose}"):
            tunnel.set_up(lab.desired(pools=(ip_network(pool),), proxy=True), [])
    sh("ip", "link", "add", lab.name, "type", "bridge")
    with pytest.raises(KernelError, match="isn't ngp's"):
        tunnel.set_up(lab.desired(), [])
    sh("ip", "link", "del", lab.name)
    with pytest.raises(KernelError, match="wan9"):
        tunnel.set_up(lab.desired(outside="wan9", proxy=True), [])
    sh("ip", "route", "add", "198.51.100.7/32", "via", OUTSIDE[4])
    with pytest.raises(KernelError, match="a route to 198.51.100.7/32 exists"):
        tunnel.set_up(lab.desired(), [TunnelPeer(new_key()[1], networks(*ONE))])
    sh("ip", "route", "del", "198.51.100.7/32")
    assert lab.state() == before


def test_the_private_key_is_shown_to_nobody(built: Built, caplog: pytest.LogCaptureFixture) -> None:
    lab, tunnel = built
    caplog.set_level(logging.DEBUG)
    desired = lab.desired()
    tunnel.set_up(desired, [])
    words = [lab.private_key.hex(), owners.key_text(lab.private_key), repr(lab.private_key)]
    shown = [repr(desired), repr(tunnel.describe()), caplog.text, sh("ip", "-d", "link"), sh("nft", "list", "ruleset")]
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                shown.append((process / name).read_bytes().decode(errors="replace"))
            except OSError:
                continue  # the process has ended
    assert not any(word in each for word in words for each in shown)
    if lab.kind == "userspace":
        assert (userspace.SOCKETS / f"{lab.name}.sock").stat().st_mode & 0o077 == 0


# --- proxy ------------------------------------------------------------------------------------------------------------

ON_LINK = (ip_network("203.0.113.64/26"), ip_network("2001:db8:2::ff00/120"))


def test_a_pool_on_the_link_is_answered_for_as_far_as_it_is_let(kind: str) -> None:
    with tunnel_lab(kind) as built:
        lab, tunnel = built
        one = lab.tenant("203.0.113.70/32", "2001:db8:2::ff07/128")
        two = lab.tenant("203.0.113.72/30", "2001:db8:2::ff10/124")
        assert Path("/proc/sys/net/ipv6/conf/wan0/proxy_ndp").read_text() == "0\n"
        tunnel.set_up(lab.desired(pools=ON_LINK, proxy=True), [one.peer])
        tunnel.set_peers([two.peer])
        lab.await_tunnel(one, two)
        for version in (4, 6):
            assert traffic.ping(lab.outside, one.address(version)).received == 1
            assert traffic.ping(lab.outside, two.address(version)).received == 1
        assert not answers(lab.outside, "203.0.113.80") and not answers(lab.outside, "2001:db8:2::ff80")
        tunnel.remove_peers([two.peer.wireguard_key])
        left = sh("ip", "neigh", "show", "proxy")
        assert "203.0.113.70" in left and "2001:db8:2::ff07" in left and len(left.splitlines()) == 2
        tunnel.set_up(lab.desired(pools=ON_LINK, proxy=False), [one.peer])
        assert Path("/proc/sys/net/ipv6/conf/wan0/proxy_ndp").read_text() == "0\n"
        assert sh("ip", "neigh", "show", "proxy") == ""


# --- check ------------------------------------------------------------------------------------------------------------


def test_the_check_names_what_is_missing(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, tunnel = built
    before = lab.state()
    lines = {line.name: line for line in tunnel.check(lab.desired())}
    assert all(line.ok and not line.remedy for line in lines.values()), lines
    assert f"UDP {PORT} is free" in lines["tunnel port"].found
    assert "must route it to this host" in lines[f"pool {POOLS[0]}"].found

    def failing(**fields: object) -> dict[str, str]:
        return {line.name: line.remedy for line in tunnel.check(lab.desired(**fields)) if not line.ok}

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::", PORT))
        assert failing() == {"tunnel port": "free it, or set LANDLORD_PORT"}
    assert list(failing(outside="wan9")) == ["outside interface"]
    on_link, own = ip_network("203.0.113.64/26"), ip_network("203.0.113.0/29")
    assert failing(pools=(on_link,)) == {f"pool {on_link}": "LANDLORD_ROUTING: proxy"}
    assert failing(pools=(on_link,), proxy=True) == {}
    assert failing(pools=(own,), proxy=True) == {f"pool {own}": "except: [203.0.113.1] in LANDLORD_POOLS"}
    beside = ip_network("203.0.113.2/31")
    assert failing(pools=(beside,), proxy=True) == {f"pool {beside}": "except: [203.0.113.2] in LANDLORD_POOLS"}
    several = tuple(on_link.subnets(new_prefix=28))
    assert list(failing(pools=several)) == ["pool 203.0.113.64/28, 203.0.113.80/28, 203.0.113.96/28 and 1 more"]
    wide = ip_network("2001:db8:2:0:1::/80")
    (line,) = [line for line in tunnel.check(lab.desired(pools=(wide,), proxy=True)) if line.name == f"pool {wide}"]
    assert line.ok and "the first 16" in line.found and "routed" in line.remedy
    sh("sysctl", "-q", "-w", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    assert failing() == {
        "IPv4 to tenants": "sysctl -w net/ipv4/conf/wan0/forwarding=1",
        "IPv6 to tenants": "sysctl -w net/ipv6/conf/all/forwarding=1",
    }
    sh("sysctl", "-q", "-w", "net.ipv4.conf.wan0.forwarding=1", "net.ipv6.conf.all.forwarding=1")
    assert failing() == {}
    sh("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    sh("ip", "link", "add", lab.name, "type", "bridge")
    assert list(failing()) == ["tunnel interface"]
    sh("ip", "link", "del", lab.name)
    assert lab.state() == before
    tunnel.set_up(lab.desired(), [])
    assert failing() == {}, "its own port and interface are no obstacle"


def test_a_host_without_wireguard_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userspace, "find_command", lambda name: None)
    assert userspace.UserspaceDevice().why_not() == ("wireguard-go isn't installed", "apt install wireguard-go")


# --- wireguard-go -----------------------------------------------------------------------------------------------------


def test_a_killed_wireguard_go_is_told_and_started_again() -> None:
    with tunnel_lab("userspace") as built:
        lab, tunnel = built
        lab.route_pools()
        one = lab.tenant(*ONE)
        let(built, one)
        os.kill(process_of(lab.name), signal.SIGKILL)
        await_until(lambda: lab.name not in sh("ip", "-br", "link"), what="the interface gone")
        assert not answers(lab.outside, one.address(4)) and not tunnel.stands()
        for deed in (tunnel.read, lambda: tunnel.set_peers([one.peer, TunnelPeer(new_key()[1], networks(*TWO))])):
            with pytest.raises(KernelError, match=f"wireguard-go {lab.name}: doesn't run"):
                deed()
        tunnel.set_up(lab.desired(), [one.peer])
        lab.await_tunnel(one)
        assert tunnel.stands()


def test_a_stopped_wireguard_go_delays_for_a_bounded_time() -> None:
    with tunnel_lab("userspace") as (lab, tunnel):
        tunnel.set_up(lab.desired(), [])
        pid = process_of(lab.name)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert timed(lambda: pytest.raises(MomentError, tunnel.read)) < 5
        finally:
            os.kill(pid, signal.SIGCONT)
        assert tunnel.read() == []


def process_of(name: str) -> int:
    """Return the process id of the wireguard-go of an interface."""
    (found,) = [
        int(each.parent.name)
        for each in Path("/proc").glob("[0-9]*/cmdline")
        if each.read_bytes().split(b"\0")[-2:-1] == [name.encode()] and b"wireguard-go" in each.read_bytes()
    ]
    return found
