"""Hostile neighbours against real daemons: noise, replays, made-up keys and addresses, service without payment, payment
without service. The tests assert the most that an attack may cost, and that honest neighbours are still served."""

from __future__ import annotations

import random
import secrets
import statistics
import time
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.hostile import PORT, Crowd, Persona, accept_all, ask_for_money, offer, random_mac, udp
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.topologies import REMOTE_NETS, ThreeHosts, three_hosts
from core_tests.trade import CLIENT, open_trade
from ngp.core.buying.renewal import MOST_PRICES
from ngp.core.messages import (
    Accept,
    Ask,
    Cancel,
    Propose,
    Reject,
    Statement,
    StatementLine,
)
from ngp.delivery import Received

GRACE_KB = 20
PAYMENT_SAT = 50
GRACE_MSAT = 256 * 5  # as shipped: what GRACE_DATA costs
SAT_MSAT = 1000


def resident_kb(daemon: Daemon) -> int:
    lines = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in daemon.pids()]
    return sum(int(line.split()[1]) for status in lines for line in status if line.startswith("VmRSS"))


def test_made_up_clients_get_the_grace_of_their_link_once(lab: Lab) -> None:
    trade = open_trade(lab, {"GRACE_DATA": GRACE_KB, "GRACE_TIME": "10 min"}, clients=2)
    net = trade.net
    at_internet = net.internet.counter("wan0", "in")
    macs = [random_mac() for _ in range(3)]

    def arrived() -> int:
        remotes = [net.remote(version, 100 + number) for version in (4, 6) for number in range(4)]
        return sum(at_internet.total("in", destination=remote).bytes for remote in remotes)

    with closing(Crowd(net.clients[1], net.gateway)) as crowd:

        def send(mac: bytes) -> None:
            for number in range(4):
                for version, source in ((4, crowd.address), (6, crowd.address6)):
                    crowd.frame(mac, udp(source, net.remote(version, 100 + number), 5000, bytes(900)))
            crowd.pump(0.04)

        for round_ in range(2):  # the second time with new keys, after a restart of the gateway
            for met, mac in enumerate(macs, 1):
                crowd.meet(crowd.persona(mac, react=accept_all), seconds=10)
                deadline = time.monotonic() + 60
                while arrived() < met * GRACE_KB * 1024 * 0.8 and time.monotonic() < deadline:
                    send(mac)
                for _ in range(10):  # more than the interface's credit
                    send(mac)
            crowd.pump(0.2)
            seen = arrived()
            assert len(macs) * GRACE_KB * 1024 * 0.8 < seen <= len(macs) * GRACE_KB * 1024
            if not round_:
                trade.gateway.kill9()
                trade.gateway.start()
                crowd.personas.clear()
    assert traffic.ping(net.client, net.remote(4, 9)).received == 1
    sold = [row for row in trade.sold() if row["destination"] != f"{net.remote(4, 9)}/32"]
    assert sum(row["used_to_bytes"] for row in sold) == seen


def test_made_up_servers_are_paid_no_more_than_one_and_can_do_no_harm(lab: Lab) -> None:
    net = three_hosts(lab)
    client = net.client.daemon({**CLIENT, "PAYMENT_AMOUNT": f"{PAYMENT_SAT} sat", "TRUST_AMOUNT": "auto"})
    with closing(Crowd(net.gateway, net.client)) as crowd:
        for number in range(5):
            persona = router_of(net, crowd, random_mac())
            persona.say(offer(f"198.51.100.{number + 1}/32"))
            assert crowd.pump(60, lambda persona=persona: bool(persona.heard(Accept)))  # type: ignore[misc]
            ask_for_money(crowd, persona, PAYMENT_SAT * SAT_MSAT)
        # All of them together got no more than one of them alone would: the grace.
        assert 0 < sum(row["paid_msat"] for row in client.json("accounts")) <= GRACE_MSAT
        renew_for_ever(net, crowd, net.remote(4, 77))
        bill_for_nothing(net, crowd, client)
    assert sum(row["paid_msat"] for row in client.json("accounts")) <= GRACE_MSAT


def router_of(net: ThreeHosts, crowd: Crowd, mac: bytes) -> Persona:
    """Add a persona, and make it the client's router from now on."""
    router = "192.0.2.99"
    net.client.ip("neigh", "replace", router, "lladdr", mac.hex(":"), "dev", "mesh0", "nud", "permanent")
    for network in ("default", *REMOTE_NETS[:1]):
        net.client.ip("route", "replace", network, "via", router, "dev", "mesh0")
    persona = crowd.persona(mac)
    assert crowd.meet(persona)
    return persona


def test_a_neighbour_that_nobody_chose_sells_nothing(lab: Lab) -> None:
    """Otherwise it could sell an address, send a flood from that address, and be paid for it by us or our customer."""
    trade = open_trade(lab, clients=2)
    net = trade.net
    remote, own, (evil, *_) = net.remote(4, 7), "192.0.2.77", net.clients[1:]
    assert traffic.ping(net.client, remote).received == 1
    evil.add_address("mesh0", f"{own}/24")
    for victim in (net.client, net.gateway):
        with closing(Crowd(evil, victim)) as crowd:
            persona = crowd.persona()
            assert crowd.meet(persona)
            assert evil.run("ping", "-c", "1", "-I", own, victim.address("mesh0", 4)).returncode == 0
            offered = (f"{remote}/32", f"{own}/32", "198.51.100.0/24", "0.0.0.0/0", "::/0", "2001:db8:ffff::7/128")
            for number, destination in enumerate(offered, 1):
                persona.say(offer(destination))
                assert crowd.pump(60, lambda persona=persona, number=number: len(persona.heard(Reject)) == number)  # type: ignore[misc]
            assert not persona.heard(Accept)
    trade.client.await_logged("our traffic to there doesn't go through that neighbour")


