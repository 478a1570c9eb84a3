"""A household behind two routers as shipped and a gateway buys its default route: one contract at each hop carries all
destinations, and each router earns its margin. What a router's own route leads to a dearer neighbour has a contract and
a price of its own. Traffic that nobody asked for ends the default route, and single destinations are bought as ever."""

from __future__ import annotations

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.session import Deal, Session
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB, assert_conserved, cost_msat, used

WHOLE = {4: "0.0.0.0/0", 6: "::/0"}
NET = {4: "198.51.100.", 6: "2001:db8:ffff::"}
SHOP = {4: "10.0.5.2", 6: "2001:db8:50:5::2"}
SHOP_NET = {4: "10.0.5.0/24", 6: "2001:db8:50:5::/64"}
FIRST, OTHERS, AFTERWARDS = 1, range(2, 14), 99
LINE = ("a", "b", "c", "gateway")
MARGIN_PERCENT = 10
PRICE_MSAT_PER_GIB, DEAR_MSAT_PER_GIB = 5 * MSAT_PER_KB, 6 * MSAT_PER_KB  # of the gateway, and of d
GRACE_BYTES = 256 << 10  # as shipped
PINGS, PING_BYTES = 5, {4: 84, 6: 104}
UNASKED, UNASKED_BYTES = 20, 1000


def expect(session: Session) -> None:
    deals = {seller: session.deal(seller, buyer) for buyer, seller in zip(LINE, LINE[1:], strict=False)}
    session.deal("d", "b")
    for version in WHOLE:
        assert traffic.ping(session.hosts["home"], f"{NET[version]}{FIRST}").received == 1
        await_until(lambda version=version: all(_runs(deal, version) for deal in deals.values()), what="all contracts")  # type: ignore[misc]
    one_contract_at_each_hop_carries_all(session, deals)
    what_leads_elsewhere_has_its_own(session, deals["b"])
    unasked_traffic_ends_it(session, deals)


def one_contract_at_each_hop_carries_all(session: Session, deals: dict[str, Deal]) -> None:
    """Reach many destinations, of which none waits for a contract; the count is at the far end."""
    home, at_internet = session.hosts["home"], session.hosts["internet"].counter("wan0")
    held = {seller: _counter(session.daemons[seller], "passed_to_queue") for seller in deals}
    carried = dict.fromkeys(WHOLE, 0)
    for version in WHOLE:
        for number in OTHERS:
            remote = f"{NET[version]}{number}"
            assert traffic.ping(home, remote, count=2, payload_bytes=40 + number).received == 2
            carried[version] += at_internet.bytes_of(remote)
    assert held == {seller: _counter(session.daemons[seller], "passed_to_queue") for seller in deals}, "none waited"
    price, rests_on, earned = PRICE_MSAT_PER_GIB, dict.fromkeys(WHOLE.values()), {}
    for hops, (seller, deal) in enumerate(reversed(deals.items()), 1):
        deal.assert_books_agree()
        sold = {row["destination"]: row for row in deal.sold()}
        assert sold.keys() == {*WHOLE.values(), *(f"{NET[v]}{FIRST}/{32 if v == 4 else 128}" for v in WHOLE)}
        wholes = {whole: sold[whole] for whole in WHOLE.values()}
        assert {version: used(wholes[whole]) for version, whole in WHOLE.items()} == carried
        assert {(row["price_msat_per_gib"], row["hops"]) for row in wholes.values()} == {(price, hops)}
        assert {whole: row["rests_on"] for whole, row in wholes.items()} == rests_on
        earned[seller] = deal.earned()["charged_msat"]
        assert earned[seller] == deal.spent()["charged_msat"] == sum(map(cost_msat, sold.values()))
        price = -(-price * (100 + MARGIN_PERCENT) // 100)
        rests_on = {whole: row["id"] for whole, row in wholes.items()}
    assert earned["b"] > earned["c"] > earned["gateway"] > 0
    session.assert_conserved()


def what_leads_elsewhere_has_its_own(session: Session, deal: Deal) -> None:
    """Reach a host to which b's route leads through a dearer neighbour."""
    home, before = session.hosts["home"], {row["destination"]: used(row) for row in deal.sold()}
    dear = session.deal("d", "b")
    for version, host in SHOP.items():
        assert traffic.ping(home, host, count=PINGS).received == PINGS
        carried = 2 * PINGS * PING_BYTES[version]
        await_until(lambda host=SHOP_NET[version]: _use(deal, host) == _use(dear, host), what="both counts")  # type: ignore[misc]
        assert _use(deal, SHOP_NET[version]) == carried
    dear.assert_books_agree()
    await_until(lambda: _sums_agree(deal), what="the bill")  # a's meter counted the first packets at the default route
    prices = [
        {row["price_msat_per_gib"] for row in one.sold() if row["destination"] in SHOP_NET.values()}
        for one in (dear, deal)
    ]
    assert prices == [{DEAR_MSAT_PER_GIB}, {-(-DEAR_MSAT_PER_GIB * (100 + MARGIN_PERCENT) // 100)}]
    assert {row["destination"]: used(row) for row in deal.sold() if row["destination"] in before} == before


def unasked_traffic_ends_it(session: Session, deals: dict[str, Deal]) -> None:
    """Have the internet send to the shop, for which no client of b's pays: b has paid c, and drops it."""
    b, internet = session.daemons["b"], session.hosts["internet"]

    def is_over() -> bool:
        traffic.udp_send(internet, SHOP[6], 5000, count=UNASKED, payload_bytes=UNASKED_BYTES)
        return not any(_runs(deal, version) for deal in (deals["b"], deals["c"]) for version in WHOLE)

    await_until(is_over, what="the end of the default route")
    b.await_logged("no default route is resold for an hour")
    lost = _counter(b, "unsold_bytes")
    assert lost > GRACE_BYTES
    paid = sum(map(used, deals["c"].sold()))
    traffic.udp_send(internet, SHOP[6], 5000, count=UNASKED, payload_bytes=UNASKED_BYTES)
    for net in NET.values():
        assert traffic.ping(session.hosts["home"], f"{net}{AFTERWARDS}", count=PINGS).received == PINGS
    expected = sum(2 * PINGS * PING_BYTES[version] for version in WHOLE)
    await_until(lambda: sum(map(used, deals["c"].sold())) == paid + expected, what="only what was asked for is paid")
    assert _counter(b, "unsold_bytes") == lost
    assert not any(_runs(deals["b"], version) for version in WHOLE)
    for seller in ("c", "gateway"):
        deals[seller].assert_books_agree(refused=True)
    await_until(lambda: _sums_agree(deals["b"]), what="the last bill")
    for daemon in session.daemons.values():
        assert_conserved(daemon, ("server",))


def _sums_agree(deal: Deal) -> bool:
    """Say whether both sides have the same sums, whichever contracts the client counted its packets to."""
    earned, spent = deal.earned(), deal.spent()
    return all(earned[key] == spent[key] for key in ("paid_msat", "charged_msat", "refunded_msat"))


def _runs(deal: Deal, version: int) -> bool:
    """Say whether the contract for a default route is active on both sides."""
    return all(
        any(row["state"] == "active" for row in rows)
        for rows in (deal.sold(destination=WHOLE[version]), deal.bought(destination=WHOLE[version]))
    )


def _use(deal: Deal, destination: str) -> int:
    return sum(map(used, deal.sold(destination=destination)))


def _counter(daemon: Daemon, name: str) -> int:
    return int(daemon.json("status")["counters"]["kernel"][name])
