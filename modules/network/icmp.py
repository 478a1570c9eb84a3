"""ICMP "communication administratively prohibited": how a sender learns that its packet was refused, not lost.

The daemon sends it, since the REJECT target works in the filter table only. A program that answers strangers can be
misused: against a third host, by packets with that host's address as their source; or for a storm, in which errors
answer errors. So the program follows RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 exactly:
no answer to ICMP errors, to multicast or broadcast, to later fragments, or to a source that isn't a single host. The
rate is limited, for each source and in total.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from ngp.core.allowance import SharedAllowance
from ngp.core.messages import Address

_V4_QUOTE_BYTES = 576 - 20 - 8
_V6_QUOTE_BYTES = 1280 - 40 - 8
_ICMP, _ICMPV6, _FRAGMENT, _AUTHENTICATION = 1, 58, 44, 51
_V6_OPTIONS = frozenset({0, 43, 60, 135})  # hop by hop, routing, destination, mobility: lengths in units of 8 bytes
_V4_QUERIES = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43})
_REDIRECT_V6 = 137
_SOURCES_MAX = 4096


def prohibited(packet: bytes) -> tuple[Address, bytes] | None:
    """Build the answer to a packet that was refused. Pure; takes hostile bytes.

    Args: packet: from its IP header on; may be cut short.
    Returns: the address to send it to and the ICMP message (v4 type 3 code 13, RFC 1812; v6 type 1 code 1, RFC 4443,
        whose checksum the kernel adds), or None if no answer may be sent.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return _prohibited_v4(packet)
    if version == 6 and len(packet) >= 40:
        return _prohibited_v6(packet)
    return None


def _one_host(address: Address) -> bool:
    """Say whether an address belongs to a single host, which can be answered."""
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local:
        return False
    return not (isinstance(address, IPv4Address) and (address.packed[0] == 0 or address.packed[0] >= 240))


def _prohibited_v4(packet: bytes) -> tuple[Address, bytes] | None:
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    header_bytes = (packet[0] & 15) * 4
    later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if later_fragment or header_bytes < 20 or not (_one_host(source) and _one_host(destination)):
        return None
    if packet[9] == _ICMP and (len(packet) <= header_bytes or packet[header_bytes] not in _V4_QUERIES):
        return None
    message = struct.pack("!BBHI", 3, 13, 0, 0) + packet[:_V4_QUOTE_BYTES]
    return source, message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def _prohibited_v6(packet: bytes) -> tuple[Address, bytes] | None:
    source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    if not (_one_host(source) and _one_host(destination)) or not _answerable_v6(packet):
        return None
    return source, struct.pack("!BBHI", 1, 1, 0, 0) + packet[:_V6_QUOTE_BYTES]


def is_error(packet: bytes) -> bool:
    """Say whether a packet is an ICMP error, which answers another packet and begins nothing. Takes hostile bytes.

    Args: packet: from its IP header on; may be cut short.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        header_bytes, later_fragment = (packet[0] & 15) * 4, int.from_bytes(packet[6:8], "big") & 0x1FFF
        is_icmp = packet[9] == _ICMP and not later_fragment and len(packet) > header_bytes
        return is_icmp and packet[header_bytes] not in _V4_QUERIES
    found = _upper_v6(packet) if version == 6 and len(packet) >= 40 else None
    return found is not None and found[0] == _ICMPV6 and len(packet) > found[1] and packet[found[1]] < 128


def _answerable_v6(packet: bytes) -> bool:
    """Say whether a packet is neither a later fragment nor an ICMPv6 error; False if its headers can't be read."""
    found = _upper_v6(packet)
    if found is None or found[0] != _ICMPV6:
        return found is not None
    at = found[1]
    return len(packet) > at and packet[at] >= 128 and packet[at] != _REDIRECT_V6


def _upper_v6(packet: bytes) -> tuple[int, int] | None:
    """Find the header behind a packet's extension headers: its protocol, and where it begins.

    Returns None for a later fragment, or if the headers can't be read.
    """
    following, at = packet[6], 40
    for _ in range(8):
        if following not in _V6_OPTIONS | {_FRAGMENT, _AUTHENTICATION}:
            return following, at
        if len(packet) < at + 8:
            return None
        if following == _FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF8:
            return None
        size = {_FRAGMENT: 8, _AUTHENTICATION: (packet[at + 1] + 2) * 4}.get(following, (packet[at + 1] + 1) * 8)
        following, at = packet[at], at + size
    return None


def checksum(message: bytes) -> int:
    """Return the checksum of an ICMP message (RFC 1071)."""
    padded = message + b"\0" * (len(message) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Prohibiter:
    """Sends the answers, within limits. An answer that can't be sent is dropped, as any ICMP message may be.

    Args:
        monotonic_s: returns the seconds of a clock that never goes back.
        source_rate, source_burst: the most answers to one address in a second, and at once.
        total_rate, total_burst: the most answers to all addresses together in a second, and at once.
    """

    def __init__(
        self,
        monotonic_s: Callable[[], float],
        source_rate: float = 5,
        source_burst: float = 10,
        total_rate: float = 100,
        total_burst: float = 200,
    ) -> None:
        self._now_s = monotonic_s
        self._allowance = SharedAllowance(total_rate, source_rate, _SOURCES_MAX, total_burst, source_burst)
        self._sockets: dict[int, socket.socket] = {}

    def answer(self, packet: bytes) -> bool:
        """Answer a refused packet; return whether an answer went out."""
        found = prohibited(packet)
        if found is None or not self._allowance.take(found[0], self._now_s()):
            return False
        source, message = found
        try:
            self._socket(source.version).sendto(message, (str(source), 0))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Release the sockets; safe to call twice."""
        while self._sockets:
            self._sockets.popitem()[1].close()

    def _socket(self, version: int) -> socket.socket:
        if version not in self._sockets:
            family, protocol = (socket.AF_INET, _ICMP) if version == 4 else (socket.AF_INET6, _ICMPV6)
            made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nobody reads this socket: let little queue up
            self._sockets[version] = made
        return self._sockets[version]
