"""Host facts inside a network namespace, and what `ngp check` says about it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from kernel_lab import CLIENT, GATEWAY_TO_CLIENT, GATEWAY_TO_INTERNET, INTERNET, Lab, desired, lab, sh

from ngp.config import load, parse
from ngp.daemon import checkup
from ngp.daemon.desired import existing, left_out, look_at_host, missing_names, named_interfaces, refuse
from ngp.errors import ConfigError, KernelError
from ngp.modules.link.udp import UdpLink
from ngp.modules.network import check as checks
from ngp.modules.network import layers, nat, rtnetlink, xtables
from ngp.modules.network.datapath import Datapath
from ngp.modules.network.host import Host, expand_interfaces
from ngp.ports import Check, DesiredNetwork, FreeRule, Prefix


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with lab() as built:
        sh(f"ip route add default via {INTERNET[4]} && ip -6 route add default via {INTERNET[6]}")
        yield built


@pytest.fixture
def host(hosts: Lab) -> Iterator[Host]:
    opened = Host()
    yield opened
    opened.close()
    opened.close()


def test_patterns() -> None:
    names = ["lo", "wlan0", "wlan1", "eth0", "eth0.7", "wg0"]
    assert expand_interfaces(names, ["wlan*"], []) == ("wlan0", "wlan1")
    assert expand_interfaces(names, ["all"], ["eth0"]) == ("eth0.7", "wg0", "wlan0", "wlan1")
    assert expand_interfaces(names, ["all", "eth0"], ["eth0", "wl*"]) == ("eth0.7", "wg0")
    assert expand_interfaces(names, ["eth0", "absent", "lo"], []) == ("eth0",)
    assert expand_interfaces(names, [], []) == ()


def test_interfaces_are_those_of_the_namespace(hosts: Lab, host: Host) -> None:
    sh("ip tuntap add dev tun0 mode tun && ip link add br0 type bridge && ip link set m1x master br0")
    found = host.interfaces()
    assert {"lo", "m0", "m1", "m1x", "up0", "tun0", "br0"} <= set(found) and "c0" not in found
    assert found["m0"].has_link_addresses and len(found["m0"].link_address) == 6
    assert not found["tun0"].has_link_addresses and found["tun0"].link_address == b""
    assert found["m1x"].master == found["br0"].index and found["br0"].kind == "bridge"
    assert host.has_link_addresses("m0") and not host.has_link_addresses("tun0")
    assert not host.has_link_addresses("lo") and not host.has_link_addresses("absent")
    assert host.mesh_interfaces(["all"], ["up0", "m1*"]) == ("br0", "m0", "tun0")


def test_a_default_route_and_parts_of_one_lead_out(host: Host) -> None:
    assert host.default_route_interfaces() == ("up0",)
    sh("ip route del default && ip -6 route del default")
    assert host.default_route_interfaces() == ()
    sh(f"ip route add default nexthop via {INTERNET[4]} nexthop via {CLIENT[4]}")
    assert host.default_route_interfaces() == ("m0", "up0")
    sh(f"ip route del default && ip route add 128.0.0.0/1 via {INTERNET[4]} && ip route add 9.0.0.0/8 via {CLIENT[4]}")
    assert host.default_route_interfaces() == ("up0",)
    sh(f"ip route flush 128.0.0.0/1 && ip -6 route add 2000::/3 via {CLIENT[6]}")
    assert host.default_route_interfaces() == ("m0",)
    assert host.routed_networks(4, ["m0", "up0"]) == (ip_network("9.0.0.0/8"),)
    assert host.routed_networks(6, ["m0", "up0"]) == (), "never a default route, in parts neither"


# What makes an interface upstream that carries no default route.
UPSTREAM_ROUTES = {
    "two halves": f"ip route add 0.0.0.0/1 via {INTERNET[4]} && ip route add 128.0.0.0/1 via {INTERNET[4]}",
    "specific": f"ip route add 198.51.100.0/24 via {INTERNET[4]}",
    "a host": "ip route add 198.51.100.7/32 dev up0",
    "all of IPv6": f"ip -6 route add 2000::/3 via {INTERNET[6]}",
    "another table": f"ip route add default via {INTERNET[4]} table 51820",
    "one of several ways": f"ip route add 198.51.100.0/24 nexthop via {INTERNET[4]} nexthop via {CLIENT[4]}",
    "a nexthop object": f"ip nexthop add id 7 via {INTERNET[4]} dev up0 && ip route add 198.51.100.0/24 nhid 7",
}


@pytest.mark.parametrize("routes", UPSTREAM_ROUTES.values(), ids=list(UPSTREAM_ROUTES))
def test_what_carries_more_than_its_own_networks_is_upstream(hosts: Lab, routes: str) -> None:
    sh("ip route del default && ip -6 route del default && ip addr add 192.0.2.9/24 dev m1")
    network = Datapath(Path("/nowhere"))
    assert network.other_interfaces(("m0",), None) == (("m1", "up0"), ()), "connected routes alone"
    sh(f"ip route add default via {CLIENT[4]} && {routes}")
    assert network.other_interfaces(("m0",), None) == (("m1",), ("up0",))
    lines = by_name(desired(mesh_interfaces=("m0",), lan_interfaces=("m1",)))
    assert lines["interface m1"].found == "LAN: carries only its own networks (192.0.2.0/24)"
    assert lines["interface up0"].found.startswith("upstream: carries more than its own networks (")
    assert lines["interface m0"].found.startswith("mesh: ")
    assert all(lines[f"interface {name}"].ok for name in ("m0", "m1", "up0"))
    network.close()


def test_the_operator_says_which_interfaces_are_ours(hosts: Lab) -> None:
    sh(f"ip route add 10.99.0.0/16 via {CLIENT[4]} && ip addr add 192.0.2.9/24 dev m1")
    network = Datapath(Path("/nowhere"))
    assert network.other_interfaces(("up0",), ["m*"]) == (("m0", "m1", "m1x"), ())
    assert network.other_interfaces((), ["m1"]) == (("m1",), ("m0", "up0"))
    assert network.other_interfaces((), []) == ((), ("m0", "up0"))
    mesh = desired(mesh_interfaces=("up0",), upstream_interfaces=("m0",), buys=True)
    line = by_name(mesh)["interface m0"]
    assert "upstream" in line.found and "10.99.0.0/16" in line.found and line.remedy.startswith("if your own hosts")
    assert by_name(mesh)["interface m1"].found == "upstream: LAN_INTERFACE doesn't name it"
    assert by_name(mesh)["interface m1x"].found == "upstream: has no address"
    named = by_name(desired(mesh_interfaces=("up0",), lan_interfaces=("m0",), upstream_interfaces=(), buys=True))
    assert named["interface m0"] == Check("interface m0", True, "LAN: LAN_INTERFACE names it")
    network.close()


def test_ports_of_a_bridge_are_of_its_class(hosts: Lab) -> None:
    sh("ip link add br0 type bridge && ip link set m1 master br0 && ip addr add 192.0.2.9/24 dev br0")
    sh("ip link set br0 up")
    network = Datapath(Path("/nowhere"))
    assert network.other_interfaces(("m0",), None)[0] == ("br0",)
    assert "interface m1" not in by_name(desired(mesh_interfaces=("m0",)))
    network.close()


def test_only_some_of_a_full_table_is_read(hosts: Lab, host: Host, tmp_path: Path) -> None:
    batch = tmp_path / "routes"
    rows = (f"route add 203.{high}.{low}.0/24 via {INTERNET[4]}" for high in range(80) for low in range(250))
    batch.write_text("\n".join(rows))
    sh(f"ip -batch {batch}")
    read = list[bytes]()
    really = rtnetlink.prefix_of

    def count(version: int, message: bytes) -> Prefix:
        read.append(message)
        return really(version, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtnetlink, "prefix_of", count)
        assert [len(host.routes_beyond(name, (), 3)) for name in ("up0", "m1")] == [5, 0], "all two of IPv6"
    assert len(read) < 20, "neither others' routes nor all of its own"


def test_own_addresses(host: Host) -> None:
    wanted = {ip_address(text) for text in (*GATEWAY_TO_CLIENT.values(), *GATEWAY_TO_INTERNET.values())}
    assert set(host.local_addresses()) == wanted
    sh("ip addr add 192.0.2.1 peer 192.0.2.2 dev m1")
    assert set(host.local_addresses()) - wanted == {ip_address("192.0.2.1")}


@pytest.mark.parametrize(
    ("destination", "prefix"),
    [
        ("192.0.2.5", "192.0.2.0/25"),
        ("192.0.2.200", "0.0.0.0/0"),
        ("10.77.1.9", None),
        ("2001:db8:5::1", "2001:db8:5::/48"),
        ("2001:db8:6::1", "::/0"),
        ("198.51.100.7", None),
        ("10.77.1.1", None),
        ("fd00:77:1::1", None),
    ],
)
def test_the_route_that_a_destination_takes(host: Host, destination: str, prefix: str | None) -> None:
    sh(f"ip route add 192.0.2.0/25 via {INTERNET[4]} && ip -6 route add 2001:db8:5::/48 via {INTERNET[6]}")
    sh("ip route add unreachable 198.51.100.0/24")
    assert host.route_prefix(ip_address(destination)) == (ip_network(prefix) if prefix else None)


def test_no_route_at_all_and_a_reopened_one(host: Host) -> None:
    sh("ip -6 route del default")
    destination = ip_address("2001:db8::1")
    assert host.route_prefix(destination) is None
    sh(f"ip -6 route add 2001:db8::/32 via {INTERNET[6]}")
    assert host.route_prefix(destination) is None, "remembered for a few seconds"
    host.forget()
    assert host.route_prefix(destination) == ip_network("2001:db8::/32")


def test_many_changes_ring_once_and_answers_are_fresh(host: Host) -> None:
    async def body() -> None:
        rings: asyncio.Queue[None] = asyncio.Queue()
        destination = ip_address("203.0.113.9")
        assert host.route_prefix(destination) == ip_network("0.0.0.0/0")
        host.watch(asyncio.get_running_loop(), lambda: rings.put_nowait(None), pause_s=0.3)
        adds = " && ".join(f"ip route add 203.0.{third}.0/24 via {INTERNET[4]}" for third in range(100, 120))
        sh(adds)
        await asyncio.wait_for(rings.get(), 60)
        assert rings.empty() and host.route_prefix(destination) == ip_network("203.0.113.0/24")
        for change in ("ip link set m1 down", "ip addr add 192.0.2.9/32 dev m0", "ip link del m1"):
            sh(change)
            await asyncio.wait_for(rings.get(), 60)
        assert "m1" not in host.interfaces()

    asyncio.run(body())


def by_name(wanted: DesiredNetwork) -> dict[str, Check]:
    return {line.name: line for line in checks.check(wanted)}


def test_check_of_a_sound_gateway_touches_nothing(hosts: Lab) -> None:
    before = [sh("nft -s list ruleset"), xtables.legacy_tables(4), xtables.legacy_tables(6)]
    lines = by_name(desired())
    assert [line for line in lines.values() if not line.ok] == []
    assert lines["xt_bpf IPv4"].found == lines["NFQUEUE IPv6"].found == "works"
    assert "-s 10.77.1.0/24 -o up0 -j MASQUERADE" in lines["NAT on up0"].found
    assert [sh("nft -s list ruleset"), xtables.legacy_tables(4), xtables.legacy_tables(6)] == before


def test_check_without_rights_tries_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_holds", lambda _capability: False)
    lines = by_name(desired())
    needing = [f"{what} IPv{version}" for what in ("xt_bpf", "NFQUEUE") for version in (4, 6)]
    for name in (*needing, "flow offloading", "NAT on up0"):
        assert lines[name] == Check(name, False, "not tried: needs root", "sudo ngp check")
    assert lines["rights"].found == "missing: CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF or CAP_SYS_ADMIN"


def test_check_names_what_is_wrong_with_the_command_that_mends_it(hosts: Lab) -> None:
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    lines = by_name(desired(mesh_interfaces=("m1", "absent0")))
    assert lines["forwarding IPv4"].remedy == "sysctl -w net.ipv4.ip_forward=1"
    assert lines["forwarding IPv6"].remedy == "sysctl -w net.ipv6.conf.all.forwarding=1"
    assert not lines["interface absent0"].ok
    for name in ("forwarding IPv4", "forwarding IPv6"):
        sh(lines[name].remedy)
    sh("sysctl -w net/ipv4/conf/m0/forwarding=0 && iptables-nft -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    lines = by_name(desired())
    assert lines["forwarding IPv4"].remedy == "sysctl -w net/ipv4/conf/m0/forwarding=1"
    assert lines["forwarding IPv6"].ok and "MASQUERADE" in lines["NAT on up0"].found
    sh(lines["forwarding IPv4"].remedy)
    assert by_name(desired())["forwarding IPv4"].ok


def test_check_names_a_bridge_whose_own_frames_would_be_sold(hosts: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where br_netfilter is loaded; not every kernel has it, so its word is given."""
    sh("ip link add br0 type bridge && ip link set br0 up")
    really_read = checks._read_sysctl
    said = "1"
    monkeypatch.setattr(checks, "_read_sysctl", lambda key: said if key.startswith("bridge/") else really_read(key))
    line = by_name(desired(mesh_interfaces=("m0", "br0")))["interface br0"]
    with pytest.raises(KernelError, match=re.escape(f"interface br0: {line.found}; {line.remedy}")):
        checks.refuse(desired(mesh_interfaces=("m0", "br0")))
    both = "net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"
    assert not line.ok and line.remedy == f"sysctl -w {both}"
    said = "0"
    assert by_name(desired(mesh_interfaces=("m0", "br0")))["interface br0"].ok


