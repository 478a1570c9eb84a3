"""Destinations that this host rewrites: who pays. What counts is the address to which the client sent a packet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from kernel_lab import GATEWAY_TO_INTERNET, desired, sh
from meter_lab import NEIGHBOUR, wait_until
from star_lab import ADDRESSES, BITS, DOWN_BYTES, SECOND, UP_BYTES, Star, once, star, table

from ngp.core.kernel import HeldPacket, Verdict
from ngp.modules.network import layout, rewrites
from ngp.ports.network import FreeRule

RESOLVER = {4: "198.51.100.53", 6: "2001:db8:53::53"}
OTHER = {4: "198.51.100.54", 6: "2001:db8:53::54"}
COMMAND = {4: "iptables", 6: "ip6tables"}
PLACES = ("LAN", "internet", "behind B")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Star]:
    with star(tmp_path) as built:
        yield built


def redirect(hub: Star, family: int, to: str, what: str) -> None:
    """Redirect the packets that a rule matches to a host, and let the datapath notice the rule."""
    host = ADDRESSES[to][family] if family == 4 else f"[{ADDRESSES[to][family]}]"
    sh(f"{COMMAND[family]} -t nat -A PREROUTING -i m0 {what} -j DNAT --to-destination {host}:5353")
    applied(hub)


def applied(hub: Star, **changes: object) -> None:
    hub.world.datapath.apply(desired(buys=True, lan_interfaces=("lan0",), **changes))


def ask(client: socket.socket, server: socket.socket, address: str, port: int, up_bytes: int = UP_BYTES) -> None:
    """Ask at an address; the answer must come from that address, whichever host answers."""
    for one in (client, server):
        one.settimeout(30)
    client.sendto(bytes(up_bytes), (address, port))
    question, seen = server.recvfrom(2048)
    server.sendto(bytes(DOWN_BYTES), seen)
    answer, sender = client.recvfrom(2048)
    assert (len(question), len(answer), sender[:2]) == (up_bytes, DOWN_BYTES, (address, port))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", PLACES)
def test_the_contract_is_for_the_address_that_the_client_sent_to(hub: Star, place: str, family: int) -> None:
    redirect(hub, family, place, "-p udp --dport 53")
    sold = hub.sell(NEIGHBOUR, f"{RESOLVER[family]}/{BITS[family]}")
    others = [hub.sell(number, f"{ADDRESSES[place][family]}/{BITS[family]}") for number in (NEIGHBOUR, SECOND)]
    with hub.socket("A", family) as client, hub.socket(place, family, 5353) as server:
        for times in (1, 2):
            ask(client, server, RESOLVER[family], 53)
            assert hub.world.used(sold) == tuple(times * each for each in once(family))
    assert [hub.world.used(other) for other in others] == [(0, 0)] * 2


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", ["LAN", "internet"])
def test_two_resolvers_asked_from_one_port_are_charged_apart(hub: Star, place: str, family: int) -> None:
    redirect(hub, family, place, "-p udp --dport 53")
    first, second = (hub.sell(NEIGHBOUR, f"{each[family]}/{BITS[family]}") for each in (RESOLVER, OTHER))
    up = once(family)[0] - UP_BYTES
    with hub.socket("A", family) as client, hub.socket(place, family, 5353) as server:
        for one in (client, server):
            one.settimeout(30)
        for number in range(1, 6):
            client.sendto(bytes(10), (RESOLVER[family], 53))
            client.sendto(bytes(500), (OTHER[family], 53))
            questions = [server.recvfrom(2048) for _ in range(2)]
            for question, seen in questions:
                server.sendto(bytes(len(question) * 2), seen)
            answers = {sender[0]: len(answer) for answer, sender in (client.recvfrom(2048) for _ in range(2))}
            assert answers == {RESOLVER[family]: 20, OTHER[family]: 1000}
            assert hub.world.used(first) == (number * (10 + up), number * (20 + up))
            assert hub.world.used(second) == (number * (500 + up), number * (1000 + up))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_held_packet_is_asked_about_under_the_address_that_it_was_sent_to(
    hub: Star, family: int, protocol: str
) -> None:
    redirect(hub, family, "internet", f"-p {protocol} --dport 53")
    addresses = [ip_address(each[family]) for each in (RESOLVER, OTHER)]
    held: list[HeldPacket] = []

    async def scenario() -> None:
        enough = asyncio.Event()

        def on_held(packet: HeldPacket) -> None:
            held.append(packet)
            if len(held) == 2:
                enough.set()

        loop = asyncio.get_running_loop()
        hub.world.datapath.start(loop, on_held, lambda _hints: None)
        with ExitStack() as opened:
            kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
            if protocol == "tcp":
                opened.enter_context(hub.socket("internet", family, 5353, kind)).listen()
            port = 0
            for address in addresses:
                one = opened.enter_context(hub.socket("A", family, port, kind))
                one.setblocking(False)
                port = port or one.getsockname()[1]
                one.connect_ex((str(address), 53))
                if protocol == "udp":
                    one.send(address.packed[::-1] + bytes(12))  # as in DNS, where a question begins with a number
            await asyncio.wait_for(enough.wait(), 60)
            sold = [hub.sell(NEIGHBOUR, f"{address}/{BITS[family]}") for address in addresses]
            for packet in held:
                hub.world.datapath.verdict(packet.handle, Verdict.REPEAT)
            wait_until(lambda: all(hub.world.used(each)[0] for each in sold), "each is charged to its own")

    asyncio.run(scenario())
    assert {packet.destination for packet in held} == set(addresses)


def test_bulk_that_is_joined_by_the_card_is_charged_to_the_address_that_it_was_sent_to(hub: Star) -> None:
    sh("ethtool -K m0 gro on && ethtool -K lan0 gro on")
    redirect(hub, 4, "LAN", "-p tcp --dport 53")
    sold, other = hub.sell(NEIGHBOUR, f"{RESOLVER[4]}/32"), hub.sell(NEIGHBOUR, f"{ADDRESSES['LAN'][4]}/32")
    size = 3_000_000
    with hub.socket("LAN", 4, 5353, socket.SOCK_STREAM) as listening:
        listening.listen()
        with hub.socket("A", 4, 0, socket.SOCK_STREAM) as client:
            for one in (listening, client):
                one.settimeout(60)
            client.connect((RESOLVER[4], 53))
            server, _ = listening.accept()
            with server:
                server.settimeout(60)
                _transfer(client, server, size)
                _transfer(server, client, size)
    to, back = hub.world.used(sold)
    assert min(to, back) > size and max(to, back) < size * 1.1 and hub.world.used(other) == (0, 0)


def _transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Send this many bytes and receive them, in parts that fit the buffers."""
    for _ in range(size // 10_000):
        sender.sendall(bytes(10_000))
        got = 0
        while got < 10_000:
            got += len(receiver.recv(10_000 - got))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", ["LAN", "internet"])
@pytest.mark.parametrize("known", [True, False], ids=["a neighbour", "a stranger"])
def test_a_forwarded_port_of_our_own_address_is_free(hub: Star, place: str, family: int, known: bool) -> None:
    redirect(hub, family, place, f"-d {GATEWAY_TO_INTERNET[family]} -p udp --dport 8080")
    if not known:
        hub.world.datapath.forget_neighbours([NEIGHBOUR])
    with hub.socket("A", family) as client, hub.socket(place, family, 5353) as server:
        for _ in range(3):
            ask(client, server, GATEWAY_TO_INTERNET[family], 8080)
    assert hub.world.datapath.counters()["passed_to_queue"] == 0


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", ["LAN", "internet"])
def test_answers_of_a_forwarded_port_to_a_host_that_we_buy_are_our_purchase(hub: Star, place: str, family: int) -> None:
    """The neighbour bills us both directions: we bought the host that asks."""
    address = GATEWAY_TO_INTERNET[family]
    redirect(hub, family, place, f"-d {address} -p udp --dport 8080")
    bought = hub.buy(NEIGHBOUR, f"{ADDRESSES['behind A'][family]}/{BITS[family]}")
    with hub.socket("behind A", family) as client, hub.socket(place, family, 5353) as server:
        for times in (1, 2):
            ask(client, server, address, 8080)
            assert hub.world.used(bought) == tuple(times * each for each in once(family)[::-1])


@pytest.mark.parametrize("place", ["LAN", "internet"])
def test_a_payment_service_behind_a_forwarded_port_has_its_lanes_rate(hub: Star, place: str) -> None:
    address = GATEWAY_TO_INTERNET[4]
    redirect(hub, 4, place, f"-d {address} -p udp --dport 9735")
    service = (FreeRule(ip_network(address), socket.IPPROTO_UDP, 9735),)
    applied(hub, own_services=service, lane_bytes_s=1, lane_burst_bytes=20_000)
    with hub.socket("A", 4) as client, hub.socket(place, 4, 5353) as server:
        ask(client, server, address, 9735)
        counters = hub.world.datapath.counters()
        assert counters["lane_bytes"] == sum(once(4)), "both directions"
        for _ in range(50):
            client.sendto(bytes(1000), (address, 9735))
        wait_until(lambda: hub.world.datapath.counters()["lane_over_rate"] > 25, "the rest is above the rate")
        counters = hub.world.datapath.counters()
        assert counters["lane_bytes"] <= 20_000 and counters["passed_to_queue"] == 0


def test_without_such_a_rule_nothing_is_noted(hub: Star) -> None:
    sh("iptables -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    applied(hub)
    hub.sell(NEIGHBOUR, f"{ADDRESSES['internet'][4]}/32")
    hub.talk("A", "internet", 4)
    assert not table(hub, layout.SENT).all_keys()
    redirect(hub, 4, "LAN", "-p udp --dport 53")
    hub.talk("A", "internet", 4)
    assert table(hub, layout.SENT).all_keys()


RULES = {
    "iptables": ("iptables-nft -t nat -A PREROUTING -p udp -j REDIRECT", "iptables-nft -t nat -F"),
    "legacy": ("iptables-legacy -t nat -A PREROUTING -p udp -j REDIRECT", "iptables-legacy -t nat -F"),
    "nft": (
        "nft 'add table inet t { chain c { type nat hook prerouting priority -100; }; }' && "
        "nft add rule inet t c udp dport 53 redirect",
        "nft delete table inet t",
    ),
}


@pytest.mark.parametrize("kind", RULES)
def test_rules_that_rewrite_destinations_are_seen_and_no_others(hub: Star, kind: str) -> None:
    add, remove = RULES[kind]
    command = "iptables-legacy" if kind == "legacy" else "iptables-nft"
    sh(f"{command} -t nat -A POSTROUTING -j MASQUERADE && {command} -t mangle -A PREROUTING -j ACCEPT")
    assert not rewrites.may_happen({4}) and not rewrites.may_happen({6})
    sh(add)
    assert rewrites.may_happen({4}) and rewrites.may_happen({6}) == (kind == "nft")
    sh(remove)
    assert not rewrites.may_happen({4, 6})
