"""Two ways, with the real daemons: a router in the middle gets a dearer route to a network around what it sells."""

from __future__ import annotations

from typing import Any

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import Lab
from core_tests.routers import BITS, REMOTE, REMOTE_NET, add_route_back, cable
from core_tests.shell import await_until
from core_tests.trade import start_all
from core_tests.traffic import PING_BYTES
from ngp.core.settings import Margin

DEAR_MSAT_PER_KB = 20
SHIPPED = Margin(100_000, 0)


def bought(buyer: Daemon, **which: str) -> dict[str, Any]:
    """Return the one contract of a buyer's that has these values."""
    listed = [row for row in buyer.json("contracts", "--all") if row["role"] == "client"]
    (found,) = (row for row in listed if all(row[key] == value for key, value in which.items()))
    return dict(found)


@pytest.mark.parametrize("version", [4, 6])
def test_a_contract_ends_and_is_agreed_anew_when_another_client_has_the_dearer_network_bought(
    lab: Lab, version: int
) -> None:
    """hub - cheap - internet at first, then hub - dear - far for the whole network. `other` sends there first."""
    client, other, hub = lab.host("client"), lab.host("other"), lab.host("hub", forward=True)
    cheap, internet = lab.host("cheap", forward=True), lab.host("internet")
    dear, far = lab.host("dear", forward=True), lab.host("far")
    cable(lab, client, hub, 1, ("mesh0", "mesh0"))
    cable(lab, other, hub, 2, ("mesh0", "mesh1"))
    cable(lab, dear, hub, 3, ("mesh0", "mesh2"))
    cable(lab, hub, cheap, 4, ("mesh3", "mesh0"))
    cable(lab, cheap, internet, 5, ("wan0", "wan0"))
    cable(lab, far, dear, 6, ("eth0", "lan0"))
    for net in (1, 2):
        add_route_back(cheap, net, hub, "mesh3")
        add_route_back(internet, net, cheap, "wan0")
    for host in (internet, far):
        host.owns(REMOTE_NET[version])
    dear.route(REMOTE_NET[version], via=far.address("eth0", version))
    lab.await_carriers()
    most = {"BUY_PRICE_MAX": "30 msat"}
    prices = {"SELL_PRICE": f"{DEAR_MSAT_PER_KB} msat", "SELL_PRICE_MIN": f"{DEAR_MSAT_PER_KB} msat"}
    buyer, second = (one.daemon({"MESH_INTERFACES": "mesh0", **most}, start=False) for one in (client, other))
    middle = hub.daemon({"MESH_INTERFACES": [f"mesh{number}" for number in range(4)], **most}, start=False)
    sellers = [cheap.daemon({"MESH_INTERFACES": "mesh0"}, start=False)]
    sellers.append(dear.daemon({"MESH_INTERFACES": "mesh0", "LAN_INTERFACE": "lan0", **prices}, start=False))
    start_all(buyer, second, middle, *sellers)
    await_until(lambda: len(middle.json("neighbours")) == 4, what="neighbours found")
    remote, network = REMOTE[version], REMOTE_NET[version]
    assert traffic.ping(client, remote, count=3).received == 3
    first = bought(buyer, destination=f"{remote}/{BITS[version]}")["id"]
    hub.route(network, via=dear.address("mesh0", version))
    assert traffic.ping(other, remote.removesuffix("1") + "9").received == 1
    assert bought(middle, destination=network)["price_msat_per_gib"] == DEAR_MSAT_PER_KB << 20
    await_until(lambda: bought(buyer, id=first)["reason"] == "upstream", 10, "the end of the cheap one")
    assert traffic.ping(client, remote, count=3).received == 3
    after = [row for row in buyer.json("contracts") if row["role"] == "client"]
    assert {row["price_msat_per_gib"] for row in after} == {SHIPPED.least_msat_per_gib(DEAR_MSAT_PER_KB << 20)}
    assert bought(buyer, id=first)["used_to_bytes"] == 3 * PING_BYTES[version], "nothing more at the old price"
