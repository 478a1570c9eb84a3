"""The texts of rules and barrier, exactly."""

from __future__ import annotations

from configparser import ConfigParser
from ipaddress import ip_network
from pathlib import Path

from ngp.config.keys import ROUTE_PRIORITY, ROUTE_TABLE
from ngp.core.tenant.way import Way
from ngp.modules.network.forks import rules_for
from ngp.modules.routing_rules import Rule
from ngp.tenant import barrier, policy

LANDLORD = Way(ip_network("203.0.113.1"), "udp", 51820)
LAN = Way(ip_network("2001:db8:7::/64"))


def test_the_barrier() -> None:
    networks = [ip_network("198.51.100.1"), ip_network("2001:db8:100::/64")]
    expected = """
table inet ngp_rent
delete table inet ngp_rent
table inet ngp_rent {
chain beside {
oifname "lo" accept
oifname "sw_a" accept
ip daddr 198.51.100.1/32 accept
ip6 daddr 2001:db8:100::/64 accept
ip daddr 203.0.113.1/32 udp dport 51820 accept
ip6 daddr 2001:db8:7::/64 accept
ip daddr 192.0.2.9/32 meta l4proto tcp accept
udp sport 68 udp dport 67 accept
udp sport 546 udp dport 547 accept
udp sport 10325 udp dport 10325 ip ttl 255 accept
udp sport 10325 udp dport 10325 ip6 hoplimit 255 accept
icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
meta l4proto { tcp, udp } th dport { 53, 853 } drop
ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16, 224.0.0.0/24, 255.255.255.255 } accept
ip6 daddr { fe80::/10, fc00::/7, ff01::/16, ff02::/16 } accept
drop
}
chain forward {
type filter hook forward priority 10;
jump beside
}
chain postrouting {
type filter hook postrouting priority 290;
jump beside
}
}
"""
    ways = [LANDLORD, LAN, Way(ip_network("192.0.2.9"), "tcp"), LANDLORD]  # of two rentals, whose landlord is one
    assert barrier.table(["sw_a"], networks, ways) == expected.lstrip()


def test_systemd_sets_the_barrier_before_the_network_and_keeps_it_until_the_machine_is_off() -> None:
    """Without default dependencies only a conflict with shutdown.target stops it at a shutdown (systemd.unit(5))."""
    unit = ConfigParser(delimiters=["="], interpolation=None)
    unit.read(Path(__file__).parents[2] / "docs" / "ngp-rent@.service")
    assert (unit["Unit"]["DefaultDependencies"], unit["Unit"]["Before"]) == ("no", "network-pre.target")
    assert "Conflicts" not in unit["Unit"] and unit["Service"]["ExecStop"].startswith("/usr/local/bin/ngp rent down")


def test_the_rules() -> None:
    sources = policy.rules_of_sources([ip_network("198.51.100.1")], 7)
    assert [(one.version, one.words) for one in (*sources, *policy.rules_of_all(7, [LANDLORD, LAN]))] == [
        (4, "from all to 198.51.100.1/32 lookup 254 suppress_prefixlength 0 priority 10061 protocol 110"),
        (4, "from 198.51.100.1/32 lookup 7 priority 10062 protocol 110"),
        (4, "from all to 203.0.113.1/32 ipproto 17 dport 51820 lookup 254 priority 10061 protocol 110"),
        (6, "from all to 2001:db8:7::/64 lookup 254 priority 10061 protocol 110"),
        (4, "from all lookup 254 suppress_prefixlength 0 priority 10063 protocol 110"),
        (6, "from all lookup 254 suppress_prefixlength 0 priority 10063 protocol 110"),
        (4, "from all lookup 7 priority 10064 protocol 110"),
        (6, "from all lookup 7 priority 10064 protocol 110"),
    ]


def test_name_servers_in_the_lan_are_told() -> None:
    text = "# nameserver 10.0.0.1\nnameserver 192.168.7.1\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\n\x00"
    assert barrier.unasked(f"{text}\nnameserver 127.0.0.53\nnameserver here\nnameserver 999.1.1.1", ()) == [
        "192.168.7.1", "fe80::1",
    ]  # fmt: skip
    named = ip_network("192.168.7.1")
    assert barrier.unasked(text, [Way(named, "udp", 53)]) == ["fe80::1"]
    assert barrier.unasked(text, [Way(named, "tcp", 53), Way(ip_network("fe80::1"))]) == ["192.168.7.1"]


def test_what_is_rented_keeps_its_tunnel_whichever_neighbour_is_chosen() -> None:
    chosen = [rule.priority for prefix in ("0.0.0.0/0", "2001:db8::1/128") for rule in _rules_of_a_choice(prefix)]
    assert max(policy.PRIORITIES) < min(chosen)


def _rules_of_a_choice(prefix: str) -> tuple[Rule, Rule]:
    return rules_for(ip_network(prefix), int(ROUTE_TABLE.default), int(ROUTE_PRIORITY.default))
