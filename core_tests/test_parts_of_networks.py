"""Parts of networks, with the real daemons: b sells a network, bought from c, and its route leads half of it by d.

That costs more.

household - a - b - c - internet
                 \\- d -/
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
    """Return a, b and c, with d beside c. Every router has routes to the network, so that it is sold as a whole."""
    line = Line(lab, masquerade=True, start=False, keys=KEYS)
    d = lab.host("d", forward=True)
    a, b, c = line.routers
    lab.link(End(b, "east", "10.77.21.2/24"), End(d, "south", "10.77.21.1/24"))
    lab.link(End(d, "north", "10.77.22.2/24"), End(line.internet, "side", "10.77.22.1/24"))
    for router in (a, b, c):
        router.route(NETWORK, via=_beyond(line, router.name))
    b.route(HALF, via=d.address("south", 4))
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


def test_what_goes_to_a_dear_part_is_paid_at_its_own_price_and_the_rest_goes_on(line: Line) -> None:
    _, b, c, d = line.daemons
    assert ping(line, CHEAP) == 5
    answered = ping(line, DEAR)
    assert answered >= 4, "what d held before b had bought the part is lost"
    assert ping(line, DEAR) == ping(line, CHEAP) == 5
    held_bytes = (5 - answered) * PING_BYTES
    whole, part = row(b, "server", NETWORK), row(b, "server", HALF)
    whole_bought, part_bought = row(c, "server", NETWORK), row(d, "server", HALF)  # by the bills
    assert carried(part_bought) == carried(part) == 2 * (5 + answered) * PING_BYTES
    assert carried(whole) - held_bytes == carried(whole_bought) == 20 * PING_BYTES
    assert part["price_msat_per_gib"] == SHIPPED.least_msat_per_gib(part_bought["price_msat_per_gib"]) > 20 << 20
    assert whole["price_msat_per_gib"] < 20 << 20 and not whole["reason"]


def test_a_killed_router_in_the_middle_still_sells_no_dear_part_at_the_price_of_the_network(line: Line) -> None:
    _, b, _, _ = line.daemons
    assert ping(line, CHEAP) == 5 and ping(line, DEAR) >= 4
    whole = carried(row(b, "server", NETWORK))
    b.kill9()
    assert ping(line, DEAR) == 5, "the kernel goes on"
    b.start()
    assert ping(line, DEAR) == 5
    assert ping(line, "198.51.100.201") == 5, "the part is bought as a whole, too"
    assert carried(row(b, "server", NETWORK)) == whole
