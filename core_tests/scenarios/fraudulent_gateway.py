"""A gateway that sells, takes the prepayment, carries nothing, and bills for what it didn't carry: it gets no more than
the client risks with a stranger, and an honest gateway beside it serves and bills as ever."""

from __future__ import annotations

from core_tests import traffic
from core_tests.hostile import Crowd, ask_for_money, offer
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import Row, assert_conserved, used
from ngp.core.messages import Accept, Statement, StatementLine

REMOTE, STOLEN = "198.51.100.1", "198.51.100.2"
PAYMENT_MSAT = 50_000
PRICE_MSAT_PER_GIB = 5 << 20
BILLED_BYTES = 1 << 24  # above 80 sat each
PINGS = 20


def expect(session: Session) -> None:
    hosts, client = session.hosts, session.daemons["ann"]
    deal = session.deal("gateway", "ann")
    arrived = hosts["internet"].counter("wan0", "in")
    crowd = Crowd(hosts["mallory"], hosts["ann"])
    try:
        mallory = crowd.persona()
        assert crowd.meet(mallory)
        hosts["ann"].route(STOLEN, via=hosts["mallory"].address("mesh0", 4))
        sold = offer(f"{STOLEN}/32", PRICE_MSAT_PER_GIB)
        mallory.say(sold)
        assert crowd.pump(60, lambda: bool(mallory.heard(Accept)))

        def paid() -> int:
            return int(stolen(session)["paid_msat"])

        ask_for_money(crowd, mallory, PAYMENT_MSAT, times=3)
        await_until(lambda: crowd.pump(0.05) or paid(), what="the client pays a gateway that it has chosen")
        assert traffic.ping(hosts["ann"], STOLEN, count=3, wait_s=0.5).received == 0
        for part in (1, 2):
            line = StatementLine(sold.contract, part * BILLED_BYTES, 0, part * BILLED_BYTES * PRICE_MSAT_PER_GIB >> 30)
            mallory.say(Statement(paid(), line.charged_msat, 0, (line,)))
            await_until(lambda: crowd.pump(0.05) or disputed(session), what="the bill is disputed")
            before = paid()
            ask_for_money(crowd, mallory, PAYMENT_MSAT, times=3)
            assert paid() == before  # a gateway that bills for nothing is paid no more
        # At most two payments ahead of what was charged, and of a bill no more than one above our own meter.
        assert 0 < paid() <= 3 * PAYMENT_MSAT
    finally:
        crowd.close()
    assert arrived.total("in", destination=STOLEN).packets == 0
    assert traffic.ping(hosts["ann"], REMOTE, count=PINGS).received == PINGS
    deal.await_settled()
    assert not deal.differences()
    assert_conserved(deal.gateway)  # the client has also charged itself what it believes of the fraud's bill
    assert list(map(used, deal.sold())) == [PINGS * 2 * 84]
    spent = sum(row["amount_msat"] for row in client.json("ledger") if row["kind"] == "payment")
    assert -spent == stolen(session)["paid_msat"] + deal.spent()["paid_msat"]


def stolen(session: Session) -> Row:
    """Return the client's account with the fraud."""
    rows: list[Row] = session.daemons["ann"].ask("accounts")
    return next((row for row in rows if row["neighbour"] != session.keys["gateway"]), {"paid_msat": 0})


def disputed(session: Session) -> bool:
    """Say whether the client disputes a bill."""
    return "dispute" in {line["kind"] for line in session.daemons["ann"].json("ledger")}