FLOWTABLES = """{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"flowtable": {"family": "inet", "name": "fast",
 "table": "fw", "handle": 2, "hook": "ingress", "prio": 0, "dev": %s}}]}"""


@pytest.mark.parametrize("devices", ['["lan0", "m0"]', '"m0"'])
def test_check_refuses_flow_offloading(hosts: Lab, monkeypatch: pytest.MonkeyPatch, devices: str) -> None:
    """This kernel may lack flowtables, so nft's words are given; the words are those of nft 1.0.6."""
    really_run = xtables.run

    def answer(words: list[str], text: str = "") -> str:
        return FLOWTABLES % devices if "flowtables" in words else really_run(words, text)

    monkeypatch.setattr(checks, "run", answer)
    line = by_name(desired())["flow offloading"]
    assert not line.ok and "m0" in line.found and "nft delete flowtable inet fw fast" in line.remedy
    with pytest.raises(KernelError, match=re.escape(f"flow offloading: {line.found}; {line.remedy}")):
        checks.refuse(desired())
    checks.refuse(desired(mesh_interfaces=("m1",)))
    assert by_name(desired(mesh_interfaces=("m1",)))["flow offloading"].ok


BENEATH = {
    "port of a bridge": "ip link add x0 type bridge && ip link set m1 master x0",
    "macvlan's lower": "ip link add link m1 name x0 type macvlan",
    "port two below": "ip link add b0 type bridge && ip link set m1 master b0"
    " && ip link add link b0 name x0 type macvlan",
}


