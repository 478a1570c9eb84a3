"""A neighbour that roams between two gateways which don't hear each other: it pays each for what that one carried, and
where it comes back, its contract goes on."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.trade import used

REMOTE = "198.51.100.1"
PLACES = {"west": (200.0, 250.0), "east": (800.0, 250.0)}
WAY = ("west", "east", "west")
COUNT = 40


def expect(session: Session) -> None:
    rover, counter = session.hosts["rover"], session.hosts["internet"].counter("wan0")
    traffic.udp_echo(session.hosts["internet"], REMOTE, 5000)
    for gateway in WAY:
        session.move("rover", PLACES[gateway])
        host = session.hosts[gateway]
        rover.route("default", via=host.address("mesh0", 4))
        (away,) = set(PLACES) - {gateway}
        assert traffic.ping(rover, session.hosts[away].address("mesh0", 4), wait_s=0.2).received == 0
        session.deal(gateway, "rover")  # when both know each other
        assert traffic.udp_send(rover, REMOTE, 5000, count=COUNT, payload_bytes=472, await_echoes=True) == COUNT
    deals = {}
    for gateway in PLACES:
        session.move("rover", PLACES[gateway])  # where the last bill still has to come from
        deals[gateway] = session.deal(gateway, "rover")
        deals[gateway].await_settled()
    for gateway, deal in deals.items():
        deal.assert_books_agree()
        (row,) = deal.sold()
        outside = session.hosts[gateway].address("wan0", 4)  # each gateway hides the rover behind its own address
        carried = counter.bytes_of(outside)
        assert used(row) == carried == WAY.count(gateway) * 2 * COUNT * traffic.l3_bytes(4, 472)
    session.assert_conserved()
