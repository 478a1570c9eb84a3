"""Clients that cheat, beside an honest one: one never pays, one lies about its payments, one speaks about another's
contract, one sends under another's address. None gets more than its grace, and the honest client is served and billed
as ever, for the answers too that come to what was sent under its address."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from ipaddress import ip_network

from core_tests import traffic
from core_tests.counter import Counter
from core_tests.hostile import Crowd, Persona, accept_all, offer, proof_of, random_mac, udp
from core_tests.session import Session
from core_tests.trade import Row, cost_msat, used
from ngp.core.messages import Accept, Ask, Cancel, Invoice, Paid, Propose, Reject, Statement, StatementLine
from ngp.delivery import Received

HONEST = "198.51.100.1"
UNPAID, PAID_ONCE = ([f"198.51.100.{number}" for number in range(first, first + 4)] for first in (100, 110))
PRICE_MSAT_PER_KB = 5
GRACE_BYTES = 20 * 1024
PAYLOAD_BYTES = 900
PINGS, PING_BYTES = 20, 84
UDP = 17


def expect(session: Session) -> None:
    deal = session.deal("gateway", "ann")
    counter = session.hosts["internet"].counter("wan0")
    cheats = never_pays, lies_about_payments, speaks_for_another, sends_as_another
    assert traffic.ping(session.hosts["ann"], HONEST, count=PINGS).received == PINGS
    for number, cheat in enumerate(cheats, 2):
        cheat(session, counter)
        assert traffic.ping(session.hosts["ann"], HONEST, count=PINGS).received == PINGS
        (row,) = deal.sold()
        assert row["state"] == "active" and row["used_to_bytes"] == number * PINGS * PING_BYTES
        assert row["used_from_bytes"] == counter.total("out", source=HONEST).bytes
    deal.assert_books_agree()
    assert deal.earned()["charged_msat"] == sum(map(cost_msat, deal.sold()))
    session.assert_conserved()


def never_pays(session: Session, counter: Counter) -> None:
    """Accept every offer, and pay for nothing."""
    with closing(Crowd(session.hosts["debtor"], session.hosts["gateway"])) as crowd:
        debtor = crowd.persona(random_mac(), react=accept_all)  # no answer comes back to it
        assert crowd.meet(debtor)
        seen = use_up(debtor, counter, UNPAID, 0.8 * GRACE_BYTES)
    assert seen <= GRACE_BYTES
    assert_owes(session, debtor, seen, paid_msat=0)


def lies_about_payments(session: Session, counter: Counter) -> None:
    """Pay the first invoice; prove all others by the same payment, and prove that again and again."""
    invoices: list[Invoice] = []

    def lie(persona: Persona, received: Received) -> None:
        accept_all(persona, received)
        if isinstance(received.message, Invoice):
            invoices.append(received.message)
            true = proof_of(invoices[0])
            persona.say(Paid(proof_of(received.message).payment_hash, true.preimage), received.message_id)
            persona.say(true)

    with closing(Crowd(session.hosts["liar"], session.hosts["gateway"])) as crowd:
        liar = crowd.persona(random_mac(), react=lie)
        assert crowd.meet(liar)

        def asked() -> bool:
            send(liar, PAID_ONCE[:1])
            return bool(invoices)

        assert crowd.pump(60, asked)
        paid_msat = invoices[0].amount_msat
        paid_bytes = (paid_msat - len(PAID_ONCE)) * 1024 // PRICE_MSAT_PER_KB  # a msat of each contract for rounding
        seen = use_up(liar, counter, PAID_ONCE, paid_bytes + 0.8 * GRACE_BYTES)
        assert len({one.bolt11 for one in invoices}) > 1
    assert_owes(session, liar, seen, paid_msat)


def speaks_for_another(session: Session, counter: Counter) -> None:  # noqa: ARG001  those of all cheats
    """Speak about the honest client's contract: to the gateway as if it were the client's, to the client as if it were
    the gateway's."""
    (row,) = session.deal("gateway", "ann").sold()
    contract, limit, price = bytes.fromhex(row["id"]), row["data_limit_bytes"], row["price_msat_per_gib"]
    honest = ip_network(row["destination"])
    with closing(Crowd(session.hosts["impostor"], session.hosts["gateway"])) as crowd:
        impostor = crowd.persona()
        assert crowd.meet(impostor)
        impostor.say(Cancel(contract))
        impostor.say(Accept(contract, price, limit))
        impostor.say(Ask(honest, 2 * limit, 0, contract))
        impostor.say(Ask(ip_network("198.51.100.120/32"), 0, 0))  # the one thing that it may say, after all others
        assert crowd.pump(60, lambda: bool(impostor.heard(Propose)))
    with closing(Crowd(session.hosts["impostor"], session.hosts["ann"])) as crowd:
        impostor = crowd.persona(key=impostor.key)
        assert crowd.meet(impostor)
        line = StatementLine(contract, limit, limit, price)
        impostor.say(Statement(0, line.charged_msat, 0, (line,)))
        impostor.say(Propose(contract, honest, 2 * price, 2 * limit, 300, 10, limit, 1))
        impostor.say(Cancel(contract))
        impostor.say(offer(f"{HONEST}/32", price=1))
        assert crowd.pump(60, lambda: bool(impostor.heard(Reject)))
        assert not impostor.heard(Accept)
    for name in ("gateway", "ann"):
        (same,) = (one for one in session.daemons[name].json("contracts", "--all") if one["id"] == row["id"])
        assert (same["state"], same["price_msat_per_gib"], same["data_limit_bytes"]) == ("active", price, limit)
        assert impostor.identity not in {one["neighbour"] for one in session.daemons[name].json("accounts")}


