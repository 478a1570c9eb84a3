"""The first scenario of the original Network Gatekeeper: with renewal off, pings pass until exactly the contracted
bytes are used, and not one more."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.trade import used

REMOTES = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
PINGS = 20
# One echo request or reply of `ping -s 472`.
PAYLOAD_BYTES = 472
PACKET_BYTES = {4: 500, 6: 520}
LIMIT = 5 * 1024


def expect(session: Session) -> None:
    deal, client = session.deal("gateway", "client"), session.hosts["client"]
    counter = session.hosts["internet"].counter("wan0")
    for version, remote in REMOTES.items():
        pings = traffic.ping(client, remote, count=PINGS, payload_bytes=PAYLOAD_BYTES, interval_s=0.2, wait_s=1)
        passed = LIMIT // PACKET_BYTES[version]  # whole packets, requests and replies
        assert pings == traffic.Pings(PINGS, passed // 2)
        # The last request may pass and leave no bytes for its reply.
        assert counter.total(destination=remote).packets == (passed + 1) // 2
        deal.await_closed(len(deal.sold()))
        (sold,) = (row for row in deal.sold() if row["destination"].startswith(f"{remote}/"))
        assert (used(sold), sold["data_limit_bytes"]) == (passed * PACKET_BYTES[version], LIMIT)
        assert traffic.ping(client, remote, count=5, wait_s=1).received == 0
    assert len(deal.bought()) == len(REMOTES)
    deal.assert_books_agree()
