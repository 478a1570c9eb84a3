"""Gateway and client settle over real LND nodes: what both ledgers tell is what both nodes tell, to the msat."""

from __future__ import annotations

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.lightning.trade import LightningTrade, lightning_trade
from core_tests.shell import await_until
from core_tests.trade import restart


def test_traffic_is_paid_by_real_invoices_and_all_books_agree(lab: Lab) -> None:
    with lightning_trade(lab, {"GRACE_DATA": "50 kB"}) as made:
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


def test_a_node_that_dies_and_comes_back_takes_nothing_down(lab: Lab) -> None:
    with lightning_trade(lab, {"GRACE_DATA": "50 kB"}) as made:
        trade, net = made.trade, made.trade.net
        before_received = made.received_msat()
        traffic.udp_echo(net.internet, net.remote(4), 5000)
        await_until(lambda: pay_some(made) > 0, 60, "a first payment")
        made.earning.kill9()
        made.paying.kill9()
        restart(trade.gateway)  # with its node down: contracts go on, and it says what is wrong
        assert trade.gateway.json("status")["payment"]["ready"] is False
        assert "LND at" in trade.gateway.json("status")["payment"]["why_not"]
        assert traffic.ping(net.client, net.remote(4), count=3).received == 3  # credit lasts
        for node in (made.earning, made.paying):
            node.launch()
        for node in (made.earning, made.paying):
            node.await_up()
        paid = trade.earned()["paid_msat"]
        await_until(lambda: pay_some(made) > paid, 90, "a payment after the nodes came back")
        trade.assert_books_agree(refused=True)  # what was sent without credit was refused
        assert trade.earned()["paid_msat"] == made.received_msat() - before_received


def pay_some(made: LightningTrade) -> int:
    """Carry some traffic, and return what was paid so far."""
    net = made.trade.net
    traffic.udp_send(net.client, net.remote(4), 5000, count=100, payload_bytes=1000, rate_pps=500)
    return int(made.trade.earned()["paid_msat"])
