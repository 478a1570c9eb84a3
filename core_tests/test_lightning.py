"""Gateway and client pay over real LND nodes: both ledgers agree with both nodes, to the msat."""

from __future__ import annotations

import json
import random
import time

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import Lab
from core_tests.lightning.books import assert_all_agree, look
from core_tests.lightning.trade import TOWER_PORT, LightningTrade, lightning_trade, mesh_only_trade
from core_tests.shell import await_until
from core_tests.trade import Row, restart
from ngp.core.invoices import OPEN_S
from ngp.core.pricing import SAT_MSAT

pytestmark = pytest.mark.first
# If LND is killed while it sends a payment, it may report the payment as in flight for ever
# (lightningnetwork/lnd#5152). The next top-up comes when the invoice of that payment is withdrawn.
STUCK_S = OPEN_S + 60
PAID_S = 180.0  # for steps that nodes complete within seconds when the machine is quiet
BACKUP_S = 240  # LND looks for a tower again after pauses that double


def test_traffic_is_paid_by_real_invoices_and_all_books_agree(lab: Lab) -> None:
    with lightning_trade(lab, {"GRACE_DATA": "50 kB", "BUY": False}) as made:  # a seller's rights, and a buyer's
        trade, net = made.trade, made.trade.net
        before_received, before_sent = made.received_msat(), made.sent_msat()
        for version in (4, 6):
            traffic.udp_echo(net.internet, net.remote(version), 5000)
            traffic.udp_send(
                net.client, net.remote(version), 5000, count=400, payload_bytes=1000, rate_pps=200, await_echoes=True
            )
        await_until(lambda: trade.earned()["paid_msat"] > 0, what="a payment")
        trade.assert_books_agree()
        paid = trade.earned()["paid_msat"]
        assert paid == trade.spent()["paid_msat"] > 0
        assert paid == made.received_msat() - before_received == made.sent_msat() - before_sent
        (account,) = trade.gateway.json("accounts")
        assert account["real_money"] is False  # regtest
        status = trade.client.json("status")["payment"]
        assert status == {**status, "module": "lnd", "ready": True}
        for daemon, rights in ((trade.gateway, "allows what is needed"), (trade.client, "OpenChannelSync")):
            found = checks(daemon)
            assert found["LND's macaroon"]["ok"] and rights in found["LND's macaroon"]["found"]
            watched = found["watchtower"]  # the channel was opened with LND's own delay, and nobody watches it
            assert watched["ok"] and "client is off" in watched["found"] and "wtclient.active=1" in watched["remedy"]


def test_a_node_that_dies_and_comes_back_takes_nothing_down(lab: Lab) -> None:
    with lightning_trade(lab, {"GRACE_DATA": "50 kB", "REFUND_WHEN_ASKED": True}) as made:
        trade, net = made.trade, made.trade.net
        before_received = made.received_msat()
        traffic.udp_echo(net.internet, net.remote(4), 5000)
        await_until(lambda: pay_some(made) > 0, PAID_S, "a first payment")
        made.earning.kill9()
        made.paying.kill9()
        restart(trade.gateway)  # the gateway's node is down: contracts go on, and the daemon says what is wrong
        assert trade.gateway.json("status")["payment"]["ready"] is False
        assert "LND at" in trade.gateway.json("status")["payment"]["why_not"]
        assert traffic.ping(net.client, net.remote(4), count=3).received == 3  # credit lasts
        for node in (made.earning, made.paying):
            node.launch()
        for node in (made.earning, made.paying):
            node.await_up()
        paid = trade.earned()["paid_msat"]
        await_until(lambda: pay_some(made) > paid, PAID_S, "a payment after the nodes came back")
        trade.assert_books_agree(refused=True)  # packets without credit were refused
        assert trade.earned()["paid_msat"] == made.received_msat() - before_received
        leave(made)


