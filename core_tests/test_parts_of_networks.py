"""Parts of networks, with the real daemons: what a network is sold for is no price for a part that costs more.

household - a - b - c - internet
                 \\- d -/             d asks more than c
"""

from __future__ import annotations

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import End, Lab
from core_tests.routers import REMOTE_NET, Line
from core_tests.shell import await_until
from core_tests.trade import KNOWN, Conf, Row, start_all
from ngp.core.settings import Margin

NETWORK, HALF = REMOTE_NET[4], "198.51.100.128/25"
CHEAP, DEAR = "198.51.100.1", "198.51.100.200"
PING_BYTES = 1028
SHIPPED = Margin(100_000, 0)
KEYS: Conf = {"BUY_PRICE_MAX": "40 msat", **KNOWN}


@pytest.fixture
def line(lab: Lab) -> Line:
    """Return a, b and c, with d beside c. Every router has routes to the network, so that c sells it as a whole."""
    line = Line(lab, masquerade=True, start=False, keys=KEYS)
    d = lab.host("d", forward=True)
    a, b, c = line.routers
    lab.link(End(b, "east", "10.77.21.2/24"), End(d, "south", "10.77.21.1/24"))
    lab.link(End(d, "north", "10.77.22.2/24"), End(line.internet, "side", "10.77.22.1/24"))
    for router in (a, b, c):
        router.route(NETWORK, via=_beyond(line, router.name))
    d.route(HALF, via=line.internet.address("side", 4))
    d.route("default", via=line.internet.address("side", 4))
    for net in (1, 2):
        d.route(f"10.77.{net}.0/24", via=b.address("east", 4))
    d.masquerade("north")
    lab.await_carriers()
    dear = d.daemon(
        {"MESH_INTERFACES": "south", "SELL_PRICE": "20 msat", "SELL_PRICE_MIN": "20 msat", **KEYS}, start=False
    )
    line.daemons[1].configure({"MESH_INTERFACES": ["north", "south", "east"], **KEYS})
    line.daemons = (*line.daemons, dear)
    start_all(*line.daemons)
    for daemon, count in zip(line.daemons, (1, 3, 1, 1), strict=True):
        await_until(lambda d=daemon, n=count: len(d.json("neighbours")) == n, what="neighbours found")  # type: ignore[misc]
    return line


def _beyond(line: Line, name: str) -> str:
    """Return the address of the next router, or of the internet, north of a router."""
    chain = (*line.routers, line.internet)
    names = [one.name for one in chain]
    return chain[names.index(name) + 1].address("south", 4)


def ping(line: Line, address: str, count: int = 5) -> int:
    return traffic.ping(line.household, address, count=count, payload_bytes=PING_BYTES - 28, wait_s=2).received


def row(daemon: Daemon, role: str, destination: str) -> Row:
    """Return the one contract of a role for a destination."""
    listed = daemon.json("contracts", "--all")
    (found,) = (one for one in listed if one["role"] == role and one["destination"] == destination)
    return dict(found)


def carried(one: Row) -> int:
    return int(one["used_to_bytes"] + one["used_from_bytes"])


def lead_half_to_d(line: Line) -> None:
    line.routers[1].route(HALF, via="10.77.21.1")


def running(daemon: Daemon, destination: str) -> bool:
    listed = daemon.json("contracts")
    return any(one["role"] == "server" and one["destination"] == destination for one in listed)


def each_part_is_paid_at_its_own_price(line: Line, bought_from_c: str) -> None:
    """All pings are answered, and b earns its margin at each contract."""
    _, b, c, d = line.daemons
    assert ping(line, CHEAP) == 5 and ping(line, DEAR) == 5 and not running(b, NETWORK)
    for seller, bought, sold, price in ((c, bought_from_c, f"{CHEAP}/32", 5 << 20), (d, HALF, HALF, 20 << 20)):
        ours, theirs = row(b, "server", sold), row(seller, "server", bought)
        assert not ours["reason"] and not theirs["reason"] and theirs["price_msat_per_gib"] == price
        assert ours["price_msat_per_gib"] == SHIPPED.least_msat_per_gib(price)
    assert carried(row(b, "server", HALF)) == carried(row(d, "server", HALF)) >= 10 * PING_BYTES


def test_a_network_is_sold_by_its_addresses_where_our_routes_lead_a_part_of_it_to_another_seller(line: Line) -> None:
    lead_half_to_d(line)
    assert ping(line, CHEAP) == 5, "the first packet waits until its address is agreed"
    each_part_is_paid_at_its_own_price(line, f"{CHEAP}/32")


def test_a_change_of_routes_ends_the_contract_for_a_network_also_after_a_kill(line: Line) -> None:
    _, b, _, _ = line.daemons
    assert ping(line, CHEAP) == 5 and ping(line, DEAR) == 5
    whole = row(b, "server", NETWORK)
    assert carried(whole) == 20 * PING_BYTES and running(b, NETWORK)
    b.kill9()
    lead_half_to_d(line)
    b.start()
    await_until(lambda: not running(b, NETWORK), 20, "the end of the contract for the network")
    each_part_is_paid_at_its_own_price(line, NETWORK)
    assert carried(row(b, "server", NETWORK)) == carried(whole)


def test_a_running_contract_for_a_network_ends_soon_after_a_change_of_routes(line: Line) -> None:
    _, b, _, _ = line.daemons
    assert ping(line, CHEAP) == 5 and running(b, NETWORK)
    lead_half_to_d(line)
    await_until(lambda: not running(b, NETWORK), 5, "the end of the contract for the network")
    each_part_is_paid_at_its_own_price(line, NETWORK)
