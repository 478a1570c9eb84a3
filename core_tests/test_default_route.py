"""BUY_DEFAULT_ROUTE: a household buys all that its default route leads to by one contract."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.diamond import CHOOSING, HANG_S, Diamond, diamond, gateway
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.routers import BITS, REMOTE, REMOTE_NET, Line, add_route_back, cable, rows
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB, Conf, Trade, open_trade, start_all, used
from core_tests.traffic import PING_BYTES

HOUSEHOLD: Conf = {"SELL": "no", "BUY_DEFAULT_ROUTE": "yes"}
WHOLE = {4: "0.0.0.0/0", 6: "::/0"}
VERSIONS = (4, 6)
NET_BITS = {4: 24, 6: 64}
FIRST, OTHERS = 1, range(2, 22)


def begun(trade: Trade, version: int) -> None:
    """Send to a first destination, and wait until the default route is bought on both sides."""
    assert traffic.ping(trade.net.client, trade.net.remote(version, FIRST)).received == 1
    await_whole(trade.gateway, trade.client, version)


def await_whole(gateway: Daemon, client: Daemon, version: int = 4) -> None:
    """Wait until a client has bought its default route, and paid the gateway."""

    def states(daemon: Daemon) -> list[str]:
        return [row["state"] for row in daemon.json("contracts") if row["destination"] == WHOLE[version]]

    await_until(lambda: states(client) == ["active"] and set(states(gateway)) == {"active"}, what="the default route")


def test_one_contract_carries_all_destinations_and_is_billed_as_the_receivers_count(lab: Lab) -> None:
    trade = open_trade(lab, client=HOUSEHOLD, households=1)
    net, behind = trade.net, trade.net.household
    assert behind is not None
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    for version in VERSIONS:
        begun(trade, version)
        held = trade.kernel_counter("passed_to_queue")
        for number in OTHERS:
            sender = behind if number % 2 else net.client
            assert traffic.ping(sender, net.remote(version, number), count=2, payload_bytes=40 + number).received == 2
        traffic.tcp_source(net.internet, net.remote(version, 2), 7000)
        assert traffic.tcp_fetch(behind, net.remote(version, 2), 7000, size_bytes=2_000_000) == 2_000_000
        assert trade.kernel_counter("passed_to_queue") == held, "no packet waits"
    trade.assert_books_agree()
    sold = {row["destination"]: row for row in trade.sold()}
    firsts = {version: f"{net.remote(version, FIRST)}/{BITS[version]}" for version in VERSIONS}
    assert sold.keys() == {*WHOLE.values(), *firsts.values()}
    listed = {row["destination"]: row["top"] for row in trade.gateway.json("contracts", "--by-destination")}
    for version in VERSIONS:
        seen = {
            net.remote(version, number): (
                at_internet.total("in", destination=net.remote(version, number)).bytes,
                at_client.total("in", source=net.remote(version, number)).bytes,
            )
            for number in OTHERS
        }
        whole = sold[WHOLE[version]]
        assert (whole["used_to_bytes"], whole["used_from_bytes"]) == tuple(map(sum, zip(*seen.values(), strict=True)))
        tops = {one["address"]: (one["used_to_bytes"], one["used_from_bytes"]) for one in listed[WHOLE[version]]}
        assert tops == seen
    shown = trade.client.cli("contracts").stdout
    assert all(destination in shown for destination in WHOLE.values())


def test_it_is_renewed_under_way_and_no_packet_waits(lab: Lab) -> None:
    trade = open_trade(lab, client=HOUSEHOLD, both={"CONTRACT_DATA": "2 MB", "PAYMENT_AMOUNT": "1000 sat"})
    begun(trade, 4)
    held = trade.kernel_counter("passed_to_queue")
    remote = trade.net.remote(4, 2)
    traffic.tcp_source(trade.net.internet, remote, 7000)
    for _ in range(8):
        assert traffic.tcp_fetch(trade.net.client, remote, 7000, size_bytes=1_000_000) == 1_000_000
        await_until(lambda: _room(trade) > 1_500_000, what="a renewal")
    assert trade.kernel_counter("passed_to_queue") == held
    assert sum(line["state"] == "renewed" for line in trade.gateway.json("ledger")) >= 3
    trade.assert_books_agree()
    assert len(trade.sold()) == 2


def _room(trade: Trade) -> int:
    (row,) = trade.sold(destination=WHOLE[4])
    return int(row["data_limit_bytes"] - used(row))


@pytest.mark.parametrize("version", VERSIONS)
def test_new_destinations_are_reached_while_either_daemon_is_dead(lab: Lab, version: int) -> None:
    trade = open_trade(lab, client=HOUSEHOLD)
    begun(trade, version)
    for number, daemon in enumerate((trade.gateway, trade.client), 2):
        daemon.kill9()
        assert traffic.ping(trade.net.client, trade.net.remote(version, number), count=3).received == 3
        daemon.start()
        trade.await_acquainted()
        assert traffic.ping(trade.net.client, trade.net.remote(version, 10 + number), count=3).received == 3
    trade.assert_books_agree()
    (whole,) = trade.sold(destination=WHOLE[version])
    assert len(trade.sold()) == 2 and used(whole) == 4 * 3 * 2 * PING_BYTES[version]


def test_without_the_key_or_when_it_is_switched_off_each_destination_is_bought_by_itself(lab: Lab) -> None:
    trade = open_trade(lab, client=HOUSEHOLD)
    begun(trade, 4)
    assert trade.client.reload({"MESH_INTERFACES": "mesh0", "SELL": "no"}).returncode == 0
    await_until(lambda: trade.sold(destination=WHOLE[4], state="closed"), what="the end of that contract")
    hosts = [trade.net.remote(4, number) for number in (2, 3)]
    assert all(traffic.ping(trade.net.client, host).received == 1 for host in hosts)
    assert {row["destination"] for row in trade.sold() if row["state"] != "closed"} >= {f"{host}/32" for host in hosts}
    trade.assert_books_agree()


@dataclass(frozen=True, slots=True)
class Crossroads:
    """client - hub - internet; and a dear neighbour of the hub, by which it reaches a household."""

    client: Host
    behind: Host
    buyer: Daemon
    seller: Daemon


def crossroads(lab: Lab) -> Crossroads:
    client, hub, internet = lab.host("client"), lab.host("hub", forward=True), lab.host("internet")
    dear, behind = lab.host("dear", forward=True), lab.host("behind")
    cable(lab, client, hub, 1, ("mesh0", "mesh0"))
    cable(lab, hub, internet, 2, ("wan0", "wan0"))
    cable(lab, dear, hub, 3, ("mesh0", "mesh1"))
    cable(lab, behind, dear, 4, ("eth0", "lan0"))
    add_route_back(hub, 4, dear, "mesh0")
    add_route_back(internet, 1, hub, "wan0")
    for version in VERSIONS:
        internet.owns(REMOTE_NET[version])
    lab.await_carriers()
    prices = {"SELL_PRICE": "20 msat", "SELL_PRICE_MIN": "20 msat"}
    gate = {"MESH_INTERFACES": ["mesh0", "mesh1"], "IGNORE_INTERFACE": "wan0", "BUY_PRICE_MAX": "20 msat"}
    seller, other = hub.daemon(gate, start=False), dear.daemon({"MESH_INTERFACES": "mesh0", **prices}, start=False)
    buyer = client.daemon({"MESH_INTERFACES": "mesh0", **HOUSEHOLD, "BUY_PRICE_MAX": "30 msat"}, start=False)
    start_all(seller, other, buyer)
    await_until(lambda: len(seller.json("neighbours")) == 2, what="neighbours found")
    return Crossroads(client, behind, buyer, seller)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_part_that_costs_more_through_another_neighbour_is_sold_by_itself(lab: Lab, version: int) -> None:
    net, whole, size = crossroads(lab), WHOLE[version], PING_BYTES[version]
    there = net.behind.address("eth0", version)
    part = str(ip_network(f"{there}/{NET_BITS[version]}", strict=False))
    assert traffic.ping(net.client, REMOTE[version]).received == 1
    await_whole(net.seller, net.buyer, version)
    visited = net.client.address("mesh0", version)
    traffic.udp_echo(net.client, visited, 5000)
    visits = traffic.udp_send(net.behind, visited, 5000, count=3, await_echoes=True)
    assert visits == 3, "the dear neighbour's household visits the client"
    assert traffic.ping(net.client, there, count=5).received == 5
    carried = {role: rows(net.seller, role).get(part) for role in ("server", "client")}
    assert carried == {"server": (5 * size, 5 * size), "client": (5 * size, 5 * size)}
    asked = {(row["role"], row["destination"]): row["price_msat_per_gib"] for row in net.seller.json("contracts")}
    prices = [asked[which] // MSAT_PER_KB for which in (("client", part), ("server", part), ("server", whole))]
    assert prices == [20, 22, 5], "never below cost and margin; what is upstream stays as cheap"
    assert rows(net.seller, "server")[whole] == (0, 0), "neither the visit nor the part is charged to it"
    assert traffic.ping(net.client, f"{REMOTE[version][:-1]}9", count=2).received == 2
    await_until(lambda: rows(net.seller, "server")[whole] == (2 * size, 2 * size), what="what is upstream")


def household_line(lab: Lab) -> Line:
    line = Line(lab, masquerade=True, start=False)
    line.daemons[0].configure({"MESH_INTERFACES": "north", **HOUSEHOLD})
    return line


def test_behind_a_router_whose_default_route_is_two_halves_each_destination_is_bought_by_itself(lab: Lab) -> None:
    line = household_line(lab)
    (a, b, c), middle = line.daemons, line.routers[1]
    upstream = line.routers[2].address("south", 4)
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        middle.route(half, via=upstream)
    start_all(a, b, c)
    line.await_acquainted()
    hosts = [REMOTE[4], REMOTE[4][:-1] + "2"]
    assert all(traffic.ping(line.household, host, count=3).received == 3 for host in hosts)
    sold = [rows(daemon, "server").keys() for daemon in (c, b)]
    assert sold == [rows(a, "client").keys()] * 2 == [{f"{host}/32" for host in hosts}] * 2
    said = await_until(lambda: _said(a, "as a whole: each destination is bought by itself"), 60, "the warning")
    assert "doesn't sell 0.0.0.0/0" in said


def test_behind_a_router_in_the_middle_one_contract_carries_all_while_its_default_route_leads_there(lab: Lab) -> None:
    line = household_line(lab)
    (a, b, c), middle = line.daemons, line.routers[1]
    start_all(a, b, c)
    line.await_acquainted()
    assert traffic.ping(line.household, REMOTE[4]).received == 1
    await_whole(b, a)
    held = b.ask("status")["counters"]["kernel"]["passed_to_queue"]
    hosts = [f"{REMOTE[4][:-1]}{number}" for number in OTHERS]
    assert all(traffic.ping(line.household, host, count=2).received == 2 for host in hosts)
    assert b.ask("status")["counters"]["kernel"]["passed_to_queue"] == held, "no packet waits"
    carried = len(hosts) * 2 * PING_BYTES[4]
    for daemon, role in ((a, "client"), (b, "server"), (b, "client"), (c, "server")):
        await_until(lambda of=daemon, role=role: rows(of, role)[WHOLE[4]] == (carried, carried), what="the counts")  # type: ignore[misc]
    b.kill9()
    assert traffic.ping(line.household, f"{REMOTE[4][:-1]}99", count=2).received == 2, "also while its daemon is dead"
    b.start()
    assert traffic.ping(line.household, f"{REMOTE[4][:-1]}98", count=2).received == 2
    assert [row["state"] for row in b.json("contracts") if row["destination"] == WHOLE[4]] == ["active"] * 2
    middle.ip("route", "del", "default")
    await_until(lambda: not any(row["destination"] == WHOLE[4] for row in a.json("contracts")), what="its end")
    b.await_logged("isn't resold now")


def test_check_names_a_missing_default_route_and_a_key_that_sells(lab: Lab) -> None:
    trade = open_trade(lab, client=HOUSEHOLD)
    assert not _said(trade.client, "default route")
    for version in VERSIONS:
        trade.net.client.ip(f"-{version}", "route", "del", "default")
    assert _said(trade.client, "none leads into the mesh")
    refused = trade.client.reload({"MESH_INTERFACES": "mesh0", "BUY_DEFAULT_ROUTE": "yes"})
    assert refused.returncode == 3 and "SELL: no" in refused.stderr


def _said(daemon: Daemon, text: str) -> str:
    """Return the lines of `ngp check` that have a text in them."""
    return "\n".join(line for line in daemon.cli("check").stdout.splitlines() if text in line)


def test_of_several_gateways_the_chosen_one_sells_it_and_after_a_fail_over_the_other_one_does(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"), {**CHOOSING, **HOUSEHOLD})
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        await_until(lambda: _sells_whole(net, "east"), HANG_S, "its default route, without a new destination")
        assert traffic.ping(net.hosts["client"], "198.51.100.6").received == 1
        Diamond.cut_off(net, "east")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        talk.await_echoes()
        assert traffic.ping(net.hosts["client"], "198.51.100.7").received == 1
        await_until(lambda: _sells_whole(net, "west"), HANG_S, "the other one's default route")
        talk.await_echoes()


def _sells_whole(net: Diamond, name: str) -> bool:
    contracts = net.daemons[name].ask("contracts", all=False, by_destination=False)
    return any(row["destination"] == WHOLE[4] for row in contracts)
