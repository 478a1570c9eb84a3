"""The tunnel without a kernel: who owns which network, the steps of a change, texts for nft and from wireguard-go."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngp.core.messages import Prefix
from ngp.core.rental.tunnel import TunnelPeer
from ngp.errors import KernelError
from ngp.modules.tunnel import kernel, rules, userspace
from ngp.modules.tunnel.device import PeerChange, steps
from ngp.modules.tunnel.owners import Owners, key_text

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))
V4, V6 = ip_network("198.51.100.0/28"), ip_network("2001:db8:1::/48")


def networks_of(pool: Prefix, bits: int) -> st.SearchStrategy[Prefix]:
    every = [each for size in range(pool.prefixlen, bits + 1) for each in pool.subnets(new_prefix=size)]
    return st.sampled_from(every)


prefixes = networks_of(V4, 32) | networks_of(V6, 52)
peers = st.builds(TunnelPeer, st.sampled_from([ONE, TWO, THREE]), st.lists(prefixes, max_size=3).map(tuple))


@given(st.lists(st.tuples(st.booleans(), st.lists(peers, min_size=1, max_size=3)), max_size=12))
def test_networks_of_two_tenants_never_overlap(changes: list[tuple[bool, list[TunnelPeer]]]) -> None:
    owners = Owners()
    for adds, changed in changes:
        before = dict(owners.peers)
        wanted = {**before, **{peer.wireguard_key: peer for peer in changed}}
        if not adds:
            owners.remove(peer.wireguard_key for peer in changed)
            continue
        pairs = [(peer.wireguard_key, network) for peer in wanted.values() for network in peer.networks]
        clash = any(
            one.version == other.version and one.overlaps(other)
            for at, (_, one) in enumerate(pairs)
            for _, other in pairs[:at]
        )
        if clash:
            with pytest.raises(KernelError):
                owners.add(changed)
            assert owners.peers == before
        else:
            owners.add(changed)
            assert owners.peers == wanted


def test_a_refusal_names_both_tenants_and_both_networks() -> None:
    owners = Owners([TunnelPeer(ONE, (ip_network("198.51.100.0/29"),))])
    with pytest.raises(KernelError) as refused:
        owners.add([TunnelPeer(TWO, (ip_network("198.51.100.3/32"),))])
    for word in (key_text(ONE), key_text(TWO), "198.51.100.0/29", "198.51.100.3/32"):
        assert word in str(refused.value)


tables = st.dictionaries(st.sampled_from([ONE, TWO, THREE]), st.sets(networks_of(V4, 30), max_size=3))


@given(tables, tables)
def test_steps_lead_to_what_is_wanted_and_never_take_from_another(
    standing: dict[bytes, set[Prefix]], wanted: dict[bytes, set[Prefix]]
) -> None:
    def disjoint(table: dict[bytes, set[Prefix]]) -> dict[bytes, set[Prefix]]:
        seen: set[Prefix] = set()
        found = {}
        for key, networks in table.items():
            found[key] = {each for each in networks if not any(each.overlaps(other) for other in seen)}
            seen |= found[key]
        return found

    now, end = disjoint(standing), disjoint(wanted)
    named = set()
    for step in steps(now, end):
        for change in step:
            named.add(change.wireguard_key)
            if change.networks is None:
                del now[change.wireguard_key]
                continue
            others = [each for key, networks in now.items() if key != change.wireguard_key for each in networks]
            assert not any(each.overlaps(other) for each in change.networks for other in others)
            now[change.wireguard_key] = set(change.networks)
    assert now == end
    assert named == {key for key in {*standing, *wanted} if disjoint(standing).get(key) != end.get(key)}


LIMITED = TunnelPeer(ONE, (ip_network("198.51.100.7/32"), ip_network("2001:db8:7::/64")), 500_000)


def test_the_table_clamps_and_limits_in_both_directions() -> None:
    up, down = f"up_{'01' * 32}", f"down_{'01' * 32}"
    limit = "{ rate over 500000 bytes/second burst 131072 bytes; }"
    assert (
        rules.table("ngp-let", 1420, [LIMITED, TunnelPeer(TWO, (V4,))])
        == f"""\
