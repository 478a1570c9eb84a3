"""Two links between the same two routers: one neighbour, one contract, whichever link packets and answers take."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from kernel_lab import INTERNET, desired, dropped, passes, sh
from meter_lab import NEIGHBOUR, World, metered, wait_until

from ngp.core.kernel import HeldPacket, KernelNeighbour, Verdict
from ngp.core.messages import Role
from ngp.modules.network.datapath import Datapath
from ngp.modules.network.first_links import FirstLinks

OTHER = 9
SECOND = {4: ("10.77.3.1", "10.77.3.2"), 6: ("fd00:77:3::1", "fd00:77:3::2")}
BEHIND = {4: "10.77.5.5", 6: "fd00:77:5::5"}
BITS = {4: 32, 6: 128}
PING = {4: 84, 6: 104}
WHO, ELSE = b"a" * 32, b"b" * 32


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Hosts behind the client send by m0 and get their answers by m1."""
    with metered(tmp_path, buys=True) as built:
        client = built.lab.client
        sh(f"ip link set m1x netns {client} name c1")
        for family, (ours, theirs) in SECOND.items():
            bits = {4: 24, 6: 64}[family]
            more = "nodad" if family == 6 else ""
            sh(f"ip addr add {ours}/{bits} dev m1 {more}")
            sh(
                f"ip addr add {theirs}/{bits} dev c1 {more} && ip addr add {BEHIND[family]}/{BITS[family]} dev lo",
                client,
            )
        sh("ip link set c1 up", client)
        for family, (_, theirs) in SECOND.items():
            wait_until(lambda f=family, t=theirs: _routed(BEHIND[f], BITS[f], t), "m1 is up")  # type: ignore[misc]
            # On a busy machine the first packets to a new link are lost, and a test sends a single one.
            wait_until(lambda t=theirs: _answers(t), "m1 carries packets")  # type: ignore[misc]
        built.datapath.set_neighbours(links(built))
        yield built


def _routed(address: str, bits: int, via: str) -> bool:
    return (
        subprocess.run(["ip", "route", "replace", f"{address}/{bits}", "via", via], capture_output=True).returncode == 0
    )


def _answers(address: str) -> bool:
    return subprocess.run(["ping", "-n", "-q", "-c", "1", "-W", "1", address], capture_output=True).returncode == 0


def links(world: World, second: bytes = WHO, **changes: object) -> list[KernelNeighbour]:
    """Describe both links of the client."""
    mac = bytes.fromhex(sh("cat /sys/class/net/c1/address", world.lab.client).strip().replace(":", ""))
    own = tuple(ip_address(text) for text in ("10.77.1.2", "fd00:77:1::2", SECOND[4][1], SECOND[6][1]))
    values: dict[str, object] = {"sells_to_us": True, "local_addresses": own, **changes}
    first = world.neighbour(identity=WHO, **values)
    return [first, world.neighbour(neighbour=OTHER, interface="m1", link_address=mac, identity=second, **values)]


def ping(world: World, family: int, wait_s: str = "30") -> bool:
    """Ping the internet from behind the client; say whether an answer came."""
    words = ["ping", "-n", "-q", "-c", "1", "-W", wait_s, "-I", BEHIND[family], INTERNET[family]]
    done = subprocess.run(["ip", "netns", "exec", world.lab.client, *words], capture_output=True, timeout=90)
    return done.returncode == 0


def once(family: int, times: int = 1) -> tuple[int, int]:
    return (PING[family] * times,) * 2


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("number", [NEIGHBOUR, OTHER])
@pytest.mark.parametrize("prefix", [False, True], ids=["host", "prefix"])
def test_answers_by_the_other_link_are_the_contracts(world: World, family: int, number: int, prefix: bool) -> None:
    destination = {4: "10.77.2.0/24", 6: "fd00:77:2::/64"}[family] if prefix else f"{INTERNET[family]}/{BITS[family]}"
    sold = world.grant(destination, neighbour=number)
    assert ping(world, family) and world.used(sold) == once(family)


