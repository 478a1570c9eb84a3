"""What an operator does: reload, block, refund, pay by hand, back up and restore, stop. Nothing else is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import GATEWAY, MSAT_PER_KB, Trade, assert_conserved, open_trade, used
from ngp.daemon.desired import LINK_PORT
from ngp.store.sqlite import SqliteStore

VERSIONS = (4, 6)
CONFIGURATION, KERNEL, PAYMENT = 3, 4, 5
SAT_MSAT = 1000


def answered(trade: Trade, number: int = 1, version: int = 4, wait_s: float = traffic.PATIENCE_S) -> bool:
    return traffic.ping(trade.net.client, trade.net.remote(version, number), wait_s=wait_s).received == 1


def price_of(trade: Trade, number: int) -> float:
    (row,) = trade.sold(destination=f"{trade.net.remote(4, number)}/32")
    return float(row["price_msat_per_gib"] / MSAT_PER_KB)


def selling_at(price: str) -> dict[str, object]:
    return {**GATEWAY, "SELL_PRICE": price, "SELL_PRICE_MIN": price}


def test_reload_takes_a_good_file_and_refuses_a_bad_one(lab: Lab) -> None:
    trade = open_trade(lab, selling_at("2 msat"))
    assert answered(trade, 1)
    (before,) = trade.sold()
    assert trade.gateway.reload(selling_at("3 msat")).returncode == 0
    assert answered(trade, 1) and answered(trade, 2)
    assert (price_of(trade, 1), price_of(trade, 2)) == (2, 3)
    assert before["id"] in {row["id"] for row in trade.sold(state="active")}

    other = trade.gateway.folder / "other.conf"
    other.write_text("MESH_INTERFACES: [mesh0, absent0]\nQUEUE_NUMBER: 7\n")
    asked = trade.gateway.cli("check", "--config", str(other))
    assert asked.returncode == KERNEL, asked.stdout + asked.stderr
    assert "absent0" in asked.stdout and "a restart applies QUEUE_NUMBER" in asked.stdout

    bad = trade.gateway.reload({**selling_at("4 msat"), "SELL_PIRCE": 1})
    assert bad.returncode == CONFIGURATION
    assert "SELL_PIRCE" in bad.stderr and str(trade.gateway.config) in bad.stderr
    assert answered(trade, 3)
    assert price_of(trade, 3) == 3

    trade.gateway.configure(selling_at("5 msat"))
    hang_up(trade)
    await_until(lambda: trade.gateway.log().count("net.conf reloaded") == 2, what="the reload by SIGHUP")
    assert answered(trade, 4)
    assert price_of(trade, 4) == 5
    trade.gateway.configure("SELL_PRICE: [")
    hang_up(trade)
    await_until(lambda: trade.gateway.log().count("old settings stay in force") == 2, what="the bad file's refusal")
    assert answered(trade, 5)
    assert price_of(trade, 5) == 5
    trade.assert_books_agree()


def test_start_and_check_report_the_same_problems(lab: Lab) -> None:
    host = lab.host("gateway")
    host.ip("link", "add", "mesh0", "type", "veth", "peer", "name", "far0")
    host.ip("link", "set", "mesh0", "up")
    daemon = host.daemon({"MESH_INTERFACES": "mehs0"}, start=False)
    daemon.forks = False  # the commands themselves, as installed
    place = ("--config", str(daemon.config))
    started = daemon.cli("start", *place)
    assert started.returncode == 0 and "without a mesh interface yet" in started.stdout
    for said in ("interface mehs0: MESH_INTERFACES: no interface", "forwarding IPv4: off"):
        assert f"WARNING {said}" in started.stderr
    reloaded = daemon.cli("reload").stdout
    assert "there is no mesh interface, so nothing is gated; WARNING interface mehs0: " in reloaded
    assert "correct MESH_INTERFACES" in reloaded
    daemon.configure({"MESH_INTERFACES": "mesh0"})
    reloaded = daemon.cli("reload").stdout
    assert "forwarding IPv6: off" in reloaded and "nothing is gated" not in reloaded
    checked = daemon.cli("check", *place).stdout
    assert "10325" not in checked, "port and number are our own"
    daemon.stop()
    with host.socket_inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("", LINK_PORT))
        checked, refused = daemon.cli("check", *place).stdout, daemon.cli("start", *place)
    assert refused.returncode == KERNEL
    assert refused.stderr.splitlines()[-1].removeprefix("ngp: ") in checked
    assert "without a mesh interface yet" not in daemon.cli("start", *place).stdout
    daemon.stop()


def hang_up(trade: Trade) -> None:
    for pid in trade.gateway.pids():
        os.kill(pid, signal.SIGHUP)


def test_a_blocked_neighbour_is_cut_until_it_is_unblocked(lab: Lab) -> None:
    trade = open_trade(lab)
    assert answered(trade) and answered(trade, version=6)
    who = trade.identity(trade.client)
    assert trade.gateway.cli("block", who[:12]).returncode == 0
    await_until(lambda: len(trade.sold(state="closed")) == 2, what="the cut")
    assert not any(answered(trade, number, version, 0.3) for number in (1, 2) for version in VERSIONS)
    assert trade.gateway.json("neighbours")[0]["blocked"] is True
    assert trade.gateway.cli("unblock", trade.net.client.address("mesh0", 4)).returncode == 0
    await_until(lambda: answered(trade, wait_s=1), what="service again")
    trade.assert_books_agree(refused=True)
    assert trade.client.cli("block", trade.identity(trade.gateway)[:12]).returncode == 0
    await_until(lambda: all(row["state"] == "closed" for row in trade.sold()), what="the end at the gateway too")
    assert not answered(trade, wait_s=1)
    assert trade.client.cli("unblock", trade.identity(trade.gateway)[:12]).returncode == 0
    await_until(lambda: answered(trade, wait_s=1), what="service again, though the gateway had been refused")
    assert trade.gateway.cli("block", "ffff").returncode not in (0, None)


def test_a_gateway_with_another_mac_is_not_disputed_and_sells_on(lab: Lab) -> None:
    trade = open_trade(lab)
    trade.prepay()
    assert answered(trade)
    trade.net.gateway.ip("link", "set", "mesh0", "address", "02:00:00:00:00:77")
    trade.net.client.ip("neighbour", "flush", "dev", "mesh0")
    traffic.udp_send(trade.net.client, trade.net.remote(4), 9, count=400, payload_bytes=1000, rate_pps=400)
    assert used(trade.sold(destination=f"{trade.net.remote(4)}/32")[0]) > 200_000  # none at the client's meter
    await_until(lambda: trade.bought(reason="cancelled"), what="the end of contracts that the client can't meter")
    assert trade.spent()["disputed"] is False
    await_until(lambda: answered(trade, 2, wait_s=1) and answered(trade, 1, wait_s=1), what="new contracts")


def test_manual_payments_and_refunds(lab: Lab) -> None:
    trade = open_trade(lab, both={"CONTRACT_TIME": 3, "TIME_RENEWAL": 0, "DATA_RENEWAL": 0})
    assert trade.gateway.cli("server", "test").stdout == "Test OK\n"
    assert answered(trade)
    trade.await_closed()
    who = trade.identity(trade.client)
    refund = trade.gateway.cli("refund", who)
    assert refund.returncode == 0, refund.stderr
    await_until(lambda: trade.earned()["refunded_msat"] == trade.spent()["refunded_msat"] > 0, what="the refund")
    assert 0 <= trade.earned()["balance_msat"] < SAT_MSAT  # amounts below a sat aren't sent
    trade.assert_books_agree()
    assert trade.gateway.cli("refund", who).returncode == PAYMENT
    assert audit(trade.client, "refunded") == audit(trade.gateway, "refunded") == []

    paid = trade.earned()["paid_msat"]
    assert trade.gateway.cli("server", f"payment {who} 7 sat").returncode == 0
    await_until(lambda: trade.earned()["paid_msat"] == paid + 7 * SAT_MSAT, what="the payment by hand")
    assert_conserved(trade.gateway)
    assert "offered" in trade.gateway.cli("refund", who).stdout
    # the client never asks for it: its books don't have what was credited by hand
    assert "once more: that neighbour sent no invoice" in trade.gateway.cli("refund", who).stdout
    lines = trade.gateway.json("ledger")
    assert {line["kind"] for line in lines} >= {"contract", "payment", "charge", "refund"}
    assert sum(line["amount_msat"] for line in lines) == trade.earned()["balance_msat"]


def test_a_client_that_leaves_asks_for_its_money(lab: Lab) -> None:
    trade = open_trade(lab, gateway={"REFUND_WHEN_ASKED": "yes"})
    assert answered(trade)
    await_until(lambda: trade.earned()["paid_msat"] > 0, what="the first payment")
    gateway = trade.identity(trade.gateway)
    assert trade.client.cli("block", gateway).returncode == 0
    trade.await_closed()
    asked = trade.client.cli("refund", gateway, "--ask")
    assert asked.returncode == 0, asked.stderr
    await_until(lambda: trade.earned()["refunded_msat"] == trade.spent()["refunded_msat"] > 0, what="the refund")
    assert 0 <= trade.earned()["balance_msat"] < SAT_MSAT
    await_until(lambda: trade.spent()["balance_msat"] == trade.earned()["balance_msat"], what="the last bill")
    assert trade.client.cli("refund", gateway, "--ask").returncode == PAYMENT  # no money is left to ask for


def test_a_backup_of_a_running_daemon_restores(lab: Lab) -> None:
    trade = open_trade(lab)
    assert answered(trade, 1)
    trade.assert_books_agree()
    copy = trade.gateway.folder / "copy.db"
    done = trade.gateway.cli("backup", str(copy))
    assert done.returncode == 0, done.stderr
    assert copy.stat().st_mode & 0o777 == 0o600
    assert audit(trade.client, "while it runs") == audit(trade.gateway, "while it runs") == []
    looked = trade.gateway.cli("check", "--config", str(trade.gateway.config), "--json")
    assert {row["name"]: row["ok"] for row in json.loads(looked.stdout)}["books"] is True
    then = trade.earned()
    trade.gateway.stop()
    for left in trade.gateway.state_dir.glob("ledger.db*"):
        left.unlink()
    shutil.copy(copy, trade.gateway.state_dir / "ledger.db")
    trade.gateway.start()
    trade.await_acquainted()
    now = trade.earned()
    assert (now["paid_msat"], now["charged_msat"]) == (then["paid_msat"], then["charged_msat"])
    await_until(lambda: answered(trade, 2, wait_s=1), what="service with the restored ledger")
    assert trade.earned()["paid_msat"] == then["paid_msat"]


def audit(daemon: Daemon, name: str) -> list[str]:
    """Return the sums that don't add up in a copy of a daemon's ledger."""
    copy = daemon.folder / f"{name}.db"
    assert daemon.cli("backup", str(copy)).returncode == 0
    wrong, unknown = SqliteStore(copy).audit(60.0)
    assert not unknown
    return wrong


OPERATORS_RULES = """
table inet operator {
  chain forward { type filter hook forward priority 0; udp dport 9999 drop; counter; }
}
"""


@pytest.mark.parametrize("when_stopped", ["open", "closed"])
def test_stop_removes_all_that_ngp_made_and_nothing_else(lab: Lab, when_stopped: str) -> None:
    net_conf = {"WHEN_STOPPED": when_stopped}
    trade = open_trade(lab, net_conf, net_conf)
    gateway = trade.net.gateway
    trade.gateway.stop()
    stays_open = when_stopped == "open"
    listens_s = traffic.PATIENCE_S if stays_open else 0.3
    assert answered(trade, 2, wait_s=listens_s) == stays_open
    gateway.sh("nft", "-f", "-", text_in=OPERATORS_RULES)
    gateway.sh("iptables", "-A", "FORWARD", "-s", "10.55.0.0/16", "-j", "DROP")
    gateway.sh("tc", "qdisc", "replace", "dev", "mesh0", "clsact")
    before = standing(gateway)
    trade.gateway.start()
    assert standing(gateway) != before
    assert all(rule in standing(gateway) for rule in ("udp dport 9999 drop", "10.55.0.0/16", "clsact"))
    trade.await_acquainted()
    for version in VERSIONS:
        remote = trade.net.remote(version)
        assert answered(trade, version=version)
        sink = traffic.udp_sink(trade.net.internet, remote, 9999)
        traffic.udp_send(trade.net.client, remote, 9999, count=20, rate_pps=500)
        assert sink.received() == (0, 0)  # packets that the operator's firewall drops stay dropped
    trade.await_settled(refused=True)  # only the client counted packets that the firewall dropped
    assert sorted(map(used, trade.sold(state="active"))) == [2 * 84, 2 * 104]  # and they aren't charged
    trade.gateway.stop()
    assert standing(gateway) == before
    for version in VERSIONS:
        assert answered(trade, 3, version, listens_s) == stays_open
    assert not any(Path(trade.gateway.state_dir).glob("*.sock"))


def standing(host: Host) -> str:
    """Return rules, queueing disciplines, filters, routes and BPF programs of a host, without counters."""
    looks = (
        ("nft", "-s", "list", "ruleset"),
        ("iptables-save", "-t", "filter"),
        ("tc", "qdisc", "show", "dev", "mesh0"),
        ("tc", "filter", "show", "dev", "mesh0", "egress"),
        ("tc", "filter", "show", "dev", "mesh0", "ingress"),
        ("ip", "rule"), ("ip", "-6", "rule"), ("ip", "route", "show", "table", "all"),
        ("bpftool", "net"),
    )  # fmt: skip
    text = "".join(host.sh(*look) for look in looks)
    # Newer versions of iptables-save print counters of a chain's policy.
    return "\n".join(re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not line.startswith("#"))
