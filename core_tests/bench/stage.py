"""The benchmark's network: the laboratory's three hosts, a million destinations behind the last, and traffic from C.

A sender in C makes small frames. The same core carries each through the gateway, and the receiver's card drops it: that
is the work of a router's core for a packet between its two cards. The sender has priority on its core (SCHED_FIFO), so
other programs on the machine disturb little. `emulation_ns` measures with frames dropped at the gateway's card: that is
the cost of the emulation, and the rest is the gateway's own part.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_tests.bench.helper import Helper
from core_tests.host import Host
from core_tests.lab import OFFLOADS_OFF, Lab
from core_tests.shell import LabError, sh
from core_tests.topologies import ThreeHosts, three_hosts

MANY_FIRST, MANY_NET = "10.128.0.1", "10.128.0.0/9"
BLAST_PORT, STREAM_PORT = 9, 7000
ENDLESS_BYTES = 1 << 62
OFFLOADS_ON = dict.fromkeys(OFFLOADS_OFF, True)
_SOURCE = Path(__file__).with_name("blast.c")


def compile_blast(folder: Path) -> Path:
    """Build the sender."""
    program = folder / "blast"
    sh("gcc", "-O2", "-o", str(program), str(_SOURCE))
    return program


def widen(net: ThreeHosts) -> None:
    """Put more than ten million destinations behind the host `internet`."""
    net.internet.owns(MANY_NET)
    net.gateway.route(MANY_NET, via=net.internet.address("wan0", 4))


class Blast:
    """The sender and receiver in C, and how they are run.

    Args:
        first: with priority on a core each, so that other programs wait for a short round. Not where what is measured
            is a program itself.

    Attributes:
        sender, receiver: the commands.
    """

    def __init__(self, folder: Path, first: bool = True) -> None:
        self.program = compile_blast(folder)
        cores = sorted(os.sched_getaffinity(0))
        self.sender, self.receiver = (
            (*(("taskset", "-c", str(core), "chrt", "-f", "1") if first else ()), str(self.program))
            for core in (cores[0], cores[-1])
        )


@dataclass(frozen=True, slots=True)
class Way:
    """One direction through the gateway: the sender, its interface, and the receiver."""

    sender: Host
    out: str
    gateway_in: str
    receiver: Host
    into: str


class Stage:
    """Client, gateway and internet without a daemon; UDP to BLAST_PORT ends at the receivers' cards, unanswered."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.net = three_hosts(lab, masquerade=False)
        self.blast = Blast(lab.folder)
        net = self.net
        widen(net)
        self.up = Way(net.client, "mesh0", "mesh0", net.internet, "wan0")
        self.down = Way(net.internet, "wan0", "wan0", net.client, "mesh0")
        for host, interface, other in (
            (net.client, "mesh0", net.gateway),
            (net.gateway, "mesh0", net.client),
            (net.gateway, "wan0", net.internet),
            (net.internet, "wan0", net.gateway),
        ):
            for version in (4, 6):
                words = ("lladdr", other.mac(interface), "dev", interface, "nud", "permanent")
                host.ip("neighbour", "replace", other.address(interface, version), *words)
        for way in (self.up, self.down):
            way.receiver.sh("nft", "-f", "-", text_in=_drop_at_card(way.into))

    def frames(self, way: Way, seconds: float, *, spread: int = 1, frame_bytes: int = 60, pps: int = 0) -> float:
        """Send small UDP frames through the gateway and return how many a second came to the other end.

        Args: spread: over how many destinations, drawn at random (upload), or from how many sources (download).
        """
        client = way.sender.address("mesh0", 4) if way is self.up else way.receiver.address("mesh0", 4)
        many, one = (MANY_FIRST, str(spread)), (client, "1")
        source, destination = (one, many) if way is self.up else (many, one)
        gateway_mac = self.net.gateway.mac(way.gateway_in)
        words = (way.out, gateway_mac, way.sender.mac(way.out), *source, *destination, str(frame_bytes), str(pps))
        before = _received(way.receiver, way.into)
        said = json.loads(way.sender.sh(*self.blast.sender, "frames", *words, str(seconds)))
        return (_received(way.receiver, way.into) - before) / float(said["seconds"])

    def emulation_ns(self, way: Way, seconds: float, spread: int = 1) -> float:
        """Return the cost of a frame up to the gateway's card, in ns, when the gateway drops it there."""
        gateway = self.net.gateway
        gateway.sh("nft", "-f", "-", text_in=_drop_at_card(way.gateway_in))
        before = _received(gateway, way.gateway_in)
        self.frames(way, seconds, spread=spread)
        gateway.sh("nft", "delete", "table", "netdev", "bench")
        return seconds * 1e9 / (_received(gateway, way.gateway_in) - before)

    def offloads(self, **features: bool) -> None:
        """Set segmentation offloads at all ends of both cables."""
        for host, interface in self._ends():
            host.offloads(interface, **features)

    def describe_offloads(self) -> str:
        """Return which segmentation offloads the cables have now."""
        features = json.loads(self.net.gateway.sh("ethtool", "--json", "-k", "mesh0"))[0]
        names = {
            "tso": "tcp-segmentation-offload",
            "gso": "generic-segmentation-offload",
            "gro": "generic-receive-offload",
            "tx-udp-segmentation": "tx-udp-segmentation",
        }
        return ", ".join(f"{short} {'on' if features[name]['active'] else 'off'}" for short, name in names.items())

    @contextmanager
    def gateway(self) -> Iterator[Gateway]:
        """Run the datapath in the gateway."""
        state = self.lab.folder / "datapath"
        state.mkdir(mode=0o700)
        worker = Gateway(self.net.gateway, state, self.net.client.mac("mesh0"))
        try:
            yield worker
        finally:
            worker.end()

    def _ends(self) -> tuple[tuple[Host, str], ...]:
        net = self.net
        return (net.client, "mesh0"), (net.gateway, "mesh0"), (net.gateway, "wan0"), (net.internet, "wan0")


