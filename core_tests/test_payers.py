"""Payers, with the real daemons: a line of routers as shipped, and households that talk to each other through a hub."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.shell import await_until

REMOTE = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
REMOTE_NET = {4: "198.51.100.0/24", 6: "2001:db8:ffff::/64"}
BITS = {4: 32, 6: 128}
PING_BYTES = {4: 84, 6: 104}
PINGS = 5


def addresses(net: int, host: int) -> tuple[str, str]:
    """Return the addresses of a host on one of the cables."""
    return f"10.77.{net}.{host}/24", f"2001:db8:{net}::{host}/64"


def cable(lab: Lab, near: Host, far: Host, net: int, names: tuple[str, str]) -> None:
    """Connect two hosts, and make `far` the default gateway of `near`."""
    lab.link(End(near, names[0], *addresses(net, 2)), End(far, names[1], *addresses(net, 1)))
    near.route("default", via=far.address(names[1], 4))
    near.route("::/0", via=far.address(names[1], 6))


def add_route_back(router: Host, net: int, via: Host, interface: str) -> None:
    """Give a router a route to a network."""
    router.route(f"10.77.{net}.0/24", via=via.address(interface, 4))
    router.route(f"2001:db8:{net}::/64", via=via.address(interface, 6))


def rows(daemon: Daemon, role: str) -> dict[str, tuple[int, int]]:
    """Return the bytes that each contract of a role carried, to its destination and back."""
    listed = daemon.json("contracts", "--all")
    return {row["destination"]: (row["used_to_bytes"], row["used_from_bytes"]) for row in listed if row["role"] == role}


def agree(seller: Daemon, buyer: Daemon) -> bool:
    """Say whether two neighbours counted the same bytes, and the buyer has the bill for them."""
    bought = {row["destination"]: row for row in buyer.json("contracts", "--all") if row["role"] == "client"}
    sold = [row for row in seller.json("contracts", "--all") if row["role"] == "server"]
    return all(
        (row["used_to_bytes"], row["used_from_bytes"])
        == (bought[row["destination"]]["used_to_bytes"], bought[row["destination"]]["used_from_bytes"])
        and row["used_to_bytes"] + row["used_from_bytes"] == bought[row["destination"]]["billed_bytes"]
        for row in sold
        if row["destination"] in bought
    )


class Line:
    """household - A - B - C - internet; interfaces are `north` towards the internet and `south` away from it."""

    def __init__(self, lab: Lab, masquerade: bool) -> None:
        self.household, self.internet = lab.host("household"), lab.host("internet")
        self.a, self.b, self.c = (lab.host(name, forward=True) for name in "abc")
        chain = (self.household, self.a, self.b, self.c, self.internet)
        for net, (near, far) in enumerate(zip(chain, chain[1:], strict=False), 1):
            cable(lab, near, far, net, ("north", "south"))
        for version in (4, 6):
            self.internet.owns(REMOTE_NET[version])
        for router, below, nets in (
            (self.b, self.a, (1,)),
            (self.c, self.b, (1, 2)),
            (self.internet, self.c, (1, 2, 3)),
        ):
            for net in nets:
                add_route_back(router, net, below, "north")
        if masquerade:
            for router in (self.a, self.c):
                router.masquerade("north")
        lab.await_carriers()
        self.daemons = tuple(
            host.daemon({"MESH_INTERFACES": names})
            for host, names in ((self.a, "north"), (self.b, ["north", "south"]), (self.c, "south"))
        )

    def await_acquainted(self) -> None:
        """Wait until each daemon knows its neighbours."""
        for daemon, number in zip(self.daemons, (1, 2, 1), strict=True):
            await_until(lambda d=daemon, n=number: len(d.json("neighbours")) == n, what="neighbours found")  # type: ignore[misc]


@pytest.mark.parametrize(("version", "masquerade"), [(4, True), (4, False), (6, False)])
@pytest.mark.parametrize("begins", ["router", "household"])
def test_a_line_of_routers_as_shipped_each_pays_the_next(lab: Lab, version: int, masquerade: bool, begins: str) -> None:
    """All of them sell and buy. The last router also sends from its own address, which must not count as a return."""
    line = Line(lab, masquerade)
    line.await_acquainted()
    a, b, c = line.daemons
    sender = line.a if begins == "router" else line.household
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
    whole, host = str(ip_network(f"{there}/{24 if version == 4 else 64}", strict=False)), f"{there}/{BITS[version]}"
    assert rows(hub, "server") == rows(a, "client") == {whole: each}, "the hub sells the prefix of its route"
    assert rows(b, "server") == rows(hub, "client") == {host: each}
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
