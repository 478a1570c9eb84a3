"""Routes by babeld, through two routers side by side: when the better one dies, babeld takes the other way, and the
client pays whoever carries its traffic; the dead one's bill comes when it is back."""

from __future__ import annotations

from core_tests import traffic
from core_tests.counter import Counter
from core_tests.scenarios.bird_line import routed_by
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import used

REMOTE = "198.51.100.1"
COUNT = 50
PRICE_MSAT_PER_KB = 6


def expect(session: Session) -> None:
    hosts = session.hosts
    deals = {name: session.deal(name, "client") for name in ("west", "east")}
    upstream = [session.deal("exit", name) for name in deals]
    traffic.udp_echo(hosts["internet"], REMOTE, 5000)
    at_exit = {name: hosts["exit"].counter(f"{name}0") for name in deals}
    await_until(lambda: leads_through(session, "west"), what="the better way, there and back")
    assert routed_by(session, "client", "babel")
    assert echoed(session) == COUNT
    by_west = carried(at_exit["west"])
    assert by_west == 2 * COUNT * traffic.l3_bytes(4, 472)

    session.daemons["west"].kill9()
    for interface in ("south0", "north0"):
        hosts["west"].ip("link", "set", interface, "down")
    await_until(lambda: leads_through(session, "east"), what="the other way, there and back")
    assert echoed(session) == COUNT
    by_east = carried(at_exit["east"])
    assert by_east == 2 * COUNT * traffic.l3_bytes(4, 472)

    for interface in ("south0", "north0"):
        hosts["west"].ip("link", "set", interface, "up")
    session.daemons["west"].start()
    for deal in (*deals.values(), *upstream):
        await_until(deal.acquainted, what=f"{deal.gateway.name} and {deal.client.name} know each other")
        deal.await_settled()
    for name, bytes_ in (("west", by_west), ("east", by_east)):
        deals[name].assert_books_agree()
        (row,) = deals[name].sold()
        assert used(row) == bytes_
        assert row["charged_msat"] == -(-bytes_ * PRICE_MSAT_PER_KB // 1024)
    for deal in upstream:
        deal.assert_books_agree()
    session.assert_conserved()


def echoed(session: Session) -> int:
    """Send datagrams from the client, and return how many came back."""
    return traffic.udp_send(session.hosts["client"], REMOTE, 5000, count=COUNT, payload_bytes=472, await_echoes=True)


def leads_through(session: Session, router: str) -> bool:
    """Say whether packets of client and exit to each other go through one of the two routers."""
    client, exit_, between = (session.hosts[name] for name in ("client", "exit", router))
    there = client.run("ip", "route", "get", REMOTE).stdout
    back = exit_.run("ip", "route", "get", client.address(f"{router}0", 4)).stdout
    hops = between.address("south0", 4), between.address("north0", 4)
    return all(f" via {hop} " in found for hop, found in zip(hops, (there, back), strict=True))


def carried(counter: Counter) -> int:
    """Return the bytes of the conversation at one of exit's interfaces."""
    return counter.bytes_of(REMOTE)
