"""A radio link that delays every frame by 10 ms and loses a tenth of them: what is lost before the gateway isn't
charged, and neither side cheats."""

from __future__ import annotations

import time

from core_tests import traffic
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import used

REMOTE = "198.51.100.1"
DELAY_S = 0.010
COUNT = 1000


def expect(session: Session) -> None:
    deal, client, internet = session.deal("gateway", "client"), session.hosts["client"], session.hosts["internet"]
    counter = internet.counter("wan0")
    began = time.monotonic()
    await_answer(session)
    assert time.monotonic() - began >= 2 * DELAY_S
    await_until(lambda: deal.earned()["paid_msat"], what="the first payment")
    sink = traffic.udp_sink(internet, REMOTE, 5000)
    assert traffic.udp_send(client, REMOTE, 5000, count=COUNT, payload_bytes=472, rate_pps=500) == COUNT
    await_answer(session)  # no frame overtakes another: what was sent before has arrived, or is lost
    arrived = sink.received()[0]
    assert 0.8 * COUNT < arrived < 0.97 * COUNT  # 900 +- 9.5 are expected
    assert counter.total(destination=REMOTE, protocol=17).bytes == arrived * traffic.l3_bytes(4, 472)
    deal.assert_books_agree(refused=True)  # the client's meter has counted what the link lost
    (row,) = deal.sold()
    assert used(row) == counter.bytes_of(REMOTE)
    assert "dispute" not in {line["kind"] for line in deal.client.json("ledger")}


def await_answer(session: Session) -> None:
    """Ping until an answer comes over the lossy link."""
    client = session.hosts["client"]
    await_until(lambda: traffic.ping(client, REMOTE, wait_s=2).received, what="an answer over the lossy link")
