"""What the landlord's tunnel refuses, what a check says of it, and pools that are on the link."""

from __future__ import annotations

import logging
import socket
from ipaddress import ip_network
from pathlib import Path

import pytest
from tunnel_lab import (
    ONE,
    OUTSIDE,
    POOLS,
    PORT,
    Built,
    answers,
    let,
    networks,
    new_key,
    tunnel_lab,
)

from core_tests import traffic
from core_tests.lab import End
from core_tests.shell import sh
from ngp.core.messages import Prefix
from ngp.core.rental.tunnel import TunnelPeer
from ngp.errors import KernelError, MomentError
from ngp.modules.tunnel import owners, userspace


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


def test_a_pool_on_the_link_is_answered_for_as_far_as_it_is_let(tunnel_kind: str) -> None:
    with tunnel_lab(tunnel_kind) as built:
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
    keep_pools_when_stopped()
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
        (line,) = (line for line in tunnel.check(lab.desired()) if not line.ok)
        assert "free it" not in line.found and f"sport = :{PORT}" in line.found
    assert not failing(outside="wan9"), "that it doesn't exist is said with the other names of net.conf"
    on_link, own = ip_network("203.0.113.64/26"), ip_network("203.0.113.0/29")
    assert failing(pools=(on_link,)) == {f"pool {on_link}": "LANDLORD_ROUTING: proxy"}
    assert failing(pools=(on_link,), proxy=True) == {}
    add = "add to that pool's list `except` in LANDLORD_POOLS:"
    assert failing(pools=(own,), proxy=True) == {f"pool {own}": f"{add} 203.0.113.1, 203.0.113.2"}
    beside = ip_network("203.0.113.2/31")
    assert failing(pools=(beside,), proxy=True) == {f"pool {beside}": f"{add} 203.0.113.2"}
    (line,) = (line for line in tunnel.check(lab.desired(pools=(beside,), proxy=True)) if not line.ok)
    assert line.kind == "kernel", "as a start, which raises a KernelError"
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


def keep_pools_when_stopped() -> None:
    for pool in POOLS:
        sh("ip", f"-{pool.version}", "route", "add", "unreachable", str(pool), "metric", "4294967295")


def test_pools_go_round_when_ngp_has_stopped_unless_the_operator_keeps_routes(built: Built) -> None:
    lab, tunnel = built
    lab.route_pools()
    stranger = lab.lab.host("stranger")
    lab.lab.link(
        End(stranger, "up0", "192.168.99.2/24", "2001:db8:99::2/64"),
        End(lab.outside, "down0", "192.168.99.1/24", "2001:db8:99::1/64"),
    )
    stranger.route("default", via="192.168.99.1")
    stranger.route("::/0", via="2001:db8:99::1")

    def answer(pool: Prefix) -> str:
        asks = ("ping", "-c3", "-W2", str(pool[77]))  # the kernel sends one such answer a second
        return sh(*stranger.inside(*asks), check=False)

    (warning,) = (line for line in tunnel.check(lab.desired()) if line.name == "pools when stopped")
    assert warning.ok and "by its default route" in warning.found
    assert all("xceeded" in answer(pool) for pool in POOLS), "each packet goes to and fro until its hop limit ends"
    tunnel.set_up(lab.desired(), [])
    assert all("nreachable" in answer(pool) for pool in POOLS)
    assert warning in tunnel.check(lab.desired()), "ngp's own routes go with it"
    tunnel.clean_up()
    assert all("xceeded" in answer(pool) for pool in POOLS)
    sh("sh", "-ec", warning.remedy.removeprefix("at each boot: "))
    assert "pools when stopped" not in {line.name for line in tunnel.check(lab.desired())}
    assert all("nreachable" in answer(pool) for pool in POOLS)
    everything = lab.tenant(*map(str, POOLS))
    let(built, everything)
    assert all(traffic.ping(lab.outside, everything.address(pool.version)).received for pool in POOLS), (
        "tenants' routes go first"
    )
    tunnel.clean_up()
    assert all("nreachable" in answer(pool) for pool in POOLS)
    assert not [line for line in tunnel.check(lab.desired(proxy=True)) if line.name == "pools when stopped"]


def test_pools_of_a_host_without_a_default_route_go_nowhere_when_ngp_has_stopped(built: Built) -> None:
    lab, tunnel = built

    def told() -> str:
        found = (line.found for line in tunnel.check(lab.desired()) if line.name == "pools when stopped")
        return next(found, "")

    four, six = POOLS
    assert str(four) in told() and str(six) in told()
    sh("ip", "route", "del", "default")
    assert str(four) not in told() and str(six) in told()
    sh("sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=0")
    assert told() == ""
    sh("ip", "route", "add", "default", "via", OUTSIDE[4])
    assert str(four) in told() and str(six) not in told()


def test_a_host_without_wireguard_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userspace, "find_command", lambda name: None)
    assert userspace.UserspaceDevice().why_not() == ("wireguard-go isn't installed", "apt install wireguard-go")
