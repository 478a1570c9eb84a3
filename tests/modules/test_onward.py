"""What `ngp check` says of routes and rules that drop neighbours' packets before the gate sees them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from kernel_lab import CLIENT, GATEWAY_TO_CLIENT, INTERNET, Lab, by_name, desired, gateway, sh

from ngp.core.kernel import Router
from ngp.core.values import Check
from ngp.modules.network import check as checks
from ngp.modules.network.datapath import Datapath
from ngp.ports.network import DesiredNetwork


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with gateway() as built:
        yield built


def told(wanted: DesiredNetwork | None = None) -> dict[str, Check]:
    """Return the lines about ways that a check warns of; a start must find the same."""
    wanted = wanted or desired()
    lines = {name: line for name, line in by_name(wanted).items() if name.startswith("way ") and line.remedy}
    quick = {line.name: line for line in checks.look(wanted, 60.0) if line.name.startswith("way ") and line.remedy}
    assert lines == quick
    return lines


DROPS = {
    "blackhole": ("ip {6} route add blackhole {half}", "ip {6} route del blackhole {half}", "`blackhole`"),
    "prohibit": ("ip {6} rule add iif m0 prohibit pref 10", "ip {6} rule del pref 10", "`prohibit`"),
    "unreachable": ("ip {6} rule add iif m0 unreachable pref 10", "ip {6} rule del pref 10", "no route"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", DROPS)
def test_what_the_routing_drops_is_told_until_it_is_mended(hosts: Lab, way: str, version: int) -> None:
    half = "128.0.0.0/1" if version == 4 else "2000::/4"
    add, delete, why = (text.replace("{6}", f"-{version}").replace("{half}", half) for text in DROPS[way])
    assert told() == {}
    sh(add)
    (line,) = told().values()
    assert line.ok and line.name == f"way out IPv{version}" and "on m0" in line.found and why in line.found
    asking = line.remedy.partition("`")[2].partition("`")[0]
    with pytest.raises(AssertionError):
        sh(asking)  # the command that the line names shows the refusal
    sh(delete)
    assert told() == {}
    sh(asking)


@pytest.mark.parametrize(("version", "flag"), [(4, "-4"), (6, "-6")])
def test_a_default_route_that_only_the_other_version_has(hosts: Lab, version: int, flag: str) -> None:
    sh(f"ip {flag} route del default")
    (line,) = told().values()
    assert line.ok and line.name == f"way out IPv{version}" and "no default route" in line.found
    assert f"NETWORK_INTERFACE: ip{10 - version}" in line.remedy
    assert told(desired(families=frozenset({10 - version}))) == {}
    assert told(desired(sells=False)) == {}
    sh(line.remedy.partition(";")[0].replace("ADDRESS", INTERNET[version]).replace("UPLINK", "up0"))
    assert told() == {}


@pytest.mark.parametrize(("version", "length"), [(4, 24), (6, 64)])
def test_mesh_interfaces_without_an_address_of_a_version_that_is_sold(hosts: Lab, version: int, length: int) -> None:
    own = f"{GATEWAY_TO_CLIENT[version]}/{length}"
    sh(f"ip address del {own} dev m0")
    (line,) = told().values()
    assert line.ok and line.name == f"way back IPv{version}" and "no mesh interface has an address" in line.found
    sh(f"ip -{version} route add {CLIENT[version]} dev m0")  # without an address, but routed: answers find their way
    assert told() == {}
    sh(f"ip -{version} route del {CLIENT[version]} dev m0; ip -{version} route del default")
    assert told() == {}  # nothing of this version is for sale
    sh(f"ip -{version} route add default dev up0 && ip address add {own} dev m0")
    assert told() == {}


def test_policy_routes_that_work_are_no_reason_for_a_warning(hosts: Lab) -> None:
    for flag, version in (("-4", 4), ("-6", 6)):
        sh(f"ip {flag} route del default && ip {flag} route add default via {INTERNET[version]} table 100")
        sh(f"ip {flag} rule add iif m0 table 100")
    assert told() == {}
    sh("ip -4 rule del table 100 && ip -6 rule del table 100")
    assert set(told()) == {"way out IPv4", "way out IPv6"}
    sh("ip -4 rule add fwmark 7 table 100 && ip -6 rule add fwmark 7 table 100")  # a firewall may set the mark
    assert told() == {}
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")  # told by the lines `forwarding`
    assert told() == {}


def test_networks_that_are_dropped_on_purpose_are_no_reason_for_a_warning(hosts: Lab) -> None:
    sh("ip route add blackhole 198.51.100.0/24 && ip route add unreachable 10.0.0.0/8")
    sh("ip -6 route add unreachable 2001:db8::/32 && ip -6 route add unreachable default metric 4278198272")
    assert told() == {}


def test_a_buyer_whose_default_route_leads_to_nobody_is_told(hosts: Lab) -> None:
    wanted = desired(buys=True, sells=False, mesh_interfaces=("m0",), upstream_interfaces=())

    def silent() -> dict[str, Check]:
        return {name: line for name, line in by_name(wanted).items() if name.startswith("next hop")}

    sh("ip route del default && ip -6 route del default")
    nobody = {4: "10.77.1.77", 6: "fd00:77:1::77"}
    for version, flag in ((4, "-4"), (6, "-6")):
        sh(f"ip {flag} route add default via {nobody[version]} dev m0")
    lines = silent()
    assert set(lines) == {f"next hop {address}" for address in nobody.values()}
    assert all(line.ok and "nobody there answers" in line.found and line.remedy for line in lines.values())
    for version, flag in ((4, "-4"), (6, "-6")):
        sh(f"ip {flag} route replace default via {CLIENT[version]} dev m0 && ip {flag} neigh flush dev m0")
    assert silent() == {}
    network = Datapath(Path("/nonexistent"))
    try:
        hops = network.next_hops(wanted)
    finally:
        network.close()
    mac = bytes.fromhex(sh("cat /sys/class/net/c0/address", hosts.client).strip().replace(":", ""))
    assert hops == [("m0", ip_address(CLIENT[4]), mac), ("m0", ip_address(CLIENT[6]), mac)]
    assert by_name(desired()).keys() & silent().keys() == set()


def test_destinations_are_found_behind_routers_of_the_mesh_by_the_route_to_them_or_to_a_part_of_them(
    hosts: Lab,
) -> None:
    mac = bytes.fromhex(sh("cat /sys/class/net/c0/address", hosts.client).strip().replace(":", ""))
    routers = {version: Router("m0", mac, ip_address(CLIENT[version])) for version in (4, 6)}
    free = [ip_network(each) for each in ("198.51.100.0/24", "203.0.113.0/24", "2001:db8:5::/48", "10.0.0.0/8")]
    network = Datapath(Path("/nonexistent"))
    try:
        assert network.routers_towards(desired(), free) == []  # all of it goes upstream, or is on our own links
        sh(f"ip route add 198.51.100.0/24 via {CLIENT[4]} && ip route add 203.0.113.128/25 via {CLIENT[4]}")
        sh(f"ip -6 route add 2001:db8:5::/48 via {CLIENT[6]}")
        sh(f"ping -n -q -c 1 -W 30 {CLIENT[4]} && ping -n -q -c 1 -W 30 {CLIENT[6]}")  # so that its MAC is known
        found = [(free[0], routers[4]), (free[1], routers[4]), (free[2], routers[6])]
        network.close()  # routes are remembered for some seconds
        assert network.routers_towards(desired(), free) == found
        assert network.routers_towards(desired(families=frozenset({6})), free)[1:] == found[2:]
    finally:
        network.close()
