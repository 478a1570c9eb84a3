"""Prices of prefixes, and traffic that is never charged: free destinations, and the routers' own traffic."""

from __future__ import annotations

import json

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.topologies import REMOTE_NETS
from core_tests.trade import CLIENT, GATEWAY, MSAT_PER_KB, Trade, open_trade, used
from ngp.errors import ExitCode

VERSIONS = (4, 6)


def answered(trade: Trade, address: str, count: int = 1) -> bool:
    return traffic.ping(trade.net.client, address, count=count).received == count


def test_a_prefix_is_one_contract_for_all_its_hosts(lab: Lab) -> None:
    trade = open_trade(lab, {"PRICES": [{"prefix": prefix, "sell": "2 msat"} for prefix in REMOTE_NETS]})
    for version in VERSIONS:
        assert all(answered(trade, trade.net.remote(version, number)) for number in (1, 2, 254))
    trade.assert_books_agree()
    sold = trade.sold()
    assert {row["destination"] for row in sold} == set(REMOTE_NETS)
    assert [row["price_msat_per_gib"] for row in sold] == [2 * MSAT_PER_KB] * 2
    assert sorted(map(used, sold)) == [3 * 2 * 84, 3 * 2 * 104]
    for daemon in (trade.gateway, trade.client):
        for row in daemon.json("contracts", "--by-destination"):
            version, size = (6, 104) if ":" in row["destination"] else (4, 84)
            hosts = {trade.net.remote(version, number) for number in (1, 2, 254)}
            assert {one["address"] for one in row["top"]} == hosts
            assert {one["used_from_bytes"] for one in row["top"]} == {size}
            sent = sum(one["used_to_bytes"] for one in row["top"])
            assert sent == 3 * size or (daemon is trade.client and sent == 2 * size), "a client's first packet is extra"
    shown = trade.gateway.cli("contracts", "--by-destination").stdout
    assert f"  {trade.net.remote(4, 254)} " in shown


def test_a_client_whose_route_is_narrower_than_what_the_gateway_sells_buys_the_host(lab: Lab) -> None:
    trade = open_trade(lab, {"PRICES": [{"prefix": prefix, "sell": "2 msat"} for prefix in REMOTE_NETS]})
    net = trade.net
    for version in VERSIONS:
        host, router = net.remote(version, 1), net.gateway.address("mesh0", version)
        net.client.ip(f"-{version}", "route", "del", "default")
        net.client.ip(f"-{version}", "route", "add", f"{host}/{32 if version == 4 else 128}", "via", router)
        await_until(lambda host=host: answered(trade, host), what=f"an answer of {host}")  # type: ignore[misc]
    assert {row["destination"] for row in trade.sold() if row["state"] == "active"} == {
        f"{net.remote(4, 1)}/32", f"{net.remote(6, 1)}/128"
    }  # fmt: skip


