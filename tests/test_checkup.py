"""What a running daemon says about a file that isn't in force yet."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp import store
from ngp.config import parse
from ngp.core.kernel import Router
from ngp.core.messages import Role
from ngp.core.payment_node import PaymentNode
from ngp.core.peers import Unheard
from ngp.core.settings import Settings
from ngp.core.values import Check, Now
from ngp.core.world import Neighbour, World
from ngp.daemon import checkup

RUNNING = parse("MESH_INTERFACES: [eth1]\n", Path("/etc/ngp/net.conf"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "the whole file: the daemon runs with these settings"),
        ({"sells": False}, "`ngp reload` applies SELL"),
        ({"queue_number": 7}, "a restart applies QUEUE_NUMBER"),
        ({"sells": False, "queue_number": 7}, "`ngp reload` applies SELL; a restart applies QUEUE_NUMBER"),
    ],
)
def test_a_changed_setting_is_told_with_how_it_takes_effect(changed: dict[str, Any], said: str) -> None:
    assert checkup.effect(RUNNING, replace(RUNNING, **changed)).found == said


@pytest.mark.parametrize(
    ("changed", "why_not", "is_well", "said"),
    [
        ({}, "", True, "sandbox is ready"),
        ({}, "asleep", False, "asleep"),
        ({"payment_module": "lnd"}, "", True, "lnd: not checked"),
        ({"account_id": "02aa"}, "", True, "the payment node is 02aa"),
        ({"account_id": "02bb"}, "", False, "ACCOUNT_ID is 02bb, the payment node is 02aa"),
    ],
)
def test_the_payment_node_as_far_as_it_can_be_seen(
    changed: dict[str, Any], why_not: str, is_well: bool, said: str
) -> None:
    class Node:
        async def info(self) -> SimpleNamespace:
            return SimpleNamespace(account_id="02aa")

        async def check(self, buys: bool) -> list[Check]:
            assert buys
            return []

    (found,) = asyncio.run(checkup.payment(RUNNING, replace(RUNNING, **changed), Node(), why_not))  # type: ignore[arg-type]
    assert found.ok is is_well and said in found.found
    assert not is_well or not found.remedy  # otherwise it would be shown as a warning


def heard(*neighbours: Neighbour, settings: Settings = RUNNING) -> World:
    """Return the world of a node on regtest that has heard these neighbours."""
    node = PaymentNode("regtest", real_money=False, settles_by_proof=False, least_amount_msat=1000)
    world = World(settings, node, lambda: b"\x01" * 16, Now(1_800_000_000, 100.0))
    world.peers.by_link.update({(one.link[0], one.identity): one for one in neighbours})
    return world


def neighbour(number: int, **facts: Any) -> Neighbour:
    return Neighbour(bytes([number]) * 32, ("eth1", b""), number, **{"network": "regtest", "up": True, **facts})


def test_who_only_buys_and_hears_nobody_that_sells_is_warned() -> None:
    buyer = replace(RUNNING, sells=False)
    (nobody,) = checkup.neighbours(heard(settings=buyer), ("eth1",))
    assert nobody.ok and nobody.found == "nobody to buy from: no neighbour was heard"
    assert "LINK_INTERFACE" in nobody.remedy and "UDP port 10325" in nobody.remedy
    (client,) = checkup.neighbours(heard(neighbour(1, buys=True), settings=buyer), ("eth1",))
    assert client.found == "nobody to buy from: none of the 1 neighbours that were heard sells"
    assert "SELL: yes" in client.remedy
    assert checkup.neighbours(heard(neighbour(1, sells=True), settings=buyer), ("eth1",)) == []
    assert checkup.neighbours(heard(), ("eth1",)) == []  # a gateway waits for clients


def test_a_server_that_does_not_answer_is_a_warning_and_a_client_is_not() -> None:
    (silent,) = checkup.neighbours(heard(neighbour(1, sells=True, up=False, last_seen_s=1_700_000_000)), ("eth1",))
    assert silent.ok and silent.remedy
    assert silent.found == "doesn't answer: 0101010101010101 on eth1, last heard 2023-11-14T22:13:20Z"
    assert checkup.neighbours(heard(neighbour(1, buys=True, up=False)), ("eth1",)) == []
    seller = replace(RUNNING, buys=False)
    assert checkup.neighbours(heard(neighbour(1, sells=True, up=False), settings=seller), ("eth1",)) == []


def test_links_of_the_past_are_no_warning() -> None:
    """An interface that net.conf no longer names, or a link address that the server has changed."""
    gone = neighbour(1, sells=True, up=False)
    assert checkup.neighbours(heard(gone), ("eth0",)) == []
    world = heard(gone)
    now = replace(neighbour(1, sells=True), link=("eth1", b"\2new"), number=2)
    world.peers.by_link[now.link] = now
    assert checkup.neighbours(world, ("eth1",)) == []
    now.up = False
    (warned,) = checkup.neighbours(world, ("eth1",))
    assert warned.found.count("on eth1") == 1


def test_a_dispute_is_a_warning_with_the_way_out() -> None:
    world = heard(neighbour(1, sells=True))
    world.server(b"\x01" * 32).disputed = True
    (warned,) = checkup.neighbours(world, ("eth1",))
    assert warned.ok and "0101010101010101" in warned.found and "ngp unblock" in warned.remedy


def test_neighbours_on_another_payment_network_are_a_warning() -> None:
    def found(*networks: str, up: bool = True) -> list[Check]:
        known = [neighbour(number, network=network, up=up) for number, network in enumerate(networks)]
        return checkup.neighbours(heard(*known), ("eth1",))

    assert found("regtest", "") == found("sandbox", up=False) == []
    (warned,) = found("regtest", "sandbox")
    assert warned.ok and "PAYMENT_INTERFACE" in warned.remedy
    assert warned.found == "no trade with 0101010101010101 on 'sandbox': we pay on 'regtest'"
    (many,) = found(*["sandbox"] * 200)
    assert many.found.count("sandbox") == 3 and "and 197 more" in many.found


def test_accounts_that_are_not_topped_up_are_a_warning() -> None:
    def found(why_not: str, count: int = 1, up: bool = True) -> list[Check]:
        everybody = [bytes([number]) * 32 for number in range(count)]
        known = {("eth1", who): Neighbour(who, ("eth1", who), 1, up=up) for who in everybody}
        books = {who: SimpleNamespace(identity=who, role=Role.CLIENT, why_not=why_not) for who in everybody}
        world: Any = SimpleNamespace(peers=SimpleNamespace(by_link=known), accounts=list(books.values()))
        return checkup.accounts(world)

    assert found("") == found("a budget is used up", up=False) == []
    (warned,) = found("a budget is used up")
    assert warned.ok and warned.remedy
    assert warned.found == "our account with 0000000000000000 is not topped up: a budget is used up"
    (many,) = found("a budget is used up", 200)
    assert many.found.count("budget") == 3 and "and 197 more" in many.found


def test_books_that_cant_be_read_are_a_line_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 100)
    line = checkup.books(store.at(tmp_path), 60.0)
    assert (line.name, line.ok) == ("books", False)
    assert "is not a database" in line.found


def test_default_routes_to_a_router_without_ngp_are_a_warning() -> None:
    ours, other, third = ip_address("192.0.2.1"), ip_address("192.0.2.77"), ip_address("2001:db8:1::77")
    world = heard(Neighbour(b"\x01" * 32, ("eth1", b"mac"), 1, up=True, sells=True))
    world.peers.by_link = {("eth1", b"mac"): next(iter(world.peers.by_link.values()))}
    assert checkup.strange_hops(world, [("eth1", ours, b"mac")]) == []
    assert checkup.strange_hops(world, [("eth1", ours, b"mac"), ("eth1", other, b"else")]) == []  # a spare route
    (line,) = checkup.strange_hops(world, [("eth1", ours, b"mac"), ("eth1", third, b"else")])
    assert line.ok and "2001:db8:1::77 on eth1" in line.found and "ngp neighbours" in line.remedy
    assert checkup.strange_hops(heard(), [("eth1", other, b"else")]) == []  # another line says that nobody was heard


def test_what_is_free_here_and_bought_there_is_a_warning() -> None:
    seller = Neighbour(b"\x01" * 32, ("eth1", b"mac"), 1, up=True, sells=True)
    client = Neighbour(b"\x02" * 32, ("eth1", b"other"), 2, up=True, buys=True)
    world = heard(seller, client)
    world.peers.by_link = {one.link: one for one in (seller, client)}
    free, at_client = ip_network("192.0.2.0/24"), ip_network("203.0.113.9/32")
    beyond = ip_address("10.0.0.1")
    ways = [(free, Router("eth1", b"mac", beyond)), (at_client, Router("eth1", b"other", beyond))]
    (line,) = checkup.free_beyond(ways, world)
    assert line.ok and line.name == "free destinations" and "203.0.113.9" not in line.found
    assert "192.0.2.0/24: our route leads to 0101010101010101 on eth1" in line.found and "disputed" in line.found
    assert "take it out of FREE_DESTINATIONS" in line.remedy
    unheard = checkup.free_beyond([(free, Router("eth1", b"else", beyond))], world)  # it may sell when it is heard
    assert unheard == checkup.free_beyond([(free, Router("eth1", b"else", beyond))])
    assert "10.0.0.1 on eth1, which may charge" in unheard[0].found
    (both,) = checkup.free_beyond([*ways, (at_client, Router("eth1", b"mac", beyond))], world)
    assert "192.0.2.0/24, 203.0.113.9/32: our route" in both.found


def test_only_a_buyer_with_free_destinations_is_asked_about_its_routes() -> None:
    way = (ip_network("192.0.2.0/24"), Router("eth1", b"mac"))
    asked: Any = SimpleNamespace(routers_towards=lambda _, destinations: [way for each in destinations])
    desired: Any = None
    free = parse("MESH_INTERFACES: [eth1]\nFREE_DESTINATIONS: [192.0.2.0/24 udp 53, 192.0.2.0/24]\n", Path("net.conf"))
    assert checkup.routers_to_free(free, asked, desired) == [way]
    assert checkup.routers_to_free(replace(free, buys=False), asked, desired) == []
    assert checkup.routers_to_free(RUNNING, asked, desired) == []


def test_links_whose_packets_are_dropped_since_nobody_there_says_hello_are_a_warning() -> None:
    world = heard(Neighbour(b"\x01" * 32, ("eth1", b"mac"), 1, up=True, network="regtest"))
    world.peers.by_link = {("eth1", b"mac"): next(iter(world.peers.by_link.values()))}
    now = world.now.monotonic_s
    world.peers.unheard["eth1"] = Unheard(b"else", now - 20, now - 3)
    (line,) = list(checkup.unheard(world, world.now))
    assert line.ok and "packets from 65:6c:73:65 on eth1: dropped" in line.found and "10325" in line.remedy
    world.peers.unheard["eth1"] = Unheard(b"else", now - 20, now - 3, slowed=True)
    (line,) = list(checkup.unheard(world, world.now))
    assert line.ok and "slowed by UNPAID_RATE" in line.found and "dropped" not in line.found
    world.peers.unheard["eth1"] = Unheard(b"else", now - 10, now)  # a hello may be on its way
    assert list(checkup.unheard(world, world.now)) == []
    world.peers.unheard["eth1"] = Unheard(b"else", now - 90, now - 61)
    assert list(checkup.unheard(world, world.now)) == []
    world.peers.unheard["eth1"] = Unheard(b"mac", now - 20, now)  # it said hello since
    assert list(checkup.unheard(world, world.now)) == []
