"""Who pays if somebody tries to get packets carried unpaid, or if honest packets are cut into fragments."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from crafted import send
from kernel_lab import GATEWAY_TO_CLIENT, INTERNET, desired, dropped, sh
from meter_lab import NEIGHBOUR, wait_until
from star_lab import ADDRESSES, BITS, DOWN_BYTES, SECOND, UP_BYTES, Star, neighbours, once, star, table

from core_tests.hostile import udp
from ngp.core.kernel import HeldPacket, KernelNeighbour, Verdict
from ngp.modules.network import layout
from ngp.modules.network.meter import table_sizes

COMMAND = {4: "iptables", 6: "ip6tables"}
LONG_BYTES = 4000
# Each of three fragments has its own headers.
LONG = {4: LONG_BYTES + 8 + 3 * 20, 6: LONG_BYTES + 8 + 3 * 48}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Star]:
    with star(tmp_path) as built:
        yield built


def _ask_for_much(client: socket.socket, server: socket.socket) -> None:
    for one in (client, server):
        one.settimeout(30)
    client.sendto(bytes(UP_BYTES), server.getsockname()[:2])
    question, seen = server.recvfrom(2048)
    server.sendto(bytes(LONG_BYTES), seen)
    assert (len(question), len(client.recv(65536))) == (UP_BYTES, LONG_BYTES)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("tracks", [True, False], ids=["put together at the gate", "each for itself"])
@pytest.mark.parametrize("place", ["B", "behind B", "LAN"])
def test_every_fragment_of_an_answer_is_paid_by_its_receiver(hub: Star, place: str, tracks: bool, family: int) -> None:
    """Only the first fragment has ports, so the meter must know the others by it.

    With connection tracking the gate sees one whole packet, and egress sees fragments.
    """
    if tracks:
        sh(f"{COMMAND[family]} -t nat -A POSTROUTING -o up0 -j MASQUERADE")
    asked, asks = f"{ADDRESSES[place][family]}/{BITS[family]}", f"{ADDRESSES['A'][family]}/{BITS[family]}"
    sold, other, bought = hub.sell(NEIGHBOUR, asked), hub.sell(SECOND, asks), hub.buy(NEIGHBOUR, asks)
    with hub.socket("A", family) as client, hub.socket(place, family, 5000) as server:
        _ask_for_much(client, server)
        _ask_for_much(client, server)
    assert hub.world.used(sold) == (2 * once(family)[0], 2 * LONG[family])
    assert hub.world.used(other) == (0, 0) and hub.world.used(bought)[0] == 0


@pytest.mark.parametrize("family", [4, 6])
def test_every_fragment_of_a_question_is_paid_by_its_sender(hub: Star, family: int) -> None:
    sold, other = (
        hub.sell(number, f"{ADDRESSES[name][family]}/{BITS[family]}")
        for number, name in ((NEIGHBOUR, "B"), (SECOND, "A"))
    )
    with hub.socket("A", family) as client, hub.socket("B", family, 5000) as server:
        for one in (client, server):
            one.settimeout(30)
        client.sendto(bytes(LONG_BYTES), server.getsockname()[:2])
        question, seen = server.recvfrom(65536)
        server.sendto(bytes(LONG_BYTES), seen)
        assert len(question) == len(client.recv(65536)) == LONG_BYTES
    assert (hub.world.used(sold), hub.world.used(other)) == ((LONG[family],) * 2, (0, 0))


def test_what_a_neighbour_sends_under_our_own_address_is_no_answer_of_a_forwarded_port(hub: Star) -> None:
    """Linux accepts IPv6 packets that have one of its own addresses as their source.

    Answers of a forwarded port are free under such an address, but they never come from the mesh.
    """
    third, ours, port = bytes.fromhex("020000000009"), GATEWAY_TO_CLIENT[6], 53
    to_lan = f"-j DNAT --to-destination [{ADDRESSES['LAN'][6]}]:5353"
    sh(f"ip6tables -t nat -A PREROUTING -i m0 -p udp --dport {port} {to_lan}")
    sh(f"ip6tables -t raw -A PREROUTING -m mac --mac-source {third.hex(':')} -j NOTRACK")  # as if forgotten
    hub.world.datapath.apply(desired(buys=True, lan_interfaces=("lan0",)))
    hub.world.datapath.set_neighbours([*neighbours(hub), KernelNeighbour(9, "m0", third, (), True, True)])
    with hub.socket("A", 6) as client, hub.socket("LAN", 6, 5353) as server:
        for one in (client, server):
            one.settimeout(30)
        client.sendto(bytes(UP_BYTES), (ours, port))
        server.sendto(bytes(DOWN_BYTES), server.recvfrom(2048)[1])
        assert len(client.recv(2048)) == DOWN_BYTES
        to = client.getsockname()[1]
        before = hub.world.datapath.counters()["uncovered"]
        send(hub.world, [udp(ours, ADDRESSES["A"][6], to, b"free?", from_port=port)], source=third)
        wait_until(lambda: hub.world.datapath.counters()["uncovered"] > before, "nobody pays for it")


def _mix(hash_: int, words: int) -> int:
    hash_ = (hash_ ^ words) * 0x9E3779B97F4A7C15 & 2**64 - 1
    return hash_ ^ hash_ >> 29


def _plain_key(from_port: int, to: str, to_port: int) -> int:
    """Return the key that a UDP flow of A would have if the hash were not keyed with a secret."""
    ports = [int.from_bytes(port.to_bytes(2, "big"), sys.byteorder) for port in (from_port, to_port)]
    ends = [int.from_bytes(ip_address(each).packed, sys.byteorder) for each in (ADDRESSES["A"][4], to)]
    hash_ = _mix(_mix(socket.IPPROTO_UDP, ports[0] << 16 | ports[1]), ends[0] << 32 | ends[1])
    for _ in range(3):
        hash_ = _mix(hash_, 0)
    return hash_ >> 32 | 1


def test_no_other_packet_takes_the_place_of_one_on_its_way_to_the_gate(hub: Star) -> None:
    """A packet to a forwarded port is free, and a packet is recognised at the gate by a hash of 32 bits.

    Without a secret in the hash, a packet to the internet could be taken for a free one.
    """
    ours = GATEWAY_TO_CLIENT[4]
    sh(f"iptables -t nat -A PREROUTING -i m0 -p udp --dport 53 -j DNAT --to-destination {ADDRESSES['LAN'][4]}:5353")
    hub.world.datapath.apply(desired(buys=True, lan_interfaces=("lan0",)))
    for from_port in range(4000, 5000):
        keys = {_plain_key(from_port, INTERNET[4], port): port for port in range(1024, 65536)}
        found = ((_plain_key(from_port, ours, port), port) for port in range(1024, 65536))
        pair = next(((keys[key], port) for key, port in found if key in keys), None)
        if pair:
            break
    assert pair, "the product of two times 64,512 ports is more than 31 bits can tell apart"
    held: list[HeldPacket] = []

    def is_noted(to: str) -> bool:
        notes = table(hub, layout.SENT).items()
        return any(flow[16:20] == ip_address(to).packed for _, flow in notes)

    async def scenario() -> None:
        again = asyncio.Event()

        def on_held(packet: HeldPacket) -> None:
            held.append(packet)
            if len(held) == 1:
                one.sendto(b"", (ours, pair[1]))
                wait_until(lambda: is_noted(ours), "the other packet is noted")
                hub.world.datapath.verdict(packet.handle, Verdict.REPEAT)
            else:
                again.set()

        hub.world.datapath.start(asyncio.get_running_loop(), on_held, lambda _hints: None)
        with hub.socket("A", 4, from_port) as one:
            one.sendto(b"", (INTERNET[4], pair[0]))
            await asyncio.wait_for(again.wait(), 60)

    asyncio.run(scenario())
    assert {str(packet.destination) for packet in held} == {INTERNET[4]}


def test_a_neighbour_that_changes_gets_no_full_bucket_for_it(hub: Star) -> None:
    """A neighbour itself says which addresses are its own, as often as it likes: that must not fill its bucket."""

    def bucket() -> list[int]:
        entries = map(layout.NEIGHBOUR.unpack, (value for _, value in table(hub, layout.NEIGHBOURS).items()))
        return next(kept for number, _, *kept, _ in entries if number == NEIGHBOUR)

    assert bucket() == [0, 0, 0, 0]
    assert dropped(hub.world.lab.client, INTERNET[4])
    had = bucket()
    others = tuple(ip_address(text) for text in (ADDRESSES["A"][4], "10.77.1.77"))
    hub.world.datapath.set_neighbours([hub.world.neighbour(sells_to_us=True, has_paid=True, local_addresses=others)])
    assert any(had) and bucket() == had


def test_a_small_router_remembers_fewer_flows() -> None:
    """A flow takes 256 bytes, and customers may begin as many flows as they like."""
    entries = {size: table_sizes(size)[layout.FLOWS] for size in (1000, 16_384, 131_072, 1_000_000)}
    assert entries == {1000: 16_384, 16_384: 65_536, 131_072: layout.FLOWS_MOST, 1_000_000: layout.FLOWS_MOST}
    assert all(table_sizes(size)[layout.PLACES] == number for size, number in entries.items())
