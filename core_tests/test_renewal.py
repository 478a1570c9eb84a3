"""Ends and renewals under live traffic: an ended contract is cut in both directions; a renewal affects no packet."""

from __future__ import annotations

import time

import pytest

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB, Row, Trade, open_trade, speak_as, used

VERSIONS = (4, 6)
NEVER = {"DATA_RENEWAL": 0, "TIME_RENEWAL": 0}
RATE_PPS = 20_000
BURST = RATE_PPS // 4
COUNT = 5 * RATE_PPS
PAYLOAD_BYTES = 60
# Other scenarios test both families.
BOTH_VERSIONS = pytest.mark.parametrize("version", [4, pytest.param(6, marks=pytest.mark.long)])


@BOTH_VERSIONS
def test_expiry_cuts_live_flows_in_both_directions(lab: Lab, version: int) -> None:
    lifetime_s = 4
    trade = open_trade(lab, both={"CONTRACT_TIME": lifetime_s, **NEVER}, masquerade=False)
    net, remote = trade.net, trade.net.remote(version)
    local = net.client.address("mesh0", version)
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    began = time.monotonic()
    up = traffic.start(net.client, "udp-send", remote, 5000, 800, 100, 100, 0)
    await_until(lambda: at_internet.total("in", destination=remote).packets, what="the first packet")
    first_s = time.monotonic() - began  # the contract began by then
    speak_as(net.internet, remote, local, net.gateway.address("wan0", version))
    down = traffic.start(net.internet, "udp-send", local, 5001, 800, 100, 100, 0)
    await_until(lambda: trade.sold(reason="expired"), what="expiry")
    assert time.monotonic() - began > lifetime_s - 0.5
    row = trade.sold(reason="expired")[0]
    assert up.wait(120) == down.wait(120) == 0  # both went on for seconds
    up_bytes = at_internet.total("in", destination=remote, protocol=17).bytes
    down_bytes = at_client.total("in", source=remote, protocol=17).bytes
    assert down_bytes > 0
    assert used(row) >= up_bytes + down_bytes  # with a few ICMP errors of closed ports
    # And not later: neither flow is ever ahead of its rate.
    assert used(row) <= (first_s + lifetime_s + 0.5) * 2 * 100 * (traffic.l3_bytes(version, 100) + 176)
    assert len(trade.sold()) == 1


def test_exhausted_data_cuts_live_flows_in_both_directions(lab: Lab) -> None:
    limit_kb = 50
    trade = open_trade(lab, both={"CONTRACT_DATA": limit_kb, **NEVER})
    net = trade.net
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    for version in VERSIONS:
        remote = net.remote(version)
        traffic.udp_echo(net.internet, remote, 5000)
        traffic.udp_send(net.client, remote, 5000, count=400, payload_bytes=500, rate_pps=400)
        await_until(lambda remote=remote: closed(trade, remote), what="the end")  # type: ignore[misc]
        seen = at_internet.total("in", destination=remote).bytes + at_client.total("in", source=remote).bytes
        (row,) = [row for row in trade.sold() if row["destination"].startswith(f"{remote}/")]
        assert (row["reason"], used(row)) == ("exhausted", seen)
        assert limit_kb * 1024 - traffic.l3_bytes(version, 500) < seen <= limit_kb * 1024
        with pytest.raises(traffic.TrafficError):
            traffic.tcp_sink(net.internet, remote, 5001)
            traffic.tcp_send(net.client, remote, 5001, size_bytes=1, timeout_s=1)
    trade.assert_books_agree(refused=True)


def closed(trade: Trade, remote: str) -> bool:
    return any(row["destination"].startswith(f"{remote}/") for row in trade.sold(state="closed"))