def renew_for_ever(net: ThreeHosts, crowd: Crowd, remote: str) -> None:
    """Offer renewals of one byte: each would cost the victim a write to its ledger and a request for the next."""
    persona = router_of(net, crowd, crowd.mac)
    limits = [50]

    def extend(persona: Persona, received: Received) -> None:
        if isinstance(received.message, Ask):
            limits.append(limits[-1] + 1)
            again = Propose(
                received.message.contract, received.message.destination, 1000 + len(limits) % 2, limits[-1], 300, 10,
                limits[-2], 1,
            )  # fmt: skip
            persona.say(again, received.message_id)

    persona.react = extend
    persona.say(offer(f"{remote}/32", limit_bytes=limits[0]))
    assert crowd.pump(60, lambda: bool(persona.heard(Accept)))
    traffic.ping(net.client, remote, count=1, wait_s=0.1)
    crowd.pump(3)
    assert 1 < len(limits) <= MOST_PRICES + 2  # each has another price than the one before


def bill_for_nothing(net: ThreeHosts, crowd: Crowd, client: Daemon) -> None:
    """Fill the victim with contracts, then flood it with bills: it must still respond."""
    persona = router_of(net, crowd, random_mac())
    for number in range(900):  # a client that sent nothing through a server accepts few more of its contracts
        persona.say(offer(f"10.{number >> 8}.{number & 255}.1/32"))
        if number % 50 == 49:
            crowd.pump(0.05)
    crowd.pump(1)
    before_kb, quiet_s = resident_kb(client), status_s(client)
    for _ in range(40):
        for _ in range(10):
            lines = tuple(StatementLine(secrets.token_bytes(16), 1, 1, 1) for _ in range(16))
            persona.say(Statement(0, 0, 0, lines))
        crowd.pump(0.05)
    assert status_s(client) < 3.0 + 20 * quiet_s  # relative to the time on the quiet machine
    assert len(persona.heard(Cancel)) < 400  # of 6,400 lines about unknown contracts
    assert resident_kb(client) - before_kb < 30_000


def status_s(daemon: Daemon) -> float:
    """Return how long a daemon takes to answer, seconds."""
    began = time.monotonic()
    daemon.ask("status")
    return time.monotonic() - began


def noise(dice: random.Random, genuine: list[bytes]) -> bytes:
    """Make an invalid datagram: random, cut, changed, too long, or sent before."""
    base = bytearray(dice.choice(genuine))
    kind = dice.randrange(5)
    if kind == 0:
        return dice.randbytes(dice.randrange(0, 1400))
    if kind == 1:
        return bytes(base[: dice.randrange(len(base))])
    if kind == 2:
        base[dice.randrange(len(base))] ^= 1 << dice.randrange(8)
    elif kind == 3:
        base += dice.randbytes(900)
    return bytes(base)


def test_noise_and_replays_change_nothing_and_an_honest_neighbour_goes_on(lab: Lab) -> None:
    trade = open_trade(lab, clients=2)
    net, dice = trade.net, random.Random(10325)
    quiet_s = statistics.median(first_packet_s(net, number) for number in range(245, 250))
    with closing(Crowd(net.clients[1], net.gateway)) as crowd:
        persona = crowd.persona(random_mac(), react=accept_all)
        assert crowd.meet(persona)
        persona.say(Ask(ip_network("198.51.100.200/32"), 0, 0))
        assert crowd.pump(60, lambda: bool(persona.heard(Propose)))
        genuine = list(crowd.captured)
        before_kb, neighbours = resident_kb(trade.gateway), len(trade.gateway.json("neighbours"))
        waits = []
        for number in range(1, 31):
            for _ in range(100):
                mac = dice.choice((persona.mac, random_mac()))
                datagram = noise(dice, genuine)
                crowd.frame(mac, udp(crowd.address, crowd.victim_address, PORT, datagram, PORT))
            waits.append(first_packet_s(net, number))
        crowd.captured.clear()
        trade.gateway.kill9()
        trade.gateway.start()
        trade.await_acquainted()
        for datagram in genuine:
            crowd.frame(persona.mac, udp(crowd.address, crowd.victim_address, PORT, datagram, PORT))
        await_until(lambda: ignored(trade.gateway) >= 3, what="the replays' refusal")
    assert statistics.quantiles(waits, n=100)[98] < 1.5 + 20 * quiet_s  # relative to the time on the quiet machine
    assert resident_kb(trade.gateway) - before_kb < 30_000
    assert len(trade.gateway.json("neighbours")) <= neighbours + 1
    mine = [row for row in trade.sold() if row["destination"] == "198.51.100.200/32"]
    assert all(row["used_to_bytes"] == 0 for row in mine)
    assert "Exception" not in trade.gateway.log() and "Traceback" not in trade.gateway.log()


def first_packet_s(net: ThreeHosts, number: int) -> float:
    """Return how long an honest neighbour waits for the answer to its first packet to a destination, in seconds."""
    began = time.monotonic()
    assert traffic.ping(net.client, net.remote(4, number)).received == 1, "an honest first packet"
    return time.monotonic() - began


def ignored(daemon: Daemon) -> int:
    counts = daemon.ask("status")["counters"]["messages_ignored"]
    return sum(counts.get(reason, 0) for reason in ("stale", "replayed", "unknown"))
