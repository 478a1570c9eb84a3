"""Payers, with the real daemons: a line of routers as shipped, and households that talk to each other through a hub."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from core_tests import traffic
from core_tests.lab import End, Lab
from core_tests.routers import BITS, REMOTE, REMOTE_NET, Line, add_route_back, addresses, agree, cable, rows
from core_tests.shell import await_until
from core_tests.traffic import PING_BYTES

PINGS = 5


@pytest.mark.parametrize(("version", "masquerade"), [(4, True), (4, False), (6, False)])
@pytest.mark.parametrize("begins", ["router", "household"])
def test_a_line_of_routers_as_shipped_each_pays_the_next(lab: Lab, version: int, masquerade: bool, begins: str) -> None:
    """All of them sell and buy. The last router also sends from its own address, which must not count as a return."""
    line = Line(lab, masquerade)
    line.await_acquainted()
    a, b, c = line.daemons
    sender = line.routers[0] if begins == "router" else line.household
    pings = traffic.ping(sender, REMOTE[version], count=PINGS)
    assert pings.received == PINGS
    each = {f"{REMOTE[version]}/{BITS[version]}": (PINGS * PING_BYTES[version],) * 2}
    await_until(lambda: agree(b, a) and agree(c, b), 60, "bills")
    assert rows(b, "server") == rows(a, "client") == each
    assert rows(c, "server") == rows(b, "client") == each
    assert rows(a, "server") == rows(c, "client") == {}, "nobody pays for the answers"


class Star:
    """Households, each behind a router, which reach each other through a hub."""

    def __init__(self, lab: Lab, names: str = "ab") -> None:
        self.hub = lab.host("hub", forward=True)
        self.routers = tuple(lab.host(name, forward=True) for name in names)
        self.households = tuple(lab.host(f"household{name}") for name in names)
        for number, (router, household) in enumerate(zip(self.routers, self.households, strict=True)):
            outer, inner = 1 + 2 * number, 2 + 2 * number
            cable(lab, router, self.hub, outer, ("north", f"south{number}"))
            cable(lab, household, router, inner, ("north", "south"))
            add_route_back(self.hub, inner, router, "north")
        lab.await_carriers()
        hosts = (*self.routers, self.hub)
        self.daemons = tuple(
            host.daemon({"MESH_INTERFACES": "north" if host is not self.hub else "all"}) for host in hosts
        )
        for daemon, count in zip(self.daemons, (*(1 for _ in names), len(names)), strict=True):
            await_until(lambda d=daemon, n=count: len(d.json("neighbours")) == n, what="neighbours found")  # type: ignore[misc]


@pytest.mark.parametrize("version", [4, 6])
def test_a_visiting_household_pays_and_the_visited_one_does_not(lab: Lab, version: int) -> None:
    """Every router sells and buys. Both ends are customers of the hub, which once charged each for both directions."""
    star = Star(lab)
    a, b, hub = star.daemons
    there = star.households[1].address("north", version)
    assert traffic.ping(star.households[0], there, count=PINGS).received == PINGS
    await_until(lambda: agree(hub, a) and agree(b, hub), 60, "bills")
    each = (PINGS * PING_BYTES[version],) * 2
    whole = str(ip_network(f"{there}/{24 if version == 4 else 64}", strict=False))
    assert rows(hub, "server") == rows(a, "client") == {whole: each}, "the hub sells the prefix of its route"
    assert rows(b, "server") == rows(hub, "client") == {whole: each}, "and buys it as a whole"
    assert rows(a, "server") == rows(b, "client") == {}


def test_a_visited_household_can_visit_others(lab: Lab) -> None:
    """The hub buys the visited household's addresses, and takes packets from there for answers.

    So the household's router must ask for contracts by itself.
    """
    star = Star(lab, "abc")
    first, second, third = star.households
    assert traffic.ping(first, second.address("north", 4)).received == 1
    there = third.address("north", 4)
    await_until(lambda: traffic.ping(second, there, wait_s=1).received == 1, 60, "the third household answers")
    b, hub = star.daemons[1], star.daemons[3]
    assert f"{there}/32" in rows(b, "client")
    assert traffic.ping(second, there, count=PINGS).received == PINGS
    sold = rows(hub, "server")[f"{there}/32"]
    (bought,) = (row for row in b.json("contracts") if (row["role"], row["destination"]) == ("client", f"{there}/32"))
    assert bought["used_to_bytes"] >= sold[0], "what the hub dropped as an answer, its buyer's meter saw go out"
    assert bought["used_from_bytes"] == sold[1]
    await_until(lambda: sum(sold) in [row.get("billed_bytes") for row in b.json("contracts")], 60, "the bill")


@pytest.mark.parametrize("version", [4, 6])
def test_answers_that_come_by_the_other_of_two_links_are_carried_and_billed(lab: Lab, version: int) -> None:
    """The household's packets go out by one link, and what is for it comes back by the other."""
    client, gateway = (lab.host(name, forward=True) for name in ("client", "gateway"))
    household, internet = lab.host("household"), lab.host("internet")
    cable(lab, gateway, internet, 4, ("north", "south"))
    cable(lab, client, gateway, 1, ("north1", "south1"))
    lab.link(End(client, "north2", *addresses(2, 2)), End(gateway, "south2", *addresses(2, 1)))
    cable(lab, household, client, 3, ("north", "south"))
    add_route_back(gateway, 3, client, "north2")
    for net in (1, 2, 3):
        add_route_back(internet, net, gateway, "north")
    internet.owns(REMOTE_NET[version])
    lab.await_carriers()
    seller, buyer = gateway.daemon({"MESH_INTERFACES": "south*"}), client.daemon({"MESH_INTERFACES": "north*"})
    for daemon in (seller, buyer):
        await_until(lambda d=daemon: len(d.json("neighbours")) == 2, what="both links known")  # type: ignore[misc]
    assert traffic.ping(household, REMOTE[version], count=PINGS).received == PINGS
    each = {f"{REMOTE[version]}/{BITS[version]}": (PINGS * PING_BYTES[version],) * 2}
    await_until(lambda: agree(seller, buyer), 60, "the bill")
    assert rows(seller, "server") == rows(buyer, "client") == each
    assert traffic.ping(client, REMOTE[version], count=PINGS).received == PINGS, "the router itself, by one link"
    assert len(rows(seller, "server")) == 1
