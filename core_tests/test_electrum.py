"""A client on Electrum trades with a gateway on LND: it opens the channel, pays, and gets unused money back."""

from __future__ import annotations

import pytest

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.lightning.electrum_trade import ElectrumTrade, electrum_trade
from core_tests.shell import await_until

# One Electrum at a time: its start uses a processor for some seconds.
pytestmark = pytest.mark.xdist_group("electrum")
PAID_S = 180.0  # for steps that nodes complete within seconds when the machine is quiet


def test_a_client_on_electrum_opens_a_channel_pays_and_is_refunded_and_all_books_agree(lab: Lab) -> None:
    with electrum_trade(lab, {"GRACE_DATA": "50 kB"}) as made:
        trade, net = made.trade, made.trade.net
        host = f"{made.earning.address}:{made.earning.ports.peer}"
        gateway = trade.identity(trade.gateway)
        opened = trade.client.cli(
            "lightning", "open", gateway[:12], "--amount", "2000000", "--push", "400000", "--host", host, timeout_s=60
        )
        assert opened.returncode == 0, opened.stderr
        made.mine(3)
        await_until(lambda: channel_is_active(made), PAID_S, "an active channel")
        traffic.udp_echo(net.internet, net.remote(4), 5000)
        await_until(lambda: pay_some(made) > 0, PAID_S, "a payment")
        trade.assert_books_agree(refused=True)  # packets before the first payment exceeded the grace
        paid = trade.earned()["paid_msat"]
        assert paid == trade.spent()["paid_msat"] == made.earning.received_msat()
        assert made.moved_msat() == (paid, 0)
        status = trade.client.json("status")["payment"]
        assert status == {**status, "module": "electrum", "ready": True}
        refund = trade.gateway.cli("refund", trade.identity(trade.client)[:12])
        assert refund.returncode == 0, refund.stderr
        await_until(lambda: trade.earned()["refunded_msat"] == trade.spent()["refunded_msat"] > 0, PAID_S, "the refund")
        assert made.moved_msat() == (paid, trade.spent()["refunded_msat"])


def channel_is_active(made: ElectrumTrade) -> bool:
    """Say whether both nodes can use the channel, and both daemons know it."""
    found = [daemon.json("lightning", "status")["channels"] for daemon in (made.trade.client, made.trade.gateway)]
    return all(channels and channels[0]["active"] for channels in found)


def pay_some(made: ElectrumTrade) -> int:
    """Carry some traffic, and return the sum paid so far."""
    net = made.trade.net
    traffic.udp_send(net.client, net.remote(4), 5000, count=100, payload_bytes=1000, rate_pps=500)
    return int(made.trade.earned()["paid_msat"])
