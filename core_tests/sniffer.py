"""The counting side of `core_tests.counter`: a program of its own, of which each laboratory starts some.

It uses only the standard library, and little of that, since it takes longer to start than to count.
"""

from __future__ import annotations

import fcntl
import json
import select
import socket
import struct
import sys

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


class Sniffer:
    """One packet socket, and sums by raw header bytes, which cost little time per packet."""

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

    def report(self) -> dict[str, object]:
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
