"""`ngp check` isn't content while nothing passes, though no rule or route that it can read is at fault."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Row, Trade, open_trade

DROPS = (
    "add table netdev z",
    "add chain netdev z i { type filter hook ingress device mesh0 priority 0; }",
    "add rule netdev z i ip protocol icmp drop",
    "add rule netdev z i ip6 nexthdr icmpv6 icmpv6 type echo-request drop",
)


@pytest.fixture
def trade() -> Iterator[Trade]:
    with Lab() as lab:
        yield open_trade(lab)


def warnings(daemon: Daemon) -> list[Row]:
    """Return the lines that the two daemons' knowledge leads to. (The client doesn't forward, as it would to sell.)"""
    rows = json.loads(daemon.cli("check", "--config", str(daemon.config), "--json").stdout)
    return [row for row in rows if row["remedy"] and row["name"] in ("traffic", "neighbours")]


def ping(trade: Trade, version: int, number: int, wait_s: float = 20.0) -> int:
    return traffic.ping(trade.net.client, trade.net.remote(version, number), wait_s=wait_s).received


def test_first_packets_that_never_reach_the_gate_are_seen_by_the_client(trade: Trade) -> None:
    assert ping(trade, 4, 1) == ping(trade, 6, 1) == 1
    assert warnings(trade.client) == warnings(trade.gateway) == []
    time.sleep(2.0)  # a contract's opening is known in whole seconds
    for command in DROPS:
        assert not trade.net.gateway.run("nft", command).returncode
    assert ping(trade, 4, 2, 0.5) == ping(trade, 6, 2, 0.5) == 0
    (line,) = warnings(trade.client)
    assert line["ok"] and "offers no contract" in line["found"] and trade.net.remote(4, 2) in line["found"]
    assert not trade.net.gateway.run("nft", "delete table netdev z").returncode
    assert ping(trade, 4, 3) == ping(trade, 6, 3) == 1
    assert warnings(trade.client) == warnings(trade.gateway) == []


def test_answers_that_never_come_back_are_seen_on_both_sides(trade: Trade) -> None:
    net = trade.net
    assert not net.gateway.run("nft", "delete table ip lab_masquerade").returncode
    assert ping(trade, 4, 1, 0.5) == 0 and ping(trade, 6, 1) == 1
    await_until(lambda: trade.sold(destination=f"{net.remote(4, 1)}/32"), what="the contract")
    await_until(lambda: warnings(trade.gateway) and warnings(trade.client), 30.0, "the warnings")
    for daemon in (trade.gateway, trade.client):
        (line,) = warnings(daemon)
        assert line["ok"] and line["found"].startswith("IPv4: ")
        assert f"nothing came back from {net.remote(4, 1)}/32" in line["found"]
    net.gateway.masquerade("wan0")
    assert ping(trade, 4, 2) == 1
    await_until(lambda: not warnings(trade.gateway) and not warnings(trade.client), 30.0, "no more warnings")
