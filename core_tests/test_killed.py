"""kill -9 at any instant, under traffic with renewals and payments: running contracts go on, no byte and no msat is
lost, doubled or invented, and both ledgers agree afterwards.

The instants are random and printed with a failure (NGP_KILL_SEED repeats them). The test compares what a customer and a
seller would compare: money sent with money received, and the bytes that the receivers counted with the bill.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from contextlib import suppress

import pytest

from core_tests import traffic
from core_tests.counter import Counter
from core_tests.lab import Lab
from core_tests.shell import LabError, await_until
from core_tests.trade import SETTLED_S, Trade, assert_conserved, open_trade, used

MSAT_PER_BYTE = "1024 msat"  # for a kilobyte: a single byte changes the sum
RICH = {"BUDGET_PAYMENT": "1000000 sat", "BUDGET_HOUR": "100000000 sat", "BUDGET_DAY": "100000000 sat"}
GRACE_BYTES = 64 << 10
BUSY = {
    "DEFAULT_PRICE": MSAT_PER_BYTE,
    "CONTRACT_DATA": "200 kB",
    "PAYMENT_AMOUNT": "50 sat",
    "GRACE_DATA": "64 kB",
    "CONTRACT_TIME": "5 min",
    **RICH,
}
RATE_PPS = 150
PAYLOAD_BYTES = 200
DESTINATIONS = ((4, 1), (4, 2), (6, 1), (6, 2))


def open_busy_trade(lab: Lab, **changes: object) -> Trade:
    trade = open_trade(lab, both={**BUSY, **changes})
    for version, number in DESTINATIONS:
        traffic.udp_echo(trade.net.internet, trade.net.remote(version, number), 5000)
    return trade


def start_flows(trade: Trade, seconds: float, rate_pps: int = RATE_PPS) -> list[subprocess.Popen[str]]:
    """Make the client send to every destination, which echoes, whether packets pass or not."""
    count = int(rate_pps * seconds)
    return [
        traffic.start(trade.net.client, "udp-send", trade.net.remote(*where), 5000, count, PAYLOAD_BYTES, rate_pps, 0)
        for where in DESTINATIONS
    ]


def carried_bytes(trade: Trade, at_internet: Counter, at_client: Counter) -> int:
    """Count what arrived at the receivers, all of the destinations together."""
    remotes = [trade.net.remote(*where) for where in DESTINATIONS]
    up = sum(at_internet.total("in", destination=remote).bytes for remote in remotes)
    return up + sum(at_client.total("in", source=remote).bytes for remote in remotes)


def sums_differ(trade: Trade) -> list[str]:
    """List the sums of money in which the two ledgers differ, and the bills that differ from the sales."""
    earned, spent = trade.earned(), trade.spent()
    keys = ("paid_msat", "charged_msat", "refunded_msat")
    found = [f"{key}: {earned[key]} sold, {spent[key]} bought" for key in keys if earned[key] != spent[key]]
    billed = {row["id"]: row["billed_bytes"] for row in trade.bought()}
    found += [
        f"{row['id']} {row['state']}: {used(row)} sold, {billed.get(row['id'])} billed"
        for row in trade.sold()
        if billed.get(row["id"], 0) != used(row)
    ]
    settled = sum(row["amount_msat"] for row in trade.gateway.json("ledger") if row["kind"] == "payment")
    if settled != earned["paid_msat"]:
        found.append(f"{settled} msat settled, {earned['paid_msat']} on the account")
    return found


def assert_money_and_bytes(trade: Trade, at_internet: Counter, at_client: Counter) -> None:
    """Assert what must hold whichever daemon died, and whenever."""
    with suppress(LabError):
        await_until(lambda: not sums_differ(trade), SETTLED_S)
    found = sums_differ(trade)
    assert not found, "\n".join(found)
    assert_conserved(trade.gateway)
    spent = trade.spent()  # its meter may have counted packets that the gateway refused for lack of money
    assert spent["paid_msat"] == spent["charged_msat"] + spent["refunded_msat"] + spent["balance_msat"]
    carried = carried_bytes(trade, at_internet, at_client)
    sold = trade.sold()
    assert sum(map(used, sold)) == carried
    assert sum(row["charged_msat"] for row in sold) == carried  # one msat for each byte
    payments = [row for row in trade.client.json("ledger") if row["kind"] == "payment"]
    assert len(payments) == len({row["payment_hash"] for row in payments}) > 1
    assert sum(row["amount_msat"] for row in payments) == -spent["paid_msat"]
    assert "dispute" not in {row["kind"] for row in trade.client.json("ledger")}


def play(lab: Lab, rounds: int) -> None:
    """Kill one daemon or both, again and again, while traffic flows."""
    seed = int(os.environ.get("NGP_KILL_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"NGP_KILL_SEED={seed}")
    dice = random.Random(seed)
    trade = open_busy_trade(lab)
    at_internet, at_client = trade.net.internet.counter("wan0", "in"), trade.net.client.counter("mesh0", "in")
    flows = start_flows(trade, 60.0 * rounds)  # killed at the end

    def await_more(than: int) -> None:
        await_until(lambda: carried_bytes(trade, at_internet, at_client) > than, what="traffic, whoever died")

    await_until(lambda: trade.sold(state="active"), what="the first payment")
    for number in range(rounds):
        victims = dice.choice([(trade.gateway,), (trade.client,), (trade.gateway, trade.client)])
        time.sleep(dice.uniform(0, 1.2))  # the random instant is the subject of the test: there is nothing to await
        before = carried_bytes(trade, at_internet, at_client)
        for victim in victims:
            victim.kill9()
        time.sleep(dice.uniform(0.1, 0.6))
        if number == 0:
            await_more(before)
        for victim in victims:
            victim.start()
        print(number, [victim.name for victim in victims], flush=True)
    trade.await_acquainted()
    before = carried_bytes(trade, at_internet, at_client)
    await_more(before + 50_000)
    for flow in flows:
        flow.kill()
        flow.wait()
    assert_money_and_bytes(trade, at_internet, at_client)


def test_after_a_few_kills_the_money_and_bytes_of_both_sides_agree(lab: Lab) -> None:
    play(lab, rounds=2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_after_many_kills_the_money_and_bytes_of_both_sides_agree(lab: Lab) -> None:
    play(lab, rounds=40)


def assert_gate_is_told(trade: Trade) -> None:
    for verb, code in (("status", 7), ("contracts", 0), ("accounts", 0)):
        done = trade.gateway.cli(verb)
        assert done.returncode == code
        assert "its gate is still in force" in done.stderr and "`ngp start`" in done.stderr
    assert [row["state"] for row in trade.gateway.json("contracts")] == ["active"]


def test_limits_hold_while_nobody_watches(lab: Lab) -> None:
    trade = open_trade(lab, both={**BUSY, "CONTRACT_DATA": "60 kB", "DATA_RENEWAL": 0, "TIME_RENEWAL": 0})
    net, remote = trade.net, trade.net.remote(4, 1)
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    traffic.udp_echo(net.internet, remote, 5000)
    traffic.udp_send(net.client, remote, 5000, count=5, payload_bytes=PAYLOAD_BYTES, rate_pps=100, await_echoes=True)
    await_until(lambda: trade.sold(state="active"), what="the payment")
    trade.gateway.kill9()
    traffic.udp_send(net.client, remote, 5000, count=600, payload_bytes=PAYLOAD_BYTES, rate_pps=1500)
    seen = at_internet.total("in", destination=remote).bytes + at_client.total("in", source=remote).bytes
    assert 5 * 2 * 228 < seen <= 60 * 1024  # the flow went on, and was cut at the end of its money or its data
    assert_gate_is_told(trade)
    trade.gateway.start()
    trade.await_acquainted()
    await_until(lambda: used(trade.sold()[0]) >= seen, what="the bytes from the time without a daemon")
    assert sum(map(used, trade.sold())) == (
        at_internet.total("in", destination=remote).bytes + at_client.total("in", source=remote).bytes
    )