class Gateway(Helper):
    """The process that `core_tests.bench.worker` describes."""

    def __init__(self, host: Host, state_dir: Path, mac: str) -> None:
        super().__init__(host, "core_tests.bench.worker", str(state_dir), mac)

    def metered(self, buys: bool = False) -> None:
        """Gate and meter traffic. Args: buys: the gateway buys as well as it sells."""
        self.ask("metered", buys)


class Sink:
    """A TCP receiver in C; `rate` sends a stream to it. A host can have one at a time."""

    def __init__(self, blast: Blast, host: Host, address: str) -> None:
        self.address = address
        self._blast = blast
        self._process = host.popen(*blast.receiver, "sink", address, str(STREAM_PORT), stdout=subprocess.PIPE)
        self._answer()

    def rate(self, sender: Host, source: str, seconds: float, most_bytes: int = ENDLESS_BYTES) -> float:
        """Send for a while, or until most_bytes are sent; return bytes a second as the receiver saw them."""
        words = ("tcp", source, self.address, str(STREAM_PORT), str(seconds), str(most_bytes))
        sender.sh(*self._blast.sender, *words)
        said = self._answer()
        return float(said["received"]) / float(said["seconds"])

    def stop(self) -> None:
        """End it."""
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        if not answer:
            raise LabError(f"the TCP receiver on {self.address} ended by itself")
        return answer


def _received(host: Host, interface: str) -> int:
    return int(host.sh("cat", f"/sys/class/net/{interface}/statistics/rx_packets"))


def _drop_at_card(interface: str) -> str:
    """Return nftables rules that drop the small frames as early as a table can, after the card has counted them."""
    rules = [
        "table netdev bench {",
        "chain early {",
        f'type filter hook ingress device "{interface}" priority -500',
        f"udp dport {BLAST_PORT} drop",
        "}",
        "}",
    ]
    return "\n".join([*rules, ""])
