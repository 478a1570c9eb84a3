"""Gateways that cheat, beside an honest one: one bills for what it didn't carry, one says its old bills again, one
proposes for ever, one takes money and carries nothing. All that carry nothing cost the client no more than the grace
together; the honest gateway serves and bills as ever."""

from __future__ import annotations

import random
from contextlib import closing

from core_tests import traffic
from core_tests.hostile import PORT, Crowd, Persona, ask_for_money, offer, udp
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB, Row, assert_conserved, cost_msat, used
from ngp.core.messages import Accept, Reject, Statement, StatementLine

STOLEN, CARRIED, LOST = (f"198.51.100.{number}" for number in (102, 103, 104))  # routed through fraud, parrot, hole
PAYMENT_MSAT = 50_000
PRICE_MSAT_PER_GIB = 5 * MSAT_PER_KB
GRACE_MSAT = 256 * 5  # as shipped: the price of GRACE_DATA
BILLED_BYTES = 1 << 24  # above 80 sat each
BILLS, COUNT = 4, 10
OFFERS, MOST_BOUGHT = 300, 99  # half of CONTRACTS_MAX, less that of the one that carries nothing
RATE_PPS, SECONDS = 100, 60
PINGS, PING_BYTES = 20, 84


def expect(session: Session) -> None:
    client, deal = session.daemons["ann"], session.deal("gateway", "ann")
    for number, cheat in enumerate((bills_for_nothing, repeats_bills, carries_nothing, proposes_for_ever), 1):
        cheat(session)
        assert traffic.ping(session.hosts["ann"], f"198.51.100.{number}", count=PINGS).received == PINGS
        assert [used(row) for row in deal.sold()] == number * [PINGS * 2 * PING_BYTES]
    deal.await_settled()
    assert not deal.differences()
    assert deal.earned()["charged_msat"] == sum(map(cost_msat, deal.sold()))
    assert_conserved(deal.gateway)  # the client has also charged itself what it believes of the fraud's bill
    spent = sum(row["amount_msat"] for row in client.json("ledger") if row["kind"] == "payment")
    assert -spent == sum(row["paid_msat"] for row in client.json("accounts"))


def bills_for_nothing(session: Session) -> None:
    """Sell, take the prepayment, carry nothing, and bill for it."""
    ann = session.hosts["ann"]
    with closing(Crowd(session.hosts["fraud"], ann)) as crowd:
        fraud = crowd.persona()
        contract = sell(crowd, fraud, STOLEN)
        ask_for_money(crowd, fraud, PAYMENT_MSAT, times=3)
        await_until(lambda: crowd.pump(0.05) or paid(session, fraud), what="a payment to its chosen gateway")
        assert traffic.ping(ann, STOLEN, count=3, wait_s=0.5).received == 0
        for part in (1, 2):
            line = StatementLine(contract, part * BILLED_BYTES, 0, part * BILLED_BYTES * PRICE_MSAT_PER_GIB >> 30)
            fraud.say(Statement(paid(session, fraud), line.charged_msat, 0, (line,)))
            await_until(lambda: crowd.pump(0.05) or account(session, fraud)["disputed"], what="the bill is disputed")
            before = paid(session, fraud)
            ask_for_money(crowd, fraud, PAYMENT_MSAT, times=3)
            assert paid(session, fraud) == before  # a gateway that bills for nothing is paid no more
    assert 0 < paid(session, fraud) <= GRACE_MSAT


