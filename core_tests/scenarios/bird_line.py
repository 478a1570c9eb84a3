"""Routes by bird (OSPF): ngp sells along whatever the routing daemon has found, and each router pays the next one."""

from __future__ import annotations

import json

from core_tests import traffic
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import used

REMOTE = "198.51.100.1"
PRICES_MSAT_PER_KB = {"middle": 6, "exit": 5}
COUNT = 100


def expect(session: Session) -> None:
    deals = {"middle": session.deal("middle", "client"), "exit": session.deal("exit", "middle")}
    client = session.hosts["client"]
    await_until(lambda: routed_by(session, "client", "bird"), what="a default route by OSPF")
    back = "ip", "route", "show", "10.2.1.0/24"
    await_until(lambda: session.hosts["exit"].sh(*back), what="a route back to the client")
    counter = session.hosts["internet"].counter("wan0")
    traffic.udp_echo(session.hosts["internet"], REMOTE, 5000)
    assert traffic.udp_send(client, REMOTE, 5000, count=COUNT, payload_bytes=472, await_echoes=True) == COUNT
    carried = counter.bytes_of(REMOTE)
    assert carried == 2 * COUNT * traffic.l3_bytes(4, 472)
    for deal in deals.values():
        deal.await_settled()
    for seller, deal in deals.items():
        deal.assert_books_agree()
        (row,) = deal.sold()
        assert (row["destination"], used(row)) == (f"{REMOTE}/32", carried)
        assert row["charged_msat"] == -(-carried * PRICES_MSAT_PER_KB[seller] // 1024)
    session.assert_conserved()


def routed_by(session: Session, device: str, daemon: str) -> bool:
    """Say whether a routing daemon has set a device's default route."""
    routes = json.loads(session.hosts[device].ip("-j", "route", "show", "default"))
    return any(route.get("protocol") == daemon for route in routes)