def test_a_route_behind_another_router_is_sold_whole_and_an_expensive_part_separately(lab: Lab) -> None:
    expensive = "198.51.100.128/25"
    trade = open_trade(
        lab, {"PRICES": [{"prefix": expensive, "sell": "4 msat"}], "SELL_PRICE": "3 msat", "SELL_PRICE_MIN": "3 msat"},
        whole_routes=True,
    )  # fmt: skip
    assert all(answered(trade, trade.net.remote(version, number)) for version in VERSIONS for number in (1, 200))
    prices = {row["destination"]: row["price_msat_per_gib"] // MSAT_PER_KB for row in trade.sold()}
    assert prices == {"198.51.100.1/32": 3, expensive: 4, REMOTE_NETS[1]: 3}


def test_the_price_rises_with_the_load_upstream_and_what_was_agreed_stays(lab: Lab) -> None:
    loaded = {"SELL_PRICE_LOAD": {"from": "10 %", "factor": 3, "rate": "4 kB/s"}}
    trade = open_trade(lab, loaded, {"BUY_PRICE_MAX": "15 msat"})
    calm, busy, later = (trade.net.remote(4, number) for number in (1, 2, 3))
    assert answered(trade, calm)

    def is_full() -> bool:
        traffic.ping(trade.net.client, calm, count=40, payload_bytes=1200, interval_s=0.01)
        return bool(trade.gateway.json("status")["upstream_load"] == 1)

    await_until(is_full, 60, "a full upstream")
    assert answered(trade, busy)
    await_until(lambda: trade.gateway.json("status")["upstream_load"] < 0.1, 60, "a calm upstream")
    assert answered(trade, later)
    prices = {row["destination"]: row["price_msat_per_gib"] // MSAT_PER_KB for row in trade.sold()}
    assert prices == {f"{calm}/32": 5, f"{busy}/32": 15, f"{later}/32": 5}
    trade.assert_books_agree()


def test_a_neighbours_own_price_comes_by_reload_and_a_list_without_a_winner_changes_nothing(lab: Lab) -> None:
    trade = open_trade(lab)
    before, after, later = (trade.net.remote(4, number) for number in (1, 2, 3))
    assert answered(trade, before)
    usual = {"prefix": "0.0.0.0/0", "sell": "9 msat"}
    own = {"prefix": "0.0.0.0/0", "sell": "2 msat", "neighbour": trade.identity(trade.client)[:16]}
    assert trade.gateway.reload({**GATEWAY, "PRICES": [usual, own]}).returncode == 0
    assert answered(trade, after)
    evening = {**own, "sell": "1 msat", "from": "18:00", "to": "23:00"}
    refused = trade.gateway.reload({**GATEWAY, "PRICES": [usual, evening, {**evening, "from": "22:00", "to": "02:00"}]})
    assert refused.returncode == ExitCode.CONFIGURATION and "a second price" in refused.stderr
    checked = trade.gateway.cli("check", "--config", str(trade.gateway.config))
    assert checked.returncode == ExitCode.CONFIGURATION and "a second price" in checked.stdout + checked.stderr
    assert answered(trade, later)
    prices = {row["destination"]: row["price_msat_per_gib"] // MSAT_PER_KB for row in trade.sold()}
    assert prices == {f"{before}/32": 5, f"{after}/32": 2, f"{later}/32": 2}
    trade.assert_books_agree()


def test_only_free_destinations_cost_nothing(lab: Lab) -> None:
    name_server, whole_host = "198.51.100.53", "2001:db8:ffff::35"
    trade = open_trade(lab, both={"FREE_DESTINATIONS": [f"{name_server} udp 53", whole_host]})
    net = trade.net
    traffic.udp_echo(net.internet, name_server, 53)
    assert traffic.udp_send(net.client, name_server, 53, count=20, rate_pps=500, await_echoes=True) == 20
    assert answered(trade, whole_host, 10)
    assert trade.sold() == []
    assert answered(trade, name_server)  # its pings aren't free
    assert traffic.udp_send(net.client, name_server, 53, count=20, rate_pps=500, await_echoes=True) == 20
    trade.assert_books_agree()
    (row,) = trade.sold()
    assert (row["destination"], used(row)) == (f"{name_server}/32", 2 * 84)


def test_what_only_the_buyer_lists_as_free_is_a_warning_to_the_buyer(lab: Lab) -> None:
    free, buyer = "198.51.100.0/24", {**CLIENT, "SELL": "no"}
    trade = open_trade(lab, {"FREE_DESTINATIONS": ["203.0.113.9"]}, buyer)
    seller = f"{trade.identity(trade.gateway)[:16]} on mesh0"

    def warned(daemon: Daemon) -> list[str]:
        rows = daemon.json("check", "--config", str(daemon.config))
        return [row["found"] for row in rows if row["name"] == "free destinations"]

    assert warned(trade.client) == warned(trade.gateway) == []
    reloaded = trade.client.reload({**buyer, "FREE_DESTINATIONS": [free]})
    assert reloaded.returncode == 0
    assert f"WARNING free destinations: {free}: our route leads to {seller}" in reloaded.stdout + reloaded.stderr
    (found,) = warned(trade.client)
    assert found.startswith(f"{free}: our route leads to {seller}, which may charge for it")
    trade.client.stop()
    rows = json.loads(trade.client.cli("check", "--config", str(trade.client.config), "--json").stdout)
    (alone,) = [row["found"] for row in rows if row["name"] == "free destinations"]
    router = trade.net.gateway.address("mesh0", 4)
    assert alone.startswith(f"{free}: our route leads to {router} on mesh0"), "no daemon knows who is there"


def test_what_routers_say_to_each_other_is_never_charged(lab: Lab) -> None:
    """Own addresses on all interfaces, address resolution, link-local traffic and ngp's messages."""
    trade = open_trade(lab)
    net = trade.net
    for version in VERSIONS:
        net.client.ip(f"-{version}", "neigh", "flush", "dev", "mesh0")
        for interface in ("mesh0", "wan0"):
            assert answered(trade, net.gateway.address(interface, version), 5)
        assert traffic.ping(net.gateway, net.client.address("mesh0", version), count=5).received == 5
        traffic.tcp_sink(net.gateway, net.gateway.address("mesh0", version), 5001)
        assert traffic.tcp_send(
            net.client, net.gateway.address("mesh0", version), 5001, size_bytes=100_000
        ).intact
    assert trade.sold() == trade.bought() == []
    assert [answered(trade, net.remote(version)) for version in VERSIONS] == [True, True]
    for version in VERSIONS:
        assert answered(trade, net.gateway.address("wan0", version), 5)
    trade.assert_books_agree()
    assert sorted(map(used, trade.sold())) == [2 * 84, 2 * 104]  # statements and all other messages are free too


def test_ignored_interfaces_are_left_alone(lab: Lab) -> None:
    trade = open_trade(
        lab,
        {**GATEWAY, "MESH_INTERFACES": "all"},
        {"MESH_INTERFACES": "all", "IGNORE_INTERFACE": "lan*"},
        households=1,
    )
    net = trade.net
    assert net.household is not None
    for daemon in (trade.gateway, trade.client):
        assert daemon.json("status")["interfaces"] == ["mesh0"]
    for version in VERSIONS:
        assert traffic.ping(net.household, net.client.address("lan0", version)).received == 1
        assert traffic.ping(net.household, net.gateway.address("mesh0", version)).received == 1
        assert traffic.ping(net.household, net.remote(version), count=3).received == 3
    trade.assert_books_agree()
    assert sorted(map(used, trade.sold())) == [2 * 3 * 84, 2 * 3 * 104]
