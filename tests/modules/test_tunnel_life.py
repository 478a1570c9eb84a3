"""The landlord's tunnel through a daemon's death, changes of the host's own, and its end."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tunnel_lab import (
    ONE,
    OUTSIDE,
    PORT,
    TWO,
    Built,
    TunnelLab,
    answers,
    let,
    networks,
    new_key,
    timed,
    tunnel_lab,
)

from core_tests import traffic
from core_tests.renting import wireguard_go_of
from core_tests.shell import await_until, sh, suspended
from ngp.core.rental.tunnel import TunnelPeer
from ngp.errors import KernelError, MomentError
from ngp.modules.tunnel import owners
from ngp.modules.tunnel.wireguard import WireGuard


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


# --- wireguard-go -----------------------------------------------------------------------------------------------------


def test_a_killed_wireguard_go_is_told_and_started_again() -> None:
    with tunnel_lab("userspace") as built:
        lab, tunnel = built
        lab.route_pools()
        one = lab.tenant(*ONE)
        let(built, one)
        os.kill(wireguard_go_of(lab.name), signal.SIGKILL)
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
        with suspended(wireguard_go_of(lab.name)):
            assert timed(lambda: pytest.raises(MomentError, tunnel.read)) < 30
        assert tunnel.read() == []
