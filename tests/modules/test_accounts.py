"""Accounts on the real path: senders on two processors, contracts of several prices, one account that pays for all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from kernel_lab import CLIENT, INTERNET, dropped, passes, python, sh
from meter_lab import NEIGHBOUR, PAYER, PRICE, World, contract_id, metered, true_wire, wait_until

from ngp.core.kernel import Grant
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix

ADDRESSES = [f"10.77.2.{last}" for last in range(2, 10)]
SEND_ON = """
import signal, socket, sys
going = [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
size, segment, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if segment: s.setsockopt(17, 103, segment)
print('sends', flush=True)
while going:
    for address in addresses: s.sendto(bytes(size), (address, 9))
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as built:
        yield built


@contextlib.contextmanager
def senders(world: World, chance: random.Random) -> Iterator[None]:
    """Send to all addresses for as long as the block lasts, in several sizes, one of them superpackets."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for size, segment in ((72, 0), (472, 0), (972, 0), (4200, 500)):
            words = python(
                world.lab.client, SEND_ON, str(size), str(segment), *chance.sample(ADDRESSES, len(ADDRESSES))
            )
            running.append(subprocess.Popen(words, stdout=subprocess.PIPE))
        for sender in running:
            assert sender.stdout is not None and sender.stdout.readline() == b"sends\n"
        yield
    finally:
        for sender in running:
            sender.terminate()
        for sender in running:
            sender.communicate(timeout=60)


class Market:
    """Contracts of different prices on one account, and senders that use as much of them as they can."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.limits = {contract_id(): 0 for _ in ADDRESSES}
        self.prices = {contract: PRICE + number * 777_777 for number, contract in enumerate(self.limits)}
        for address in ADDRESSES[1:]:
            sh(f"ip addr add {address}/24 dev i0", world.lab.internet)
        for address in ADDRESSES:
            # Find the next hop's MAC first: packets that wait for it may get lost after they were charged.
            sh(f"ping -n -q -c 1 -W 30 {address}")
        true_wire(world)
        sh(f"iptables -t raw -I PREROUTING -s {CLIENT[4]} -d 10.77.2.0/24", world.lab.internet)

    def raise_contracts(self, by_bytes: int) -> None:
        """Raise the limits of all contracts."""
        grants = []
        for (contract, limit), address in zip(self.limits.items(), ADDRESSES, strict=True):
            self.limits[contract] = limit + by_bytes
            destination, price = ip_network(f"{address}/32"), self.prices[contract]
            grants.append(
                Grant(
                    contract, NEIGHBOUR, Role.SERVER, PackedPrefix.of(destination), limit + by_bytes, 600, PAYER, price
                )
            )
        self.world.datapath.grant(grants)

    def stop_contracts(self) -> None:
        """Lower the limits of all contracts to what they have used."""
        self.limits = self.used()
        self.raise_contracts(0)
        self.settle()
        self.limits = self.used()

    def check_contracts(self) -> None:
        """Check that no contract has used more than its limit."""
        for reading in self.world.datapath.read(list(self.limits)):
            assert reading.used_to_bytes + reading.used_from_bytes <= self.limits[reading.contract]

    def used(self) -> dict[bytes, int]:
        """Read what each contract used."""
        return {each.contract: each.used_to_bytes for each in self.world.datapath.read(list(self.limits))}

    def meet(self, counter: str) -> None:
        """Wait until more packets were refused for this reason than could be on their way."""
        enough = self.world.datapath.counters()[counter] + 20
        wait_until(lambda: self.world.datapath.counters()[counter] > enough, counter)

    def settle(self) -> None:
        """Wait until every packet that is on its way has left the meter."""
        asyncio.run(self.world.datapath.settled())

    def delivered(self) -> int:
        """Count the bytes that arrived."""
        return int(sh("iptables -t raw -nvxL PREROUTING", self.world.lab.internet).splitlines()[2].split()[1])


def test_never_too_much_of_an_account_under_many_senders_contracts_top_ups_refunds_and_ends_of_credit(
    world: World,
) -> None:
    """Superpackets are sent too. In each round the account's money ends first, then the contracts' data."""
    market, chance, limit = Market(world), random.Random(7), 0
    world.limit(0)
    market.raise_contracts(100_000)

    def spent_at_most(most_units: int) -> None:
        for _ in range(20):
            assert world.account().spent_units <= most_units
            market.check_contracts()

    with senders(world, chance):
        for _ in range(12):
            market.raise_contracts(1 << 30)
            for _ in range(10):  # top-ups
                limit += chance.randrange(50_000) * PRICE
                world.limit(limit)
                spent_at_most(limit)
            market.meet("refused_unpaid")
            credit = chance.randrange(1, 100_000) * PRICE
            world.limit(limit, credit_units=credit, credit_ends_in_s=600)
            spent_at_most(limit + credit)
            world.limit(limit, credit_units=credit, credit_ends_in_s=0)  # the credit ends
            market.settle()
            spent = world.account().spent_units
            spent_at_most(max(limit, spent))
            limit += 10_000_000 * PRICE
            world.limit(limit)
            spent_at_most(limit)
            limit -= 9_000_000 * PRICE  # a refund, perhaps of more than is left
            world.limit(limit)
            market.settle()
            spent = world.account().spent_units
            spent_at_most(max(limit, spent))
            market.stop_contracts()  # then the contracts' limits are raised, by a few packets each, many times
            limit = max(limit, spent) + (1 << 50)
            world.limit(limit)
            for _ in range(30):
                market.raise_contracts(100)
                market.check_contracts()
            market.meet("refused_exhausted")
            limit = world.account().spent_units
            world.limit(limit)
            market.settle()
            limit = max(limit, world.account().spent_units)
    market.settle()
    used = market.used()
    assert min(used.values()) > 10_000
    assert world.account().spent_units == sum(market.prices[contract] * number for contract, number in used.items())
    wait_until(lambda: market.delivered() == sum(used.values()), "delivered is what was charged")
    assert world.datapath.counters()["contended"] == 0


def test_downloads_are_cut_where_the_money_ends(world: World) -> None:
    contract = world.grant(f"{INTERNET[4]}/32")
    world.limit(84 * 3 * PRICE)
    assert passes(world.lab.client, INTERNET[4])
    assert dropped(world.lab.client, INTERNET[4]) and world.used(contract) == (84 * 2, 84), (
        "of 3 packets the last is a request"
    )
    assert world.account().exhausted and world.datapath.counters()["refused_unpaid"] == 1
    assert world.datapath.counters()["passed_to_queue"] == 0, "the daemon isn't asked about its packets"


def test_more_first_packets_are_asked_about_for_a_neighbour_that_has_paid(world: World) -> None:
    world.datapath.set_neighbours([world.neighbour(has_paid=True)])
    world.send_udp(INTERNET[4], 100, 100)
    counters = world.datapath.counters()
    assert (counters["passed_to_queue"], counters["asked_before"]) == (64, 36)
    world.datapath.set_neighbours([world.neighbour(was_paid=True)])
    world.send_udp("10.77.2.77", 100, 100)
    counters = world.datapath.counters()
    assert (counters["passed_to_queue"], counters["asked_before"]) == (64 + 8, 36 + 92), "whom we paid: as anybody"


@pytest.mark.parametrize(("was_paid", "held"), [(False, 8), (True, 64)])
def test_a_server_that_we_paid_holds_more_first_packets_and_we_count_as_many(
    tmp_path: Path, was_paid: bool, held: int
) -> None:
    with metered(tmp_path, buys=True, sells=False) as world:
        world.datapath.set_neighbours([world.neighbour(sells_to_us=True, buys_from_us=False, was_paid=was_paid)])
        sh(f"ip route add 10.77.5.5/32 via {CLIENT[4]}")
        sh(f"ping -n -q -c 1 -W 30 {CLIENT[4]}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            for _ in range(100):
                ours.sendto(bytes(72), ("10.77.5.5", 9))
        contract = world.grant("10.77.5.5/32", role=Role.CLIENT)
        assert world.used(contract) == (held * 100, 0)
