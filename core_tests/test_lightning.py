"""Gateway and client settle over real LND nodes: what both ledgers tell is what both nodes tell, to the msat."""

from __future__ import annotations

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.lightning.trade import lightning_trade
from core_tests.shell import await_until


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
