"""A household behind a line of five routers as shipped: each pays the next one for every byte, and sells at that price
plus RESALE_MARGIN, so each router in the middle earns the difference."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.trade import MSAT_PER_KB, used

REMOTES = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
LINE = "abcde"
MARGIN_PERCENT = 10
PRICE_MSAT_PER_GIB = 5 * MSAT_PER_KB  # of the last router, which has the uplink
COUNT = 50


def expect(session: Session) -> None:
    deals = {seller: session.deal(seller, buyer) for buyer, seller in zip(LINE, LINE[1:], strict=False)}
    for remote in REMOTES.values():
        traffic.udp_echo(session.hosts["internet"], remote, 5000)
        home = session.hosts["home"]
        assert traffic.udp_send(home, remote, 5000, count=COUNT, payload_bytes=500, await_echoes=True) == COUNT
    carried = [2 * traffic.l3_bytes(version, 500, COUNT) for version in REMOTES]
    for deal in deals.values():
        deal.await_settled()
    price, purchases, earned = PRICE_MSAT_PER_GIB, dict.fromkeys(REMOTES.values()), {}
    for hops, (seller, deal) in enumerate(reversed(deals.items()), 1):
        deal.assert_books_agree()
        sold = {row["destination"].partition("/")[0]: row for row in deal.sold()}
        assert sorted(map(used, sold.values())) == carried
        assert {row["price_msat_per_gib"] for row in sold.values()} == {price}
        assert {remote: row["rests_on"] for remote, row in sold.items()} == purchases
        assert {row["hops"] for row in sold.values()} == {hops}
        earned[seller] = deal.earned()["charged_msat"]
        assert earned[seller] == deal.spent()["charged_msat"] == sum(-(-each * price >> 30) for each in carried)
        price = -(-price * (100 + MARGIN_PERCENT) // 100)
        purchases = {remote: row["id"] for remote, row in sold.items()}
    assert earned["b"] > earned["c"] > earned["d"] > earned["e"] > 0
    for buyer, seller in zip(LINE, LINE[1:], strict=False):
        roles = {(row["role"], row["neighbour"]) for row in session.daemons[buyer].json("accounts")}
        assert ("client", session.keys[seller]) in roles
        assert ("server", session.keys[seller]) not in roles  # nobody pays for the answers
    session.assert_conserved()
