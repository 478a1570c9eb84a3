"""Routers: networks of several routers, each of which pays the next, and what two neighbours' listings say."""

from __future__ import annotations

from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.shell import await_until
from core_tests.trade import Conf

REMOTE = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
REMOTE_NET = {4: "198.51.100.0/24", 6: "2001:db8:ffff::/64"}
BITS = {4: 32, 6: 128}


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
    """household - a - b - c - internet, or longer; interfaces are `north` towards the internet, `south` away from it.

    Attributes:
        routers: the one of the household first.

    Args:
        masquerade: the household's router and the last one hide IPv4 addresses behind their own.
        start: start the daemons.
        keys: of net.conf, for all of them.
    """

    def __init__(
        self, lab: Lab, masquerade: bool, names: str = "abc", start: bool = True, keys: Conf | None = None
    ) -> None:
        self.household, self.internet = lab.host("household"), lab.host("internet")
        self.routers = tuple(lab.host(name, forward=True) for name in names)
        chain = (self.household, *self.routers, self.internet)
        for net, (near, far) in enumerate(zip(chain, chain[1:], strict=False), 1):
            cable(lab, near, far, net, ("north", "south"))
        for version in (4, 6):
            self.internet.owns(REMOTE_NET[version])
        for number, (below, router) in enumerate(zip(chain[1:], chain[2:], strict=False), 1):
            for net in range(1, number + 1):
                add_route_back(router, net, below, "north")
        if masquerade:
            for router in (self.routers[0], self.routers[-1]):
                router.masquerade("north")
        lab.await_carriers()
        first, last = self.routers[0], self.routers[-1]
        mesh = {first.name: "north", last.name: "south"}
        self.daemons = tuple(
            host.daemon({"MESH_INTERFACES": mesh.get(host.name, ["north", "south"]), **(keys or {})}, start=start)
            for host in self.routers
        )

    def await_acquainted(self) -> None:
        """Wait until each daemon knows its neighbours."""
        for number, daemon in enumerate(self.daemons):
            count = 1 if number in (0, len(self.daemons) - 1) else 2
            await_until(lambda d=daemon, n=count: len(d.json("neighbours")) == n, what="neighbours found")  # type: ignore[misc]
