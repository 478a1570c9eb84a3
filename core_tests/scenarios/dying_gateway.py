"""A gateway dies in the middle of a transfer, and the client goes on through another one by itself: each is paid for
what it carried, and the dead one's bill comes when it is back."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import used

REMOTE = "198.51.100.1"
ENOUGH_BYTES = 100_000
RATE_PPS = 200


def expect(session: Session) -> None:
    client, internet = session.hosts["client"], session.hosts["internet"]
    deals = {name: session.deal(name, "client") for name in ("west", "east")}
    traffic.udp_sink(internet, REMOTE, 5000)
    counter = internet.counter("wan0")

    def carried(gateway: str) -> int:
        """Return the bytes that passed a gateway both ways, which hides the client behind its own address."""
        behind = session.hosts[gateway].address("wan0", 4)
        sent = counter.total("in", source=behind, destination=REMOTE)
        return sent.bytes + counter.total("out", source=REMOTE, destination=behind).bytes

    flow = traffic.start(client, "udp-send", REMOTE, 5000, 600 * RATE_PPS, 472, RATE_PPS, 0)
    await_until(lambda: carried("west") > ENOUGH_BYTES, what="traffic through west")
    session.daemons["west"].kill9()
    session.hosts["west"].ip("link", "set", "mesh0", "down")
    died_at = carried("west")
    await_until(lambda: carried("east") > ENOUGH_BYTES, what="traffic through east")
    flow.kill()
    flow.wait()
    session.hosts["west"].ip("link", "set", "mesh0", "up")
    session.daemons["west"].start()
    for name, deal in deals.items():
        await_until(deal.acquainted, what=f"{name} and the client know each other")
        deal.assert_books_agree(refused=True)  # the client's meter has counted what it sent to a dead gateway
        assert [used(row) for row in deal.sold()] == [carried(name)]
    assert carried("west") == died_at
    for name in deals:
        assert "dispute" not in {line["kind"] for line in session.daemons[name].json("ledger")}
