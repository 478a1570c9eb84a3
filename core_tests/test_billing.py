"""The bill: the gateway charges what an independent count at the receivers shows, to the byte and the msat, and the
client's books agree."""

from __future__ import annotations

import pytest

from core_tests import traffic
from core_tests.counter import Counter
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Row, Trade, open_trade, used

VERSIONS = (4, 6)
PRICE_MSAT_PER_KB = 3
TCP_BYTES = 2_000_000
PLENTY = {"PAYMENT_AMOUNT": "1000 sat", "DEFAULT_PRICE": f"{PRICE_MSAT_PER_KB} msat"}


def bill_of(trade: Trade, remote: str) -> Row:
    """Return the one contract that the gateway sold for an address."""
    (row,) = [row for row in trade.sold() if row["destination"].split("/")[0] == remote]
    return row


def assert_billed(trade: Trade, remote: str, at_internet: Counter, at_client: Counter) -> None:
    """Assert that bytes and msat match the receivers' counts: uploads at the internet, downloads at the client."""
    row = bill_of(trade, remote)
    upload = at_internet.total("in", destination=remote).bytes
    download = at_client.total("in", source=remote).bytes
    assert (row["used_to_bytes"], row["used_from_bytes"]) == (upload, download)
    assert row["charged_msat"] == -(-(upload + download) * PRICE_MSAT_PER_KB // 1024)


def test_udp_is_billed_to_the_byte(lab: Lab) -> None:
    trade = open_trade(lab, both=PLENTY)
    net = trade.net
    at_internet, at_client = net.internet.counter("wan0"), net.client.counter("mesh0")
    for version in VERSIONS:
        remote = net.remote(version)
        traffic.udp_echo(net.internet, remote, 5000)
        for payload in (1, 777, 1400):
            echoed = traffic.udp_send(
                net.client, remote, 5000, count=200, payload_bytes=payload, rate_pps=1000, await_echoes=True
            )
            assert echoed == 200
    trade.assert_books_agree()
    for version in VERSIONS:
        assert_billed(trade, net.remote(version), at_internet, at_client)
        sent = sum(traffic.l3_bytes(version, payload, 200) for payload in (1, 777, 1400))
        assert used(bill_of(trade, net.remote(version))) == 2 * sent


@pytest.mark.parametrize("offloads", [False, True], ids=["wire frames", "superpackets"])
def test_tcp_is_billed_to_the_byte_in_both_directions(lab: Lab, offloads: bool) -> None:
    trade = open_trade(lab, both=PLENTY)
    net = trade.net
    for host, interface in ((net.client, "mesh0"), (net.internet, "wan0")):
        host.offloads(interface, tso=offloads, gso=offloads)  # superpackets reach the gateway's meter whole
    trade.prepay()
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    for version in VERSIONS:
        up, down = net.remote(version, 1), net.remote(version, 2)
        traffic.tcp_sink(net.internet, up, 5001)
        traffic.tcp_source(net.internet, down, 5002)
        assert traffic.tcp_send(net.client, up, 5001, size_bytes=TCP_BYTES).intact
        assert traffic.tcp_fetch(net.client, down, 5002, size_bytes=TCP_BYTES) == TCP_BYTES
    trade.assert_books_agree()
    for version in VERSIONS:
        for number in (1, 2):
            assert_billed(trade, net.remote(version, number), at_internet, at_client)
    assert trade.earned()["charged_msat"] > 4 * TCP_BYTES * PRICE_MSAT_PER_KB // 1024


def test_what_a_narrow_link_drops_is_billed_and_causes_no_dispute(lab: Lab) -> None:
    trade = open_trade(lab, both=PLENTY)
    net, remote = trade.net, trade.net.remote(4)
    trade.prepay()
    tbf = ("root", "tbf", "rate", "4mbit", "burst", "16k", "limit", "30k")
    net.gateway.sh("tc", "qdisc", "add", "dev", "mesh0", *tbf)
    traffic.udp_echo(net.internet, remote, 5000)
    at_client = net.client.counter("mesh0", "in")
    for _ in range(2):
        traffic.udp_send(net.client, remote, 5000, count=1500, payload_bytes=1200, rate_pps=1000)
        assert traffic.ping(net.client, remote, count=5, wait_s=2).received, "the service goes on"
    await_until(lambda: trade.spent()["billed_msat"] == trade.earned()["charged_msat"], what="the bill")
    row = bill_of(trade, remote)
    assert at_client.total("in", source=remote).bytes < row["used_from_bytes"] * 0.9
    assert not trade.spent()["disputed"] and trade.spent()["billed_msat"] > trade.spent()["metered_msat"]


def test_the_journal_holds_every_payment_and_charge(lab: Lab) -> None:
    trade = open_trade(lab, both={"CONTRACT_TIME": 4, "TIME_RENEWAL": 0, "DATA_RENEWAL": 0, "PAYMENT_AMOUNT": "1 sat"})
    net = trade.net
    for version in VERSIONS:
        for number in (1, 2):
            assert traffic.ping(net.client, net.remote(version, number), count=5).received == 5
    trade.await_closed(4)
    trade.assert_books_agree()
    assert {row["reason"] for row in trade.sold()} == {"expired"}
    assert trade.earned()["balance_msat"] > 0 and trade.earned()["reserved_msat"] == 0