def sends_as_another(session: Session, counter: Counter) -> None:
    """Send under the honest client's address to what that client has bought.

    As long as the cheat doesn't buy that itself, nothing passes. Then it uses its grace for it, and the answers are the
    honest client's downloads.
    """
    source = session.hosts["ann"].address("mesh0", 4)
    with closing(Crowd(session.hosts["spoofer"], session.hosts["gateway"])) as crowd:
        spoofer = crowd.persona()
        assert crowd.meet(spoofer)
        for _ in range(20):
            send(spoofer, [HONEST], source)
            crowd.pump(0.02)
        assert crowd.pump(60, lambda: bool(spoofer.heard(Propose))), "it is asked whether it buys that for itself"
        assert counter.total(destination=HONEST, protocol=UDP).packets == 0
        answered = counter.total("out", source=HONEST).bytes
        spoofer.react = accept_all
        accept_all(spoofer, spoofer.heard(Propose)[0])
        seen = use_up(spoofer, counter, [HONEST], 0.8 * GRACE_BYTES, source)
    assert_owes(session, spoofer, seen, paid_msat=0)
    assert 0 < counter.total("out", source=HONEST).bytes - answered < seen


def send(cheat: Persona, remotes: Sequence[str], source: str = "") -> None:
    """Send a datagram to each of some destinations. Args: source: "": the cheat's own address."""
    for remote in remotes:
        cheat.crowd.frame(cheat.mac, udp(source or cheat.crowd.address, remote, 5000, bytes(PAYLOAD_BYTES)))


def use_up(cheat: Persona, counter: Counter, remotes: Sequence[str], least_bytes: float, source: str = "") -> int:
    """Send until an amount was carried, and then far more than could still be covered. Returns what was carried."""

    def carried() -> int:
        return sum(counter.total(destination=remote, protocol=UDP).bytes for remote in remotes)

    def enough() -> bool:
        send(cheat, remotes, source)
        return carried() > least_bytes

    assert cheat.crowd.pump(60, enough), f"{carried()} bytes were carried, and not {least_bytes}"
    for _ in range(20):
        send(cheat, remotes, source)
        cheat.crowd.pump(0.02)
    return carried()


def assert_owes(session: Session, cheat: Persona, seen: int, paid_msat: int) -> None:
    """Assert that a cheat is charged for all that was carried for it, and owes no more than its grace is worth.

    Each contract may add a msat by rounding.
    """
    rows = sold_to(session, cheat)
    assert sum(map(used, rows)) == seen
    (account,) = (one for one in session.daemons["gateway"].json("accounts") if one["neighbour"] == cheat.identity)
    charged = sum(map(cost_msat, rows))
    assert (account["paid_msat"], account["charged_msat"]) == (paid_msat, charged)
    assert 0 < charged - paid_msat <= GRACE_BYTES // 1024 * PRICE_MSAT_PER_KB + len(rows)


def sold_to(session: Session, cheat: Persona) -> list[Row]:
    """Return the gateway's rows of contracts with a cheat."""
    rows: list[Row] = session.daemons["gateway"].json("contracts", "--all")
    return [row for row in rows if row["neighbour"] == cheat.identity]
