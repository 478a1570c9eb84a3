"""The second scenario of the original Network Gatekeeper: with renewal on, all pings pass."""

from __future__ import annotations

from core_tests import traffic
from core_tests.scenarios.pings_cut import LIMIT, PACKET_BYTES, PAYLOAD_BYTES, PINGS, REMOTES
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import used


def expect(session: Session) -> None:
    deal, client = session.deal("gateway", "client"), session.hosts["client"]

    def room() -> int:
        """Return how many bytes the newest contract has left."""
        sold = deal.sold()[-1]
        return int(sold["data_limit_bytes"]) - used(sold)

    for version, remote in REMOTES.items():
        for number in range(PINGS):
            if number:
                await_until(lambda version=version: room() >= 2 * PACKET_BYTES[version], what="a renewal")  # type: ignore[misc]
            assert traffic.ping(client, remote, payload_bytes=PAYLOAD_BYTES).received == 1
        assert deal.sold()[-1]["data_limit_bytes"] > LIMIT
    deal.assert_books_agree()
    assert sorted(map(used, deal.sold())) == [2 * PINGS * PACKET_BYTES[version] for version in REMOTES]
