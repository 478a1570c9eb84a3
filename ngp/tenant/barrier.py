"""Barrier: an nftables table of our own that drops what would leave a machine beside its tunnel. Pure.

Rules and routes alone leave ways open that attackers of VPNs use. A DHCP server may add routes that are more specific
than a default route (TunnelVision, CVE-2024-3661), or call any network the local one (LocalNet, CVE-2023-36672); a
program may bind its socket to an interface. So whatever leaves by another interface than the tunnel is dropped here,
forwarded packets too, before a neighbour is charged for them, unless it is

- for a landlord (one UDP port and one TCP port of one address each) or a destination in TENANT_BESIDE;
- for an address that no router of the internet forwards: private, unique local and link-local ones, multicast on the
  link. But DNS to such addresses is dropped: a name server in the LAN would look names up outside the tunnel;
- DHCP, neighbour discovery, or a message of ngp (UDP 10325, with the hop limit that only neighbours see);
- for the rented networks, which may be routed on to machines behind this one.

The table doesn't depend on the tunnel's interface, so it stands while the tunnel is down.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from ngp.core.messages import Prefix
from ngp.core.tenant.way import Way

TABLE = "inet ngp_rent"
_LOCAL4 = "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16, 224.0.0.0/24, 255.255.255.255"
_LOCAL6 = "fe80::/10, fc00::/7, ff01::/16, ff02::/16"
_NDP = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert"
_FAMILY = {4: "ip", 6: "ip6"}
# Forwarded packets are looked at behind the operator's filter, and before ngp's gate charges them. All packets are
# looked at once more behind source NAT: only there the outgoing interface of this machine's own packets is final.
_HOOKS = {"forward": 10, "postrouting": 290}


def table(interfaces: Sequence[str], networks: Sequence[Prefix], beside: Sequence[Way]) -> str:
    """Return nft's commands that make the whole table, in place of the one that exists.

    Args:
        interfaces: of all rented tunnels.
        networks: all that are rented.
        beside: what may leave beside the tunnels.
    """
    rules = [
        *(f'oifname "{name}" accept' for name in ("lo", *interfaces)),
        *(f"{_FAMILY[one.version]} daddr {one} accept" for one in networks),
        *dict.fromkeys(map(_accepted, beside)),  # several rentals may have one landlord
        "udp sport 68 udp dport 67 accept",
        "udp sport 546 udp dport 547 accept",
        "udp sport 10325 udp dport 10325 ip ttl 255 accept",
        "udp sport 10325 udp dport 10325 ip6 hoplimit 255 accept",
        f"icmpv6 type {{ {_NDP} }} accept",
        "meta l4proto { tcp, udp } th dport { 53, 853 } drop",
        f"ip daddr {{ {_LOCAL4} }} accept",
        f"ip6 daddr {{ {_LOCAL6} }} accept",
    ]
    lines = [f"table {TABLE}", f"delete table {TABLE}", f"table {TABLE} {{"]
    lines += ["chain beside {", *rules, "drop", "}"]
    for hook, priority in _HOOKS.items():
        lines += [f"chain {hook} {{", f"type filter hook {hook} priority {priority};", "jump beside", "}"]
    return "\n".join([*lines, "}", ""])


def unasked(resolv_conf: str, beside: Sequence[Way]) -> list[str]:
    """Return the name servers of this machine that the barrier cuts off: those in the LAN that `beside` doesn't open.

    Args: resolv_conf: what is in /etc/resolv.conf; its lines may be anything.
    """
    words = [line.split() for line in resolv_conf.splitlines()]
    named = [each[1].partition("%")[0] for each in words if len(each) > 1 and each[0] == "nameserver"]
    found = []
    for text in named:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        is_opened = any(address in way.prefix and way.takes_names for way in beside)
        if not is_opened and any(address in ip_network(one) for one in (*_LOCAL4.split(", "), *_LOCAL6.split(", "))):
            found.append(text)
    return found


def _accepted(way: Way) -> str:
    port = f"dport {way.port}" if way.port else ""
    protocol = f"{way.protocol} {port}" if port else f"meta l4proto {way.protocol}" if way.protocol else ""
    return " ".join(f"{_FAMILY[way.prefix.version]} daddr {way.prefix} {protocol} accept".split())
