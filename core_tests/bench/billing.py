"""Billing: the meter's count beside the bytes that arrived, with superpackets; and the bytes that pass beyond a limit.

The reference is the laboratory's own count of frames at both receivers, which shares no code with the product. The
gateway meters superpackets: its cards join incoming frames (GRO, also for UDP) and cut them again on the way out. Both
ends see frames as they are on the wire (`core_tests.counter` refuses to answer otherwise). Each figure shows how many
frames were joined to a packet; without joining it would mean little.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from core_tests.bench import report
from core_tests.bench.stage import BLAST_PORT, Gateway, Sink, Stage
from core_tests.counter import Counter
from core_tests.lab import Lab
from core_tests.shell import await_until

_COUNT_FORWARDED = """
table inet bench {
    counter forwarded { }
    chain count { type filter hook forward priority 300; counter name forwarded; }
}
"""
SEGMENT_BYTES = 1200
SUPER_BYTES = 48_000
PLENTY_BYTES = 1 << 50
STREAM_BYTES = 150_000_000  # all frames must fit into the counters' buffers: the stream leaves them hardly any time


@dataclass(slots=True)
class Books:
    """Both receivers' counts and the gateway's meter, for one contract after another."""

    stage: Stage
    gateway: Gateway
    far: Counter
    near: Counter
    contracts: int = 0

    def open(self, address: str, limit_bytes: int = PLENTY_BYTES) -> int:
        """Open a contract for an address; returns its number."""
        self.contracts += 1
        self.gateway.ask("one", self.contracts, address, limit_bytes)
        return self.contracts

    def difference(self, contract: int, address: str) -> tuple[int, int]:
        """Return the bytes on the wire, and the difference of the meter, when no packet is on its way."""

        def still() -> bool:
            before = (self.metered(contract), self.wire(address))
            time.sleep(0.1)
            return before == (self.metered(contract), self.wire(address))

        await_until(still, what="traffic at rest")
        there, back = self.wire(address)
        up, down = self.metered(contract)
        return there + back, abs(up - there) + abs(down - back)

    def joined(self, address: str) -> float:
        """Return how many frames the gateway had joined to one packet, on average since the last call."""
        frames = self.far.total("in", destination=address).packets + self.near.total("in", source=address).packets
        words = ("nft", "-j", "reset", "counter", "inet", "bench", "forwarded")
        listed = json.loads(self.stage.net.gateway.sh(*words))["nftables"]
        packets = sum(int(item["counter"]["packets"]) for item in listed if "counter" in item)
        return frames / max(1, packets)

    def wire(self, address: str) -> tuple[int, int]:
        """Return L3 bytes that arrived at the internet for an address, and at the client from it."""
        return (
            self.far.total("in", destination=address).bytes,
            self.near.total("in", source=address).bytes,
        )

    def metered(self, contract: int) -> tuple[int, int]:
        """Return the meter's counts to the destination and from it."""
        reading = self.gateway.ask("read", contract)
        return reading["used_to_bytes"], reading["used_from_bytes"]


def run(quick: bool) -> None:
    """Measure and print."""
    seconds = 0.2 if quick else 0.4  # of UDP at full speed: its frames must fit into the counters' buffers too
    with Lab() as lab:
        stage = Stage(lab)
        net = stage.net
        for interface in ("mesh0", "wan0"):
            net.gateway.offloads(interface, gro=True, rx_udp_gro_forwarding=True)
        net.gateway.sh("nft", "-f", "-", text_in=_COUNT_FORWARDED)
        with stage.gateway() as gateway:
            books = Books(stage, gateway, net.internet.counter("wan0"), net.client.counter("mesh0"))
            report.head("Billing: the gateway's meter beside L3 bytes counted at the receivers, superpackets on")
            for version in (4, 6):
                _tcp(books, version, seconds)
                _udp(books, version, seconds)
                _limit(books, version, seconds)


def _tcp(books: Books, version: int, seconds: float) -> None:
    """Send a stream to the destination, then one from there."""
    net = books.stage.net
    address, client = net.remote(version, 1), net.client.address("mesh0", version)
    contract = books.open(address)
    for receiver, into, sender, source in (
        (net.internet, address, net.client, client),
        (net.client, client, net.internet, address),
    ):
        sink = Sink(books.stage.blast, receiver, into)
        sink.rate(sender, source, seconds, STREAM_BYTES)
        sink.stop()
    _line(books, f"TCP over IPv{version}, a stream each way", contract, address)


def _udp(books: Books, version: int, seconds: float) -> None:
    """Send superpackets both ways at once, at full speed; packets that a queue drops are missing in both counts."""
    net = books.stage.net
    address = net.remote(version, 2)
    contract = books.open(address)
    _both_ways(books, version, address, seconds)
    _line(books, f"UDP over IPv{version}, both directions at once", contract, address)


def _limit(books: Books, version: int, seconds: float) -> None:
    """Send far more than the limit, in both directions at once, while the limit is raised now and then."""
    address = books.stage.net.remote(version, 3)
    limit = 3_000_000
    contract = books.open(address, limit)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(_both_ways, books, version, address, seconds)
        while not sending.done():
            limit += 123_457
            books.gateway.ask("one", contract, address, limit)
            time.sleep(0.01)
        sending.result()
    _both_ways(books, version, address, seconds / 4)
    wire, error = books.difference(contract, address)
    past, left = max(0, wire - limit), limit - wire
    met = left < SUPER_BYTES * 2  # otherwise no packet met the limit, and the figure would mean nothing
    books.joined(address)
    value = f"{past:,} of {limit:,} bytes; {error:,} differ"
    report.line(f"delivered past a limit that grows, IPv{version} UDP", value, "0", met and not past and not error)


def _both_ways(books: Books, version: int, address: str, seconds: float) -> None:
    net, blast = books.stage.net, str(books.stage.blast.program)
    client = net.client.address("mesh0", version)
    size = (str(seconds), str(SUPER_BYTES), str(SEGMENT_BYTES))
    with ThreadPoolExecutor(2) as pool:
        up = pool.submit(net.client.sh, blast, "udp", client, address, str(BLAST_PORT), *size)
        down = pool.submit(net.internet.sh, blast, "udp", address, client, str(BLAST_PORT), *size)
        up.result(), down.result()


def _line(books: Books, title: str, contract: int, address: str) -> None:
    wire, error = books.difference(contract, address)
    value = f"{error:,} of {wire:,} bytes differ; {books.joined(address):.0f} frames a packet"
    report.line(title, value, "0", not error and wire > 0)
