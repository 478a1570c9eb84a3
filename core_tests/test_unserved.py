"""A gateway that takes money, and through which nothing comes back: it is paid three times, and no more."""

from __future__ import annotations

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Trade, open_trade, restart
from ngp.core.buying.service import MOST_UNSEEN

RATE_PPS, PAYLOAD_BYTES = 100, 1000
SECONDS = 60
SMALL = {"PAYMENT_AMOUNT": "1 sat"}


def payments(trade: Trade) -> int:
    """Return how many payments the client's journal has."""
    return sum(row["kind"] == "payment" for row in trade.client.json("ledger"))


def why_unpaid(trade: Trade) -> str:
    """Return what the client's listing says about a gateway that it pays no more."""
    (row,) = trade.client.ask("neighbours")
    return str(row["why_unpaid"] or "")


def test_it_is_paid_three_times_and_again_when_the_operator_says_so(lab: Lab) -> None:
    trade = open_trade(lab, both=SMALL)
    net, remote = trade.net, trade.net.remote(4)
    net.internet.sysctl({"net.ipv4.icmp_echo_ignore_all": "1"})
    echoes = net.internet.counter("wan0", "in")
    traffic.udp_sink(net.internet, remote, 5000)
    traffic.start(net.client, "udp-send", remote, 5000, RATE_PPS * SECONDS, PAYLOAD_BYTES, RATE_PPS, 0)
    await_until(lambda: "nothing has come back" in why_unpaid(trade), SECONDS, "three payments in vain")
    assert payments(trade) == MOST_UNSEEN
    assert echoes.total("in", destination=remote, protocol=1).packets >= 1
    assert "nothing more is paid" in trade.client.cli("check").stdout
    (gateway,) = trade.client.json("neighbours")
    assert gateway["reputation"] < 0.5
    restart(trade.client)
    trade.await_acquainted()
    await_until(lambda: why_unpaid(trade), what="the same after a kill")
    await_until(lambda: traffic.ping(net.client, remote, wait_s=1).received == 0, what="the end of what was prepaid")
    assert payments(trade) == MOST_UNSEEN
    net.internet.sysctl({"net.ipv4.icmp_echo_ignore_all": "0"})
    done = trade.client.cli("unblock", gateway["neighbour"])
    assert done.returncode == 0, done.stderr
    await_until(lambda: traffic.ping(net.client, remote, wait_s=1).received, what="service after the next payment")
    assert not why_unpaid(trade)
