"""Three routers as shipped whose routes lead in a ring: none can carry a packet out, so none buys or sells, and none of
their packets goes round. With an uplink in the ring they are carried and paid for, hop by hop. Then a cheat takes that
router's place, closes the ring, and hides this from its neighbours: packets go round until its grace is used up."""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from dataclasses import dataclass

from core_tests import traffic
from core_tests.hostile import Crowd, Persona, accept_all
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB, cost_msat, used
from ngp.core.messages import Ask, Propose
from ngp.delivery import Received

REMOTES = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
ROUND = "198.51.100.2"
WAYS = {"uplink": ("203.0.113.2", "2001:db8:2::2"), "ring": ("10.0.3.2", "2001:db8:50:3::2")}
MARGIN_PERCENT = 10
PRICE_MSAT_PER_GIB = 5 * MSAT_PER_KB  # of the router with the uplink
GRACE_BYTES = 256 << 10  # as shipped
COUNT, PINGS, PING_BYTES = 40, 10, {4: 84, 6: 104}


def expect(session: Session) -> None:
    deals = {seller: session.deal(seller, buyer) for buyer, seller in ("ab", "bc", "ca")}
    nothing_is_sold_in_a_ring(session)
    lead(session, "uplink")
    home, at_internet = session.hosts["home"], session.hosts["internet"].counter("wan0")
    for remote in REMOTES.values():
        traffic.udp_echo(session.hosts["internet"], remote, 5000)
        await_until(lambda remote=remote: traffic.ping(home, remote, wait_s=1).received == 1, what=f"{remote} answers")  # type: ignore[misc]
        assert traffic.udp_send(home, remote, 5000, count=COUNT, payload_bytes=500, await_echoes=True) == COUNT
    price = PRICE_MSAT_PER_GIB
    for deal in (deals["c"], deals["b"]):
        deal.assert_books_agree(refused=True)  # a's meter has counted the pings that b refused before it could buy
        sold = {row["destination"].partition("/")[0]: row for row in deal.sold() if used(row)}
        assert {remote: used(row) for remote, row in sold.items()} == {
            remote: at_internet.bytes_of(remote) for remote in REMOTES.values()
        }
        assert {row["price_msat_per_gib"] for row in sold.values()} == {price}
        assert deal.earned()["charged_msat"] == sum(map(cost_msat, sold.values()))
        price = -(-price * (100 + MARGIN_PERCENT) // 100)
    assert not any(map(used, deals["a"].sold()))
    a_cheat_closes_the_ring(session)


def nothing_is_sold_in_a_ring(session: Session) -> None:
    """Send into the ring: nothing gets further than to the first router that would have to buy."""
    onward = {link: session.hosts[link[0]].counter(link, "out") for link in ("ab", "bc", "ca")}
    for version, remote in REMOTES.items():
        assert traffic.ping(session.hosts["home"], remote, count=PINGS, wait_s=2).received == 0
        passed = {link: counter.total(destination=remote).bytes for link, counter in onward.items()}
        assert passed == {"ab": PINGS * PING_BYTES[version], "bc": 0, "ca": 0}
    for daemon in session.daemons.values():
        assert {row["state"] for row in daemon.json("contracts", "--all")} <= {"rejected"}
        assert not daemon.json("accounts") and not daemon.json("ledger")


def a_cheat_closes_the_ring(session: Session) -> None:
    """Sell to b what has to be bought from a, under two keys, without a path, and pay a for nothing."""
    a, b, c, home = (session.hosts[name] for name in ("a", "b", "c", "home"))
    session.daemons["c"].stop()
    lead(session, "ring")
    onward, sent = a.counter("ab", "out"), 0
    with closing(Crowd(c, b, "bc")) as selling, closing(Crowd(c, a, "ca")) as buying:
        seller, buyer = selling.persona(react=SellAll()), buying.persona(react=accept_all)
        assert selling.meet(seller) and buying.meet(buyer)

        def lent() -> int:
            """Send into the ring, and return what a has carried for the cheat, bytes."""
            nonlocal sent
            flow = traffic.start(home, "udp-send", ROUND, 5000, 5, 1000, 0, 0)
            answered_until = time.monotonic() + 0.4
            while flow.poll() is None or time.monotonic() < answered_until:
                selling.pump(0.02)
                buying.pump(0.02)
            sent += 5
            rows = session.daemons["a"].ask("contracts", all=True, by_destination=False)
            return sum(used(row) for row in rows if row["neighbour"] == buyer.identity)

        await_until(lambda: lent() > 0.9 * GRACE_BYTES, what="the end of the cheat's grace")
        lent()  # more than what is left of it
    passed = -1
    while passed != onward.total(destination=ROUND).bytes:  # else an echo request came between
        passed = onward.total(destination=ROUND).bytes
        books = {name: session.daemons[name].json("contracts", "--all") for name in "ab"}
        # a's own echo requests, by which it looks whether it is served
        echoes = onward.total(source=a.address("ab", 4), destination=ROUND, protocol=1).bytes
        # b's, that have gone round: b carries none that claims to be from itself
        come_back = onward.total(source=b.address("bc", 4), destination=ROUND, protocol=1).bytes
    on_grace = sum(used(row) for row in books["a"] if row["neighbour"] == buyer.identity)
    assert 0.9 * GRACE_BYTES < on_grace <= GRACE_BYTES
    assert passed - echoes == on_grace + traffic.l3_bytes(4, 1000, sent)
    host = f"{ROUND}/32"
    (sold,) = (row for row in books["b"] if (row["role"], row["destination"]) == ("server", host))
    (bought,) = (row for row in books["a"] if (row["role"], row["destination"]) == ("client", host))
    assert bought["used_to_bytes"] == passed
    refused = passed - sold["used_to_bytes"]
    assert come_back <= refused <= come_back + echoes  # b refuses a's last: a doesn't pay for nothing
    (spent,) = (row for row in session.daemons["b"].json("accounts") if row["neighbour"] == seller.identity)
    assert (spent["paid_msat"], spent["charged_msat"]) == (0, 0)


def lead(session: Session, where: str) -> None:
    """Have c's default routes lead to its uplink, or into the ring."""
    for destination, router in zip(("default", "::/0"), WAYS[where], strict=True):
        session.hosts["c"].route(destination, via=router)


@dataclass
class SellAll:
    """React by proposing what is asked for, with no path, as if nobody had to be asked for it; renew it likewise."""

    limit_bytes: int = 0

    def __call__(self, persona: Persona, received: Received) -> None:
        if isinstance(received.message, Ask):
            asked = received.message
            offset_bytes = self.limit_bytes if asked.contract else 0
            self.limit_bytes += 1 << 24
            terms = PRICE_MSAT_PER_GIB, self.limit_bytes, 300, 10, offset_bytes, 1
            contract = asked.contract or secrets.token_bytes(16)
            persona.say(Propose(contract, asked.destination, *terms), received.message_id)
