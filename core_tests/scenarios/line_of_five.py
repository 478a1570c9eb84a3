"""A household behind a line of five routers: each pays the next one for every byte, at a price that falls hop by hop,
so each router in the middle earns the difference."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.trade import used

REMOTES = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
LINE = "abcde"
PRICES_MSAT_PER_KB = {"b": 8, "c": 7, "d": 6, "e": 5}
COUNT = 50


def expect(session: Session) -> None:
    deals = {seller: session.deal(seller, buyer) for buyer, seller in zip(LINE, LINE[1:], strict=False)}
    for remote in REMOTES.values():
        traffic.udp_echo(session.hosts["internet"], remote, 5000)
        home = session.hosts["home"]
        assert traffic.udp_send(home, remote, 5000, count=COUNT, payload_bytes=500, await_echoes=True) == COUNT
    carried = [2 * traffic.l3_bytes(version, 500, COUNT) for version in REMOTES]
    earned = {}
    for deal in deals.values():
        deal.await_settled()
    for seller, deal in deals.items():
        deal.assert_books_agree()
        assert sorted(map(used, deal.sold())) == carried
        earned[seller] = sum(-(-each * PRICES_MSAT_PER_KB[seller] // 1024) for each in carried)
        assert deal.earned()["charged_msat"] == deal.spent()["charged_msat"] == earned[seller]
    assert earned["b"] > earned["c"] > earned["d"] > earned["e"] > 0
    for buyer, seller in zip(LINE, LINE[1:], strict=False):
        roles = {(row["role"], row["neighbour"]) for row in session.daemons[buyer].json("accounts")}
        assert ("client", session.keys[seller]) in roles
        assert ("server", session.keys[seller]) not in roles  # nobody pays for the answers
    session.assert_conserved()
