"""The real kernel passes the suite (tests/network_suite.py) that the simulated kernel of the core's tests passes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from crafted import send
from kernel_lab import CLIENT, desired, sh
from meter_lab import PAYER, World, metered, wait_until

from core_tests.hostile import udp
from ngp.core.kernel import AccountLimit, AccountReading, Adopted, Grant, Hint, Reading
from tests.network_suite import BOUGHT, SOLD, Bench, NetworkContract

HEADERS = 28
REFUSALS = ("refused_exhausted", "refused_unpaid", "refused_expired", "refused_blocked")


class RealBench(Bench):
    """The lab's client buys the internet's addresses from the gateway, and sells it the addresses behind itself."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = asyncio.new_event_loop()
        self._told: list[Hint] = []
        lab = world.lab
        sh(f"ip addr add {SOLD[1]}/24 dev i0", lab.internet)
        sh(f"ip addr add {BOUGHT}/32 dev lo && iptables -A INPUT -p udp -j DROP", lab.client)
        sh(f"ip route add {BOUGHT}/32 via {CLIENT[4]}")
        for address in (*SOLD, CLIENT[4]):
            sh(f"ping -n -q -c 1 -W 30 {address}")  # packets that wait for a next hop would come later
        for namespace in (lab.internet, lab.client):
            sh("iptables -t raw -A PREROUTING -p udp --dport 9", namespace)
        own = (ip_address(CLIENT[4]),)
        neighbour = world.neighbour(sells_to_us=True, local_addresses=own)
        world.datapath.set_neighbours([neighbour])
        self._start()

    def _start(self) -> None:
        self._world.datapath.start(self._loop, lambda held: None, self._told.extend)

    def close(self) -> None:
        """Close the loop."""
        self._world.datapath.close()
        self._loop.close()

    def limit_accounts(self, limits: Sequence[AccountLimit]) -> None:
        self._world.datapath.limit_accounts(limits)

    def forget_accounts(self, accounts: Sequence[bytes]) -> None:
        self._world.datapath.forget_accounts(accounts)

    def grant(self, grants: Sequence[Grant]) -> None:
        self._world.datapath.grant(grants)

    def revoke(self, contracts: Sequence[bytes]) -> None:
        self._world.datapath.revoke(contracts)

    def read(self, contracts: Sequence[bytes] | None = None) -> Sequence[Reading]:
        return self._world.datapath.read(contracts)

    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> Sequence[AccountReading]:
        return self._world.datapath.read_accounts(accounts)

    def settled(self) -> None:
        self._loop.run_until_complete(self._world.datapath.settled())

    def upload(self, address: str, size_bytes: int, number: int = 1) -> int:
        before = self._passed(self._world.lab.internet), self._refused()
        send(self._world, [udp(CLIENT[4], address, 9, bytes(size_bytes - HEADERS))], times=number)
        return self._await(self._world.lab.internet, before, number)

    def download(self, address: str, size_bytes: int, number: int = 1) -> int:
        before = self._passed(self._world.lab.client), self._refused()
        send(self._world, [udp(address, CLIENT[4], 9, bytes(size_bytes - HEADERS))], upload=False, times=number)
        return self._await(self._world.lab.client, before, number)

    def upload_ours(self, size_bytes: int, number: int = 1) -> int:
        before = self._passed(self._world.lab.client), self._refused()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            for _ in range(number):
                ours.sendto(bytes(size_bytes - HEADERS), (BOUGHT, 9))
        return self._await(self._world.lab.client, before, number)

    def hints(self) -> list[Hint]:
        for _ in range(2):  # the loop first looks at its sockets, then calls their readers
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
        told, self._told[:] = list(self._told), []
        return told

    def restart(self) -> Adopted:
        self._world.datapath.close()
        adopted = self._world.datapath.set_up(desired(buys=True))
        self._start()
        return adopted

    def _passed(self, namespace: str) -> int:
        return int(sh("iptables -t raw -nvxL PREROUTING", namespace).splitlines()[2].split()[0])

    def _refused(self) -> int:
        counters = self._world.datapath.counters()
        return sum(counters[name] for name in REFUSALS)

    def _await(self, namespace: str, before: tuple[int, int], number: int) -> int:
        passed, refused = before
        wait_until(
            lambda: self._passed(namespace) - passed + self._refused() - refused == number, "all were decided about"
        )
        return self._passed(namespace) - passed


class TestKernel(NetworkContract):
    """The gateway's kernel."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        with metered(tmp_path, buys=True) as world:
            world.datapath.forget_accounts([PAYER])
            built = RealBench(world)
            yield built
            built.close()