@pytest.mark.parametrize("laid", BENEATH.values(), ids=list(BENEATH))
@pytest.mark.parametrize("by", ["flowtable", "card"])
def test_check_refuses_flow_offloading_beneath_a_mesh_interface(
    hosts: Lab, monkeypatch: pytest.MonkeyPatch, laid: str, by: str
) -> None:
    """Offloaded at m1, which carries x0's packets; the words of nft and ethtool are given, as kernels differ."""
    sh(f"{laid}; sysctl -qew net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    really_run, really_find = xtables.run, checks.find_command

    def answer(words: list[str], text: str = "") -> str:
        if words[0] == "ethtool":
            return f"hw-tc-offload: {'on' if by == 'card' and words[-1] == 'm1' else 'off'}"
        flowtables = FLOWTABLES % '["m1", "up0"]' if by == "flowtable" else ""
        return flowtables if "flowtables" in words else really_run(words, text)

    monkeypatch.setattr(checks, "run", answer)
    monkeypatch.setattr(checks, "find_command", lambda name: name if name == "ethtool" else really_find(name))
    wanted = desired(mesh_interfaces=("x0",))
    line = by_name(wanted)["flow offloading"]
    assert not line.ok and "m1 (beneath x0)" in line.found and "up0" not in line.found
    assert line.remedy.startswith("nft delete flowtable inet fw fast" if by == "flowtable" else "ethtool -K m1 ")
    with pytest.raises(KernelError, match=re.escape(f"flow offloading: {line.found}")):
        checks.refuse(wanted)
    checks.refuse(desired(mesh_interfaces=("m0",)))


def test_check_says_what_it_can_not_see_without_nft(hosts: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nft" not in by_name(desired())
    found = checks.find_command
    monkeypatch.setattr(checks, "find_command", lambda name: None if name == "nft" else found(name))
    line = by_name(desired())["nft"]
    assert line.ok and "flow offloading" in line.found and line.remedy == "apt install nftables"


def test_check_asks_no_forwarding_of_who_only_buys(hosts: Lab) -> None:
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    line = by_name(desired(sells=False, buys=True))["forwarding IPv4"]
    assert line.ok and "SELL is no" in line.found and not line.remedy
    assert not by_name(desired())["forwarding IPv4"].ok


def test_check_says_for_each_mesh_network_whether_it_is_translated(hosts: Lab) -> None:
    sh(f"ip route add 10.99.0.0/16 via {CLIENT[4]} && ip route add 10.98.0.0/16 via {INTERNET[4]}")
    sh("iptables-nft -t nat -A POSTROUTING -s 10.77.1.0/24 -o up0 -j MASQUERADE")
    lines = by_name(desired())["NAT on up0"].found.splitlines()
    assert lines[0].startswith("10.77.1.0/24 translated: -A POSTROUTING")
    assert lines[1].startswith("10.99.0.0/16 routed as it is") and "-s 10.99.0.0/16 -o up0 -j MASQUERADE" in lines[1]
    assert lines[2].startswith("fd00:77:1::/64 routed as it is") and "ip6tables" in lines[2]
    assert len(lines) == 3
    sh(lines[1].partition("run: ")[2])
    assert "10.99.0.0/16 translated" in by_name(desired())["NAT on up0"].found
    assert "NAT on up0" not in by_name(desired(sells=False, buys=True))


def test_check_asks_the_kernel_for_the_way_back(hosts: Lab) -> None:
    line = by_name(desired())["way back to m0"]
    assert line.ok and line.found == "10.77.1.0/24, fd00:77:1::/64"
    sh("ip route add 10.77.1.0/25 dev up0")
    line = by_name(desired())["way back to m0"]
    assert not line.ok and line.found == "10.77.1.0/24 goes to up0" and "ip route get 10.77.1." in line.remedy
    sh("ip route replace unreachable 10.77.1.0/25")
    assert "10.77.1.0/24 goes to nowhere" in by_name(desired())["way back to m0"].found


def test_check_says_what_is_let_through_for_payment(hosts: Lab) -> None:
    tcp = socket.IPPROTO_TCP
    addresses = (INTERNET[4], CLIENT[6], GATEWAY_TO_CLIENT[4], "10.99.0.1")
    rules = [FreeRule(ip_network(address), tcp, 9735) for address in addresses]
    services, own = (*rules[:2], rules[3]), (rules[2],)
    sh("ip route add unreachable 10.99.0.0/16")
    told = by_name(desired(services=services, own_services=own))
    lines = [told[f"payment service {address} tcp 9735"] for address in addresses]
    assert [line.ok for line in lines] == [True, False, True, False]
    here = "is on this router: what goes to and from this port is held to 32 kB/s for each"
    says = ("uncharged, 32 kB/s for each; by up0", "where nothing is bought", here, "is not routed")
    assert all(words in line.found for words, line in zip(says, lines, strict=True))
    assert "ip route get fd00:77:1::2" in lines[1].remedy
    bought = by_name(desired(services=services, buys=True))[f"payment service {CLIENT[6]} tcp 9735"]
    assert bought.ok and "as the neighbour there lets us through" in bought.found
    buyer = desired(services=services, own_services=own, sells=False, buys=True)
    assert not [name for name in by_name(buyer) if "service" in name]


def test_check_looks_for_a_way_into_the_mesh_where_ngp_buys(hosts: Lab) -> None:
    buyer = desired(sells=False, buys=True, upstream_interfaces=())
    line = by_name(buyer)["way out"]
    assert not line.ok and "IPv4 by up0, not a mesh interface" in line.found and "dev m0" in line.remedy
    sh("ip route del default && ip -6 route del default")
    line = by_name(buyer)["way out"]
    assert not line.ok and line.found == "IPv4 none; IPv6 none"
    sh(f"ip route add 10.99.0.0/16 via {CLIENT[4]}")
    assert by_name(buyer)["way out"].ok
    sh(f"ip route add default via {CLIENT[4]}")
    line = by_name(buyer)["way out"]
    assert line.ok and line.found == "IPv4 by m0; IPv6 none"
    assert "way out" not in by_name(desired(sells=False, buys=True))


def test_check_names_an_uplink_that_was_taken_for_a_mesh_interface(hosts: Lab) -> None:
    wanted = desired(mesh_interfaces=("m0", "up0"), upstream_interfaces=())
    line = by_name(wanted)["way out by up0"]
    assert not line.ok and line.found.startswith("IPv4 and IPv6 by up0, a mesh interface, where nothing is bought")
    assert line.remedy.startswith("put up0 into IGNORE_INTERFACE")
    sh(f"ip route add default via {CLIENT[4]} metric 9 && ip -6 route del default")
    wanted = desired(mesh_interfaces=("m0",))  # only where the other one fails
    line = by_name(wanted)["way out by m0"]
    assert line.ok and line.found.startswith("IPv4 by m0") and "m0 into IGNORE_INTERFACE" in line.remedy
    sh(f"ip -6 route add default via {CLIENT[6]}")
    assert not by_name(wanted)["way out by m0"].ok
    assert not [name for name in by_name(desired(mesh_interfaces=("m1",))) if "way out" in name]
    assert not [name for name in by_name(desired(sells=False)) if "way out" in name]


def test_check_asks_of_a_middle_node_whether_its_way_out_is_bought(hosts: Lab) -> None:
    middle = desired(mesh_interfaces=("m0", "up0"), upstream_interfaces=(), buys=True)
    line = by_name(middle)["way out"]
    assert line == Check("way out", True, "IPv4 by up0; IPv6 by up0")
    sh("iptables-nft -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    line = by_name(middle)["way out"]
    assert line.ok and "translated out of up0" in line.found and line.remedy.startswith("put up0 into IGNORE_INTERFACE")
    assert not by_name(desired(mesh_interfaces=("up0",), upstream_interfaces=(), buys=True))["way out"].remedy
    buyer = desired(mesh_interfaces=("m0", "up0"), upstream_interfaces=(), buys=True, sells=False)
    assert not by_name(buyer)["way out"].remedy


@pytest.mark.parametrize(
    ("rule", "network", "interface", "said"),
    [
        ("-A POSTROUTING -j MASQUERADE", "10.1.0.0/16", "up0", "translated: "),
        ("-A POSTROUTING -o up+ -j SNAT --to-source 192.0.2.1", "10.1.0.0/16", "up0", "translated: "),
        ("-A POSTROUTING -o wan0 -j MASQUERADE", "10.1.0.0/16", "up0", ""),
        ("-A POSTROUTING ! -o up0 -j MASQUERADE", "10.1.0.0/16", "up0", ""),
        ("-A POSTROUTING -s 10.0.0.0/8 -o up0 -j MASQUERADE", "10.1.0.0/16", "up0", "translated: "),
        ("-A POSTROUTING -s 10.1.2.0/24 -o up0 -j MASQUERADE", "10.1.0.0/16", "up0", "translated in part"),
        ("-A POSTROUTING ! -s 10.1.0.0/16 -o up0 -j MASQUERADE", "10.1.0.0/16", "up0", ""),
        ('-A POSTROUTING -o up0 -m comment --comment "to -s all" -j MASQUERADE', "10.1.0.0/16", "up0", "translated: "),
        ("-A POSTROUTING -o up0 -m mark --mark 0x1 -j MASQUERADE", "10.1.0.0/16", "up0", "translated in part"),
        ("-A zone_wan -o up0 -j MASQUERADE", "10.1.0.0/16", "up0", "translated in part"),
        ("-A POSTROUTING -o up0 -j ACCEPT", "10.1.0.0/16", "up0", ""),
        ("-A POSTROUTING -j MASQUERADE", "fd00::/64", "up0", ""),
    ],
)
def test_nat_rules_of_iptables(rule: str, network: str, interface: str, said: str) -> None:
    found = nat.of_network(nat.parse_saved(["*nat", rule], 4), ip_network(network), interface)
    assert found.startswith(said) and bool(found) == bool(said)


@pytest.mark.parametrize(
    ("rule", "network", "said"),
    [
        ("masquerade", "10.1.0.0/16", "translated: "),
        ('oifname "up0" counter packets 6 bytes 480 masquerade', "fd00::/64", "translated: "),
        ('oifname { "up0", "wan*" } ip saddr 10.0.0.0/8 masquerade random', "10.1.0.0/16", "translated: "),
        ('oifname != "up0" masquerade', "10.1.0.0/16", ""),
        ("ip saddr { 10.2.0.0/16, 10.3.0.0/16 } oif up0 snat to 192.0.2.1", "10.1.0.0/16", ""),
        ("ip saddr @mesh snat to 192.0.2.1", "10.1.0.0/16", "translated in part"),
        ("ip saddr 10.1.2.0-10.1.2.9 masquerade", "10.1.0.0/16", "translated in part"),
        ("meta nfproto ipv4 masquerade", "fd00::/64", ""),
        ("tcp dport 80 masquerade", "10.1.0.0/16", "translated in part"),
        ('oifname "up0" counter packets 6 bytes 480 xt target "MASQUERADE"', "10.1.0.0/16", ""),
    ],
)
def test_nat_rules_of_nft(rule: str, network: str, said: str) -> None:
    text = f"table inet fw {{\n\tchain post {{\n\t\ttype nat hook postrouting priority srcnat;\n\t\t{rule}\n\t}}\n}}\n"
    found = nat.of_network(nat.parse_ruleset(text), ip_network(network), "up0")
    assert found.startswith(said) and bool(found) == bool(said)
    other = text.replace("type nat hook postrouting priority srcnat;", "")
    assert not nat.of_network(nat.parse_ruleset(other), ip_network(network), "up0").startswith("translated:")


def test_check_refuses_a_path_that_iptables_would_misread(hosts: Lab, tmp_path: Path) -> None:
    lines = {line.name: line for line in Datapath(tmp_path / "a b").check(desired())}
    assert not lines["gate"].ok and "a b" in lines["gate"].found and "STATE_DIR" in lines["gate"].found


def test_check_names_interfaces_that_do_not_exist(hosts: Lab, tmp_path: Path) -> None:
    text = "MESH_INTERFACES: [m0, m7, 'wg*', 'm?']\nIGNORE_INTERFACE: [up0, up7]\n"
    (tmp_path / "net.conf").write_text(text)
    network = Datapath(tmp_path)
    lines = {line.name: line for line in missing_names(load(tmp_path / "net.conf"), existing(network))}
    network.close()
    assert {name: line.ok for name, line in lines.items()} == {
        "interface m7": False,
        "interface wg*": True,
        "interface up7": False,
    }
    assert lines["interface up7"].remedy.startswith("correct IGNORE_INTERFACE")


def test_a_start_sees_what_may_come_later(hosts: Lab, tmp_path: Path) -> None:
    text = "MESH_INTERFACES: [m0, 'tun*', wlan7]\nIGNORE_INTERFACE: [up0, wan7]\nBUY: no\n"
    settings, network, links = parse(text, tmp_path / "net.conf"), Datapath(tmp_path), [UdpLink()]

    def lacks() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in checkup.lacks(settings, network, links, look_at_host(settings, network)):
            found.setdefault(line.name, []).append(line.found)
        return found

    wrong = {
        "interface wlan7": ["MESH_INTERFACES: no interface has this name"],
        "interface wan7": ["IGNORE_INTERFACE: no interface has this name"],
    }
    assert lacks() == wrong
    sh("sysctl -qw net.ipv4.ip_forward=0 && ip tuntap add dev tun0 mode tun && ip link set m0 down")
    unreachable = "can't be found: the interface has no address to ask with"
    wrong |= {"interface m0": ["is down"], "interface tun0": ["is down"], "neighbour on tun0": [unreachable]}
    wrong |= {"way back to m0": ["10.77.1.0/24 goes to up0"]}
    assert lacks() == wrong | {"forwarding IPv4": ["off: net.ipv4.ip_forward"]}
    settings = parse("MESH_INTERFACES: wlan7\nIGNORE_INTERFACE: up0\nSELL: no\n", tmp_path / "net.conf")
    assert lacks() == {"interface wlan7": wrong["interface wlan7"]}
    network.close()


def test_what_a_start_sees_is_bounded_in_time_and_number(hosts: Lab, tmp_path: Path) -> None:
    names = [f"wlan{number}" for number in range(100)]
    settings, network = parse(f"MESH_INTERFACES: {names}\n", tmp_path / "net.conf"), Datapath(tmp_path)
    lines = checkup.lacks(settings, network, [], desired(mesh_interfaces=tuple(names)))
    assert len(lines) == checkup.MOST_LACKS + 1 and lines[-1].name == "and more"
    assert len(checks.look(desired(mesh_interfaces=("m0", "m1")), 0.0)) == 1, "as far as the time goes"
    network.close()


def test_ports_are_left_out_of_the_mesh_and_refused_by_name(hosts: Lab, tmp_path: Path) -> None:
    """The bridge stands for bond and team, which not every kernel has."""
    sh("ip link add br0 type bridge && ip link set m1 master br0 && ip link add mac0 link m0 type macvlan")
    network = Datapath(tmp_path)
    assert network.mesh_interfaces(("all",), ("up0", "m1x")) == ("br0", "m0", "mac0")
    assert network.mesh_interfaces(("m*",), ("m1x",)) == ("m0", "mac0")
    assert network.mesh_interfaces(("m1",), ()) == ("br0",), "a name may become a port while ngp runs"
    assert network.mesh_interfaces(("m1",), ("br0",)) == ()
    for written, by_name in (("all", False), ("'m*'", False), ("[m0, m1]", True)):
        settings = parse(f"MESH_INTERFACES: {written}\nIGNORE_INTERFACE: [up0, m1x]\n", tmp_path / "net.conf")
        (line,) = left_out(settings, network)
        assert line.name == "interface m1" and line.ok is not by_name and "port of the bridge br0" in line.found
        assert "put br0 into" in line.remedy and "nomaster" in line.remedy if written != "all" else not line.remedy
        assert not missing_names(settings, existing(network))
        if by_name:
            with pytest.raises(ConfigError, match="interface m1: .*port of the bridge br0.*nomaster"):
                refuse(settings, network, desired())
        else:
            refuse(settings, network, desired())
    for written, ignored, warned in (("m*", "m1x", True), ("[br0, 'm*']", "m1x", False), ("m*", "[br0, m1x]", False)):
        written = written if written.startswith("[") else f"'{written}'"
        settings = parse(f"MESH_INTERFACES: {written}\nIGNORE_INTERFACE: {ignored}\n", tmp_path / "net.conf")
        (line,) = left_out(settings, network)  # what arrives on br0 is forwarded, and nothing gates it
        assert line.ok and ("put br0 into MESH_INTERFACES" in line.remedy) is warned
    network.close()


@pytest.mark.parametrize(
    ("written", "named"),
    [("m1", {"interface m1"}), ("m7", {"interface m7"}), ("'m1*'", {"mesh interfaces"}), ("m0", set())],
    ids=["port", "missing", "pattern", "sound"],
)
def test_what_leaves_no_mesh_interface_is_told_once(hosts: Lab, tmp_path: Path, written: str, named: set[str]) -> None:
    sh("ip link add br0 type bridge && ip link set m1 master br0")
    network = Datapath(tmp_path)
    text = f"MESH_INTERFACES: {written}\nIGNORE_INTERFACE: [up0, br0, m1x, up7]\n"
    settings = parse(text, tmp_path / "net.conf")
    mesh = network.mesh_interfaces(settings.mesh_interfaces, settings.ignore_interfaces)
    lines = named_interfaces(settings, network, mesh)
    missing = {line.name: line for line in [*lines, *network.check(desired(mesh_interfaces=mesh))] if not line.ok}
    assert missing.keys() == {*named, "interface up7"}
    assert [line.kind for name, line in missing.items() if name == "interface m1"] in ([], ["configuration"])
    network.close()


def test_entries_for_an_interface_where_no_neighbour_is_are_a_warning(hosts: Lab, tmp_path: Path) -> None:
    prices = "".join(
        f"  - {{prefix: 198.51.100.{number}/32, sell: 6 msat{f', interface: {name}' if name else ''}}}\n"
        for number, name in enumerate(("m0", "m7", "up0", ""))
    )
    text = (
        f"MESH_INTERFACES: m0\nIGNORE_INTERFACE: up0\nNGP_INTERFACE: ['fe80::1%m0', 'fe80::2%m8', 192.0.2.1]\n"
        f"PRICES:\n{prices}"
    )
    network = Datapath(tmp_path)
    found = named_interfaces(parse(text, tmp_path / "net.conf"), network, ("m0",))
    network.close()
    assert [(line.name, line.ok) for line in found] == [(f"interface {name}", True) for name in ("m7", "up0", "m8")]
    assert [line.found for line in found] == [
        "PRICES: the entry for 198.51.100.1/32 is for it alone, and no interface has this name",
        "PRICES: the entry for 198.51.100.2/32 is for it alone, and it is no mesh interface",
        "NGP_INTERFACE: fe80::2%m8 is for it alone, and no interface has this name",
    ]
    assert all(line.remedy.startswith(f"correct {line.found.partition(':')[0]}: ") for line in found)


def test_fallback_tunnels_are_meant_by_their_names_alone(
    hosts: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of the tests may have no tunnels: a veth stands for one, under its name."""
    sh("ip link add tunl0 type veth peer name far0 && ip link del m1")
    monkeypatch.setattr(layers, "_FALLBACKS", {"tunl0": "veth"})
    network, ignored = Datapath(tmp_path), ("up0", "far0")
    assert network.mesh_interfaces(("all",), ignored) == network.mesh_interfaces(("m0", "tunl*"), ignored) == ("m0",)
    assert network.mesh_interfaces(("m0", "tunl0"), ignored) == ("m0", "tunl0")
    assert not network.left_out(("tunl0",), ()) and not network.left_out(("all",), ("tunl0",))
    for written in ("all", "[m0, 'tunl*']"):
        settings = parse(f"MESH_INTERFACES: {written}\nIGNORE_INTERFACE: [up0, far0]\n", tmp_path / "net.conf")
        (line,) = left_out(settings, network)
        assert line.name == "interface tunl0" and line.ok and not line.remedy
        assert line.found.startswith("left out of MESH_INTERFACES: is the fallback tunnel")
        assert not missing_names(settings, existing(network))
    sh("ip link set tunl0 up")
    network.close()
    network = Datapath(tmp_path)
    assert network.mesh_interfaces(("all",), ignored) == ("m0", "tunl0") and not network.left_out(("all",), ignored)
    network.close()


@pytest.mark.parametrize("uplink", [True, False], ids=["uplink", "neither"])
def test_an_ungated_interface_on_a_mesh_interfaces_wire_is_worth_a_word(hosts: Lab, uplink: bool) -> None:
    sh("ip link add mac0 link m0 type macvlan")
    wanted = desired(upstream_interfaces=("mac0",) if uplink else ())
    line = by_name(wanted)["interface m0"]
    assert line.ok and "mac0" in line.found and "VLAN" in line.remedy
    sh(line.remedy.rpartition("at least: ")[2])  # else m0 answers for mac0, and what is for mac0 comes in by m0
    assert "arp_ignore" not in by_name(wanted)["interface m0"].remedy
    assert not by_name(desired(mesh_interfaces=("m0", "mac0")))["interface m0"].remedy
