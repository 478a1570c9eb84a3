"""The lab with the real meter in its gateway, and helpers that send, count at the receiver, and grant."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from kernel_lab import CLIENT, INTERNET, Lab, desired, lab, python, sh

from ngp.core.kernel import MOST_UNITS_AHEAD, AccountLimit, AccountReading, Grant, KernelNeighbour, Reading
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.modules.network.datapath import Datapath

NEIGHBOUR = 7
GENEROUS = 1 << 40
PAYER = b"payer" + bytes(27)
PRICE = 5 << 20  # msat per GiB: 5 for a kilobyte

UDP_SEND = """
import socket, sys
addresses, port, size, number, segment = sys.argv[1].split(), *map(int, sys.argv[2:6])
family = socket.AF_INET6 if ':' in addresses[0] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
if segment: s.setsockopt(17, 103, segment)
for address in addresses:
    for _ in range(number): s.sendto(bytes(size), (address, port))
"""
TCP_ECHO = """
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.create_server((sys.argv[1], 7000), family=family)
print('ready', flush=True)
c, _ = s.accept()
got = 0
while data := c.recv(1 << 16):
    got += len(data)
c.sendall(bytes(got))
c.close()
"""
TCP_SEND = """
import socket, sys
c = socket.create_connection((sys.argv[1], 7000), timeout=60)
c.sendall(bytes(int(sys.argv[2])))
c.shutdown(socket.SHUT_WR)
got = 0
while data := c.recv(1 << 16):
    got += len(data)
print(got)
"""


def contract_id() -> bytes:
    """Return a new contract id."""
    return secrets.token_bytes(16)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Wait until a condition holds; fail after a while."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


@dataclass(slots=True)
class World:
    """The lab and the datapath in its gateway; the client is neighbour 7 on m0."""

    lab: Lab
    datapath: Datapath
    mac: bytes
    state: Path

    def neighbour(self, **changes: object) -> KernelNeighbour:
        """The client as a neighbour."""
        values: dict[str, object] = {
            "neighbour": NEIGHBOUR,
            "interface": "m0",
            "link_address": self.mac,
            "local_addresses": (),
            "buys_from_us": True,
            "sells_to_us": False,
        }
        return KernelNeighbour(**{**values, **changes})  # type: ignore[arg-type]

    def grant(self, destination: str, **changes: object) -> bytes:
        """Grant a contract to the client, with an account that has more money than any test uses; returns its id."""
        values: dict[str, object] = {
            "contract": contract_id(),
            "neighbour": NEIGHBOUR,
            "role": Role.SERVER,
            "destination": PackedPrefix.of(ip_network(destination)),
            "limit_bytes": GENEROUS,
            "expires_in_s": 600.0,
        }
        values |= changes
        if values["role"] is Role.SERVER:
            values = {"account": PAYER, "price_msat_per_gib": PRICE} | values
        self.datapath.grant([Grant(**values)])  # type: ignore[arg-type]
        return values["contract"]  # type: ignore[return-value]

    def reading(self, contract: bytes) -> Reading:
        """Read a contract's counters."""
        (found,) = self.datapath.read([contract])
        return found

    def limit(self, limit_units: int = MOST_UNITS_AHEAD, **changes: object) -> None:
        """Set how much the client's account may spend."""
        self.datapath.limit_accounts([AccountLimit(PAYER, limit_units, **changes)])  # type: ignore[arg-type]

    def account(self, account: bytes = PAYER) -> AccountReading:
        """Read what an account spent."""
        (found,) = self.datapath.read_accounts([account])
        return found

    def refused(self) -> int:
        """Count the packets that met a contract's limit."""
        return self.datapath.counters()["refused_exhausted"]

    def used(self, contract: bytes) -> tuple[int, int]:
        """Bytes to and from the destination."""
        found = self.reading(contract)
        return found.used_to_bytes, found.used_from_bytes

    def send_udp(self, address: str, size: int, number: int, segment: int = 0, port: int = 9) -> None:
        """Send this many datagrams from the client to each address; return when the kernel has accepted all of them."""
        words = python(self.lab.client, UDP_SEND, address, *map(str, (port, size, number, segment)))
        subprocess.run(words, check=True, timeout=60)

    def tcp_both_ways(self, address: str, size: int) -> None:
        """Send this many bytes by TCP, and receive as many."""
        with subprocess.Popen(
            python(self.lab.internet, TCP_ECHO, address), stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            words = python(self.lab.client, TCP_SEND, address, str(size))
            done = subprocess.run(words, check=True, timeout=60, capture_output=True, text=True)
            assert int(done.stdout) == size
            server.wait(10)


@contextlib.contextmanager
def metered(folder: Path, use_tcx: bool | None = None, **changes: object) -> Iterator[World]:
    """Set the datapath up in a fresh lab, with the client as a known neighbour."""
    with lab() as built:
        mac = bytes.fromhex(sh("cat /sys/class/net/c0/address", built.client).strip().replace(":", ""))
        for namespace, interface in ((built.client, "c0"), (built.internet, "i0")):
            sh(f"ethtool -K {interface} gro off", namespace)
        drop_datagrams(built.internet)
        world = World(built, Datapath(folder, use_tcx), mac, folder)
        try:
            world.datapath.set_up(desired(**changes))
            world.datapath.set_neighbours([world.neighbour()])
            world.limit()
            yield world
        finally:
            world.datapath.clean_up(leave_closed=False)


def drop_datagrams(namespace: str) -> None:
    """Let a host answer no datagram: no program listens, and "port unreachable" would be charged as well."""
    for command in ("iptables", "ip6tables"):
        sh(f"{command} -A INPUT -p udp -j DROP", namespace)


def true_wire(world: World) -> None:
    """Switch segmentation off in the gateway, so that receivers get frames as on a wire, and count at the receivers."""
    for interface in ("m0", "up0"):
        sh(f"ethtool -K {interface} tso off gso off tx-udp-segmentation off")
    for family, command in ((4, "iptables"), (6, "ip6tables")):
        for namespace, source, destination in (
            (world.lab.internet, CLIENT[family], INTERNET[family]),
            (world.lab.client, INTERNET[family], CLIENT[family]),
        ):
            sh(f"{command} -t raw -A PREROUTING -s {source} -d {destination}", namespace)


def received(namespace: str, family: int) -> tuple[int, int]:
    """Return packets and L3 bytes that have arrived from the other end since `true_wire`."""
    command = "iptables" if family == 4 else "ip6tables"
    rule = sh(f"{command} -t raw -nvxL PREROUTING", namespace).splitlines()[2].split()
    return int(rule[0]), int(rule[1])
