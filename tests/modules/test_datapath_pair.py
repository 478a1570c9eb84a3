"""Two real meters count the same packets, the seller's and the buyer's: the buyer's counts what the seller's bills."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from crafted import send
from kernel_lab import CLIENT, GATEWAY_TO_CLIENT, INTERNET, desired, passes, sh
from meter_lab import GENEROUS, World, contract_id, drop_datagrams, metered, wait_until

from core_tests.hostile import PORT, udp
from core_tests.namespaces import inside
from ngp.core.kernel import Grant, HeldPacket, KernelNeighbour, Reading, Verdict
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.modules.network.datapath import Datapath

SELLER = 3
BITS = {4: 32, 6: 128}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}


class Pair:
    """The lab's gateway sells to its client, and both meter."""

    def __init__(self, world: World, buyers_state: Path) -> None:
        self.world, self._state = world, buyers_state
        self.buyer = Datapath(buyers_state)
        self.sold = self.bought = b""

    def start_buyer(self) -> None:
        """Begin the buyer's meter, or take over what another daemon of the buyer's left running."""
        gateway = bytes.fromhex(sh("ip -br link show m0").split()[2].replace(":", ""))
        own = tuple(ip_address(GATEWAY_TO_CLIENT[family]) for family in (4, 6))
        self.buyer = Datapath(self._state)
        with inside(self.world.lab.client):
            self.buyer.set_up(desired(mesh_interfaces=("c0",), upstream_interfaces=(), sells=False, buys=True))
            self.buyer.set_neighbours([KernelNeighbour(SELLER, "c0", gateway, own, False, True)])

    def clean_up(self) -> None:
        with inside(self.world.lab.client):
            self.buyer.clean_up(leave_closed=False)

    def agree(self, destination: str, limit_bytes: int = GENEROUS) -> None:
        """Grant the contract in two daemons' order: the client's meter has it before the client's accept leaves."""
        self.bought = contract_id()
        grant = Grant(
            self.bought, SELLER, Role.CLIENT, PackedPrefix.of(ip_network(destination)), limit_bytes, expires_in_s=600
        )
        self.buyer.grant([grant])
        self.sold = self.world.grant(destination, limit_bytes=limit_bytes)

    def used(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Bytes to and from the destination, by the seller's and by the buyer's meter."""
        (found,) = self.buyer.read([self.bought])
        return self.world.used(self.sold), (found.used_to_bytes, found.used_from_bytes)

    def same(self) -> bool:
        """Say whether both meters show the same."""
        sold, bought = self.used()
        return sold == bought


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with metered(tmp_path) as world, contextlib.ExitStack() as undo:
        found = Pair(world, tmp_path / "buyer")
        undo.callback(found.clean_up)
        found.start_buyer()
        yield found


async def _negotiate(pair: Pair, destination: str, held_least: int, send: object, *arguments: object) -> None:
    """Send before there is a contract; agree on one when enough packets are held, and release them.

    If one packet is enough (a ping), we agree while its sender waits for the answer. Several packets are all sent
    before we agree: a packet sent when only one of the meters has the contract would be counted by that meter only.
    """
    held: list[HeldPacket] = []

    def agree_and_release() -> None:
        if not pair.sold:
            pair.agree(destination)
        while held:
            pair.world.datapath.verdict(held.pop(0).handle, Verdict.REPEAT)

    def on_held(packet: HeldPacket) -> None:
        held.append(packet)
        if held_least == 1:
            agree_and_release()

    loop = asyncio.get_running_loop()
    pair.world.datapath.start(loop, on_held, lambda hints: None)
    await loop.run_in_executor(None, send, *arguments)  # type: ignore[arg-type]
    while len(held) < held_least and not pair.sold:
        await asyncio.sleep(0.01)
    agree_and_release()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", ["ping", "udp", "tcp"])
def test_both_meters_agree_from_the_first_packet_on(pair: Pair, family: int, wide: bool, kind: str) -> None:
    address = INTERNET[family]
    assert passes(pair.world.lab.client, GATEWAY_TO_CLIENT[family]), "the router's own address costs nothing"
    destination = EVERYTHING[family] if wide else f"{address}/{BITS[family]}"
    if kind == "ping":
        asyncio.run(_negotiate(pair, destination, 1, passes, pair.world.lab.client, address))
    elif kind == "tcp":
        asyncio.run(_negotiate(pair, destination, 1, pair.world.tcp_both_ways, address, 300_000))
    else:  # of 20 the server holds 8 and drops the rest
        asyncio.run(_negotiate(pair, destination, 8, pair.world.send_udp, address, 100, 20))
        pair.world.send_udp(address, 100, 5)
    wait_until(pair.same, "both meters agree")
    (to, back), _ = pair.used()
    least = {"ping": 84, "udp": 13 * 128, "tcp": 300_000}[kind]
    assert to >= least and (back >= least or kind == "udp")


@pytest.mark.parametrize("family", [4, 6])
def test_both_meters_count_what_is_forwarded_to_the_port_of_our_messages(pair: Pair, family: int) -> None:
    """Anybody can send to that port. Only messages of a neighbour itself arrive with the hop limit 255."""
    client, internet, other = CLIENT[family], INTERNET[family], {4: "10.77.9.9", 6: "fd00:77:9::9"}[family]
    assert passes(pair.world.lab.client, GATEWAY_TO_CLIENT[family]), "next hops are known"
    pair.agree(EVERYTHING[family])
    sh(f"ip addr add {other}/{BITS[family]} dev lo")
    domain, level, option = (
        (socket.AF_INET, socket.IPPROTO_IP, socket.IP_TTL)
        if family == 4
        else (socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    )
    drop_datagrams(pair.world.lab.client)
    with socket.socket(domain, socket.SOCK_DGRAM) as gateway:
        gateway.bind((other, 0))
        gateway.setsockopt(level, option, 255)
        gateway.sendto(bytes(100), (client, PORT))
    number, size = 20, 1000
    send(pair.world, [udp(internet, client, PORT, bytes(size))], upload=False, times=number)
    pair.world.send_udp(internet, size, number, port=PORT)
    each = number * (size + {4: 28, 6: 48}[family])
    wait_until(lambda: pair.used() == ((each, each), (each, each)), "both meters count it, and no message")


def test_both_meters_stop_at_the_limit_and_the_client_lets_pass(pair: Pair) -> None:
    pair.agree(f"{INTERNET[4]}/32", limit_bytes=1000)
    pair.world.send_udp(INTERNET[4], 272, 5)
    wait_until(lambda: pair.world.refused() == 2, "the server saw all five, and refused two")
    assert pair.used() == ((900, 0), (900, 0))
    (bought,) = pair.buyer.read([pair.bought])
    assert bought.exhausted


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("watched", [False, True])
def test_what_met_the_limit_is_on_the_next_contract_only_if_no_daemon_watched(
    pair: Pair, family: int, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose client is away ends a used-up contract; it holds, and then charges, what comes after that. If the
    client is there, the server refused what came before both ended the contract."""
    monkeypatch.setattr("ngp.modules.network.early._MAX_AGE_NS", 600_000_000_000)  # an emulated machine is slow
    destination = f"{INTERNET[family]}/{BITS[family]}"
    pair.agree(destination, limit_bytes=1000)
    pair.world.send_udp(INTERNET[family], 272, 5)
    wait_until(lambda: pair.world.refused() == 2, "the server refused what was beyond the limit")
    pair.buyer.read(None)
    if not watched:
        pair.buyer.close()
        pair.start_buyer()
    pair.buyer.revoke([pair.bought])
    pair.agree(destination)
    assert _bought(pair).used_to_bytes == (0 if watched else 2 * (272 + {4: 28, 6: 48}[family]))


def test_what_was_sent_long_ago_or_to_another_is_not_counted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.world.send_udp(INTERNET[4], 100, 3)
    pair.world.send_udp("10.77.2.99", 100, 3)
    monkeypatch.setattr("ngp.modules.network.early._MAX_AGE_NS", 0)
    pair.agree(f"{INTERNET[4]}/32")
    assert pair.used() == ((0, 0), (0, 0))
    monkeypatch.undo()
    pair.agree(f"{INTERNET[4]}/32")
    assert _bought(pair).used_to_bytes == 0, "taken once"
    pair.agree("10.77.2.99/32", limit_bytes=200)
    assert _bought(pair).used_to_bytes == 200, "no more than what was granted"


def _bought(pair: Pair) -> Reading:
    (found,) = pair.buyer.read([pair.bought])
    return found
