"""Links of every kind: several neighbours on one interface, bare Ethernet, both links at once, a layer-3 interface."""

from __future__ import annotations

import sys

import pytest

from core_tests import interface_kinds, traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.shell import LabError, await_until
from core_tests.topologies import LAN_V4, MESH_V4, MESH_V6, REMOTE_NETS, WAN_V4, ThreeHosts, three_hosts
from core_tests.trade import CLIENT, GATEWAY, PREPAYING, Trade, open_trade, start_all, used

VERSIONS = (4, 6)
CONFIGURATION, KERNEL, ALREADY_RUNNING = 3, 4, 7

# Carries packets between the tun interfaces of two namespaces; a program of its own, since a process can't leave one.
PUMP = """
import ctypes, fcntl, os, select, struct, sys
TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000
ends = []
for namespace in sys.argv[2:]:
    with open(f"/var/run/netns/{namespace}") as place:
        ctypes.CDLL(None).setns(place.fileno(), CLONE_NEWNET)  # os.setns comes with Python 3.12
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), IFF_TUN | IFF_NO_PI))
    ends.append(end)
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        packet = os.read(end, 65536)
        try:
            os.write(ends[1 - ends.index(end)], packet)
        except OSError:
            pass
"""


def test_two_neighbours_on_one_interface_have_each_their_own_contract(lab: Lab) -> None:
    trade = open_trade(lab, clients=2)
    first, second = trade.net.clients
    remote = trade.net.remote(4)
    assert traffic.ping(first, remote, count=5).received == 5
    assert traffic.ping(second, remote, wait_s=0.5).received == 0  # the first client's contract is its own
    other = second.daemon(CLIENT)
    await_until(lambda: traffic.ping(second, remote, wait_s=1).received, what="the second client's contract")
    theirs = other.json("status")["identity"]
    for version in VERSIONS:
        assert traffic.ping(second, trade.net.remote(version, 2), count=9).received == 9
    await_until(lambda: sold_to(trade, theirs, trade.net.remote(6, 2)), what="a reading of the meter")
    assert sold_to(trade, trade.identity(trade.client), remote) == 2 * 5 * 84
    assert sold_to(trade, theirs, trade.net.remote(4, 2)) == 2 * 9 * 84
    assert sold_to(trade, theirs, trade.net.remote(6, 2)) == 2 * 9 * 104
    assert {row["contracts"] for row in trade.gateway.json("accounts")} == {1, 3}


def sold_to(trade: Trade, neighbour: str, remote: str) -> int:
    (row,) = [row for row in trade.sold(neighbour=neighbour) if row["destination"].startswith(f"{remote}/")]
    return used(row)


def test_a_second_daemon_on_the_same_state_directory_is_refused(lab: Lab) -> None:
    trade = open_trade(lab)
    again = trade.gateway.try_start()
    assert again.returncode == ALREADY_RUNNING
    assert "already runs" in again.stdout
    assert traffic.ping(trade.net.client, trade.net.remote(4)).received == 1


def test_messages_over_bare_ethernet_need_no_address(lab: Lab) -> None:
    net = three_hosts(lab)
    for host in (net.client, net.gateway):
        host.ip("address", "flush", "dev", "mesh0")
    trade = Trade(
        net,
        net.gateway.daemon({**GATEWAY, "LINK_INTERFACE": "ethernet"}, start=False),
        net.client.daemon({**CLIENT, "LINK_INTERFACE": "ethernet"}, start=False),
    )
    start_all(trade.gateway, trade.client)
    trade.await_acquainted()
    for host in (net.client, net.gateway):
        for address in list(host.addresses["mesh0"]):
            host.add_address("mesh0", address)
    for version in VERSIONS:
        family, any_where = (f"-{version}", {4: "default", 6: "::/0"}[version])
        net.client.ip(family, "route", "replace", any_where, "via", net.gateway.address("mesh0", version))
        assert traffic.ping(net.client, net.remote(version), count=3).received == 3
    trade.assert_books_agree()


@pytest.mark.long
@pytest.mark.parametrize("other", ["ethernet", "grpc"])
def test_both_links_at_once_find_each_neighbour_once(lab: Lab, other: str) -> None:
    named = {"NGP_INTERFACE": MESH_V4.format(1).partition("/")[0]} if other == "grpc" else {}
    trade = open_trade(lab, {"LINK_INTERFACE": ["udp", other]}, {"LINK_INTERFACE": [other, "udp"], **named})
    for version in VERSIONS:
        assert traffic.ping(trade.net.client, trade.net.remote(version), count=3).received == 3
    assert [len(daemon.json("neighbours")) for daemon in (trade.gateway, trade.client)] == [1, 1]
    trade.assert_books_agree()


