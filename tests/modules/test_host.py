"""Host facts inside a network namespace: interfaces, their sides, addresses, routes, and the bell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from kernel_lab import CLIENT, GATEWAY_TO_CLIENT, GATEWAY_TO_INTERNET, INTERNET, Lab, by_name, desired, gateway, sh

from ngp.core.messages import Prefix
from ngp.core.values import Check
from ngp.modules import rtnetlink
from ngp.modules.network.datapath import Datapath
from ngp.modules.network.host import Host, expand_interfaces


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with gateway() as built:
        yield built


@pytest.fixture
def host(hosts: Lab) -> Iterator[Host]:
    opened = Host()
    yield opened
    opened.close()
    opened.close()


def test_patterns_choose_interfaces_without_loopback_and_ignored_ones() -> None:
    names = ["lo", "wlan0", "wlan1", "eth0", "eth0.7", "wg0"]
    assert expand_interfaces(names, ["wlan*"], []) == ("wlan0", "wlan1")
    assert expand_interfaces(names, ["all"], ["eth0"]) == ("eth0.7", "wg0", "wlan0", "wlan1")
    assert expand_interfaces(names, ["all", "eth0"], ["eth0", "wl*"]) == ("eth0.7", "wg0")
    assert expand_interfaces(names, ["eth0", "absent", "lo"], []) == ("eth0",)
    assert expand_interfaces(names, [], []) == ()


def test_interfaces_are_those_of_the_namespace(hosts: Lab, host: Host) -> None:
    sh("ip tuntap add dev tun0 mode tun && ip link add br0 type bridge && ip link set m1x master br0")
    found = host.interfaces()
    assert {"lo", "m0", "m1", "m1x", "up0", "tun0", "br0"} <= set(found) and "c0" not in found
    assert found["m0"].has_link_addresses and len(found["m0"].link_address) == 6
    assert not found["tun0"].has_link_addresses and found["tun0"].link_address == b""
    assert found["m1x"].master == found["br0"].index and found["br0"].kind == "bridge"
    assert host.has_link_addresses("m0") and not host.has_link_addresses("tun0")
    assert not host.has_link_addresses("lo") and not host.has_link_addresses("absent")
    assert host.mesh_interfaces(["all"], ["up0", "m1*"]) == ("br0", "m0", "tun0")


def test_what_interfaces_carried_and_how_fast_they_are(host: Host) -> None:
    before = host.traffic(["up0", "absent"])
    assert list(before) == ["up0"]
    sh(f"ping -c 3 -s 1000 -i 0.01 -W 2 -q {INTERNET[4]}")
    sent = host.traffic(["up0"])["up0"].sent_bytes - before["up0"].sent_bytes
    received = host.traffic(["up0"])["up0"].received_bytes - before["up0"].received_bytes
    assert 3000 < sent < 8000 and 3000 < received < 8000
    assert before["up0"].bytes_s == 10_000 * 125_000  # what veth says
    assert rtnetlink.ask_speed("absent") is None and rtnetlink.ask_speed("lo") is None


def test_a_default_route_and_parts_of_one_lead_out(host: Host) -> None:
    assert host.default_route_interfaces() == ("up0",)
    sh("ip route del default && ip -6 route del default")
    assert host.default_route_interfaces() == ()
    sh(f"ip route add default nexthop via {INTERNET[4]} nexthop via {CLIENT[4]}")
    assert host.default_route_interfaces() == ("m0", "up0")
    sh(f"ip route del default && ip route add 128.0.0.0/1 via {INTERNET[4]} && ip route add 9.0.0.0/8 via {CLIENT[4]}")
    assert host.default_route_interfaces() == ("up0",)
    sh(f"ip route flush 128.0.0.0/1 && ip -6 route add 2000::/3 via {CLIENT[6]}")
    assert host.default_route_interfaces() == ("m0",)
    assert host.routed_networks(4, ["m0", "up0"]) == (ip_network("9.0.0.0/8"),)
    assert host.routed_networks(6, ["m0", "up0"]) == (), "never a default route, in parts neither"


# Routes that make an interface upstream although it carries no default route.
UPSTREAM_ROUTES = {
    "two halves": f"ip route add 0.0.0.0/1 via {INTERNET[4]} && ip route add 128.0.0.0/1 via {INTERNET[4]}",
    "specific": f"ip route add 198.51.100.0/24 via {INTERNET[4]}",
    "a host": "ip route add 198.51.100.7/32 dev up0",
    "all of IPv6": f"ip -6 route add 2000::/3 via {INTERNET[6]}",
    "another table": f"ip route add default via {INTERNET[4]} table 51820",
    "one of several ways": f"ip route add 198.51.100.0/24 nexthop via {INTERNET[4]} nexthop via {CLIENT[4]}",
    "a nexthop object": f"ip nexthop add id 7 via {INTERNET[4]} dev up0 && ip route add 198.51.100.0/24 nhid 7",
}


@pytest.mark.parametrize("routes", UPSTREAM_ROUTES.values(), ids=list(UPSTREAM_ROUTES))
def test_what_carries_more_than_its_own_networks_is_upstream(hosts: Lab, routes: str) -> None:
    sh("ip route del default && ip -6 route del default && ip addr add 192.0.2.9/24 dev m1")
    network = Datapath(Path("/nowhere"))
    assert network.other_interfaces(("m0",), None) == (("m1", "up0"), ()), "connected routes alone"
    sh(f"ip route add default via {CLIENT[4]} && {routes}")
    assert network.other_interfaces(("m0",), None) == (("m1",), ("up0",))
    lines = by_name(desired(mesh_interfaces=("m0",), lan_interfaces=("m1",)))
    assert lines["interface m1"].found == "LAN: carries only its own networks (192.0.2.0/24)"
    assert lines["interface up0"].found.startswith("upstream: carries more than its own networks (")
    assert lines["interface m0"].found.startswith("mesh: ")
    assert all(lines[f"interface {name}"].ok for name in ("m0", "m1", "up0"))
    network.close()


def test_the_operator_says_which_interfaces_are_ours(hosts: Lab) -> None:
    sh(f"ip route add 10.99.0.0/16 via {CLIENT[4]} && ip addr add 192.0.2.9/24 dev m1")
    network = Datapath(Path("/nowhere"))
    assert network.other_interfaces(("up0",), ["m*"]) == (("m0", "m1", "m1x"), ())
    assert network.other_interfaces((), ["m1"]) == (("m1",), ("m0", "up0"))
    assert network.other_interfaces((), []) == ((), ("m0", "up0"))
    mesh = desired(mesh_interfaces=("up0",), upstream_interfaces=("m0",), buys=True)
    line = by_name(mesh)["interface m0"]
    assert "upstream" in line.found and "10.99.0.0/16" in line.found and line.remedy.startswith("if your own hosts")
    assert by_name(mesh)["interface m1"].found == "upstream: LAN_INTERFACE doesn't name it"
    assert by_name(mesh)["interface m1x"].found == "upstream: has no address"
    named = by_name(desired(mesh_interfaces=("up0",), lan_interfaces=("m0",), upstream_interfaces=(), buys=True))
    assert named["interface m0"] == Check("interface m0", True, "LAN: LAN_INTERFACE names it")
    network.close()


def test_ports_of_a_bridge_are_of_its_class(hosts: Lab) -> None:
    sh("ip link add br0 type bridge && ip link set m1 master br0 && ip addr add 192.0.2.9/24 dev br0")
    sh("ip link set br0 up")
    network = Datapath(Path("/nowhere"))
    assert network.other_interfaces(("m0",), None)[0] == ("br0",)
    assert "interface m1" not in by_name(desired(mesh_interfaces=("m0",)))
    network.close()


def test_only_some_of_a_full_table_is_read(hosts: Lab, host: Host, tmp_path: Path) -> None:
    batch = tmp_path / "routes"
    rows = (f"route add 203.{high}.{low}.0/24 via {INTERNET[4]}" for high in range(80) for low in range(250))
    batch.write_text("\n".join(rows))
    sh(f"ip -batch {batch}")
    read = list[bytes]()
    really = rtnetlink.prefix_of

    def count(version: int, message: bytes) -> Prefix:
        read.append(message)
        return really(version, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtnetlink, "prefix_of", count)
        assert [len(host.routes_beyond(name, (), 3)) for name in ("up0", "m1")] == [5, 0], "all two of IPv6"
    assert len(read) < 20, "neither others' routes nor all of its own"


def test_own_addresses_are_those_of_all_interfaces(host: Host) -> None:
    wanted = {ip_address(text) for text in (*GATEWAY_TO_CLIENT.values(), *GATEWAY_TO_INTERNET.values())}
    assert set(host.local_addresses()) == wanted
    sh("ip addr add 192.0.2.1 peer 192.0.2.2 dev m1")
    assert set(host.local_addresses()) - wanted == {ip_address("192.0.2.1")}


@pytest.mark.parametrize(
    ("destination", "prefix"),
    [
        ("192.0.2.5", "192.0.2.0/25"),
        ("192.0.2.200", "0.0.0.0/0"),
        ("10.77.1.9", None),
        ("2001:db8:5::1", "2001:db8:5::/48"),
        ("2001:db8:6::1", "::/0"),
        ("198.51.100.7", None),
        ("10.77.1.1", None),
        ("fd00:77:1::1", None),
    ],
)
def test_the_route_that_a_destination_takes(host: Host, destination: str, prefix: str | None) -> None:
    sh(f"ip route add 192.0.2.0/25 via {INTERNET[4]} && ip -6 route add 2001:db8:5::/48 via {INTERNET[6]}")
    sh("ip route add unreachable 198.51.100.0/24")
    assert host.onward(ip_address(destination), ()).route == (ip_network(prefix) if prefix else None)


ROUTES = (
    f"ip route add 198.51.100.0/24 via {CLIENT[4]} && ip -6 route add 2001:db8:7::/48 via {CLIENT[6]} dev m0",
    f"ip route add 198.51.101.0/24 nexthop via {INTERNET[4]} dev up0 nexthop via {CLIENT[4]} dev m0",
    f"ip route add 198.51.102.0/24 via inet6 {CLIENT[6]} dev m0",
    "ip tuntap add dev tun0 mode tun && ip link set tun0 up && ip addr add 10.77.9.1/24 dev tun0",
    "ip route add 198.51.103.0/24 dev tun0 && ip route add 10.77.9.7 dev tun0",
    "ip route add unreachable 198.51.104.0/24",
)


@pytest.mark.parametrize(
    ("destination", "interface", "leads"),
    [
        ("198.51.100.7/32", "m0", True),
        ("198.51.100.0/24", "m0", True),
        ("198.51.100.0/23", "m0", None),  # wider than our route
        ("2001:db8:7::1/128", "m0", True),
        ("198.51.101.7/32", "m0", True),  # some of the traffic
        ("198.51.102.7/32", "m0", True),
        ("203.0.113.7/32", "m0", None),  # through another router
        ("203.0.113.7/32", "up0", None),  # another interface than the neighbour's
        ("198.51.104.7/32", "m0", None),
        ("10.77.1.1/32", "m0", None),  # our own
        (f"{CLIENT[4]}/32", "m0", False),  # on the link itself
        ("10.77.1.9/32", "m0", False),
        (f"{CLIENT[6]}/128", "m0", False),
        ("198.51.103.7/32", "tun0", True),  # there is only one neighbour
        ("10.77.9.7/32", "tun0", True),
        ("10.77.9.8/32", "tun0", False),
        ("203.0.113.7/32", "absent", None),
    ],
)
def test_whether_what_we_send_goes_to_a_neighbour(
    hosts: Lab, host: Host, destination: str, interface: str, leads: bool | None
) -> None:
    for address in CLIENT.values():
        sh(f"ping -n -q -c 1 -W 30 {address}")
    sh(" && ".join(ROUTES))
    says = sh("cat /sys/class/net/c0/address", hosts.client)
    mac = b"" if interface == "tun0" else bytes.fromhex(says.strip().replace(":", ""))
    assert host.leads_to(ip_network(destination), [(interface, mac)]) is leads
    if leads and mac:
        assert host.leads_to(ip_network(destination), [(interface, b"\2other")]) is None, "our router is another one"


@pytest.mark.parametrize("whole", ["0.0.0.0/0", "::/0"])
def test_whether_our_default_route_leads_to_a_neighbour(hosts: Lab, host: Host, whole: str) -> None:
    """A route to a part, like one of the two halves that VPN clients set, isn't it."""
    version = ip_network(whole).version
    sh(f"ping -n -q -c 1 -W 30 {CLIENT[version]}")
    mac = bytes.fromhex(sh("cat /sys/class/net/c0/address", hosts.client).strip().replace(":", ""))
    change = f"ip -{version} route replace {{}} via {CLIENT[version]} dev m0"
    assert host.leads_to(ip_network(whole), [("m0", mac)]) is None, "it leads upstream"
    sh(change.format(whole))
    assert host.leads_to(ip_network(whole), [("m0", mac)]) is True
    assert host.leads_to(ip_network(whole), [("m0", b"\2other")]) is None
    sh(change.format("128.0.0.0/1" if version == 4 else "2000::/3"))
    assert host.leads_to(ip_network(whole), [("m0", mac)]) is None


