"""Faults of payments over real nodes, through the daemons: stuck payments, a locked node, a new certificate, bad
invoices.

All tests share one trade, one after the other, so each leaves it working. The test with the locked wallet is the last,
since its node needs a password from then on.
"""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network

import pytest

from core_tests import traffic
from core_tests.conftest import LAB
from core_tests.daemon import Daemon
from core_tests.hostile import Crowd, Persona, random_mac
from core_tests.lab import Lab
from core_tests.lightning.books import booked, sent
from core_tests.lightning.relay import PORT
from core_tests.lightning.steps import stored
from core_tests.lightning.trade import LightningTrade, lightning_trade, node_settings
from core_tests.shell import await_until
from core_tests.trade import CLIENT, Row
from ngp import invoice
from ngp.core.messages import Accept, Declined, DeclineReason, Invoice, Propose

pytestmark = pytest.mark.xdist_group("lightning faults")
CONF = {"DEFAULT_PRICE": "1024 msat", "PAYMENT_AMOUNT": "10 sat", "GRACE_DATA": "20 kB"}
BUYER = {**CONF, "BUDGET_PAYMENT": "20 sat"}  # small top-ups, so that the next one is always due soon
# LND avoids a channel that has just failed, even its own direct one, for about a minute.
BACK_S = 120.0


@pytest.fixture(scope="module")
def shared() -> Iterator[LightningTrade]:
    """Gateway and client with their nodes and a relay in front of each, and two more hosts on the mesh."""
    with Lab() as lab, lightning_trade(lab, CONF, BUYER, relayed=True, clients=3) as made:
        net = made.trade.net
        traffic.udp_sink(net.internet, net.remote(4), 5000)
        yield made


@pytest.fixture
def made(shared: LightningTrade, request: pytest.FixtureRequest) -> LightningTrade:
    """The trade, whose hosts print what they know when the test fails."""
    request.node.stash[LAB] = shared.lab
    return shared


