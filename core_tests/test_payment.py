"""A client that doesn't pay gets the grace once and not one byte more: in both directions and families, on live flows.
A payment restores the service at once."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Trade, open_trade, restart

VERSIONS = (4, 6)
GRACE_KB = 20
GRACE_BYTES = GRACE_KB * 1024
LONG = {"GRACE_TIME": "10 min"}  # for tests where the bytes are the limit


def carried(trade: Trade) -> int:
    """Return the bytes that the gateway has carried for the client, over all contracts."""
    return sum(row["used_to_bytes"] + row["used_from_bytes"] for row in trade.sold())


def answered(trade: Trade, version: int, number: int = 1, count: int = 3) -> int:
    """Ping with packets that are larger than the rest of the grace after a flow of small ones."""
    return traffic.ping(
        trade.net.client, trade.net.remote(version, number), count=count, payload_bytes=1000, wait_s=1
    ).received


def pay_by_hand(trade: Trade, amount: str = "100 sat") -> None:
    """Credit the client's account at the gateway, as an operator of the sandbox may."""
    done = trade.gateway.cli("server", f"payment {trade.identity(trade.client)} {amount}")
    assert done.returncode == 0, done.stderr


def set_fault(trade: Trade, fault: str, value: str) -> None:
    done = trade.client.cli("server", f"fault {fault} {value}")
    assert done.returncode == 0, done.stderr


def test_grace_is_shared_by_all_flows_and_given_once(lab: Lab) -> None:
    trade = open_trade(lab, {"GRACE_DATA": GRACE_KB, **LONG}, penniless=True)
    net = trade.net
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    for version in VERSIONS:
        traffic.udp_echo(net.internet, net.remote(version), 5000)
        traffic.tcp_sink(net.internet, net.remote(version, 2), 5001)
        traffic.udp_send(
            net.client, net.remote(version), 5000, count=15, payload_bytes=980, await_echoes=True, echo_wait_s=0.3
        )
        with pytest.raises(traffic.TrafficError):
            traffic.tcp_send(net.client, net.remote(version, 2), 5001, size_bytes=500_000, timeout_s=3)
    seen = 0
    for version in VERSIONS:
        for number in (1, 2):
            seen += at_internet.total("in", destination=net.remote(version, number)).bytes
            seen += at_client.total("in", source=net.remote(version, number)).bytes
    assert GRACE_BYTES - 1500 <= seen <= GRACE_BYTES
    assert carried(trade) == seen
    for daemon in (trade.gateway, trade.client):
        restart(daemon)
        trade.await_acquainted()
        with ThreadPoolExecutor(4) as pool:  # a caller that expects no answer waits this long
            pings = [pool.submit(answered, trade, version, number) for version in VERSIONS for number in (1, 3)]
        assert [each.result() for each in pings] == [0, 0, 0, 0]
    assert carried(trade) <= GRACE_BYTES
    pay_by_hand(trade)
    assert [await_answer(trade, version) for version in VERSIONS] == [True, True]


CHEAP, EXPENSIVE = 1, 8  # msat a byte
CHEAP_NUMBERS, EXPENSIVE_NUMBERS = range(1, 6), range(201, 206)


@pytest.mark.parametrize("opened", ["cheap", "expensive"])
def test_grace_costs_no_more_money_than_its_data_at_the_first_contracts_price(lab: Lab, opened: str) -> None:
    """Other, more expensive contracts use the same grace, and a restart doesn't renew it."""
    first, price = (CHEAP_NUMBERS[0], CHEAP) if opened == "cheap" else (EXPENSIVE_NUMBERS[0], EXPENSIVE)
    prices = [{"prefix": "198.51.100.0/25", "sell": f"{1024 * CHEAP} msat"}]
    gateway = {"GRACE_DATA": GRACE_KB, "DEFAULT_PRICE": f"{1024 * EXPENSIVE} msat", "PRICES": prices, **LONG}
    trade = open_trade(lab, gateway, {"DEFAULT_PRICE": f"{1024 * EXPENSIVE} msat"}, penniless=True)
    net, grace_msat = trade.net, GRACE_BYTES * price
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    assert traffic.ping(net.client, net.remote(4, first)).received == 1
    for number in (*EXPENSIVE_NUMBERS, *CHEAP_NUMBERS):
        traffic.udp_echo(net.internet, net.remote(4, number), 5000)
        traffic.udp_send(net.client, net.remote(4, number), 5000, count=60, payload_bytes=500, rate_pps=500)
    restart(trade.gateway)
    trade.await_acquainted()
    for number in (*EXPENSIVE_NUMBERS, *CHEAP_NUMBERS):
        traffic.udp_send(net.client, net.remote(4, number), 5000, count=20, payload_bytes=500, rate_pps=500)
    cost_msat = sum(
        price_of * (at_internet.total("in", destination=remote).bytes + at_client.total("in", source=remote).bytes)
        for price_of, numbers in ((CHEAP, CHEAP_NUMBERS), (EXPENSIVE, EXPENSIVE_NUMBERS))
        for remote in (net.remote(4, number) for number in numbers)
    )
    assert grace_msat - EXPENSIVE * 600 <= cost_msat <= grace_msat
    await_until(lambda: trade.earned()["charged_msat"] >= cost_msat, what="the last reading")
    assert trade.earned()["charged_msat"] <= cost_msat + len(trade.sold())