def repeats_bills(session: Session) -> None:
    """Carry, and bill exactly that; then say all bills again: in new messages, and as copies of the old ones."""
    ann, internet, chance = session.hosts["ann"], session.hosts["internet"], random.Random(12)
    counter = internet.counter("wan0")
    traffic.udp_echo(internet, CARRIED, 5000)
    with closing(Crowd(session.hosts["parrot"], ann)) as crowd:
        parrot = crowd.persona()
        contract = sell(crowd, parrot, CARRIED)
        ask_for_money(crowd, parrot, PAYMENT_MSAT)
        bills = []
        for _ in range(BILLS):
            assert traffic.udp_send(ann, CARRIED, 5000, count=COUNT, payload_bytes=472, await_echoes=True) == COUNT
            sent, came = counter.total(destination=CARRIED).bytes, counter.total(source=CARRIED).bytes
            charged_msat = -(-(sent + came) * PRICE_MSAT_PER_GIB >> 30)
            line = StatementLine(contract, sent, came, charged_msat)
            bills.append(Statement(paid(session, parrot), charged_msat, 0, (line,)))
            parrot.say(bills[-1])
        due = {"charged_msat": bills[-1].charged_msat, "billed_msat": bills[-1].charged_msat, "disputed": False}
        await_until(lambda: crowd.pump(0.05) or due.items() <= account(session, parrot).items(), what="the last bill")
        ask_for_money(crowd, parrot, PAYMENT_MSAT)
        before = account(session, parrot)
        for _ in range(20):
            chance.shuffle(bills)
            for bill in bills:
                parrot.say(bill)
            crowd.pump(0.02)
        for datagram in list(crowd.captured):
            crowd.frame(parrot.mac, udp(crowd.address, crowd.victim_address, PORT, datagram, PORT))
        ask_for_money(crowd, parrot, PAYMENT_MSAT)  # answered after all that was said before
        assert account(session, parrot) == before
    assert 0 <= before["paid_msat"] - before["metered_msat"] <= max(GRACE_MSAT, before["metered_msat"])
    (row,) = bought_from(session, parrot)
    assert used(row) == row["billed_bytes"] == BILLS * 2 * COUNT * traffic.l3_bytes(4, 472)


def proposes_for_ever(session: Session) -> None:
    """Propose contracts for ever new destinations, and ask for money each time."""
    with closing(Crowd(session.hosts["beggar"], session.hosts["ann"])) as crowd:
        beggar = crowd.persona()
        assert crowd.meet(beggar)
        for number in range(1, OFFERS + 1):
            beggar.say(offer(f"10.66.{number >> 8}.{number & 255}/32", PRICE_MSAT_PER_GIB))
            if number % 50 == 0:
                ask_for_money(crowd, beggar, PAYMENT_MSAT)
        assert crowd.pump(60, lambda: len(beggar.heard(Accept)) + len(beggar.heard(Reject)) == OFFERS)
    assert len(beggar.heard(Accept)) == len(bought_from(session, beggar)) == MOST_BOUGHT
    assert paid(session, beggar) == 0  # the first one got what all that carry nothing get in an hour


def carries_nothing(session: Session) -> None:
    """Sell, take the money, bill what came, and drop it. This gateway runs ngp, and its firewall drops."""
    ann, client, deal = session.hosts["ann"], session.daemons["ann"], session.deal("hole", "ann")
    arrived = session.hosts["internet"].counter("wan0", "in")
    flow = traffic.start(ann, "udp-send", LOST, 5000, RATE_PPS * SECONDS, 1000, RATE_PPS, 0)

    def why_unpaid() -> str:
        rows: list[Row] = client.ask("accounts")
        return next((str(row["why_not"]) for row in rows if row["neighbour"] == session.keys["hole"]), "")

    await_until(lambda: "have carried nothing yet" in why_unpaid(), SECONDS, "an invoice that isn't paid")
    flow.kill()
    flow.wait()
    deal.assert_books_agree(refused=True)  # the client's meter has counted what came after the grace's end
    assert paid(session, session.keys["hole"]) == 0
    assert arrived.total(destination=LOST).packets == 0


def sell(crowd: Crowd, cheat: Persona, destination: str) -> bytes:
    """Make a cheat known to the client, and sell it a destination; returns the contract."""
    assert crowd.meet(cheat)
    sold = offer(f"{destination}/32", PRICE_MSAT_PER_GIB)
    cheat.say(sold)
    assert crowd.pump(60, lambda: bool(cheat.heard(Accept)))
    return sold.contract


def account(session: Session, cheat: Persona | str) -> Row:
    """Return the client's account with a cheat (or its key), as far as money goes; without one, nothing was paid."""
    rows: list[Row] = session.daemons["ann"].ask("accounts")
    keys = "paid_msat", "charged_msat", "refunded_msat", "balance_msat", "billed_msat", "metered_msat", "disputed"
    key = cheat if isinstance(cheat, str) else cheat.identity
    found = (row for row in rows if row["neighbour"] == key)
    return next(({key: row[key] for key in keys} for row in found), {"paid_msat": 0, "disputed": False})


def paid(session: Session, cheat: Persona | str) -> int:
    """Return what the client has paid a cheat, msat."""
    return int(account(session, cheat)["paid_msat"])


def bought_from(session: Session, cheat: Persona) -> list[Row]:
    """Return the client's rows of contracts with a cheat."""
    rows: list[Row] = session.daemons["ann"].json("contracts", "--all")
    return [row for row in rows if row["neighbour"] == cheat.identity]