def test_neighbours_trade_by_grpc_alone_and_one_that_was_killed_is_met_again(lab: Lab) -> None:
    """UDP is lost between them. A reload says whom the client calls; either is killed while its contract runs."""
    net = three_hosts(lab)
    for host in (net.client, net.gateway):
        for command in ("iptables", "ip6tables"):
            host.run(command, "-A", "INPUT", "-p", "udp", "--dport", "10325", "-j", "DROP")
    client = {**CLIENT, "LINK_INTERFACE": "grpc"}
    trade = Trade(
        net,
        net.gateway.daemon({**GATEWAY, "LINK_INTERFACE": 3}, start=False),
        net.client.daemon(client, start=False),
    )
    start_all(trade.gateway, trade.client)
    reloaded = trade.client.reload({**client, "NGP_INTERFACE": net.gateway.address("mesh0", 4)})
    assert reloaded.returncode == 0, reloaded.stderr
    trade.await_acquainted()
    trade.prepay()
    (row,) = trade.gateway.json("neighbours")
    assert row["link_address"] == net.client.mac("mesh0")
    traffic.tcp_sink(net.internet, net.remote(4, 2), 5001)
    for number, victim in enumerate((trade.gateway, trade.client), 3):
        victim.kill9()
        assert traffic.ping(net.client, net.remote(4, PREPAYING)).received == 1  # the contract goes on
        victim.start()
        trade.await_acquainted()
        assert traffic.ping(net.client, net.remote(6, number)).received == 1
        assert traffic.tcp_send(net.client, net.remote(4, 2), 5001, size_bytes=1_000_000).intact
    trade.assert_books_agree()


def test_a_layer_3_interface_is_a_mesh_interface_too(lab: Lab) -> None:
    """Like WireGuard and ipip it has no hardware address, so the interface identifies the neighbour."""
    net = three_hosts(lab)
    for prefix in REMOTE_NETS:
        net.gateway.ip("-6" if ":" in prefix else "-4", "route", "del", prefix)
    lay_tunnel(net.gateway, net.client)
    gateway = net.gateway.daemon({**GATEWAY, "MESH_INTERFACES": "tun0"}, start=False)
    trade = Trade(net, gateway, net.client.daemon({"MESH_INTERFACES": "tun0"}, start=False))
    start_all(trade.gateway, trade.client)
    trade.await_acquainted()
    trade.prepay()
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("tun0", "in")
    for version in VERSIONS:
        remote = net.remote(version)
        traffic.tcp_sink(net.internet, remote, 5001)
        assert traffic.tcp_send(net.client, remote, 5001, size_bytes=200_000).intact
        assert traffic.ping(net.client, net.remote(version, 2)).received == 1
    trade.assert_books_agree()
    for version in VERSIONS:
        remote = net.remote(version)
        (row,) = [row for row in trade.sold() if row["destination"].startswith(f"{remote}/")]
        assert row["used_to_bytes"] == at_internet.total("in", destination=remote).bytes
        assert row["used_from_bytes"] == at_client.total("in", source=remote).bytes


def lay_tunnel(gateway: Host, client: Host, versions: tuple[int, ...] = VERSIONS) -> None:
    """Connect two hosts by a layer-3 tunnel, and route the client's traffic through it."""
    pump = gateway.popen(sys.executable, "-c", PUMP, "tun0", gateway.namespace, client.namespace, stdout=-1)
    assert pump.stdout is not None
    if pump.stdout.readline() != "ready\n":
        raise LabError("the tunnel's pump didn't start")
    for host, number in ((gateway, 1), (client, 2)):
        host.ip("link", "set", "tun0", "mtu", "1400", "up")
        for version in versions:
            host.add_address("tun0", {4: f"10.99.0.{number}/24", 6: f"2001:db8:99::{number}/64"}[version])
    for version in versions:
        everywhere = {4: "default", 6: "::/0"}[version]
        client.ip(f"-{version}", "route", "replace", everywhere, "via", gateway.address("tun0", version), "dev", "tun0")