@pytest.mark.parametrize("version", VERSIONS)
def test_without_grace_nothing_is_sold_before_a_payment(lab: Lab, version: int) -> None:
    trade = open_trade(lab, {"GRACE_DATA": 0}, penniless=True)
    net = trade.net
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    for number in range(1, 6):
        traffic.udp_echo(net.internet, net.remote(version, number), 5000)
    for _ in range(3):  # before, while and after unpaid contracts are agreed
        for number in range(1, 6):
            traffic.udp_send(net.client, net.remote(version, number), 5000, count=50, payload_bytes=500, rate_pps=500)
    await_until(lambda: len(trade.sold()) == 5, what="contracts")
    assert answered(trade, version) == 0
    for number in range(1, 6):
        assert at_internet.total("in", destination=net.remote(version, number)).packets == 0
        assert at_client.total("in", source=net.remote(version, number), protocol=17).packets == 0
    assert carried(trade) == 0
    pay_by_hand(trade)
    assert await_answer(trade, version)


def await_answer(trade: Trade, version: int) -> bool:
    """Wait for the first ping that is answered."""
    await_until(lambda: answered(trade, version, count=1), what="an answer")
    return True


@pytest.mark.parametrize("version", [4, pytest.param(6, marks=pytest.mark.long)])
def test_grace_time_cuts_live_flows_in_both_directions(lab: Lab, version: int) -> None:
    grace_s = 3
    trade = open_trade(lab, {"GRACE_TIME": grace_s, "GRACE_DATA": "10 MB"}, penniless=True)
    net = trade.net
    at_internet, at_client = net.internet.counter("wan0"), net.client.counter("mesh0", "in")
    traffic.udp_echo(net.internet, net.remote(version), 5000)
    began = time.monotonic()
    flow = start_flow(trade, version, seconds=6)
    await_until(lambda: at_client.total("in", source=net.remote(version)).packets, what="the flow")
    first_s = time.monotonic() - began
    await_until(lambda: trade.sold(reason="unpaid"), what="the cut")
    assert time.monotonic() - began > grace_s - 0.5
    counts = [counter.total() for counter in (at_internet, at_client)]
    (row,) = trade.sold(reason="unpaid")
    assert flow.wait(120) == 0
    after = [counter.total(protocol=17, source=net.remote(version)) for counter in (at_internet, at_client)]
    assert row["used_from_bytes"] == after[1].bytes
    assert row["used_to_bytes"] == at_internet.total("in", destination=net.remote(version)).bytes
    # And not later: the flow is never ahead of its rate.
    assert row["used_to_bytes"] <= (first_s + grace_s + 0.5) * 100 * traffic.l3_bytes(version, 100)
    assert counts[0].packets <= at_internet.total().packets + 1
    pay_by_hand(trade)
    assert await_answer(trade, version)


def start_flow(trade: Trade, version: int, seconds: int, rate_pps: int = 100) -> subprocess.Popen[str]:
    """Make the client send datagrams to the internet's echo for a while, in the background."""
    words = ("udp-send", trade.net.remote(version), 5000, rate_pps * seconds, 100, rate_pps, 0)
    return traffic.start(trade.net.client, *words)


@pytest.mark.parametrize("ended", ["off", pytest.param("fail", marks=pytest.mark.long)])
def test_a_stuck_payment_cuts_and_its_end_brings_the_service_back(lab: Lab, ended: str) -> None:
    trade = open_trade(lab, {"GRACE_DATA": GRACE_KB, **LONG})
    set_fault(trade, "stuck", "on")
    flood(trade, 4)
    assert answered(trade, 6, 2) == 0
    restart(trade.client)  # its node still has the payment on its way
    trade.await_acquainted()
    assert answered(trade, 4) == 0
    assert carried(trade) <= GRACE_BYTES
    assert trade.earned()["paid_msat"] == 0
    set_fault(trade, "stuck", ended)
    await_until(lambda: answered(trade, 4, count=1), what="service after the payment")
    trade.assert_books_agree(refused=True)
    assert trade.earned()["paid_msat"] > 0


def flood(trade: Trade, version: int) -> None:
    """Use up the grace."""
    traffic.udp_sink(trade.net.internet, trade.net.remote(version), 5000)
    traffic.udp_send(trade.net.client, trade.net.remote(version), 5000, count=400, payload_bytes=100, rate_pps=400)


@pytest.mark.long
def test_failing_payments_are_tried_again(lab: Lab) -> None:
    trade = open_trade(lab, {"GRACE_DATA": GRACE_KB, **LONG})
    set_fault(trade, "failed", "on")
    flood(trade, 6)
    assert answered(trade, 6) == 0
    assert carried(trade) <= GRACE_BYTES
    set_fault(trade, "failed", "off")
    await_until(lambda: answered(trade, 6, count=1), what="service after the next payment")
    trade.assert_books_agree(refused=True)
