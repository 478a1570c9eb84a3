"""Rules that translate a network's addresses, as iptables and nft list them."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ngp.modules.network import nat


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