@pytest.mark.parametrize("family", [4, 6])
def test_what_we_buy_counts_on_both_links(world: World, family: int) -> None:
    bought = world.grant(f"{BEHIND[family]}/{BITS[family]}", role=Role.CLIENT)
    sold = world.grant(f"{INTERNET[family]}/{BITS[family]}")
    sh(f"ping -n -q -c 1 -W 30 {BEHIND[family]}")  # out by m1, back by m0
    assert world.used(bought) == once(family) and world.used(sold) == (0, 0)
    sh(f"ping -n -q -c 1 -W 30 {SECOND[family][1]}")
    assert world.used(bought) == once(family), "its own addresses are free on both"


def test_another_identity_on_the_other_link_gets_nothing(world: World) -> None:
    world.datapath.set_neighbours(links(world, second=ELSE))
    sold = world.grant(f"{INTERNET[4]}/32")
    assert not ping(world, 4, "0.5")
    assert world.used(sold) == (PING[4], 0)
    world.datapath.set_neighbours(links(world))
    assert ping(world, 4) and world.used(sold) == (2 * PING[4], PING[4])


def test_a_link_that_is_forgotten_leaves_the_other_one_its_contracts(world: World) -> None:
    first, other = world.grant(f"{INTERNET[4]}/32"), world.grant(f"{INTERNET[6]}/128", neighbour=OTHER)
    world.datapath.revoke([first])
    world.datapath.forget_neighbours([NEIGHBOUR])
    client = world.lab.client
    sh(f"ip -6 route replace default via {SECOND[6][0]} && ip route replace default via {SECOND[4][0]}", client)
    assert ping(world, 6) and world.used(other) == once(6)
    assert not ping(world, 4, "0.5")
    again = world.grant(f"{INTERNET[4]}/32", neighbour=OTHER)
    world.datapath.set_neighbours(links(world))
    assert ping(world, 4) and world.used(again) == once(4)
    sh("ip route replace default via 10.77.1.1", client)
    assert ping(world, 4) and world.used(again) == once(4, 2)


def test_a_restart_goes_on_with_both_links(world: World) -> None:
    sold = world.grant(f"{INTERNET[4]}/32")
    world.datapath.close()
    world.datapath = Datapath(world.state)
    world.datapath.set_up(desired(buys=True))
    assert ping(world, 4) and world.used(sold) == once(4), "before the daemon knows anybody"
    anew = [(one, number) for one, number in zip(links(world), (21, 22), strict=True)]
    for one, number in anew:
        world.datapath.set_neighbours([KernelNeighbour(number, *_rest(one))])
        assert ping(world, 4), "the daemon numbers the links anew"
    assert world.used(sold) == once(4, 3)


def _rest(one: KernelNeighbour) -> tuple[object, ...]:
    return (
        *(one.interface, one.link_address, one.local_addresses, one.buys_from_us, one.sells_to_us),
        *(one.blocked, one.has_paid, one.was_paid, one.identity),
    )


def test_a_packet_that_is_held_on_the_other_link_goes_on_by_the_contract(world: World) -> None:
    sh(f"ip route replace default via {SECOND[4][0]}", world.lab.client)

    async def scenario() -> list[HeldPacket]:
        held: list[HeldPacket] = []

        def on_held(packet: HeldPacket) -> None:
            held.append(packet)
            world.grant(f"{INTERNET[4]}/32")
            world.datapath.verdict(packet.handle, Verdict.REPEAT)

        loop = asyncio.get_running_loop()
        world.datapath.start(loop, on_held, lambda _hints: None)
        assert await loop.run_in_executor(None, ping, world, 4)
        return held

    (packet,) = asyncio.run(scenario())
    assert packet.link[0] == "m1"
    assert dropped(world.lab.client, "10.77.2.9") and passes(world.lab.client, INTERNET[4])


def test_a_first_link_stays_first_until_it_is_gone() -> None:
    chosen = FirstLinks()
    for number in (5, 3):
        chosen.add(number, WHO)
    assert chosen.wanted(WHO, [5]) == {5: 5} and chosen.wanted(ELSE, [5]) == {}
    chosen.set_first(3, 5)
    assert (chosen.of(3), chosen.of(5), chosen.numbers_of(5)) == (5, 5, [5, 3]) and chosen
    assert chosen.wanted(WHO, [3, 5, 8]) == {3: 5, 5: 5}, "no matter which number is lower"
    chosen.renumber(5, 7)
    assert chosen.of(3) == 7
    chosen.remove(5, WHO)
    assert chosen.wanted(WHO, [3]) == {3: 3}
    chosen.set_first(3, 3)
    assert not chosen
