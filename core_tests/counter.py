"""An independent count of L3 bytes at an interface, by source, destination, protocol and direction.

Bills are checked against this count, so it shares no code with the product. It is a packet socket in a process of its
own, which uses only the standard library and adds up the lengths in the IP headers. It doesn't expand superpackets, so
the interface must see frames as they are on the wire (GRO off there, and TSO off at the edge of the sender). A packet
longer than the interface's MTU is a superpacket, and a full socket buffer loses packets. Either makes the count
worthless, and then the next reading fails instead of giving a wrong number.
"""

from __future__ import annotations

import fcntl
import json
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Literal

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
PACKET_OUTGOING = 4  # linux/if_packet.h
SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_RCVBUFFORCE = 33
SIOCGIFMTU = 0x8921
BUFFER_BYTES = 256 * 1024 * 1024
HEAD_BYTES = 64  # enough for both IP headers
V6_HEADER_BYTES = 40

Direction = Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class Flow:
    """The key of one line of the count; `protocol` is IANA's number (6 TCP, 17 UDP, 1 and 58 ICMP)."""

    direction: Direction
    source: str
    destination: str
    protocol: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How much one flow has carried: packets, and L3 bytes with the IP header."""

    packets: int
    bytes: int


class CounterError(AssertionError):
    """The count can't be trusted: frames were lost, or weren't as they are on the wire."""


class Counter:
    """A running count at one interface; made by `Host.counter`."""

    def __init__(
        self, popen: Callable[..., subprocess.Popen[str]], interface: str, only: Direction | None = None
    ) -> None:
        self.interface = interface
        self._process = popen(
            *(sys.executable, "-I", "-S", __file__, interface, only or ""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._answer("the socket")

    def read(self) -> dict[Flow, Tally]:
        """Return all flows counted so far, with every frame that has arrived before this call.

        Raises: CounterError when frames were lost or superpackets were seen.
        """
        _pipe(self._process.stdin).write("\n")
        _pipe(self._process.stdin).flush()
        said = self._answer("a reading")
        if said["dropped"] or said["too_long"]:
            raise CounterError(
                f"{self.interface}: the count is worthless: {said['dropped']} frames lost, {said['too_long']} longer "
                "than the MTU; switch GRO off here and TSO off at the sender, or send slower"
            )
        return {Flow(*flow): Tally(*tally) for flow, tally in said["flows"]}

    def total(
        self,
        direction: Direction | None = None,
        source: str | None = None,
        destination: str | None = None,
        protocol: int | None = None,
    ) -> Tally:
        """Add up the flows that match all given values. Raises: CounterError as `read`."""
        wanted = (direction, source, destination, protocol)
        packets = size = 0
        for flow, tally in self.read().items():
            found = (flow.direction, flow.source, flow.destination, flow.protocol)
            if all(want is None or want == is_ for want, is_ in zip(wanted, found, strict=True)):
                packets += tally.packets
                size += tally.bytes
        return Tally(packets, size)

    def stop(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            _pipe(pipe).close()
        self._process.kill()
        self._process.wait()

    def _answer(self, what: str) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise CounterError(f"{self.interface}: the counting process ended before {what}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


class Sniffer:
    """The counting side: one packet socket, and sums by raw header bytes, which cost little time per packet."""

    def __init__(self, interface: str, only: str) -> None:
        self.unwanted = {"in": True, "out": False}.get(only)
        # Cooked mode: the link header is gone, so interfaces with and without one look alike.
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self.socket.bind((interface, ETH_P_ALL))
        self.socket.setblocking(False)
        request = fcntl.ioctl(self.socket, SIOCGIFMTU, struct.pack("16si", interface.encode(), 0) + bytes(16))
        self.mtu: int = struct.unpack_from("i", request, 16)[0]
        self.sums: dict[tuple[bool, bytes, int], list[int]] = {}
        self.too_long = 0
        self.dropped = 0

    def drain(self) -> None:
        """Count every frame that the socket holds."""
        while True:
            try:
                head, address = self.socket.recvfrom(HEAD_BYTES)
            except BlockingIOError:
                return
            if (address[2] == PACKET_OUTGOING) is self.unwanted:
                continue
            if address[1] == ETH_P_IP:
                size = head[2] << 8 | head[3]
                key = (address[2] == PACKET_OUTGOING, head[12:20], head[9])
            elif address[1] == ETH_P_IPV6:
                # A length of 0 means a jumbogram or a superpacket: either is longer than any MTU.
                size = ((head[4] << 8 | head[5]) or 0x10000) + V6_HEADER_BYTES
                key = (address[2] == PACKET_OUTGOING, head[8:40], head[6])
            else:
                continue
            if size > self.mtu:
                self.too_long += 1
            entry = self.sums.setdefault(key, [0, 0])
            entry[0] += 1
            entry[1] += size

    def report(self) -> dict[str, Any]:
        """Return the sums with addresses as text, and the faults that make them worthless."""
        # The kernel clears its statistics when they are read.
        _packets, dropped = struct.unpack("II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.dropped += dropped
        flows = []
        for (leaving, pair, protocol), tally in self.sums.items():
            half = len(pair) // 2
            family = socket.AF_INET if half == 4 else socket.AF_INET6
            source, destination = (socket.inet_ntop(family, part) for part in (pair[:half], pair[half:]))
            flows.append([["out" if leaving else "in", source, destination, protocol], tally])
        return {"flows": flows, "dropped": self.dropped, "too_long": self.too_long}


def main(interface: str, only: str) -> None:
    """Count until standard input ends; answer each line there with a line of JSON."""
    sniffer = Sniffer(interface, only)
    print(json.dumps(sniffer.report()), flush=True)
    while True:
        ready, _, _ = select.select([sniffer.socket, sys.stdin], [], [])
        sniffer.drain()
        if sys.stdin in ready:
            if not sys.stdin.readline():
                return
            sniffer.drain()
            print(json.dumps(sniffer.report()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