def leave(made: LightningTrade) -> None:
    """Let the client end its contracts and ask for its money: the gateway's node pays it back over the channel."""
    trade, gateway = made.trade, made.trade.identity(made.trade.gateway)
    assert trade.client.cli("block", gateway).returncode == 0
    trade.await_closed()
    asked = trade.client.cli("refund", gateway, "--ask")
    assert asked.returncode == 0, asked.stderr
    await_until(lambda: trade.earned()["refunded_msat"] == trade.spent()["refunded_msat"] > 0, PAID_S, "the refund")
    assert 0 <= trade.earned()["balance_msat"] < SAT_MSAT
    (given_back,) = [one for one in made.earning.payments() if one["status"] == "SUCCEEDED"]
    assert int(given_back["value_msat"]) == trade.earned()["refunded_msat"] and given_back["fee_msat"] == "0"


def test_a_channel_is_looked_at_and_opened_by_ngp(lab: Lab) -> None:
    with lightning_trade(lab) as made:
        trade = made.trade
        gateway = trade.identity(trade.gateway)
        found = trade.client.json("lightning", "status")
        (channel,) = found["channels"]
        assert (found["module"], found["network"], found["ready"]) == ("lnd", "regtest", True)
        assert (channel["neighbour"], channel["active"], channel["private"]) == (gateway, True, True)
        assert found["node"] == made.paying.key() and channel["peer"] == made.earning.key()
        assert (channel["state"], channel["suits"], channel["why_not"]) == (
            "open", False, "short CSV delay, and no watchtower",
        )  # fmt: skip
        assert any(line.startswith("watchtower: none") for line in found["advice"])
        shown = trade.client.cli("lightning", "status")
        assert shown.returncode == 0 and made.earning.key()[:12] in shown.stdout
        host = f"{made.earning.address}:{made.earning.ports.peer}"
        words = ("lightning", "open", gateway[:12], "--amount", "300000", "--csv-delay", "288", "--host", host)
        opened = trade.client.cli(*words)
        assert opened.returncode == 0, opened.stderr
        assert "opening" in [one["state"] for one in trade.client.json("lightning", "status")["channels"]]
        made.network.mine(3)
        both = await_until(lambda: two_channels(made), PAID_S, "the second channel")
        (second,) = [one for one in both if one["channel"] != channel["channel"]]
        assert (second["capacity_sat"], second["neighbour"]) == (300_000, gateway)
        (theirs,) = [one for one in made.earning.channels() if one["channel_point"] == second["channel"]]
        assert int(theirs["local_constraints"]["csv_delay"]) == second["their_csv_delay_blocks"] == 288
        for wrong, says in (
            (["open", gateway[:12]], "--amount"),
            (["open", "ffffffff", "--amount", "300000"], "ffffffff"),
            (["open", gateway[:12], "--amount", "300000", "--push", "300001"], "push at most amount"),
            (["tower", "add", "192.0.2.1:9911"], "PUBKEY@HOST:PORT"),
            (["close"], "known are status, open NEIGHBOUR, tower add"),
        ):
            refused = trade.client.cli("lightning", *wrong)
            assert refused.returncode == 2 and says in refused.stderr
        trade.client.stop()
        alone = checks(trade.client)["watchtower"]  # by the node itself, with the same rights
        assert alone["ok"] and "below 1008 blocks" in alone["found"]


