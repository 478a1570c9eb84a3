"""What `ngp check` reports about gating on this host, each with the command that mends it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from kernel_lab import CLIENT, GATEWAY_TO_CLIENT, INTERNET, Lab, by_name, desired, gateway, sh

from ngp.core.values import Check
from ngp.errors import KernelError
from ngp.modules.network import check as checks
from ngp.modules.network import offloading, rights, xtables
from ngp.modules.network.datapath import Datapath
from ngp.ports.network import FreeRule, LetTraffic


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with gateway() as built:
        yield built


def test_check_of_a_sound_gateway_touches_nothing(hosts: Lab) -> None:
    before = [sh("nft -s list ruleset"), xtables.legacy_tables(4), xtables.legacy_tables(6)]
    lines = by_name(desired())
    assert [line for line in lines.values() if not line.ok] == []
    assert lines["xt_bpf IPv4"].found == lines["NFQUEUE IPv6"].found == "works"
    assert "-s 10.77.1.0/24 -o up0 -j MASQUERADE" in lines["NAT on up0"].found
    assert [sh("nft -s list ruleset"), xtables.legacy_tables(4), xtables.legacy_tables(6)] == before


def test_check_without_rights_tries_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "holds", lambda _capability: False)
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
    sh("sysctl -qw net.ipv6.conf.all.forwarding=0")  # a host without IPv6 needn't have it
    without = by_name(desired())["forwarding IPv6"].remedy
    assert without.startswith("sysctl -w net.ipv6.conf.all.forwarding=1; or NETWORK_INTERFACE: ip4")
    alone = by_name(desired(families=frozenset({6})))["forwarding IPv6"].remedy
    assert alone == "sysctl -w net.ipv6.conf.all.forwarding=1"
    sh(alone)
    sh("sysctl -w net/ipv4/conf/m0/forwarding=0 && iptables-nft -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    lines = by_name(desired())
    assert lines["forwarding IPv4"].remedy == "sysctl -w net/ipv4/conf/m0/forwarding=1"
    assert lines["forwarding IPv6"].ok and "MASQUERADE" in lines["NAT on up0"].found
    sh(lines["forwarding IPv4"].remedy)
    assert by_name(desired())["forwarding IPv4"].ok


def test_check_names_a_bridge_whose_own_frames_would_be_sold(hosts: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test writes the sysctls of br_netfilter itself, as not every kernel has that module."""
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
    """This kernel may lack flowtables, so the test feeds in an output of nft 1.0.6."""
    really_run = xtables.run

    def answer(words: list[str], text: str = "") -> str:
        return FLOWTABLES % devices if "flowtables" in words else really_run(words, text)

    monkeypatch.setattr(xtables, "run", answer)
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
    """Flows are offloaded at m1, which carries x0's packets. The outputs of nft and ethtool are fed in by the test."""
    sh(f"{laid}; sysctl -qew net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    really_run, really_find = xtables.run, checks.find_command

    def answer(words: list[str], text: str = "") -> str:
        if words[0] == "ethtool":
            return f"hw-tc-offload: {'on' if by == 'card' and words[-1] == 'm1' else 'off'}"
        flowtables = FLOWTABLES % '["m1", "up0"]' if by == "flowtable" else ""
        return flowtables if "flowtables" in words else really_run(words, text)

    monkeypatch.setattr(xtables, "run", answer)
    monkeypatch.setattr(offloading, "find_command", lambda name: name if name == "ethtool" else really_find(name))
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


def test_check_asks_no_forwarding_of_a_client_that_only_buys(hosts: Lab) -> None:
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    line = by_name(desired(sells=False, buys=True))["forwarding IPv4"]
    assert line.ok and "SELL is no" in line.found and not line.remedy
    assert not by_name(desired())["forwarding IPv4"].ok


def test_check_asks_forwarding_of_a_landlord_without_mesh_only_for_what_it_lets(hosts: Lab) -> None:
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    pools = (ip_network("2001:db8:100::/56"),)
    let = LetTraffic("up0", tunnel_port=51820, tunnel_versions=frozenset(), faces=(), pools=pools)
    lines = by_name(desired(mesh_interfaces=(), let=let))
    line = lines["forwarding IPv4"]
    assert line.ok and "no IPv4 is let" in line.found and not line.remedy
    assert not lines["forwarding IPv6"].ok
    assert not by_name(desired(let=let))["forwarding IPv4"].ok, "neighbours send IPv4 through it"


def test_check_warns_a_router_that_sells_nothing_of_neighbours_that_send_through_it(hosts: Lab) -> None:
    buyer = desired(sells=False, buys=True, mesh_interfaces=("m0",))
    for version in (4, 6):
        line = by_name(buyer)[f"transit IPv{version}"]
        assert line.ok and "at your expense, from m0" in line.found
        sh(line.remedy.partition(";")[0])
        assert f"transit IPv{version}" not in by_name(buyer)
    assert not [name for name in by_name(desired()) if "transit" in name]
    sh("sysctl -qw net.ipv4.ip_forward=0 && iptables-nft -F FORWARD")
    assert "transit IPv4" not in by_name(buyer)


def test_check_says_for_each_mesh_network_whether_it_is_translated(hosts: Lab) -> None:
    sh(f"ip route add 10.99.0.0/16 via {CLIENT[4]} && ip route add 10.98.0.0/16 via {INTERNET[4]}")
    sh("iptables-nft -t nat -A POSTROUTING -s 10.77.1.0/24 -o up0 -j MASQUERADE")
    lines = by_name(desired())["NAT on up0"].found.splitlines()
    assert lines[0].startswith("10.77.1.0/24 translated: -A POSTROUTING")
    assert lines[1].startswith("10.99.0.0/16 isn't translated") and "-s 10.99.0.0/16 -o up0 -j MASQUERADE" in lines[1]
    assert lines[2].startswith("fd00:77:1::/64 isn't translated") and "ip6tables" in lines[2]
    assert len(lines) == 3
    sh(lines[1].partition("run: ")[2])
    assert "10.99.0.0/16 translated" in by_name(desired())["NAT on up0"].found
    assert "NAT on up0" not in by_name(desired(sells=False, buys=True))
    sh("ip link add ngp-let type veth peer name let0 && ip link set ngp-let up")
    sh("ip route add 198.51.100.7/32 dev ngp-let")
    assert "NAT on ngp-let" not in by_name(desired(upstream_interfaces=("ngp-let", "up0"), tunnel="ngp-let"))


def test_check_warns_of_private_networks_that_are_not_translated(hosts: Lab) -> None:
    line = by_name(desired())["NAT on up0"]
    assert line.ok and line.remedy.startswith("iptables -t nat -A POSTROUTING -s 10.77.1.0/24 -o up0 -j MASQUERADE; or")
    sh("iptables-nft -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    sh("ip6tables-nft -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    assert not by_name(desired())["NAT on up0"].remedy
    sh(f"ip route add 198.51.100.0/24 via {CLIENT[4]};iptables-nft -t nat -R POSTROUTING 1 -s 10.0.0.0/8 -j MASQUERADE")
    line = by_name(desired())["NAT on up0"]
    assert "198.51.100.0/24 isn't translated" in line.found and not line.remedy  # public networks may be routed to us


def test_check_tells_a_buyer_that_its_lan_needs_a_way_back(hosts: Lab) -> None:
    buyer = desired(sells=False, buys=True, upstream_interfaces=(), lan_interfaces=("up0",))
    line = by_name(buyer)["NAT on m0"]
    assert line.ok and "fine if the neighbour routes it back to us" in line.found
    assert "-o m0 -j MASQUERADE" in line.remedy
    sh("iptables-nft -t nat -A POSTROUTING -o m0 -j MASQUERADE;ip6tables-nft -t nat -A POSTROUTING -o m0 -j MASQUERADE")
    assert not by_name(buyer)["NAT on m0"].remedy
    assert "NAT on m0" not in by_name(desired(sells=False, buys=True))


def test_check_tells_a_seller_that_no_route_leads_upstream(hosts: Lab) -> None:
    seller = desired(upstream_interfaces=())
    assert "way out" not in by_name(seller)
    sh("ip route del default && ip -6 route del default")
    line = by_name(seller)["way out"]
    assert line.ok and "no route leads upstream" in line.found and "ip route add default" in line.remedy
    assert by_name(desired(upstream_interfaces=("ngp-let",), tunnel="ngp-let"))["way out"] == line


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
    here = "is on this router: traffic with this port is limited to 32 kB/s for each"
    says = ("uncharged, 32 kB/s for each; by up0", "but BUY is no", here, "is not routed")
    assert all(words in line.found for words, line in zip(says, lines, strict=True))
    assert "ip route get fd00:77:1::2" in lines[1].remedy
    bought = by_name(desired(services=services, buys=True))[f"payment service {CLIENT[6]} tcp 9735"]
    assert bought.ok and "needs a neighbour there that lets us through" in bought.found
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


def test_check_misses_a_default_route_that_is_to_be_bought_as_a_whole(hosts: Lab) -> None:
    buyer = desired(sells=False, buys=True, buys_default_route=True)
    assert "none leads into the mesh" in by_name(buyer)["default route"].found
    sh(f"ip route add 0.0.0.0/1 via {CLIENT[4]}")
    assert by_name(buyer)["default route"].remedy
    sh(f"ip route replace default via {CLIENT[4]}")
    assert "default route" not in by_name(buyer)
    assert "default route" not in by_name(desired(sells=False, buys=True))


def test_check_names_an_uplink_that_was_taken_for_a_mesh_interface(hosts: Lab) -> None:
    wanted = desired(mesh_interfaces=("m0", "up0"), upstream_interfaces=())
    line = by_name(wanted)["way out by up0"]
    assert line.ok and line.found.startswith("IPv4 and IPv6 by up0, a mesh interface, but BUY is no")
    assert line.remedy.startswith("put up0 into IGNORE_INTERFACE")
    sh(f"ip route add default via {CLIENT[4]} metric 9 && ip -6 route del default")
    wanted = desired(mesh_interfaces=("m0",))  # m0 is used only if up0's route fails
    line = by_name(wanted)["way out by m0"]
    assert line.ok and line.found.startswith("IPv4 by m0") and "m0 into IGNORE_INTERFACE" in line.remedy
    sh(f"ip -6 route add default via {CLIENT[6]}")
    assert by_name(wanted)["way out by m0"].found.startswith("IPv4 and IPv6 by m0")
    assert not [name for name in by_name(desired(mesh_interfaces=("m1",))) if "way out" in name]
    assert not [name for name in by_name(desired(sells=False)) if "way out" in name]


def test_check_asks_of_a_middle_node_whether_its_way_out_is_bought(hosts: Lab) -> None:
    middle = desired(mesh_interfaces=("m0", "up0"), upstream_interfaces=(), buys=True)
    line = by_name(middle)["way out"]
    assert line == Check("way out", True, "IPv4 by up0; IPv6 by up0")
    sh("iptables-nft -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    line = by_name(middle)["way out"]
    assert line.ok and "traffic on up0:" in line.found and line.remedy.startswith("put up0 into IGNORE_INTERFACE")
    assert not by_name(desired(mesh_interfaces=("up0",), upstream_interfaces=(), buys=True))["way out"].remedy
    buyer = desired(mesh_interfaces=("m0", "up0"), upstream_interfaces=(), buys=True, sells=False)
    assert not by_name(buyer)["way out"].remedy


def test_check_refuses_a_path_that_iptables_would_misread(hosts: Lab, tmp_path: Path) -> None:
    lines = {line.name: line for line in Datapath(tmp_path / "a b").check(desired())}
    assert not lines["gate"].ok and "a b" in lines["gate"].found and "STATE_DIR" in lines["gate"].found


@pytest.mark.parametrize("uplink", [True, False], ids=["uplink", "neither"])
def test_an_ungated_interface_on_a_mesh_interfaces_wire_is_worth_a_word(hosts: Lab, uplink: bool) -> None:
    sh("ip link add mac0 link m0 type macvlan")
    wanted = desired(upstream_interfaces=("mac0",) if uplink else ())
    line = by_name(wanted)["interface m0"]
    assert line.ok and "mac0" in line.found and "VLAN" in line.remedy
    sh(line.remedy.rpartition("at least: ")[2])  # otherwise m0 answers for mac0, and packets to mac0 arrive on m0
    assert "arp_ignore" not in by_name(wanted)["interface m0"].remedy
    assert not by_name(desired(mesh_interfaces=("m0", "mac0")))["interface m0"].remedy
