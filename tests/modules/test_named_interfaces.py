"""Interfaces that net.conf names: what a start and a check report about missing ones and about unsuitable ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_lab import Lab, desired, gateway, sh

from ngp.config import load, parse
from ngp.daemon import checkup
from ngp.daemon.desired import existing, left_out, look_at_host, missing_names, named_interfaces, refuse
from ngp.errors import ConfigError
from ngp.modules.link.udp import UdpLink
from ngp.modules.network import check as checks
from ngp.modules.network import layers
from ngp.modules.network.datapath import Datapath


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with gateway() as built:
        yield built


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
    unreachable = "can't be found: the interface has no address of its own"
    wrong |= {"interface m0": ["is down"], "interface tun0": ["is down"], "neighbour on tun0": [unreachable]}
    no_way = "no mesh interface has an address of this version, or a route: answers to neighbours find no way"
    wrong |= {"way back to m0": ["10.77.1.0/24 goes to up0"], "way back IPv6": [f"{no_way}, so nothing is sold"]}
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


def test_check_names_interfaces_that_do_not_exist(hosts: Lab, tmp_path: Path) -> None:
    text = "MESH_INTERFACES: [m0, m7, 'wg*', 'm?']\nIGNORE_INTERFACE: [up0, up7]\n"
    text += "LANDLORD: yes\nLANDLORD_POOLS: 203.0.113.0/29\nLANDLORD_OUTSIDE: up8\n"
    (tmp_path / "net.conf").write_text(text)
    network = Datapath(tmp_path)
    lines = {line.name: line for line in missing_names(load(tmp_path / "net.conf"), existing(network))}
    network.close()
    assert {name: line.ok for name, line in lines.items()} == {
        "interface m7": False,
        "interface wg*": True,
        "interface up7": False,
        "interface up8": False,
    }
    assert lines["interface up8"].found == "LANDLORD_OUTSIDE: no interface has this name"
    assert lines["interface up7"].remedy.startswith("correct IGNORE_INTERFACE")


def test_ports_are_left_out_of_the_mesh_and_refused_by_name(hosts: Lab, tmp_path: Path) -> None:
    """Bonds and teams are treated like this bridge; they aren't tried, as not every kernel has them."""
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
        "PRICES: the entry for 198.51.100.1/32 is for this interface only, and no interface has this name",
        "PRICES: the entry for 198.51.100.2/32 is for this interface only, and it is no mesh interface",
        "NGP_INTERFACE: fe80::2%m8 is for this interface only, and no interface has this name",
    ]
    assert all(line.remedy.startswith(f"correct {line.found.partition(':')[0]}: ") for line in found)


def test_fallback_tunnels_are_meant_by_their_names_alone(
    hosts: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests' kernel may have no tunnels, so a veth has a fallback tunnel's name."""
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
