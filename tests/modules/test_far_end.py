"""Far end: where a hello is sent on an interface without frames, by what the kernel can carry there."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_interface

import pytest

from ngp.modules.link import udp
from ngp.modules.link.far_end import FarEnd, Network
from ngp.modules.link.udp import UdpLink

ALL_V4, ALL_V6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")


def tunnel(*own: str, peers: tuple[str, ...] = (), kind: str = "ipip", to_one: bool = True) -> FarEnd:
    """Return what the kernel would tell of a tunnel. Args: own: our addresses on it with their prefix lengths."""
    faces = [ip_interface(each) for each in own]
    networks = [each.network for each in faces if not each.ip.is_link_local] if not peers else []
    return FarEnd(kind, tuple(networks), tuple(map(ip_address, peers)), tuple(each.ip for each in faces), to_one)


def wireguard(own: str, *peers: tuple[Network, ...]) -> FarEnd:
    face = ip_interface(own)
    return FarEnd("wireguard", (face.network,), (), (face.ip,), len(peers) == 1, peers)


def asked(far: FarEnd) -> tuple[list[str], list[str]]:
    return list(map(str, far.addresses())), list(map(str, far.groups()))


@pytest.mark.parametrize(
    ("far", "addresses", "groups"),
    [
        (tunnel("10.9.0.1/24"), [], ["10.9.0.255", "255.255.255.255"]),
        (tunnel("10.9.0.1/32", peers=("10.9.0.2",)), ["10.9.0.2"], []),
        (tunnel("10.9.0.1/30"), ["10.9.0.2"], []),
        (tunnel("10.9.0.0/31"), ["10.9.0.1"], []),
        (tunnel("fe80::1/64", kind="sit"), [], ["ff02::1"]),
        (tunnel("fe80::1/64", "2001:db8::1/127"), ["2001:db8::"], ["ff02::1"]),
        (tunnel("10.9.0.1/24", to_one=False), [], []),
        (tunnel("10.9.0.1/32", peers=("10.9.0.2",), to_one=False), ["10.9.0.2"], []),
        (tunnel(), [], []),
    ],
)
def test_on_a_tunnel_the_far_end_is_asked_or_else_a_group(far: FarEnd, addresses: list[str], groups: list[str]) -> None:
    assert asked(far) == (addresses, groups)


@pytest.mark.parametrize(
    ("far", "addresses", "groups"),
    [
        (wireguard("10.9.0.1/24", (IPv4Network("10.9.0.2/32"),)), ["10.9.0.2"], []),
        (wireguard("10.9.0.1/24", (IPv4Network("10.9.0.2/32"), IPv4Network("10.7.0.1/32"))), ["10.9.0.2"], []),
        (wireguard("10.9.0.1/24", (ALL_V4,)), [], ["10.9.0.255", "255.255.255.255"]),
        (wireguard("10.9.0.1/24", (ALL_V4, ALL_V6)), [], ["10.9.0.255", "255.255.255.255", "ff02::1"]),
        (wireguard("10.9.0.1/24", (IPv4Network("10.9.0.0/24"),)), [], ["10.9.0.255"]),
        (wireguard("2001:db8::1/64", (IPv6Network("2001:db8::2/128"),)), ["2001:db8::2"], []),
        (wireguard("10.9.0.1/24", (IPv4Network("10.8.0.0/16"),)), [], []),
        (wireguard("10.9.0.1/24"), [], []),
        (wireguard("10.9.0.1/24", (IPv4Network("10.9.0.2/32"),), (IPv4Network("10.9.0.3/32"),)), [], []),
    ],
)
def test_wireguard_carries_what_its_peers_allowed_ips_cover(
    far: FarEnd, addresses: list[str], groups: list[str]
) -> None:
    assert asked(far) == (addresses, groups)


class Compared(IPv4Address):
    """An address that counts how often it was compared with another."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)

    __hash__ = IPv4Address.__hash__


def test_thousands_of_addresses_are_not_each_compared_with_all_others() -> None:
    faces = [ip_interface(f"10.{number >> 8}.{number & 255}.1/30") for number in range(1000)]
    networks = [each.network for each in faces]
    own = tuple(Compared(str(each.ip)) for each in faces)
    far = FarEnd("tun", tuple(networks), tuple(Compared(f"172.16.{number}.1") for number in range(200)), own, True)
    assert len(far.addresses()) == 1200
    assert Compared.times < 10_000


def test_more_hosts_than_a_few_are_not_asked_one_by_one() -> None:
    assert tunnel("10.9.0.1/27").addresses() == []
    assert len(tunnel("10.9.0.1/28").addresses()) == 13
    many = tuple(IPv4Network(f"10.9.0.{number}/32") for number in range(2, 200))
    assert len(wireguard("10.9.0.1/24", many).addresses()) <= 14


@pytest.mark.parametrize(
    ("far", "ok", "said"),
    [
        (tunnel("10.9.0.1/24"), True, "asked by 10.9.0.255"),
        (tunnel("10.9.0.1/24", kind="tun"), True, "may not carry"),
        (tunnel("10.9.0.1/24", to_one=False), False, "several other ends"),
        (tunnel(), False, "no address of its own"),
        (wireguard("10.9.0.1/24"), False, "allowed-ips"),
        (wireguard("10.9.0.1/24", (ALL_V4,), (ALL_V6,)), False, "2 WireGuard peers"),
    ],
)
def test_check_says_how_the_neighbour_is_found_or_what_is_needed(
    far: FarEnd, ok: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_is_framed", lambda _name: False)
    monkeypatch.setattr(udp, "far_end", lambda _name: far)
    *_, line = UdpLink().check(["tun0"])
    assert line.ok is ok and said in line.found
    assert ("NGP_INTERFACE" in line.remedy) is (not ok or far.kind == "tun")
    *_, line = UdpLink(neighbours=["10.9.0.2"]).check(["tun0"])
    assert line.ok and "10.9.0.2" in line.found
