"""A gateway that takes money, and through which nothing comes back: it is paid the grace, and no more."""

from __future__ import annotations

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Trade, open_trade, restart

RATE_PPS, PAYLOAD_BYTES = 100, 1000
SECONDS = 60
NEXT_INVOICE_S = 120.0  # a gateway whose invoices are declined waits for up to a minute before the next
AS_SHIPPED = {"TRUST_AMOUNT": "auto"}
GRACE_MSAT = 256 * 5


def paid_msat(trade: Trade) -> int:
    """Return what the client has paid, by its journal."""
    return -sum(int(row["amount_msat"]) for row in trade.client.json("ledger") if row["kind"] == "payment")


def why_unpaid(trade: Trade) -> str:
    """Return what the client's listing says about a gateway that it pays no more."""
    (row,) = trade.client.ask("neighbours")
    return str(row["why_unpaid"] or "")


def test_it_is_paid_the_grace_and_again_when_the_operator_says_so(lab: Lab) -> None:
    trade = open_trade(lab, both=AS_SHIPPED)
    net, remote = trade.net, trade.net.remote(4)
    net.internet.sysctl({"net.ipv4.icmp_echo_ignore_all": "1"})
    echoes = net.internet.counter("wan0", "in")
    traffic.udp_sink(net.internet, remote, 5000)
    stream = traffic.start(net.client, "udp-send", remote, 5000, RATE_PPS * SECONDS, PAYLOAD_BYTES, RATE_PPS, 0)
    await_until(lambda: "nothing has come back" in why_unpaid(trade), SECONDS, "a payment in vain")
    assert 0 < paid_msat(trade) <= GRACE_MSAT
    assert echoes.total("in", destination=remote, protocol=1).packets >= 1
    assert "nothing more is paid" in trade.client.cli("check").stdout
    (gateway,) = await_until(
        lambda: [one for one in trade.client.json("neighbours") if one["reputation"] < 0.5], what="a bad reputation"
    )
    restart(trade.client)
    trade.await_acquainted()
    await_until(lambda: why_unpaid(trade), what="the same after a kill")
    await_until(lambda: traffic.ping(net.client, remote, wait_s=1).received == 0, what="the end of what was prepaid")
    assert 0 < paid_msat(trade) <= GRACE_MSAT
    stream.kill()  # it would use up the next payment in two seconds; a busy machine's echo may come later
    stream.wait()
    net.internet.sysctl({"net.ipv4.icmp_echo_ignore_all": "0"})
    done = trade.client.cli("unblock", gateway["neighbour"])
    assert done.returncode == 0, done.stderr
    await_until(
        lambda: traffic.ping(net.client, remote, wait_s=1).received, NEXT_INVOICE_S, "service after the next payment"
    )
    assert not why_unpaid(trade)
