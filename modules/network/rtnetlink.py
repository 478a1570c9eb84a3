"""rtnetlink: questions about links, addresses and routes, and their answers, by a socket of our own.

Source: rtnetlink(7), linux/rtnetlink.h
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from ngp.core.messages import Prefix
from ngp.errors import KernelError

NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE = 18, 22, 26
RTN_UNICAST = 1
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
HEADER = struct.Struct("=IHHII")
ROUTE = struct.Struct("=8BI")  # struct rtmsg
RTA_DST, RTA_OIF = 1, 4
_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 5, 9, 18
GATEWAYS = frozenset({_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA})
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_RECEIVE_BYTES = 64 << 10
_ANSWER_TIMEOUT_S = 5


def open_socket(groups: int = 0) -> socket.socket:
    """Open a socket that asks, or hears these groups' notifications. Raises KernelError."""
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        made.bind((0, groups))
    except OSError as error:
        raise KernelError(f"a rtnetlink socket can't be opened: {error}; run as root") from error
    made.settimeout(_ANSWER_TIMEOUT_S)
    return made


def exchange(connection: socket.socket, sequence: int, kind: int, body: bytes, flags: int) -> Iterator[bytes]:
    """Send one request and yield the messages that answer it. Raises OSError with the kernel's number."""
    connection.send(HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body)
    while True:
        data = connection.recv(_RECEIVE_BYTES)
        at = 0
        while at + HEADER.size <= len(data):
            length, answer, _, answered, _ = HEADER.unpack_from(data, at)
            message, at = data[at : at + length], at + max((length + 3) & ~3, HEADER.size)
            if answered != sequence:  # what a request that timed out left behind
                continue
            if answer == _NLMSG_DONE:
                return
            if answer == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", message, HEADER.size)[0]
                raise OSError(number, os.strerror(number))
            yield message
            if not flags & NLM_F_DUMP:
                return


def route_body(version: int, bits: int = 0, kind: int = 0, flags: int = 0) -> bytes:
    """Write the fixed part of a question about routes."""
    return ROUTE.pack(FAMILY[version], bits, 0, 0, 0, 0, 0, kind, flags)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each (struct rtattr)."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[max(4, length + 3 & ~3) :]


def prefix_of(version: int, message: bytes) -> Prefix:
    """Return the destination of a route."""
    network_class = IPv4Network if version == 4 else IPv6Network
    bits = message[HEADER.size + 1]
    for kind, value in attributes(message[HEADER.size + ROUTE.size :]):
        if kind == RTA_DST:
            return network_class((value, bits))
    return network_class((0, bits))


def routes_out_of(version: int, index: int) -> Iterator[Prefix]:
    """Yield the destinations of an interface's unicast routes, in any table. Stop where enough is known.

    By a socket of its own, as what wasn't read of the answer goes with it: a full table has a million routes. The
    kernel leaves out all others itself.

    Raises: KernelError.
    """
    body = route_body(version, kind=RTN_UNICAST) + struct.pack("=HHI", 8, RTA_OIF, index)
    with contextlib.closing(open_socket()) as connection:
        try:
            connection.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            for message in exchange(connection, 1, RTM_GETROUTE, body, NLM_F_REQUEST | NLM_F_DUMP):
                yield prefix_of(version, message)
        except OSError as error:
            raise KernelError(f"routes can't be listed: {error}; run as root and try again") from error
