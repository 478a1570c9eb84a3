"""A landlord and a tenant that are neighbours: renting over the mesh link, with the daemons and gates of both.

third --- 203.0.113.0/24 --- [landlord] --- 192.0.2.0/24 (mesh) --- [tenant]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab, Switch
from core_tests.market import V4, V6, Renter
from core_tests.renting import LETS, accounted_msat
from core_tests.shell import await_until

THIRD = "203.0.113.3"
LANDLORD = {**LETS, "MESH_INTERFACES": ["mesh0"], "PAYMENT_INTERFACE": "sandbox"}
TENANT = {"MESH_INTERFACES": ["mesh0"], "PAYMENT_INTERFACE": "sandbox", "BUDGET_HOUR": "200000 sat"}


@dataclass
class Mesh(Renter):
    """A landlord and a tenant that are neighbours, with their daemons, and somebody else on the internet.

    Attributes: medium: of the mesh, for more neighbours.
    """

    medium: Switch
    landlord: Host
    third: Host
    lets: Daemon
    rents: Daemon
    timeout_s = 120.0

    def let(self) -> dict[str, Any]:
        """Return the landlord's row of the rental, whose money adds up."""
        (row,) = self.lets.json("rentals")
        assert row["paid_msat"] == accounted_msat(row)
        return dict(row)

    def key(self) -> str:
        return str(self.lets.json("status")["identity"])

    def trust(self) -> None:
        await_until(lambda: self.rents.json("neighbours"), what="the neighbours know each other")
        self.done("trust", "let", self.key()[:12])

    def reached(self, address: str) -> bool:
        """Say whether the third host reaches the tenant at an address of the landlord's."""
        return traffic.ping(self.third, address, wait_s=1).received == 1

    def await_reached(self) -> None:
        for address in (V4, V6):
            await_until(lambda address=address: self.reached(address), what=f"{address} answers")  # type: ignore[misc]

    def traffic_contracts(self) -> list[dict[str, Any]]:
        rows = [*self.lets.json("contracts", "--all"), *self.rents.json("contracts", "--all")]
        return [row for row in rows if row["interface"]]  # a period of a rental has none


def open_mesh(lab: Lab, **changes: object) -> Mesh:
    """Start both daemons. Args: changes: keys of the landlord's net.conf."""
    landlord, tenant, third = lab.host("landlord", forward=True), lab.host("tenant"), lab.host("third")
    medium = lab.switch("medium")
    for number, host in ((1, landlord), (2, tenant)):
        lab.link(End(host, "mesh0", f"192.0.2.{number}/24", f"2001:db8:1::{number}/64"), medium)
    outer = "203.0.113.1/24", "2001:db8:2::1/64"
    lab.link(End(landlord, "wan0", *outer), End(third, "wan0", f"{THIRD}/24", "2001:db8:2::3/64"))
    tenant.route("default", via="192.0.2.1")
    landlord.route("default", via=THIRD)  # so that wan0 is upstream
    third.route("198.51.100.0/29", via="203.0.113.1")
    third.route("2001:db8:100::/61", via="2001:db8:2::1")
    third.route("192.0.2.0/24", via="203.0.113.1")
    lab.await_carriers()
    lets, rents = landlord.daemon({**LANDLORD, **changes}), tenant.daemon(TENANT)
    return Mesh(tenant, rents.config, rents.state_dir, medium, landlord, third, lets, rents)