def test_a_neighbour_with_several_links_costs_no_more_questions(
    hosts: Lab, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sh(f"ping -n -q -c 1 -W 30 {CLIENT[4]}")
    sh(" && ".join(ROUTES))
    mac = bytes.fromhex(sh("cat /sys/class/net/c0/address", hosts.client).strip().replace(":", ""))
    asked: list[object] = []
    ask = rtnetlink.ask_link_address
    monkeypatch.setattr(rtnetlink, "ask_link_address", lambda *about: asked.append(about) or ask(*about))
    links = [*(("m0", bytes([2, 0, 0, 0, 0, number])) for number in range(7)), ("m0", mac)]
    assert host.leads_to(ip_network("198.51.100.7/32"), links) is True
    assert len(asked) == 1


def test_no_route_at_all_and_a_reopened_one(host: Host) -> None:
    sh("ip -6 route del default")
    destination = ip_address("2001:db8::1")
    assert host.onward(destination, ()).route is None
    sh(f"ip -6 route add 2001:db8::/32 via {INTERNET[6]}")
    assert host.onward(destination, ()).route is None, "remembered for a few seconds"
    host.forget()
    assert host.onward(destination, ()).route == ip_network("2001:db8::/32")


def test_many_changes_ring_once_and_answers_are_fresh(host: Host) -> None:
    async def body() -> None:
        rings: asyncio.Queue[None] = asyncio.Queue()
        destination = ip_address("203.0.113.9")
        assert host.onward(destination, ()).route == ip_network("0.0.0.0/0")
        host.watch(asyncio.get_running_loop(), lambda: rings.put_nowait(None), pause_s=0.3)
        adds = " && ".join(f"ip route add 203.0.{third}.0/24 via {INTERNET[4]}" for third in range(100, 120))
        sh(adds)
        await asyncio.wait_for(rings.get(), 60)
        assert rings.empty() and host.onward(destination, ()).route == ip_network("203.0.113.0/24")
        for change in ("ip link set m1 down", "ip addr add 192.0.2.9/32 dev m0", "ip link del m1"):
            sh(change)
            await asyncio.wait_for(rings.get(), 60)
        assert "m1" not in host.interfaces()

    asyncio.run(body())
