"""The meter on the real kernel: its bills against the receivers' counts, and the cut."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from kernel_lab import CLIENT, INTERNET, desired, dropped, passes, python, sh
from meter_lab import NEIGHBOUR, PAYER, PRICE, World, contract_id, metered, received, true_wire, wait_until

from ngp.core.kernel import Grant, HeldPacket, Hint, HintKind, Verdict
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.errors import KernelError
from ngp.ports.network import FreeRule

HEADERS = {4: 28, 6: 48}
UDP_SEND_ON = """
import signal, socket, sys
going = [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
address, size, sent = sys.argv[1], int(sys.argv[2]), 0
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print('sends', flush=True)
while going:
    s.sendto(bytes(size), (address, 9))
    sent += 1
print(sent)
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as built:
        yield built


def host(family: int) -> str:
    return f"{INTERNET[family]}/{32 if family == 4 else 128}"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("prefix", [False, True])
def test_tcp_is_billed_as_the_receivers_count_it(world: World, family: int, prefix: bool) -> None:
    true_wire(world)
    contract = world.grant(("10.77.0.0/16", "fd00:77::/32")[family == 6] if prefix else host(family))
    world.tcp_both_ways(INTERNET[family], 3_000_000)
    wait_until(
        lambda: (
            world.used(contract) == (received(world.lab.internet, family)[1], received(world.lab.client, family)[1])
        ),
        "the meter and the receivers agree",
    )
    packets, _ = received(world.lab.internet, family)
    assert packets > 2000, "superpackets would hide headers: the lab is not a wire"
    assert min(world.used(contract)) > 3_000_000


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("segment", [0, 500])
def test_udp_is_billed_as_the_receivers_count_it(world: World, family: int, segment: int) -> None:
    true_wire(world)
    contract = world.grant(host(family))
    world.send_udp(INTERNET[family], 4200, 30, segment) if segment else world.send_udp(INTERNET[family], 1000, 30)
    each = 8 * (500 + HEADERS[family]) + 200 + HEADERS[family] if segment else 1000 + HEADERS[family]
    wait_until(lambda: received(world.lab.internet, family)[1] == 30 * each, "all datagrams arrived")
    assert world.used(contract)[0] == 30 * each


@pytest.mark.parametrize("family", [4, 6])
def test_a_contract_is_cut_at_its_limit_to_the_packet(world: World, family: int) -> None:
    true_wire(world)
    contract = world.grant(host(family), limit_bytes=123_456)
    world.send_udp(INTERNET[family], 1000 - HEADERS[family], 200)
    wait_until(lambda: world.refused() == 77, "the rest is refused")
    assert received(world.lab.internet, family) == (123, 123_000)
    assert world.used(contract)[0] == 123_000


def test_downloads_are_cut_at_the_same_limit(world: World) -> None:
    contract = world.grant(host(4), limit_bytes=84 * 7)
    assert all(passes(world.lab.client, INTERNET[4]) for _ in range(3))
    assert all(dropped(world.lab.client, INTERNET[4]) for _ in range(2)), "of 7 packets the last is a request"
    assert world.used(contract) == (84 * 4, 84 * 3)


def test_all_contracts_are_blocked_at_once_until_they_are_granted_again(world: World) -> None:
    contract, wide = world.grant(host(4)), world.grant("fd00:77::/32")
    assert passes(world.lab.client, INTERNET[4]) and passes(world.lab.client, INTERNET[6])
    world.datapath.block_all()
    assert dropped(world.lab.client, INTERNET[4]) and dropped(world.lab.client, INTERNET[6])
    assert world.used(contract) == (84, 84) and world.used(wide) == (104, 104)
    world.grant(host(4), contract=contract)
    assert passes(world.lab.client, INTERNET[4]) and dropped(world.lab.client, INTERNET[6])


def test_never_too_much_under_concurrent_senders_and_top_ups(world: World) -> None:
    true_wire(world)
    contract, granted = contract_id(), 0
    world.grant(host(4), contract=contract, limit_bytes=granted)
    senders = [
        subprocess.Popen(python(world.lab.client, UDP_SEND_ON, INTERNET[4], str(size)), stdout=subprocess.PIPE)
        for size in (72, 472, 972)
    ]
    for sender in senders:
        assert sender.stdout is not None and sender.stdout.readline() == b"sends\n"
    for _ in range(20):
        for _ in range(50):
            granted += 3001
            world.datapath.grant([_generous(contract, granted)])
            assert sum(world.used(contract)) <= granted
        # More than one packet of each sender: each sender may have one that was refused while the limit was raised.
        enough = world.refused() + 10
        wait_until(lambda than=enough: world.refused() > than, "the limit is reached")
    for sender in senders:
        sender.terminate()
    sent = sum(int(sender.communicate(timeout=60)[0]) for sender in senders)
    found = world.reading(contract)
    assert granted - 1000 < found.used_to_bytes <= granted
    wait_until(lambda: received(world.lab.internet, 4)[1] == found.used_to_bytes, "delivered is what was charged")
    assert received(world.lab.internet, 4)[0] + world.refused() == sent
    assert world.account().spent_units == found.used_to_bytes * PRICE
    assert world.datapath.counters()["contended"] == 0


def _generous(contract: bytes, granted: int) -> Grant:
    return Grant(contract, NEIGHBOUR, Role.SERVER, PackedPrefix.of(ip_network(host(4))), granted, 600, PAYER, PRICE)


def test_expired_and_blocked_are_dropped_and_never_queued(world: World) -> None:
    contract = world.grant(host(4))
    assert passes(world.lab.client, INTERNET[4])
    world.grant(host(4), contract=contract, expires_in_s=0.05)
    wait_until(lambda: dropped(world.lab.client, INTERNET[4]), "expiry")
    world.grant(host(6), blocked=True)
    assert dropped(world.lab.client, INTERNET[6])
    counters = world.datapath.counters()
    assert counters["refused_expired"] >= 1 and counters["refused_blocked"] >= 1
    assert counters["passed_to_queue"] == 0


def test_blocked_host_within_a_granted_prefix(world: World) -> None:
    world.grant("10.77.0.0/16")
    blocked = world.grant(host(4), blocked=True)
    assert dropped(world.lab.client, INTERNET[4])
    world.datapath.revoke([blocked])
    assert passes(world.lab.client, INTERNET[4])


def test_another_mac_or_interface_is_not_covered(world: World) -> None:
    contract = world.grant(host(4))
    sh("ip link set c0 address 02:00:00:00:00:99", world.lab.client)
    sh(f"ip neigh replace {CLIENT[4]} lladdr 02:00:00:00:00:99 dev m0")
    assert dropped(world.lab.client, INTERNET[4])
    assert world.used(contract) == (0, 0)


@pytest.mark.parametrize("family", [4, 6])
def test_free_destinations_are_free_by_protocol_and_port_in_both_directions(world: World, family: int) -> None:
    wide, icmp = ip_network(INTERNET[family]).supernet(8), (1, 58)[family == 6]
    contract = world.grant(host(family), limit_bytes=0)
    world.datapath.apply(desired(free=(FreeRule(wide, 17, 9), FreeRule(ip_network(host(family)), icmp))))
    assert passes(world.lab.client, INTERNET[family]), "free by protocol, both ways"
    true_wire(world)
    world.send_udp(INTERNET[family], 100, 5, port=9)
    world.send_udp(INTERNET[family], 100, 5, port=10)
    wait_until(lambda: world.refused() == 5, "the other port isn't free")
    assert received(world.lab.internet, family)[0] == 5
    assert world.used(contract) == (0, 0)
    world.datapath.apply(desired(free=()))
    assert dropped(world.lab.client, INTERNET[family])


ERROR = """
import socket, sys
address, limit, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
six = ':' in address
s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(30)
s.setsockopt(*((41, 25, 1) if six else (0, 11, 1)))
s.setsockopt(*((41, 16, limit) if six else (0, 2, limit)))
s.setsockopt(*((41, 23, 2) if six else (0, 10, 2)))
s.sendto(bytes(size), (address, 33434))
try: s.recv(1)
except OSError as error: print(error.errno)
"""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("too_big", [False, True])
def test_icmp_errors_belong_to_what_they_quote(world: World, family: int, too_big: bool) -> None:
    far, bits = {4: "10.77.9.9", 6: "fd00:77:9::9"}[family], {4: 32, 6: 128}[family]
    sh(f"ip route add {far}/{bits} via {INTERNET[family]}")
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", world.lab.internet)
    sh(
        "ip link add far type veth peer name far2 && ip link set far2 up && ip link set far mtu 1280 up",
        world.lab.internet,
    )
    sh(f"ip route add {far}/{bits} dev far", world.lab.internet)
    true_wire(world)
    contract = world.grant(f"{far}/{bits}")
    size = 1300 if too_big else 100
    done = subprocess.run(
        python(world.lab.client, ERROR, far, "64" if too_big else "2", str(size)), capture_output=True, text=True
    )
    assert int(done.stdout or 0) == (90 if too_big else 113), "EMSGSIZE or EHOSTUNREACH came back to the sender"
    packets, size_back = received(world.lab.client, family)
    assert packets == 1 and world.used(contract) == (size + HEADERS[family], size_back)


def test_without_a_contract_downloads_from_upstream_are_dropped(world: World) -> None:
    assert dropped(world.lab.internet, CLIENT[4])
    assert world.datapath.counters()["uncovered"] == 1
    contract = world.grant("0.0.0.0/0")
    assert passes(world.lab.internet, CLIENT[4]), "an inbound connection under a contract for everything"
    assert world.used(contract) == (84, 84)


def test_gateway_itself_is_free(world: World) -> None:
    contract = world.grant("0.0.0.0/0")
    assert passes(world.lab.client, "10.77.1.1") and passes(world.lab.client, "10.77.2.1")
    assert world.used(contract) == (0, 0)


def test_held_packets_are_charged_when_released(world: World) -> None:
    async def scenario() -> list[HeldPacket]:
        held: list[HeldPacket] = []

        def on_held(packet: HeldPacket) -> None:
            held.append(packet)
            if len(held) == 1:
                world.grant(host(4))
            world.datapath.verdict(packet.handle, Verdict.REPEAT)

        loop = asyncio.get_running_loop()
        world.datapath.start(loop, on_held, lambda hints: None)
        return held if await loop.run_in_executor(None, passes, world.lab.client, INTERNET[4]) else []

    (packet,) = asyncio.run(scenario())
    assert packet.link == ("m0", world.mac)
    (reading,) = world.datapath.read()
    assert (reading.used_to_bytes, reading.used_from_bytes) == (84, 84)
    assert world.datapath.read() == []


def test_a_packet_that_was_refused_just_before_its_contract_could_pay_is_held(world: World) -> None:
    """Its contract came between the two rules: then it was dropped, as few first packets over several hops were."""
    sh("iptables -t security -I FORWARD -i m0 -j NGP_UNPAID")  # past the rule that charges, as if it had come too early
    paying = world.grant(host(4))
    world.send_udp(INTERNET[4], 100, 3)
    assert world.datapath.counters()["passed_to_queue"] == 3
    for unable in ({"limit_bytes": 0}, {"blocked": True}, {"expires_in_s": 0.0}):
        world.grant(host(4), contract=paying, **unable)
        world.send_udp(INTERNET[4], 100, 3)
    world.grant(host(4), contract=paying)
    world.limit(0)
    world.send_udp(INTERNET[4], 100, 3)
    assert world.datapath.counters()["passed_to_queue"] == 3
    assert world.used(paying) == (0, 0)


def test_few_packets_of_a_destination_are_held_and_floods_stay_in_the_kernel(world: World) -> None:
    world.datapath.apply(desired(neighbour_rate=1, neighbour_burst=5))
    world.send_udp(INTERNET[4], 100, 50)
    counters = world.datapath.counters()
    assert (counters["passed_to_queue"], counters["asked_before"]) == (8, 42)
    world.send_udp(" ".join(f"10.77.2.{100 + last}" for last in range(20)), 100, 1)
    counters = world.datapath.counters()
    assert counters["passed_to_queue"] + counters["over_rate"] == 28
    assert counters["over_rate"] >= 10


def test_hints_come_once(world: World) -> None:
    contract = world.grant(host(4), limit_bytes=10_000, low_water_bytes=5_000)
    empty = world.grant(host(6), limit_bytes=0)

    async def scenario() -> list[Hint]:
        hints: list[Hint] = []
        enough = asyncio.Event()

        def on_hints(arrived: object) -> None:
            hints.extend(arrived)  # type: ignore[call-overload]
            if len(hints) >= 4:
                enough.set()

        loop = asyncio.get_running_loop()
        world.datapath.start(loop, lambda held: None, on_hints)
        await loop.run_in_executor(None, world.send_udp, INTERNET[6], 100, 5)
        await loop.run_in_executor(None, world.send_udp, INTERNET[4], 972, 20)
        world.grant(host(4), contract=contract, limit_bytes=20_000)
        await loop.run_in_executor(None, world.send_udp, INTERNET[4], 972, 20)
        await asyncio.wait_for(enough.wait(), 60)
        return hints

    low, met = HintKind.LOW, HintKind.EXHAUSTED
    assert asyncio.run(scenario()) == [Hint(met, empty), Hint(low, contract), *[Hint(met, contract)] * 2]
    assert world.reading(contract).exhausted
    world.grant(host(4), contract=contract, limit_bytes=20_001)
    assert not world.reading(contract).exhausted, "nothing was refused at that limit"


def test_a_reused_slot_counts_from_its_own_start(world: World) -> None:
    world.datapath.clean_up(leave_closed=False)
    world.datapath.set_up(desired(contracts_max=1))
    world.datapath.set_neighbours([world.neighbour()])
    world.limit()
    first = world.grant(host(4), limit_bytes=84 * 2)
    assert passes(world.lab.client, INTERNET[4]) and dropped(world.lab.client, INTERNET[4])
    with pytest.raises(KernelError, match="CONTRACTS_MAX"):
        world.grant(host(6))
    assert world.used(first) == (84, 84) and world.reading(first).exhausted
    world.datapath.revoke([first, contract_id()])
    assert world.datapath.read([first]) == []
    second = world.grant(host(4), limit_bytes=1000 + 84 * 2, used_to_base_bytes=600, used_from_base_bytes=400)
    assert world.used(second) == (600, 400) and not world.reading(second).exhausted
    assert passes(world.lab.client, INTERNET[4]) and dropped(world.lab.client, INTERNET[4])
    assert world.used(second) == (684, 484)
    third = contract_id()
    world.datapath.revoke([second])
    world.grant(host(4), contract=third, limit_bytes=500, used_to_base_bytes=600)
    assert dropped(world.lab.client, INTERNET[4]), "granted less than was used before: nothing passes"
