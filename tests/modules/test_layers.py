"""Layers: which interface is on top of which, and which can't be mesh interfaces for that reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ngp.modules.network import layers
from ngp.modules.rtnetlink import Interface

MACS = {1: b"\2\0\0\0\0\1", 2: b"\2\0\0\0\0\2", 3: b"\2\0\0\0\0\3"}


def host(*interfaces: Interface) -> dict[str, Interface]:
    return {each.name: each for each in interfaces}


def one(index: int, name: str, kind: str = "", *, master: int = 0, port_of: str = "", lower: int = 0) -> Interface:
    return Interface(index, name, MACS[index], True, False, True, kind, master, port_of, lower)


@pytest.mark.parametrize("kind", ["bridge", "bond", "team", "openvswitch"])
def test_a_port_is_left_out_and_its_upper_one_is_named(kind: str) -> None:
    known = host(one(1, "upper0", kind), one(2, "eth0", master=1, port_of=kind), one(3, "eth1"))
    assert layers.left_out(known) == {"eth0": f"is a port of the {kind} upper0: its packets arrive on upper0"}
    assert "upper0" in layers.remedy("eth0", known) and "nomaster" in layers.remedy("eth0", known)


def test_what_is_in_a_vrf_or_carries_a_vlan_or_macvlan_is_a_mesh_interface() -> None:
    known = host(one(1, "vrf0", "vrf"), one(2, "eth0", master=1, port_of="vrf"), one(3, "eth0.5", "vlan", lower=2))
    assert layers.left_out(known) == {}
    assert layers.left_out(host(one(1, "eth0"), one(2, "mac0", "macvlan", lower=1))) == {}


@pytest.mark.parametrize("kind", ["ipvlan", "ipvtap"])
def test_an_ipvlan_leaves_its_lower_interface_out(kind: str) -> None:
    known = host(one(1, "eth0"), one(2, "ipv0", kind, lower=1))
    assert layers.left_out(known) == {"eth0": f"also sends the frames of the {kind} ipv0, under the same MAC"}
    assert "macvlan with its own MAC" in layers.remedy("eth0", known)


@pytest.mark.parametrize("kind", ["macvlan", "macvtap"])
def test_a_macvlan_that_passes_all_through_leaves_its_lower_interface_out(kind: str) -> None:
    """If both were mesh, a download would be charged at the upper one and dropped at the lower one, as unsold there."""
    known = host(one(1, "eth0"), replace(one(2, "mac0", kind, lower=1), link_address=MACS[1]), one(3, "eth1"))
    assert layers.left_out(known) == {"eth0": f"also sends the frames of the {kind} mac0, under the same MAC"}
    assert layers.stand_on(known, ["eth0"]) == frozenset()


@pytest.mark.parametrize("kind", ["macvlan", "macvtap"])
def test_macvlans_on_mesh_interfaces_are_known_by_their_mac(kind: str) -> None:
    known = host(one(1, "eth0"), one(2, "mac0", kind, lower=1), one(3, "eth0.5", "vlan", lower=1))
    assert layers.stand_on(known, ["eth0"]) == {(1, MACS[2])}
    assert layers.stand_on(known, ["mac0"]) == frozenset()


def test_what_arrives_elsewhere_is_seen_to_there() -> None:
    passthru = replace(one(3, "mac0", "macvlan", lower=1), link_address=MACS[1])
    known = host(one(1, "eth0"), one(2, "br0", "bridge"), passthru)
    assert layers.is_elsewhere("eth0", known, ["mac0"]) and not layers.is_elsewhere("eth0", known, ["br0"])
    known = host(one(1, "eth0", master=2, port_of="bridge"), one(2, "br0", "bridge"), one(3, "eth1"))
    assert layers.is_elsewhere("eth0", known, ["br0"]) and not layers.is_elsewhere("eth0", known, ["eth1", "gone"])
    # The bridge is in another namespace.
    assert layers.is_elsewhere("eth0", host(one(1, "eth0", master=9, port_of="bridge")), [])
    assert not layers.is_elsewhere("eth0", host(one(1, "eth0"), one(2, "ipv0", "ipvlan", lower=1)), ["ipv0"])


def test_what_is_beneath_is_found_down_to_the_cable() -> None:
    known = host(
        *(replace(one(1, f"wlan{number}", master=20, port_of="bond"), index=number) for number in (1, 2)),
        replace(one(1, "bond0", "bond", master=30, port_of="bridge"), index=20),
        replace(one(1, "br0", "bridge"), index=30),
        replace(one(1, "br0.5", "vlan", lower=30), index=40),
        replace(one(1, "mac0", "macvlan", lower=40), index=50),
        replace(one(1, "eth9"), index=60),
    )
    chain = ("br0.5", "br0", "bond0", "wlan1", "wlan2")
    assert layers.beneath(known, ["mac0", "absent"]) == dict.fromkeys(("mac0", *chain), "mac0") | {"absent": "absent"}
    assert layers.beneath(known, ["eth9", "wlan1"]) == {"eth9": "eth9", "wlan1": "wlan1"}
    assert layers.beneath(known, ["bond0", "mac0"])["bond0"] == "bond0"


@pytest.mark.parametrize("kind", ["veth", "gre", "vxlan"])
def test_the_other_end_of_a_pair_and_what_carries_a_tunnel_are_not_beneath(kind: str) -> None:
    assert layers.beneath(host(one(1, "eth0"), one(2, "m0", kind, lower=1)), ["m0"]) == {"m0": "m0"}


FALLBACKS = ("tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0")
KINDS = ("ipip", "gre", "gretap", "erspan", "sit", "ip6tnl", "ip6gre", "vti", "vti6")


@pytest.mark.parametrize(("name", "kind"), list(zip(FALLBACKS, KINDS, strict=True)))
def test_a_fallback_tunnel_is_known_by_name_and_kind_as_long_as_it_is_down(name: str, kind: str) -> None:
    idle = replace(one(1, name, kind), is_up=False)
    (why,) = layers.idle_fallbacks(host(idle, replace(one(2, "tun7", kind), is_up=False))).values()
    assert "fallback" in why and layers.is_elsewhere(name, host(idle), [])
    assert not layers.idle_fallbacks(host(one(1, name, kind))) and not layers.is_elsewhere(
        name, host(one(1, name, kind)), []
    )
    assert not layers.idle_fallbacks(host(replace(idle, kind="veth")))


def test_an_interface_on_top_of_itself_ends_the_search() -> None:
    known = host(one(1, "a0", "vlan", lower=2), one(2, "b0", "vlan", lower=1, master=1))
    assert layers.beneath(known, ["a0"]) == {"a0": "a0", "b0": "a0"}


def test_thousands_of_interfaces_are_not_each_held_against_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(layers, "_stands_on", lambda upper, _lower, _kinds: compared.append(upper.name))
    many = host(*(replace(one(1, f"wg{number}", "wireguard"), index=number) for number in range(1000)))
    assert not layers.left_out(many) and not layers.stand_on(many, list(many)) and not compared


def test_what_a_left_out_interface_hears_is_gated_where_it_arrives() -> None:
    passthru = replace(one(3, "mac0", "macvlan", lower=1), link_address=MACS[1])
    bridged = host(one(1, "eth0", master=2, port_of="bridge"), one(2, "br0", "bridge"))
    assert layers.in_place_of("eth0", bridged) == ("br0",)
    assert layers.in_place_of("eth0", host(one(1, "eth0", master=9, port_of="bridge"))) == ()  # in another namespace
    bonded = host(one(1, "eth0", master=2, port_of="bond"), one(2, "bond0", "bond", master=3, port_of="bridge"))
    assert layers.in_place_of("eth0", {**bonded, **host(one(3, "br0", "bridge"))}) == ("br0",)
    assert layers.in_place_of("eth0", host(one(1, "eth0"), passthru)) == ("mac0",)
    assert layers.in_place_of("eth0", host(one(1, "eth0"), one(2, "ipv0", "ipvlan", lower=1))) == ("eth0",)
    assert layers.in_place_of("absent", bridged) == ()
