"""A client that accepts every offer and never pays, beside an honest one: it gets the grace amount once, and the honest
client is served and billed as ever."""

from __future__ import annotations

from core_tests import traffic
from core_tests.hostile import Crowd, Persona, random_mac, udp
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import used
from ngp.core.messages import Accept, Propose
from ngp.delivery import Received

GRACE_BYTES = 20 * 1024
REMOTES = [f"198.51.100.{number}" for number in range(100, 104)]
HONEST = "198.51.100.1"
PAYLOAD_BYTES = 900
PINGS = 20


def expect(session: Session) -> None:
    hosts = session.hosts
    deal, counter = session.deal("gateway", "ann"), hosts["internet"].counter("wan0", "in")

    def stolen() -> int:
        return sum(counter.total("in", destination=remote).bytes for remote in REMOTES)

    crowd = Crowd(hosts["mallory"], hosts["gateway"])
    try:
        mallory = crowd.persona(random_mac(), react=accept)  # no answer comes back to it
        assert crowd.meet(mallory)

        def send() -> None:
            for remote in REMOTES:
                crowd.frame(mallory.mac, udp(crowd.address, remote, 5000, bytes(PAYLOAD_BYTES)))
            crowd.pump(0.05)

        def sent_enough() -> bool:
            send()
            return stolen() > 0.8 * GRACE_BYTES  # the rest is worth less than the msat that rounding may cost

        await_until(sent_enough, what="the grace amount is used up")
        for _ in range(10):  # as much again
            send()
        assert traffic.ping(hosts["ann"], HONEST, count=PINGS).received == PINGS
        crowd.pump(0.2)
    finally:
        crowd.close()
    seen = stolen()
    assert seen <= GRACE_BYTES
    deal.assert_books_agree()
    assert list(map(used, deal.sold())) == [PINGS * 2 * 84]
    rows = session.daemons["gateway"].json("contracts", "--all")
    assert sum(used(row) for row in rows if row["neighbour"] != session.keys["ann"]) == seen
    (unpaid,) = (row for row in session.daemons["gateway"].json("accounts") if row["neighbour"] != session.keys["ann"])
    assert (unpaid["paid_msat"], unpaid["balance_msat"]) == (0, -unpaid["charged_msat"])
    session.assert_conserved()


def accept(persona: Persona, received: Received) -> None:
    """Accept a proposal; everything else, invoices too, is passed over."""
    if isinstance(received.message, Propose):
        offer = received.message
        persona.say(Accept(offer.contract, offer.price_msat_per_gib, offer.data_limit_bytes), received.message_id)
