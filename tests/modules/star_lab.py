"""A star for the tests of who pays: two neighbours, each with hosts behind it, a LAN of ours, and the internet.

a, behind A - m0 [gateway] m1 - B, behind B
              lan0 |   | up0
                LAN   internet
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from kernel_lab import CLIENT, INTERNET, desired, give_addresses, ip, sh
from meter_lab import NEIGHBOUR, World, metered

from core_tests import namespaces
from ngp.core.kernel import KernelNeighbour
from ngp.core.messages import Role
from ngp.modules.bpf import Table
from ngp.modules.network import layout

SECOND = 8
WAIT_S = 30
BITS = {4: 32, 6: 128}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
SECOND_ADDRESS = {4: "10.77.3.2", 6: "fd00:77:3::2"}
GATEWAY_TO_SECOND = {4: "10.77.3.1", 6: "fd00:77:3::1"}
LAN_ADDRESS = {4: "10.77.4.2", 6: "fd00:77:4::2"}
GATEWAY_TO_LAN = {4: "10.77.4.1", 6: "fd00:77:4::1"}
# Addresses of hosts, by name. The hosts behind A and B represent their customers and LANs.
ADDRESSES = {
    "A": CLIENT,
    "behind A": {4: "10.77.5.5", 6: "fd00:77:5::5"},
    "B": SECOND_ADDRESS,
    "behind B": {4: "10.77.6.6", 6: "fd00:77:6::6"},
    "LAN": LAN_ADDRESS,
    "internet": INTERNET,
}
UP_BYTES, DOWN_BYTES = 100, 60
HEADERS = {4: 28, 6: 48}


@dataclass(slots=True)
class Star:
    """The star, with the datapath in its gateway. A is neighbour 7 on m0, B is neighbour 8 on m1."""

    world: World
    second: str
    lan: str

    def namespace(self, name: str) -> str:
        """Return the namespace where an address of `ADDRESSES` is."""
        places = {"LAN": self.lan, "internet": self.world.lab.internet, "A": self.world.lab.client}
        return places.get(name.removeprefix("behind "), self.second)

    def socket(self, name: str, family: int, port: int = 0, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """Open a socket of one of the hosts."""

        def make() -> socket.socket:
            namespaces.enter(self.namespace(name))  # only this thread enters it, and the thread ends with `make`
            made = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # several sockets may ask from one port
            made.bind((ADDRESSES[name][family], port))
            return made

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(make).result()

    def talk(self, begins: str, answers: str, family: int, port: int = 5000) -> None:
        """Let a host ask another by UDP, and get an answer."""
        with self.socket(begins, family) as client, self.socket(answers, family, port) as server:
            self.ask(client, server)

    def ask(self, client: socket.socket, server: socket.socket) -> None:
        """Send a question from one socket to another, and its answer back."""
        client.settimeout(WAIT_S)
        server.settimeout(WAIT_S)
        client.sendto(bytes(UP_BYTES), server.getsockname()[:2])
        question, client_seen = server.recvfrom(2048)
        server.sendto(bytes(DOWN_BYTES), client_seen)
        assert (len(question), len(client.recv(2048))) == (UP_BYTES, DOWN_BYTES)

    def sell(self, number: int, destination: str, **changes: object) -> bytes:
        """Grant a contract that a neighbour bought from us."""
        return self.world.grant(destination, neighbour=number, **changes)

    def buy(self, number: int, destination: str) -> bytes:
        """Grant a contract that we bought from a neighbour."""
        return self.world.grant(destination, neighbour=number, role=Role.CLIENT)


def once(family: int) -> tuple[int, int]:
    """Return the L3 bytes of a `talk`: those of the question, and those of the answer."""
    return UP_BYTES + HEADERS[family], DOWN_BYTES + HEADERS[family]


def table(built: Star, name: str) -> Table:
    """Return one of the meter's tables."""
    running = built.world.datapath._running
    assert running is not None
    return running.tables[name]


def payers(built: Star) -> list[int]:
    """List the payers of all remembered flows."""
    return [layout.FLOW_MEMORY.unpack(memory)[0] for _, memory in table(built, layout.FLOWS).items()]


def age(built: Star, seconds: int) -> None:
    """Make all remembered flows older."""
    flows = table(built, layout.FLOWS)
    for flow, memory in list(flows.items()):
        payer, place, seen_ns = layout.FLOW_MEMORY.unpack(memory)
        flows.set(flow, layout.FLOW_MEMORY.pack(payer, place, seen_ns - seconds * 10**9))


def swept(built: Star, most: int = 1024) -> None:
    """Sweep the tables of flows completely."""
    running = built.world.datapath._running
    assert running is not None
    for round_s in (1e9, 2e9):  # times later than any round that the datapath began by itself
        running.flows.sweep(round_s, 2 * most)


@contextlib.contextmanager
def star(folder: Path, **changes: object) -> Iterator[Star]:
    """Build the star. Both neighbours buy from us and sell to us: ngp's default."""
    values: dict[str, object] = {"buys": True, "lan_interfaces": ("lan0",), **changes}
    with metered(folder, **{**values, "lan_interfaces": ()}) as world, contextlib.ExitStack() as undo:
        stem = f"ngpt-{secrets.token_hex(3)}"
        second, lan = f"{stem}-b", f"{stem}-l"
        for name in (second, lan):
            undo.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
            ip(f"netns add {name}")
            ip("link set lo up", namespace=name)
        ip(f"link set m1x netns {second}", f"link add lan0 type veth peer name l0 netns {lan}")
        give_addresses("m1", GATEWAY_TO_SECOND)
        give_addresses("m1x", SECOND_ADDRESS, second, GATEWAY_TO_SECOND)
        give_addresses("lan0", GATEWAY_TO_LAN)
        give_addresses("l0", LAN_ADDRESS, lan, GATEWAY_TO_LAN)
        for name, namespace, router in (("A", world.lab.client, CLIENT), ("B", second, SECOND_ADDRESS)):
            for family, bits in BITS.items():
                address = ADDRESSES[f"behind {name}"][family]
                ip(f"addr add {address}/{bits} dev lo", namespace=namespace)
                ip(f"route add {address}/{bits} via {router[family]}")
        for command in ("iptables", "ip6tables"):
            sh(f"{command} -D INPUT -p udp -j DROP", world.lab.internet)
        built = Star(world, second, lan)
        world.datapath.apply(desired(**values))
        world.datapath.set_neighbours(neighbours(built))
        yield built


def neighbours(built: Star, **changes: object) -> list[KernelNeighbour]:
    """Describe A and B, which both buy, sell and have paid. Args: changes: apply to both."""
    mac = bytes.fromhex(sh("cat /sys/class/net/m1x/address", built.second).strip().replace(":", ""))
    values: dict[str, object] = {"buys_from_us": True, "sells_to_us": True, "has_paid": True, **changes}
    own = {name: tuple(ip_address(text) for text in ADDRESSES[name].values()) for name in ("A", "B")}
    first = built.world.neighbour(neighbour=NEIGHBOUR, local_addresses=own["A"], **values)
    second = KernelNeighbour(SECOND, "m1", mac, own["B"], **values)  # type: ignore[arg-type]
    return [first, second]
