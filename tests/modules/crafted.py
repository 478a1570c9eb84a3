"""Hand-made packets, which are put on a cable of the lab unchanged."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address

from kernel_lab import python, sh
from meter_lab import World

from core_tests.hostile import checksum, ip_packet

BITS = {4: 32, 6: 128}
ICMP = {4: 1, 6: 58}

SEND = """
import socket, sys
interface, mac = sys.argv[1], bytes.fromhex(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((interface, 0))
own = s.getsockname()[4]
for line in sys.stdin:
    times, packet, source = line.split()
    packet, source = bytes.fromhex(packet), own if source == 'own' else bytes.fromhex(source)
    for _ in range(int(times)):
        s.send(mac + source + (b'\\x86\\xdd' if packet[0] >> 4 == 6 else b'\\x08\\0') + packet)
"""


def send(world: World, packets: Sequence[bytes], upload: bool = True, times: int = 1, source: bytes = b"") -> None:
    """Put packets on the client's or the internet's cable to the gateway, unchanged.

    Args:
        source: the MAC that they seem to come from; empty: the interface's own.
    """
    namespace, interface, at = (world.lab.client, "c0", "m0") if upload else (world.lab.internet, "i0", "up0")
    mac = sh(f"ip -br link show {at}").split()[2].replace(":", "")
    lines = "".join(f"{times} {packet.hex()} {source.hex() or 'own'}\n" for packet in packets)
    subprocess.run(python(namespace, SEND, interface, mac), input=lines, text=True, check=True, timeout=60)


def with_options(packet: bytes, options: bytes) -> bytes:
    """Put options into an IPv4 header, and correct its checksum."""
    length = struct.pack("!H", len(packet) + len(options))
    head = bytes([0x45 + len(options) // 4]) + packet[1:2] + length + packet[4:10] + bytes(2) + packet[12:20] + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + packet[20:]


def quoting(family: int, router: str, to: str, quoted: bytes) -> bytes:
    """Build a router's "port unreachable" that quotes a packet."""
    head = bytes([3, 3, 0, 0, 0, 0, 0, 0]) if family == 4 else bytes([1, 4, 0, 0, 0, 0, 0, 0])
    addresses = ip_address(router).packed + ip_address(to).packed
    pseudo = b"" if family == 4 else addresses + struct.pack("!II", len(head + quoted), ICMP[6])
    total = checksum(pseudo + head + quoted)
    return ip_packet(router, to, ICMP[family], head[:2] + struct.pack("!H", total) + head[4:] + quoted)
