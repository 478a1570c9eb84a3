"""The account in the kernel: with money on it a destination meets no limit but its own, from its first packets on."""

from __future__ import annotations

import socket
import time

import pytest

from core_tests import traffic
from core_tests.bench.helper import Helper
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Trade, open_trade, used

RATE_PPS = 2000
PAYLOAD_BYTES = 1000 - traffic.l3_bytes(4, 0)
HELD, HELD_OF_PAID = 8, 64  # first packets of a destination that the gate holds: of any client, of one that has paid
TOO_MANY = 100
WINDOW_S = 1.0  # the kernel counts first packets within this time
STOPPED_S = 0.5
OTHERS = 30
PORT = 5000
HOSTS, PAGE_BYTES = 200, 30_000


def refused(trade: Trade) -> dict[str, int]:
    """Return how many packets the gateway's kernel has refused so far, by reason."""
    counters = trade.gateway.ask("status")["counters"]["kernel"]
    return {name: counters[name] for name in ("asked_before", "refused_exhausted", "refused_unpaid")}


def since(trade: Trade, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in refused(trade).items()}


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        pytest.param({}, 4000, id="shipped"),
        pytest.param({"CONTRACT_DATA": "500 kB"}, 4000, id="renewed often"),
        pytest.param({}, 20_000, id="shipped, for long", marks=pytest.mark.long),
        pytest.param({"CONTRACT_DATA": "500 kB"}, 20_000, id="renewed often, for long", marks=pytest.mark.long),
    ],
)
def test_a_new_destination_meets_no_limit_but_its_own(lab: Lab, keys: dict[str, object], count: int) -> None:
    """No packet is refused for lack of money, from the first one on, which finds no contract yet.

    On a quiet machine none is lost. If daemons are scheduled late, more first packets come than are held, and small
    contracts end before they are renewed. These are the destination's own limits, and explain every lost packet.
    """
    trade = open_trade(lab, both=keys)
    net, remote = trade.net, trade.net.remote(4)
    open_others(trade)
    sink, last = (traffic.udp_sink(net.internet, remote, port) for port in (PORT, PORT + 1))
    before = refused(trade)
    traffic.udp_send(net.client, remote, PORT, count=count, payload_bytes=PAYLOAD_BYTES, rate_pps=RATE_PPS)
    await_last(trade, last)
    found = since(trade, before)
    print(found)
    assert found["refused_unpaid"] == 0
    assert count - sink.received()[0] == found["asked_before"] + found["refused_exhausted"]
    if not keys:
        assert found["refused_exhausted"] == 0
    assert len(trade.sold(destination=f"{remote}/32")) == 1
    trade.assert_books_agree(refused=True)


def open_others(trade: Trade) -> None:
    """Make the client pay, and open contracts that share its money and stay idle."""
    trade.prepay()
    for number in range(101, 101 + OTHERS):
        assert traffic.ping(trade.net.client, trade.net.remote(4, number)).received == 1


def await_last(trade: Trade, last: traffic.Server) -> None:
    """Wait until all earlier packets have arrived, since a packet sent after them has."""

    def arrived() -> int:
        traffic.udp_send(trade.net.client, last.address, last.port, count=1)
        return last.received()[0]

    await_until(arrived, what="a packet behind the others")


@pytest.mark.parametrize(
    ("count", "stops"), [(5000, 4), pytest.param(20_000, 9, marks=pytest.mark.long)], ids=["briefly", "for long"]
)
@pytest.mark.parametrize("stopped", ["gateway", "client"])
def test_a_suspended_daemon_costs_no_packet(lab: Lab, stopped: str, count: int, stops: int) -> None:
    """After the first answer the kernel has contract and account, so it does no harm if a daemon doesn't run."""
    trade = open_trade(lab)
    net, remote, daemon = trade.net, trade.net.remote(4), trade.gateway if stopped == "gateway" else trade.client
    open_others(trade)
    sink = traffic.udp_sink(net.internet, remote, PORT)
    before = refused(trade)
    assert traffic.ping(net.client, remote).received == 1
    flow = traffic.start(net.client, "udp-send", remote, PORT, count, PAYLOAD_BYTES, RATE_PPS, 0)
    for _ in range(stops):
        daemon.suspend()
        time.sleep(STOPPED_S)  # the pause is the subject of the test: there is nothing to await
        daemon.resume()
        time.sleep(STOPPED_S)
    assert flow.wait(120) == 0
    await_until(lambda: sink.received()[0] == count, what="every packet")
    assert since(trade, before) == dict.fromkeys(before, 0)
    trade.assert_books_agree()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("paid", "held"), [(False, HELD), (True, HELD_OF_PAID)], ids=["newcomer", "customer"])
def test_a_limited_number_of_first_packets_is_held(lab: Lab, version: int, paid: bool, held: int) -> None:
    """A client that has paid may begin with more packets. Both sides know the number, and count the same bytes."""
    trade = open_trade(lab)
    if paid:
        trade.prepay()
        await_until(lambda: trade.spent()["paid_msat"] > 0, what="the payment on the client's books")
        assert traffic.ping(trade.net.client, trade.net.remote(4)).received == 1  # both kernels know of it by now
    remote = burst(trade, version)
    sink, last = (traffic.udp_sink(trade.net.internet, remote, port) for port in (PORT, PORT + 1))
    trade.gateway.resume()
    await_until(lambda: sink.received()[0] >= held, what="what was held")
    await_last(trade, last)
    assert sink.received()[0] == held
    trade.assert_books_agree()


def burst(trade: Trade, version: int) -> str:
    """Send too many packets to a new destination while the gateway's daemon is suspended. Returns the destination.

    If the machine is too busy to send all of them within the kernel's time, another destination is used.
    """
    client = trade.net.client
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    for number in range(2, 20):
        remote = trade.net.remote(version, number)
        with client.socket_inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
            trade.gateway.suspend()
            began = time.monotonic()
            for _ in range(TOO_MANY):
                sock.sendto(bytes(PAYLOAD_BYTES), (remote, PORT))
            if time.monotonic() - began < WINDOW_S / 2:
                return remote
            trade.gateway.resume()
    raise AssertionError("no time to send a hundred packets in half a second")


def test_a_page_of_many_hosts_shares_one_account(lab: Lab) -> None:
    """Each host is a contract of its own, all begin at once, and the prepaid money is less than they need."""
    trade = open_trade(lab, both={"PAYMENT_AMOUNT": "20 sat"}, households=1)
    net = trade.net
    assert net.household is not None
    hosts = [net.remote(4, number) for number in range(1, 1 + HOSTS)]
    Helper(net.internet, "core_tests.bench.browser", "serve")
    browser = Helper(net.household, "core_tests.bench.browser", "visit")
    for _ in range(2):  # the first visit finds neither contracts nor money
        assert browser.ask("visit", hosts, PAGE_BYTES)["failed"] == []
    assert len(trade.sold()) == HOSTS
    assert sum(map(used, trade.sold())) >= 2 * HOSTS * PAGE_BYTES
    trade.assert_books_agree(refused=True)
    assert trade.earned()["paid_msat"] > 20_000
