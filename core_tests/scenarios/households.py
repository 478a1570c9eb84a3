"""Households behind NAT at each node: each client pays for exactly what its own household uses, and the gateway's own
household is nobody's sale."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.trade import used

REMOTES = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
COUNTS = {"ann": 30, "bob": 50, "gateway": 70}  # datagrams, each with its echo
PRICE_MSAT_PER_KB = 5


def expect(session: Session) -> None:
    hosts = session.hosts
    deals = {name: session.deal("gateway", name) for name in ("ann", "bob")}
    for remote in REMOTES.values():
        traffic.udp_echo(hosts["internet"], remote, 5000)
    for name, count in COUNTS.items():
        counter = hosts[f"{name}-home"].counter("lan0")
        for version, remote in REMOTES.items():
            home = hosts[f"{name}-home"]
            assert traffic.udp_send(home, remote, 5000, count=count, payload_bytes=500, await_echoes=True) == count
            carried = counter.bytes_of(remote)
            assert carried == 2 * traffic.l3_bytes(version, 500, count)
    for name, deal in deals.items():
        deal.assert_books_agree()
        bytes_ = [2 * traffic.l3_bytes(version, 500, COUNTS[name]) for version in REMOTES]
        assert sorted(map(used, deal.sold())) == bytes_
        assert deal.earned()["charged_msat"] == sum(-(-each * PRICE_MSAT_PER_KB // 1024) for each in bytes_)
    accounts = session.daemons["gateway"].json("accounts")
    assert sorted(row["neighbour"] for row in accounts) == sorted(session.keys[name] for name in deals)
    session.assert_conserved()