@contextmanager
def flow(made: LightningTrade, client: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Make a client send while the block runs."""
    net = made.trade.net
    process = traffic.start(net.clients[client], "udp-send", net.remote(4), 5000, 1_000_000, 100, 50, 0)
    yield process
    process.kill()
    process.wait()


def paid_msat(daemon: Daemon) -> int:
    return sum(row["paid_msat"] for row in daemon.ask("accounts"))


def pinged(made: LightningTrade, number: int) -> bool:
    return traffic.ping(made.trade.net.client, made.trade.net.remote(4, number), wait_s=1).received == 1


def account_of(daemon: Daemon) -> Row:
    (row,) = [row for row in daemon.ask("accounts") if row["role"] == "client"]
    return dict(row)


def await_paid(daemon: Daemon) -> None:
    """Wait for another payment."""
    before = paid_msat(daemon)
    await_until(lambda: paid_msat(daemon) > before, BACK_S, f"a payment on {daemon.name}")


def test_a_payment_that_never_settles_delays_only_itself(made: LightningTrade) -> None:
    trade, relay = made.trade, made.relays["gateway"]
    before = set(booked(trade.client))
    with flow(made):
        await_paid(trade.client)
        for ends in ("failed", "succeeded"):
            relay.hold_invoices(True, memo=trade.identity(trade.client)[:16])
            held = relay.await_accepted()
            stuck = account_of(trade.client)
            assert stuck["on_its_way_msat"] > 0 and stuck["on_its_way_since"]
            assert trade.client.ask("status")["payment"]["on_their_way"] == 1
            if ends == "failed":
                assert_another_is_served(made)
                await_until(lambda: not pinged(made, 9), what="the grace spent")
            relay.hold_invoices(False)
            (relay.cancel if ends == "failed" else relay.settle)(held)
            ask = ("SELECT count(*) FROM payments WHERE payment_hash = ? AND state = ?", held, ends)
            await_until(lambda ask=ask: stored(trade.client, *ask), what=f"the payment {ends}")  # type: ignore[misc]
            await_paid(trade.client)
    now = {key: -amount for key, amount in booked(trade.client).items() if key not in before}
    assert held.hex() in now
    assert now.items() <= sent(made.paying).items() and now.items() <= made.earning.received().items()


def assert_another_is_served(made: LightningTrade) -> None:
    """Make another client pay meanwhile, by the same node as the first one."""
    net = made.trade.net
    settings = {**node_settings(made.paying), "LND_HOST": f"{net.client.address('mesh0', 4)}:{PORT}"}
    other = net.clients[1].daemon({**CLIENT, **BUYER, **settings})
    with flow(made, client=1):
        await_until(lambda: other.ask("accounts"), what="an account with the gateway")
        await_paid(other)
    other.stop()


def test_bad_invoices_are_refused_and_nothing_is_paid(made: LightningTrade) -> None:
    client, net = made.trade.client, made.trade.net
    crowd = Crowd(net.clients[2], net.client)
    try:
        stranger = crowd.persona(random_mac(), network="mainnet")
        assert crowd.meet(stranger)
        stranger.say(offer("203.0.113.50/32"))
        assert not crowd.pump(1, lambda: bool(stranger.heard(Accept)))
        mac, router = random_mac(), "192.0.2.99"
        seller = crowd.persona(mac, network="regtest", payee=bytes.fromhex(made.earning.key()))
        net.client.ip("neigh", "replace", router, "lladdr", mac.hex(":"), "dev", "mesh0", "nud", "permanent")
        net.client.ip("route", "replace", "203.0.113.51/32", "via", router, "dev", "mesh0")
        assert crowd.meet(seller)
        seller.say(offer("203.0.113.51/32"))
        assert crowd.pump(5, lambda: bool(seller.heard(Accept)))
        lapsed, good, others = (
            made.earning.cli("addinvoice", "--amt", "7", "--expiry", "1"),
            made.earning.cli("addinvoice", "--amt", "7", "--expiry", "600"),
            made.paying.cli("addinvoice", "--amt", "7", "--expiry", "600"),
        )
        time.sleep(1.1)  # by the invoice's own clock
        text = good["payment_request"]
        altered = text[:-8] + ("q" if text[-8] != "q" else "p") + text[-7:]
        for bolt11, amount_msat, answer in (
            (lapsed["payment_request"], 7000, DeclineReason.LAPSED),
            (altered, 7000, None),
            (text, 8000, None),
            (others["payment_request"], 7000, DeclineReason.TERMS),
            (of_mainnet(7000), 7000, DeclineReason.NETWORK),
        ):
            assert answer_to(crowd, seller, bolt11, amount_msat, 10 if answer else 1) is answer
        counters = client.ask("status")["counters"]
        assert counters["core"]["invoice_malformed"] == 2 and counters["core"]["invoice_foreign_payee"] == 1
        tried = made.paying.payments()
        assert not {one["r_hash"] for one in (lapsed, good, others)} & {one["payment_hash"] for one in tried}
        assert answer_to(crowd, seller, text, 7000, 1) is None  # within the announced time, so nothing else delayed it
        await_until(lambda: good["r_hash"] in sent(made.paying), what="the good invoice paid")
    finally:
        crowd.close()


def offer(destination: str) -> Propose:
    return Propose(secrets.token_bytes(16), ip_network(destination), 1000, 1 << 20, 300, 10, 0, 1)


def of_mainnet(amount_msat: int) -> str:
    """Make an invoice in real money, signed by an unknown key."""
    return invoice.write(
        key=secrets.token_bytes(32), prefix="bc", amount_msat=amount_msat, timestamp_s=int(time.time()), expiry_s=600,
        payment_hash=secrets.token_bytes(32), payment_secret=secrets.token_bytes(32), memo="", metadata=b"",
    )  # fmt: skip


def answer_to(crowd: Crowd, seller: Persona, bolt11: str, amount_msat: int, wait_s: float) -> DeclineReason | None:
    """Send the victim an invoice, and return its reason to decline; None: it didn't answer."""
    seller.inbox.clear()
    seller.say(Invoice(bolt11, amount_msat))
    until = time.monotonic() + wait_s
    while not seller.heard(Declined) and time.monotonic() < until:
        crowd.pump(0.1)
        seller.say_due()
    reasons = [one.message.reason for one in seller.inbox if isinstance(one.message, Declined)]
    return reasons[0] if reasons else None


def test_a_node_with_a_new_certificate_is_known_again_by_itself(made: LightningTrade) -> None:
    client, relay = made.trade.client, made.relays["client"]
    with flow(made):
        await_paid(client)
        relay.kill9()
        made.paying.kill9()
        old = made.paying.certificate.read_bytes()
        for name in ("tls.cert", "tls.key"):
            (made.paying.lnddir / name).unlink()
        made.paying.start()
        assert made.paying.certificate.read_bytes() != old
        relay.start()
        await_paid(client)
    assert client.ask("status")["payment"]["ready"]


def test_a_locked_node_takes_nothing_down_and_is_used_again_when_it_is_unlocked(made: LightningTrade) -> None:
    gateway, net = made.trade.gateway, made.trade.net
    with flow(made):
        await_paid(gateway)
        made.earning.kill9()
        made.earning.launch(locked=True)
        made.earning.await_up("LOCKED")
        assert traffic.ping(net.client, net.remote(4), count=2).received == 2  # credit lasts
        await_until(lambda: "lncli unlock" in str(gateway.ask("status")["payment"]["why_not"]), what="why not")
        made.relays["gateway"].unlock()
        made.earning.await_up()
        await_paid(gateway)
    assert gateway.ask("status")["payment"]["ready"]
