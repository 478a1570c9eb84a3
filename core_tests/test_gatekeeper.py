"""The two scenarios of the original Network Gatekeeper: with renewal off, pings pass until exactly the contracted bytes
are used; with renewal on, all of them pass."""

from __future__ import annotations

import pytest

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Trade, open_trade, used

VERSIONS = pytest.mark.parametrize("version", [4, 6])
PINGS = 20
# One echo request or reply of `ping -s 472`: 500 bytes over IPv4, 520 over IPv6.
PAYLOAD_BYTES = 472
PACKET_BYTES = {4: 500, 6: 520}
CONTRACT_KB = 5


def ping_all(trade: Trade, version: int, wait_s: float = traffic.PATIENCE_S) -> traffic.Pings:
    remote = trade.net.remote(version)
    return traffic.ping(
        trade.net.client, remote, count=PINGS, payload_bytes=PAYLOAD_BYTES, interval_s=0.2, wait_s=wait_s
    )


@VERSIONS
def test_renewal_off_pings_pass_until_exactly_the_contracted_bytes_are_used(lab: Lab, version: int) -> None:
    limit = CONTRACT_KB * 1024
    trade = open_trade(lab, both={"CONTRACT_DATA": CONTRACT_KB, "DATA_RENEWAL": 0, "TIME_RENEWAL": 0})
    counter = trade.net.internet.counter("wan0")
    pings = ping_all(trade, version, wait_s=1)  # the last pings are cut
    passed = limit // PACKET_BYTES[version]  # whole packets, requests and replies
    assert pings == traffic.Pings(PINGS, passed // 2)
    seen = counter.total(destination=trade.net.remote(version))
    assert seen.packets == (passed + 1) // 2  # the last request may pass and leave no bytes for its reply
    trade.await_closed()
    (sold,) = trade.sold()
    assert (used(sold), sold["data_limit_bytes"]) == (passed * PACKET_BYTES[version], limit)
    assert traffic.ping(trade.net.client, trade.net.remote(version), count=5, wait_s=1).received == 0
    assert len(trade.bought()) == 1
    trade.assert_books_agree()


def room(trade: Trade) -> int:
    """Return how many bytes the one contract has left."""
    (sold,) = trade.sold()
    return int(sold["data_limit_bytes"]) - used(sold)


@VERSIONS
def test_renewal_on_all_pings_pass(lab: Lab, version: int) -> None:
    trade = open_trade(lab, both={"CONTRACT_DATA": CONTRACT_KB})
    for number in range(PINGS):
        if number:
            await_until(lambda: room(trade) >= 2 * PACKET_BYTES[version], what="a renewal")
        assert traffic.ping(trade.net.client, trade.net.remote(version), payload_bytes=PAYLOAD_BYTES).received == 1
    (sold,) = trade.sold()
    assert sold["data_limit_bytes"] > CONTRACT_KB * 1024
    trade.assert_books_agree()
    (sold,) = trade.sold()
    assert used(sold) == 2 * PINGS * PACKET_BYTES[version]
