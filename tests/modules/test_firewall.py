"""What `ngp check` says of an operator's firewall that drops what the gate sells: on the real kernel's rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest
from kernel_lab import INTERNET, Lab, by_name, desired, dropped, gateway, passes, sh

from ngp.core.values import Check
from ngp.modules.network import check as checks
from ngp.ports.network import LetTraffic

# As Docker 24 leaves them; the last line of each is what its guide says to add for other forwarding.
DOCKER = """
iptables -P FORWARD DROP
for chain in DOCKER DOCKER-USER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do iptables -N $chain; done
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -o docker0 -j DOCKER
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN
iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN
iptables -A DOCKER-USER -j RETURN
"""
UFW = """
iptables -P FORWARD DROP
for chain in ufw-before-forward ufw-after-forward; do iptables -N $chain; iptables -A FORWARD -j $chain; done
iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
iptables -A ufw-before-forward -p udp -d 239.255.255.250 --dport 1900 -j ACCEPT
"""
# Like firewalld's, with the mesh in no zone that forwards.
FIREWALLD = """
nft -f - <<'END'
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 addr-unreachable
    jump filter_FORWARD_POLICIES
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_POLICIES {
    iifname "docker0" accept
    iifname { "virbr0", "wl*" } oifname "up0" jump allow
  }
  chain allow {
    accept
  }
}
END
"""


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with gateway() as built:
        yield built


def told(**changes: object) -> dict[str, Check]:
    """Return the warnings about the firewall; a start must find the same."""
    wanted = desired(**changes)

    def warnings(lines: Iterator[Check]) -> dict[str, Check]:
        return {line.name: line for line in lines if line.name.startswith(("firewall", "link ")) and line.remedy}

    lines = warnings(iter(by_name(wanted).values()))
    assert lines == warnings(iter(checks.look(wanted, 60.0)))
    return lines


def test_nothing_is_said_of_a_host_without_rules(hosts: Lab) -> None:
    assert told() == {}
    assert by_name(desired())["firewall IPv4"].ok


@pytest.mark.parametrize(
    ("rules", "version", "where"),
    [
        (DOCKER, 4, "chain FORWARD (iptables -t filter), by its policy"),
        (UFW, 4, "chain FORWARD (iptables -t filter), by its policy"),
        (FIREWALLD, 4, "nft chain filter_FORWARD (inet firewalld), by a rule"),
        ("ip6tables -A FORWARD -i m+ -o up0 -j REJECT", 6, "chain FORWARD (ip6tables -t filter), by a rule"),
        ("iptables -t raw -A PREROUTING -i m0 -j DROP", 4, "chain PREROUTING (iptables -t raw), by a rule"),
        (
            "nft add table netdev z && nft add chain netdev z i '{ type filter hook ingress device m0 priority 0; }'"
            " && nft add rule netdev z i meta protocol ip drop",
            0,
            "",
        ),
        (
            "nft add table ip z && nft add chain ip z f '{ type filter hook forward priority 7; policy drop; }'"
            " && nft add rule ip z f iifname m0 ct state new accept",
            4,
            "nft chain f (ip z), by its policy",
        ),
    ],
    ids=["Docker", "ufw", "firewalld", "reject", "raw", "not understood", "answers"],
)
def test_rules_that_drop_are_told_until_they_are_mended(hosts: Lab, rules: str, version: int, where: str) -> None:
    sh(rules)
    lines = told()
    if not version:
        assert lines == {}
        return
    assert set(lines) == ({"firewall IPv4", "firewall IPv6"} if rules == FIREWALLD else {f"firewall IPv{version}"})
    line = lines[f"firewall IPv{version}"]
    assert line.ok and where in line.found and "on m0" in line.found
    assert ("answers to neighbours" in line.found) == ("ct state new accept" in rules)
    if rules != UFW:  # which lets pings pass
        assert dropped(hosts.client, INTERNET[version])
    sh(line.remedy)
    assert "m0" not in told().get(line.name, Check("", True, "")).found
    assert told(mesh_interfaces=("m0",)) == {}
    assert passes(hosts.client, INTERNET[version])


@pytest.mark.parametrize(
    "rules",
    [
        f"{DOCKER}\niptables -I DOCKER-USER -i m0 -j ACCEPT && iptables -I DOCKER-USER -o m0 -j ACCEPT",
        "iptables -P FORWARD DROP && iptables -A FORWARD -i m+ -j ACCEPT"
        " && iptables -A FORWARD -m state --state ESTABLISHED -j ACCEPT",
        "iptables -P FORWARD DROP && iptables -A FORWARD -s 10.77.1.0/24 ! -d 10.0.0.0/8 -j ACCEPT"
        " && iptables -A FORWARD -d 10.77.1.0/24 -m comment --comment '-j DROP ! all' -j ACCEPT",
        "iptables -P FORWARD DROP && iptables -A FORWARD -m mark --mark 7 -j ACCEPT",
        "iptables -t raw -A PREROUTING -i up0 -d 10.0.0.0/8 -j DROP",  # forged addresses from upstream
        "iptables -A FORWARD -p tcp --dport 25 -j REJECT && iptables -A FORWARD -i m0 -o docker0 -j DROP",
        "nft add table inet z && nft add chain inet z f '{ type filter hook forward priority 0; policy drop; }' &&"
        " nft add rule inet z f ct state vmap '{ established : accept, related : accept, invalid : drop }' &&"
        ' nft add rule inet z f iifname vmap \'{ "m0" : accept, "lo" : drop }\'',
        "nft add table inet z && nft add chain inet z f '{ type filter hook forward priority 0; policy drop; }' &&"
        " nft add set inet z ours '{ type ifname; elements = { m0, up0 }; }' &&"
        " nft add rule inet z f iifname @ours accept",
        "nft add table inet z '{ flags dormant; }' &&"
        " nft add chain inet z f '{ type filter hook forward priority 0; policy drop; }'",
    ],
    ids=["Docker", "state", "networks", "mark", "forged", "others", "verdict map", "named set", "dormant"],
)
def test_rules_that_let_the_mesh_pass_are_no_reason_for_a_warning(hosts: Lab, rules: str) -> None:
    sh(rules)
    assert told(mesh_interfaces=("m0",)) == {}


@pytest.mark.parametrize("sells", [True, False])
def test_a_firewall_that_drops_the_links_messages(hosts: Lab, sells: bool) -> None:
    """A node that only buys needs them as much."""
    on = {"mesh_interfaces": ("m0",), "sells": sells, "buys": not sells}
    sh("iptables -P INPUT DROP && iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    assert told(**on) == {}  # neighbours find each other by IPv6
    sh("ip6tables -A INPUT -p udp --dport 10000:11000 -j DROP")
    (line,) = told(**on).values()
    assert line.ok and line.name == "link on m0" and "UDP port 10325" in line.found
    assert told(**on, link_protocols=()) == {}
    sh(line.remedy)
    assert told(**on) == {}
    sh("ip6tables -F && iptables -F && iptables -P INPUT ACCEPT")
    sh("nft add table inet z && nft add chain inet z i '{ type filter hook input priority 0; policy drop; }'")
    sh("nft add rule inet z i tcp dport 10325 accept && nft add rule inet z i udp dport { 53, 67-68 } accept")
    (line,) = told(**on).values()
    assert "nft chain i (inet z), by its policy" in line.found
    sh(line.remedy)
    assert told(**on) == {}


def test_a_firewall_that_drops_the_calls_of_neighbours(hosts: Lab) -> None:
    on = {"mesh_interfaces": ("m0",), "link_protocols": ("tcp",)}
    for command in ("iptables", "ip6tables"):
        sh(f"{command} -A INPUT -p tcp --dport 10000:11000 -j REJECT")
    (line,) = told(**on).values()
    assert line.name == "link on m0" and "TCP port 10325" in line.found
    sh(line.remedy)
    assert told(**on) == {}


def test_a_node_that_sells_nothing_is_told_nothing_of_forwarding(hosts: Lab) -> None:
    sh("iptables -P FORWARD DROP")
    assert set(told()) == {"firewall IPv4"}
    assert told(sells=False, buys=True) == {}
    sh("sysctl -qw net.ipv4.ip_forward=0")  # told by another line
    assert told() == {}


# --- tenants ----------------------------------------------------------------------------------------------------------

LET = LetTraffic(
    outside="up0",
    tunnel_port=51820,
    tunnel_versions=frozenset(),
    faces=(("0.0.0.0", 8443), ("fd00:77:2::1", 8443), ("10.77.2.1", 443), ("127.0.0.1", 8080)),
    pools=(ip_network("198.51.100.0/24"), ip_network("2001:db8:ffff::/56")),
)
ASKED_4 = {f"firewall IPv4 {each}" for each in ("UDP port 51820", "TCP port 443", "TCP port 8443")}
ASKED_6 = {f"firewall IPv6 {each}" for each in ("UDP port 51820", "TCP port 8443")}
REACHED_4, REACHED_6 = "firewall IPv4 to tenants", "firewall IPv6 to tenants"


def landlord(**changes: object) -> dict[str, Check]:
    """Return the warnings of a landlord without a mesh."""
    return told(**{"mesh_interfaces": (), "tunnel": "ngp-let", "let": LET, **changes})


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ("iptables -P INPUT DROP", ASKED_4),
        ("ip6tables -A INPUT -i up0 -m conntrack --ctstate NEW -j REJECT", ASKED_6),
        ("iptables -t raw -A PREROUTING -p udp -i up0 -j DROP", {"firewall IPv4 UDP port 51820"}),
        ("iptables -A INPUT -d 10.77.2.1 -p tcp --dport 443 -j DROP", {"firewall IPv4 TCP port 443"}),
        ("iptables -P FORWARD DROP", {REACHED_4}),
        (DOCKER, {REACHED_4}),
        (f"iptables -P INPUT DROP\n{UFW}", {*ASKED_4, REACHED_4}),
        ("ip6tables -A FORWARD -o up0 -j DROP", {REACHED_6}),
        ("iptables -A FORWARD -i up0 -o ngp-let -m conntrack --ctstate NEW -j DROP", {REACHED_4}),
        (
            "nft add table inet z"
            " && nft add chain inet z i '{ type filter hook input priority 0; policy drop; }'"
            " && nft add chain inet z f '{ type filter hook forward priority 0; policy drop; }'"
            " && nft add rule inet z i ct state established,related accept",
            {*ASKED_4, *ASKED_6, REACHED_4, REACHED_6},
        ),
    ],
    ids=["INPUT", "new", "raw", "face", "FORWARD", "Docker", "ufw", "up", "down", "nft"],
)
def test_rules_that_keep_tenants_out_are_told_until_they_are_mended(hosts: Lab, rules: str, named: set[str]) -> None:
    assert landlord() == {}
    sh(rules)
    lines = landlord()
    assert set(lines) == named
    assert all(line.ok and ("chain" in line.found) for line in lines.values())
    assert named <= set(landlord(mesh_interfaces=("m0", "m1"))), "a landlord with a mesh, too"
    for line in lines.values():
        sh(line.remedy)
    assert landlord() == {}


@pytest.mark.parametrize(
    ("rules", "changes"),
    [
        (
            "iptables -P INPUT DROP && iptables -P FORWARD DROP"
            " && iptables -A INPUT -p udp -m udp --dport 51820 -j ACCEPT"
            " && iptables -A INPUT -i up0 -p tcp -m multiport --dports 443,8443 -j ACCEPT"
            " && iptables -A FORWARD -i up0 -o ngp-let -j ACCEPT && iptables -A FORWARD -i ngp-let -o up0 -j ACCEPT",
            {},
        ),
        (
            "iptables -P FORWARD DROP && iptables -A FORWARD -d 198.51.100.0/24 -j ACCEPT"
            " && iptables -A FORWARD -s 198.51.100.0/24 -j ACCEPT",
            {},
        ),
        ("iptables -A FORWARD -i ngp-let ! -o up0 -m conntrack --ctstate NEW -j REJECT", {}),
        ("ip6tables -P INPUT DROP", {"let": replace(LET, tunnel_versions=frozenset({4}), faces=())}),
        ("iptables -P INPUT DROP && iptables -A INPUT -s 192.0.2.0/24 -j ACCEPT", {}),
        ("iptables -P FORWARD DROP", {"let": None}),
    ],
    ids=["ports", "pools", "the guide's", "another version", "can't be told", "nothing is let"],
)
def test_rules_that_let_tenants_pass_are_no_reason_for_a_warning(
    hosts: Lab, rules: str, changes: dict[str, object]
) -> None:
    sh(rules)
    assert landlord(**changes) == {}
