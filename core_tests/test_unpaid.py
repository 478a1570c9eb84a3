"""UNPAID_RATE between real daemons: who can't pay, or runs no ngp, is slowed and not cut, and nothing is charged."""

from __future__ import annotations

import time

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Trade, open_trade, used

RATE_BYTES_S, BURST_BYTES = 16 << 10, 128 << 10
SLOWED = {"UNPAID_RATE": "16 kB/s"}
PING_BYTES = 1228


def answered(trade: Trade, address: str, count: int = 1) -> int:
    """Return how many large pings were answered."""
    return traffic.ping(trade.net.client, address, count=count, payload_bytes=1200, interval_s=0.002, wait_s=5).received


def test_a_client_without_money_is_slowed_and_charged_nothing_also_when_the_daemon_is_killed(lab: Lab) -> None:
    trade = open_trade(lab, {**SLOWED, "GRACE_DATA": "4 kB"}, penniless=True)
    there = trade.net.remote(4, 1)
    began = time.monotonic()
    assert answered(trade, there)
    await_until(
        lambda: answered(trade, there) == 1 and trade.kernel_counter("unpaid_bytes") > 0, what="the credit's end"
    )
    assert 0 < answered(trade, there, 300) < 300
    charged = trade.earned()["charged_msat"]
    assert charged <= 4 * 5 + 1  # its credit
    trade.gateway.kill9()
    answered(trade, there, 100)
    time.sleep(2)
    assert answered(trade, there) == 1, "the kernel goes on"
    trade.gateway.start()
    await_until(lambda: answered(trade, there) == 1, what="an answer")
    passed, most = trade.kernel_counter("unpaid_bytes"), BURST_BYTES + RATE_BYTES_S * (time.monotonic() - began)
    assert 100 * PING_BYTES < passed <= most
    assert trade.earned()["charged_msat"] == charged and trade.earned()["paid_msat"] == 0
    trade.assert_books_agree(refused=True)


def test_a_client_that_declines_the_price_or_runs_no_ngp_passes_slowly(lab: Lab) -> None:
    trade = open_trade(lab, {**SLOWED, "DEFAULT_PRICE": "20 msat"})
    declined, strange = trade.net.remote(4, 1), trade.net.remote(4, 2)
    assert answered(trade, declined) == 1
    assert answered(trade, declined, 10) == 10
    trade.client.stop()
    assert answered(trade, strange) == 1, "after the wait for a hello"
    assert answered(trade, strange, 10) == 10
    assert not [row for row in trade.sold() if row["state"] != "rejected"] and trade.gateway.json("accounts") == []
    assert trade.kernel_counter("unpaid_bytes") == 2 * 22 * PING_BYTES
    trade.gateway.reload({"MESH_INTERFACES": "mesh0", "IGNORE_INTERFACE": "wan0", "DEFAULT_PRICE": "20 msat"})
    assert traffic.ping(trade.net.client, strange, wait_s=5).received == 0, "switched off"


def test_a_client_that_pays_is_not_slowed(lab: Lab) -> None:
    trade = open_trade(lab, SLOWED)
    trade.prepay()
    there = trade.net.remote(4, 1)
    assert answered(trade, there, 400) == 400  # 960 kB
    trade.assert_books_agree()
    (row,) = [row for row in trade.sold() if row["destination"] == f"{there}/32"]
    assert used(row) == 400 * 2 * PING_BYTES and trade.kernel_counter("unpaid_bytes") == 0
