"""First packets: held while the routers negotiate, released and charged when they agree, else refused by ICMP."""

from __future__ import annotations

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB, Trade, open_trade

VERSIONS = (4, 6)
BURST = 8  # the number of packets that the gate holds for one destination
PROHIBITED = {4: "Packet filtered", 6: "Administratively prohibited"}  # ping's words for ICMP 3/13 and ICMPv6 1/1


def test_no_first_packet_is_lost(lab: Lab) -> None:
    trade = open_trade(lab)
    net = trade.net
    at_client, at_internet = net.client.counter("mesh0", "out"), net.internet.counter("wan0", "in")
    for version in VERSIONS:
        for number in (1, 2, 3):
            assert traffic.ping(net.client, net.remote(version, number)) == traffic.Pings(1, 1)
        sink = traffic.udp_sink(net.internet, net.remote(version, 4), 5000)
        traffic.udp_send(net.client, sink.address, 5000, count=BURST)
        await_until(lambda sink=sink: sink.received()[0] == BURST, what="the whole burst")  # type: ignore[misc]
        stream = net.remote(version, 5)
        traffic.tcp_sink(net.internet, stream, 5001)
        assert traffic.tcp_send(net.client, stream, 5001, size_bytes=1000).intact
        # Every request for a connection, including those that a client on a busy machine repeats.
        await_until(
            lambda stream=stream:  # type: ignore[misc]
            at_client.total("out", destination=stream).packets == at_internet.total("in", destination=stream).packets,
            what="every packet of the stream",
        )
    assert len(trade.sold()) == 2 * 5
    trade.assert_books_agree()


def test_a_first_packet_waits_for_acquaintance_as_well(lab: Lab) -> None:
    """A client that sends before its daemon was heard is a stranger for a moment, but isn't refused."""
    trade = open_trade(lab)
    trade.client.stop()
    pinging = trade.net.client.popen(
        "ping", "-n", "-q", "-c", "100", "-i", "0.1", trade.net.remote(4), stdout=-1
    )
    trade.client.start()
    said, _ = pinging.communicate(timeout=120)
    assert " 0 received" not in said
    assert traffic.ping(trade.net.client, trade.net.remote(6)).received == 1


def prices(trade: Trade) -> set[int]:
    return {row["price_msat_per_gib"] for row in (*trade.sold(), *trade.bought())}


def test_counter_offers_meet_in_the_middle(lab: Lab) -> None:
    trade = open_trade(
        lab,
        {"SELL_PRICE": "8 msat", "SELL_PRICE_MIN": "4 msat"},
        {"BUY_PRICE": "3 msat", "BUY_PRICE_MAX": "6 msat"},
    )
    for version in VERSIONS:
        assert traffic.ping(trade.net.client, trade.net.remote(version)).received == 1
    (price,) = prices(trade)
    assert 4 * MSAT_PER_KB <= price <= 6 * MSAT_PER_KB
    trade.assert_books_agree()


def test_a_refusal_is_reported_and_costs_nothing_for_a_while(lab: Lab) -> None:
    trade = open_trade(lab, {"SELL_PRICE": "8 msat", "SELL_PRICE_MIN": "7 msat"}, {"BUY_PRICE_MAX": "6 msat"})
    net = trade.net
    for version in VERSIONS:
        remote = net.remote(version)
        sink = traffic.udp_sink(net.internet, remote, 5000)
        said = net.client.run("ping", "-n", "-c", "1", "-W", "20", remote).stdout
        assert PROHIBITED[version] in said and " 0 received" in said
        before = trade.kernel_counter("passed_to_queue")
        traffic.udp_send(net.client, remote, 5000, count=2000, rate_pps=2000)
        assert trade.kernel_counter("passed_to_queue") == before
        assert sink.received()[0] == 0
    assert trade.sold() == trade.bought() == []