def test_a_client_whose_only_way_out_is_the_gateway_opens_a_channel_and_pays(lab: Lab) -> None:
    with mesh_only_trade(lab, {"GRACE_DATA": "50 kB"}) as made:
        trade, net = made.trade, made.trade.net
        gateway = trade.identity(trade.gateway)
        before_received = made.received_msat()
        reached = f"{made.earning.address}:{made.earning.ports.peer}"
        words = ("lightning", "open", gateway[:12], "--amount", "2000000", "--host", reached)
        opened = trade.client.cli(*words, timeout_s=120)
        assert opened.returncode == 0, opened.stderr
        made.network.mine(3)
        (channel,) = await_until(lambda: active_channels(made), PAID_S, "an active channel")
        assert channel["suits"] and channel["their_csv_delay_blocks"] == 1_008
        tower = made.earning.cli("tower", "info")["pubkey"]
        added = trade.client.cli("lightning", "tower", "add", f"{tower}@{made.earning.address}")
        assert added.returncode == 0, added.stderr
        traffic.udp_echo(net.internet, net.remote(4), 5000)
        await_until(lambda: pay_some(made) > 0, PAID_S, "a payment over the mesh")
        trade.assert_books_agree(refused=True)  # packets before the first payment exceeded the grace
        assert trade.earned()["paid_msat"] == made.received_msat() - before_received
        assert not [row for row in trade.sold() if row["destination"].startswith("203.0.113.")]  # its chain was free
        ports = (made.earning.ports.peer, TOWER_PORT, made.network.chain.rpc_port)  # the first one is announced
        names = {f"payment service {made.earning.address} tcp {port}" for port in ports}
        assert {name for name, row in checks(trade.gateway).items() if "service" in name and row["ok"]} == names
        (neighbour,) = trade.gateway.json("neighbours")
        carried = trade.gateway.json("status")["counters"]["kernel"]["lane_bytes"]
        assert carried > neighbour["lane_bytes"] > 0  # first on the strangers' lane, then on its own
        await_until(
            lambda: lightning(made)["watchtowers"]["backups"] > 0, BACKUP_S, "states of before the payment backed up"
        )
        (shown,) = lightning(made)["watchtowers"]["towers"]
        assert (shown["tower"], shown["addresses"]) == (tower, [f"{made.earning.address}:{TOWER_PORT}"])
        listed = trade.client.cli("lightning", "tower", "list")
        assert listed.returncode == 0 and tower[:12] in listed.stdout
        found = checks(trade.client)["watchtower"]
        assert found["ok"] and not found["remedy"] and "backups" in found["found"]
        removed = trade.client.cli("lightning", "tower", "remove", tower)
        assert removed.returncode == 0, removed.stderr
        assert not any(one["used"] for one in lightning(made)["watchtowers"]["towers"])


def checks(daemon: Daemon) -> dict[str, Row]:
    """Return the rows of `ngp check`, by name."""
    told = daemon.cli("check", "--config", str(daemon.config), "--json").stdout
    return {row["name"]: row for row in json.loads(told)}


def lightning(made: LightningTrade) -> Row:
    """Return the client's `ngp lightning status`."""
    return dict(made.trade.client.json("lightning", "status"))


def active_channels(made: LightningTrade) -> list[Row]:
    """Return the client's channels once all of them can be used."""
    channels: list[Row] = lightning(made)["channels"]
    return channels if all(one["active"] for one in channels) else []


def two_channels(made: LightningTrade) -> list[Row]:
    """Return the client's channels once there are two that can be used."""
    channels: list[Row] = made.trade.client.json("lightning", "status")["channels"]
    return channels if sum(one["active"] for one in channels) == 2 else []


def pay_some(made: LightningTrade) -> int:
    """Carry some traffic, and return the sum paid so far."""
    net = made.trade.net
    traffic.udp_send(net.client, net.remote(4), 5000, count=100, payload_bytes=1000, rate_pps=500)
    return int(made.trade.earned()["paid_msat"])


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_kills_during_payments_pay_nothing_twice_and_lose_nothing(
    lab: Lab, pytestconfig: pytest.Config
) -> None:
    rounds = int(pytestconfig.getoption("--rounds"))
    high_price = {"DEFAULT_PRICE": "1024 msat", "PAYMENT_AMOUNT": "10 sat", "GRACE_DATA": "50 kB"}
    with lightning_trade(lab, high_price, high_price) as made:
        trade, net = made.trade, made.trade.net
        before = look(made)
        traffic.udp_echo(net.internet, net.remote(4), 5000)
        await_until(lambda: pay_some(made) > 0, PAID_S, "a first payment")
        flow = traffic.start(net.client, "udp-send", net.remote(4), 5000, 25 * 60 * 60, 100, 25, 0)
        for _ in range(rounds):
            for victim in (trade.client, trade.gateway, made.paying, made.earning):
                time.sleep(random.uniform(0.1, 1.5))
                victim.kill9()
                time.sleep(random.uniform(0.0, 0.5))
                victim.start()
        paid = trade.earned()["paid_msat"]
        await_until(lambda: trade.earned()["paid_msat"] > paid, STUCK_S, "a payment after the last kill")
        flow.kill()
        flow.wait()
        assert_all_agree(made, before)