table inet ngp_let
delete table inet ngp_let
table inet ngp_let {{
limit {up} {limit}
map up4 {{ type ipv4_addr : limit; flags interval; elements = {{ 198.51.100.7/32 : "{up}" }}; }}
map up6 {{ type ipv6_addr : limit; flags interval; elements = {{ 2001:db8:7::/64 : "{up}" }}; }}
limit {down} {limit}
map down4 {{ type ipv4_addr : limit; flags interval; elements = {{ 198.51.100.7/32 : "{down}" }}; }}
map down6 {{ type ipv6_addr : limit; flags interval; elements = {{ 2001:db8:7::/64 : "{down}" }}; }}
chain clamp {{
meta nfproto ipv4 tcp option maxseg size set 1380
meta nfproto ipv6 tcp option maxseg size set 1360
}}
chain up {{
tcp flags & (syn | rst) == syn jump clamp
limit name ip saddr map @up4 drop
limit name ip6 saddr map @up6 drop
}}
chain from_tenants {{ type filter hook prerouting priority mangle; iif "ngp-let" jump up; }}
chain down {{
tcp flags & (syn | rst) == syn jump clamp
limit name ip daddr map @down4 drop
limit name ip6 daddr map @down6 drop
}}
chain to_tenants {{ type filter hook forward priority mangle; oif "ngp-let" jump down; }}
}}
"""
    )


def test_wireguard_gos_answer_is_read() -> None:
    text = (
        f"private_key={'0a' * 32}\nlisten_port=51820\npublic_key={ONE.hex()}\npreshared_key={'00' * 32}\n"
        "protocol_version=1\nendpoint=[2001:db8::1]:7\nlast_handshake_time_sec=12\nlast_handshake_time_nsec=3\n"
        f"tx_bytes=5\nrx_bytes=6\nallowed_ip=198.51.100.7/32\nallowed_ip=2001:db8:7::/64\npublic_key={TWO.hex()}\n"
    )
    standing = userspace.parse(text)
    assert (standing.private_key, standing.port, set(standing.peers)) == (b"\n" * 32, 51820, {ONE, TWO})
    one, two = standing.peers[ONE], standing.peers[TWO]
    assert one.networks == set(LIMITED.networks) and two.networks == set()
    said = one.reading
    assert (said.received_bytes, said.sent_bytes, said.handshake_at_s, said.endpoint) == (6, 5, 12, "[2001:db8::1]:7")
    assert userspace.parse("").peers == {} and userspace.parse("").private_key == b""


@given(st.text())
def test_garbage_instead_of_an_answer_is_a_named_error(text: str) -> None:
    for garbage in (text, f"public_key={text}", f"allowed_ip={text}\nlisten_port={text}"):
        try:
            for peer in userspace.parse(f"{garbage}\npublic_key={ONE.hex()}").peers.values():
                assert all(isinstance(each.prefixlen, int) for each in peer.networks)
        except (ValueError, KernelError):
            continue  # `read` makes a KernelError of a ValueError


def test_many_networks_of_one_peer_come_in_several_parts_of_which_the_first_replaces() -> None:
    many = tuple(ip_network("10.0.0.0/16").subnets(new_prefix=24))
    parts = list(kernel._parts(PeerChange(ONE, many)))
    assert len(parts) == 3 and all(len(part) < 16 << 10 for part in parts)
    peers: dict[bytes, kernel.Peer] = {}
    for part in parts:
        ((_, value),) = kernel.attributes(part)
        kernel._add_peer(peers, dict(kernel.attributes(value)))
    assert peers[ONE].networks == set(many)