@pytest.mark.parametrize(
    ("links", "bare"),
    [(["udp"], ("client", "gateway")), (["udp"], ("client",)), (["udp", "ethernet"], ("client",))],
    ids=["both", "one", "one, with Ethernet"],
)
def test_neighbours_meet_where_the_mesh_has_ipv6_only_and_other_interfaces_ipv4(
    lab: Lab, links: list[str], bare: tuple[str, ...]
) -> None:
    """Over IPv4 a hello comes from another interface's address, which the neighbour can't answer."""
    net = three_hosts(lab, households=1)
    for name in bare:
        lab.hosts[name].ip("-4", "address", "flush", "dev", "mesh0")
    for host in (net.client, net.gateway):
        host.sysctl({"net.ipv4.conf.all.arp_ignore": "1"})  # otherwise Linux uses addresses of others here
    gateway = net.gateway.daemon({**GATEWAY, "LINK_INTERFACE": links}, start=False)
    trade = Trade(net, gateway, net.client.daemon({**CLIENT, "LINK_INTERFACE": links}, start=False))
    start_all(trade.gateway, trade.client)
    trade.await_acquainted()
    assert traffic.ping(net.client, net.remote(6), count=3).received == 3
    trade.assert_books_agree()


def test_neighbours_on_a_tunnel_with_a_plain_subnet_of_ipv4_meet(lab: Lab) -> None:
    """Such a tunnel, like ipip, has no peer address to write to, and no IPv6 for messages to everybody."""
    net = three_hosts(lab)
    for prefix in REMOTE_NETS:
        net.gateway.ip("-6" if ":" in prefix else "-4", "route", "del", prefix)
    for host in (net.client, net.gateway):
        host.sysctl({"net.ipv6.conf.default.disable_ipv6": "1"})
    lay_tunnel(net.gateway, net.client, versions=(4,))
    gateway = net.gateway.daemon({**GATEWAY, "MESH_INTERFACES": "tun0", "NETWORK_INTERFACE": "ip4"}, start=False)
    client = net.client.daemon({"MESH_INTERFACES": "tun0", "NETWORK_INTERFACE": "ip4"}, start=False)
    said = gateway.cli("check", "--config", str(gateway.config)).stdout
    assert "neighbour on tun0" in said and "10.99.0.255" in said
    start_all(gateway, client)
    Trade(net, gateway, client).await_acquainted()
    assert traffic.ping(net.client, net.remote(4), count=3).received == 3


UPPER_KINDS = {"macvlan": ("macvlan", "mode", "bridge"), "vlan": ("vlan", "id", "5")}


@pytest.mark.parametrize("kind", [kind for kind in UPPER_KINDS if kind in interface_kinds.present()])
def test_an_uplink_on_the_meshs_own_port_is_never_gated(lab: Lab, kind: str) -> None:
    """The gateway's LAN uses the uplink, and passes the mesh interface's egress."""
    switch, gateway, internet = lab.switch(), lab.host("gateway", forward=True), lab.host("internet")
    client, household = lab.host("client"), lab.host("household")
    lab.link(End(gateway, "mesh0", MESH_V4.format(1), MESH_V6.format(1)), switch)
    lab.link(End(client, "mesh0", MESH_V4.format(2), MESH_V6.format(2)), switch)
    lab.link(End(internet, "under0"), switch)
    lab.link(End(gateway, "lan0", LAN_V4.format(1)), End(household, "lan0", LAN_V4.format(2)))
    for host, below, number in ((gateway, "mesh0", 1), (internet, "under0", 2)):
        interface_kinds.answer_where_asked(host)
        host.ip("link", "add", "link", below, "name", "wan0", "type", *UPPER_KINDS[kind])
        host.ip("link", "set", "wan0", "up")
        host.add_address("wan0", WAN_V4.format(number))
    internet.owns(REMOTE_NETS[0])
    gateway.route("default", via=internet.address("wan0", 4))
    gateway.masquerade("wan0")
    client.route("default", via=gateway.address("mesh0", 4))
    household.route("default", via=gateway.address("lan0", 4))
    lab.await_carriers()
    net = ThreeHosts(client, gateway, internet, (client,), (household,))
    trade = Trade(net, gateway.daemon({**GATEWAY, "BUY": "no"}, start=False), client.daemon(CLIENT, start=False))
    await_until(lambda: traffic.ping(household, net.remote(4)).received, what="plain forwarding, before any daemon")
    start_all(trade.gateway, trade.client)
    trade.await_acquainted()
    assert traffic.ping(household, net.remote(4), count=3, wait_s=10).received == 3  # up and down, without a contract
    assert not trade.sold()
    trade.prepay()
    traffic.tcp_sink(internet, net.remote(4, 2), 5001)
    assert traffic.tcp_send(client, net.remote(4, 2), 5001, size_bytes=100_000).intact
    trade.assert_books_agree()