@BOTH_VERSIONS
def test_renewal_loses_and_delays_no_packet_at_a_high_rate(lab: Lab, version: int) -> None:
    """Not one packet is lost, and none is handed to the daemon, so none waits for the negotiation."""
    trade = open_trade(
        lab, both={"CONTRACT_DATA": "2 MB", "DATA_RENEWAL": "1 MB", "PAYMENT_AMOUNT": "1000 sat"}
    )
    net, remote = trade.net, trade.net.remote(version)
    sink, first = (traffic.udp_sink(net.internet, remote, port) for port in (5000, 5001))
    traffic.udp_send(net.client, remote, first.port, count=3, payload_bytes=PAYLOAD_BYTES, rate_pps=5)  # agree, and pay
    await_until(lambda: trade.sold(state="active"), what="the payment")
    held = trade.kernel_counter("passed_to_queue")
    for sent in range(0, COUNT, BURST):
        # On a busy machine a renewal may take longer than the remaining data lasts.
        needed = traffic.l3_bytes(version, PAYLOAD_BYTES, 3 + sent + BURST)
        await_until(lambda than=needed: trade.sold()[0]["data_limit_bytes"] >= than, what="a renewal")  # type: ignore[misc]
        traffic.udp_send(net.client, remote, 5000, count=BURST, payload_bytes=PAYLOAD_BYTES, rate_pps=RATE_PPS)
    await_until(lambda: sink.received()[0] >= COUNT and first.received()[0] >= 3, what="every packet")
    assert renewals(trade) >= 2
    assert trade.kernel_counter("passed_to_queue") == held
    trade.assert_books_agree()
    (row,) = trade.sold()
    assert row["used_to_bytes"] == traffic.l3_bytes(version, PAYLOAD_BYTES, COUNT + 3)


def renewals(trade: Trade) -> int:
    return sum(line["state"] == "renewed" for line in trade.gateway.json("ledger"))


def send_until(trade: Trade, remote: str, more_than: int) -> None:
    """Send until a contract has carried more than a number of bytes; if it has no room, wait for the renewal."""
    while True:
        row = await_until(lambda: _with_room(trade, remote), what="a renewal")
        if (before := used(row)) > more_than:
            return
        traffic.udp_send(trade.net.client, remote, 5000, count=20, payload_bytes=500, await_echoes=True)
        await_until(lambda than=before: used(_row(trade, remote)) > than, what="a reading")  # type: ignore[misc]


def _row(trade: Trade, remote: str) -> Row:
    (row,) = trade.sold(destination=f"{remote}/32")
    return row


def _with_room(trade: Trade, remote: str) -> Row:
    """Return the contract's row; empty while the next packets and their echoes have no room."""
    row = _row(trade, remote)
    return row if row["data_limit_bytes"] - used(row) > 2 * 20 * traffic.l3_bytes(4, 500) else {}


def test_a_changed_price_holds_from_the_renewals_offset_on(lab: Lab) -> None:
    """The price of a byte depends on its offset: bytes bought before keep their price, on both sides."""
    old, new = 5, 9
    gateway = {"MESH_INTERFACES": "mesh0", "IGNORE_INTERFACE": "wan0", "CONTRACT_DATA": "200 kB"}
    trade = open_trade(
        lab, {**gateway, "SELL_PRICE": f"{old} msat"}, {"CONTRACT_DATA": "200 kB", "BUY_PRICE_MAX": "10 msat"}
    )
    net, remote = trade.net, trade.net.remote(4)
    sold = {"destination": f"{remote}/32"}
    trade.prepay()
    traffic.udp_echo(net.internet, remote, 5000)
    traffic.udp_send(net.client, remote, 5000, count=1, payload_bytes=500, await_echoes=True)
    send_until(trade, remote, 10_000)
    (before,) = trade.sold(**sold)
    done = trade.gateway.reload({**gateway, "SELL_PRICE": f"{new} msat", "SELL_PRICE_MIN": f"{new} msat"})
    assert done.returncode == 0, done.stderr
    while not (renewed := trade.sold(**sold, price_msat_per_gib=new * MSAT_PER_KB)):
        send_until(trade, remote, used(trade.sold(**sold)[0]))
    (after,) = renewed
    send_until(trade, remote, after["data_limit_bytes"])
    trade.assert_books_agree()
    (row,) = trade.sold(**sold)
    assert row["price_msat_per_gib"] == new * MSAT_PER_KB
    offsets = range(before["data_limit_bytes"], after["data_limit_bytes"], 200 * 1024)
    possible = [-(-(offset * old + (used(row) - offset) * new) // 1024) for offset in offsets]
    assert row["charged_msat"] in possible
