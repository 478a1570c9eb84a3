"""Rates of tenants in the landlord's tunnel."""

from __future__ import annotations

import json
import time

from tunnel_lab import (
    ONE,
    OUTSIDE,
    TWO,
    Built,
    let,
    networks,
    new_key,
)

from core_tests import traffic
from core_tests.host import Host
from core_tests.shell import sh
from ngp.core.rental.tunnel import TunnelPeer

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