def test_all_takes_a_bridge_and_not_its_ports_and_a_named_port_is_refused(lab: Lab) -> None:
    net = three_hosts(lab)
    gateway = net.gateway
    for remote in REMOTE_NETS:
        gateway.ip("-6" if ":" in remote else "-4", "route", "del", remote)
    gateway.ip("link", "add", "br0", "type", "bridge", "stp_state", "0")
    interface_kinds.keep_bridges_free(gateway)
    gateway.ip("link", "set", "mesh0", "master", "br0")
    gateway.ip("address", "flush", "dev", "mesh0")
    gateway.ip("link", "set", "br0", "up")
    gateway.add_address("br0", MESH_V4.format(1))
    by_name = gateway.daemon(GATEWAY, start=False)
    refused = by_name.try_start()
    assert refused.returncode == CONFIGURATION and "port of the bridge br0" in refused.stdout
    checked = by_name.cli("check", "--config", str(by_name.config))
    assert checked.returncode in (CONFIGURATION, KERNEL) and "port of the bridge br0" in checked.stdout
    trade = Trade(
        net,
        gateway.daemon({"MESH_INTERFACES": "all", "IGNORE_INTERFACE": "wan0"}, start=False),
        net.client.daemon(CLIENT, start=False),
    )
    said = trade.gateway.cli("check", "--config", str(trade.gateway.config)).stdout
    assert "left out of MESH_INTERFACES: is a port of the bridge br0" in said
    start_all(trade.gateway, trade.client)
    trade.await_acquainted()
    trade.prepay()
    traffic.tcp_sink(net.internet, net.remote(4), 5001)
    assert traffic.tcp_send(net.client, net.remote(4), 5001, size_bytes=100_000).intact
    trade.assert_books_agree()
    assert trade.gateway.reload(GATEWAY).returncode == CONFIGURATION
    gateway.ip("link", "add", "br1", "type", "bridge")
    gateway.ip("link", "set", "br0", "down")
    gateway.ip("link", "del", "br0")
    trade.gateway.await_logged("mesh interface br0 is gone")


def test_both_routers_get_new_macs_under_a_running_contract(lab: Lab) -> None:
    """A cable or VLAN between them is made anew: nobody pays for what only one of the two meters counts."""
    trade = open_trade(lab)
    net, remote = trade.net, trade.net.remote(4)
    trade.prepay()
    traffic.tcp_sink(net.internet, remote, 5001)
    assert traffic.tcp_send(net.client, remote, 5001, size_bytes=500_000).intact
    old = {row["id"] for row in trade.sold()}
    net.gateway.ip("link", "del", "mesh0")
    lab.link(
        End(net.gateway, "mesh0", MESH_V4.format(1), MESH_V6.format(1)),
        End(net.client, "mesh0", MESH_V4.format(2), MESH_V6.format(2)),
    )
    for version, everywhere in ((4, "default"), (6, "::/0")):
        net.client.route(everywhere, via=net.gateway.address("mesh0", version))
    await_until(lambda: traffic.ping(net.client, remote, wait_s=1).received, what="traffic over the new link")
    for _ in range(3):
        assert traffic.tcp_send(net.client, remote, 5001, size_bytes=2_000_000).intact
    await_until(lambda: old.isdisjoint(running(trade.gateway) | running(trade.client)), what="the old contracts' end")
    assert traffic.tcp_send(net.client, remote, 5001, size_bytes=2_000_000).intact
    await_until(lambda: running(trade.gateway) == running(trade.client), what="the same contracts on both sides")
    assert not trade.spent()["disputed"]
    assert trade.earned()["charged_msat"] - trade.spent()["metered_msat"] < 100_000


def running(daemon: Daemon) -> set[str]:
    """Return the ids of a daemon's open contracts."""
    return {str(row["id"]) for row in daemon.json("contracts")}
