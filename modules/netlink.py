"""Netlink: questions and orders to the kernel and its answers, as structs (netlink(7), rtnetlink(7)).

The messages are few and small, so they are packed by hand. A library for all messages needs a third of a second to
decode 400 interfaces; this module needs a hundredth. (pyroute2 0.9 also can't be called where an event loop runs.)
Sockets block; use each in one thread only.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Self

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
NETFILTER, GENERIC = 12, 16  # Python's socket module has no names for these protocols
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_ERROR, _DONE = 2, 3
_MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_KIND_BITS = 0x3FFF  # of an attribute's type; the other two bits are flags: nested, in network byte order
_NESTED = 0x8000
_RECEIVE_BYTES = 64 << 10
_TIMEOUT_S = 5.0
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2  # linux/genetlink.h
GENERIC_HEADER = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
Order = tuple[int, int, bytes]  # kind, flags, body


class Asker:
    """A netlink socket for questions and orders to the kernel.

    Args:
        protocol: the netlink protocol: NETLINK_ROUTE, NETFILTER or GENERIC.
        strict: the kernel filters the answers to `dump` by the fields of the question (Linux 4.20).

    Raises: OSError.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE, strict: bool = False) -> None:
        self._sequence = 0
        self._socket = open_socket(protocol)
        self._socket.settimeout(_TIMEOUT_S)
        if strict:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the socket; safe to call twice."""
        self._socket.close()

    def ask(self, kind: int, body: bytes) -> bytes:
        """Send a request and return the body of its one answer.

        Raises: OSError with the kernel's errno if it refuses; TimeoutError if it doesn't answer.
        """
        return next(self._answers(kind, REQUEST, body))

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Send a request for all objects of a kind, and yield the bodies of the answers. Raises as `ask`."""
        return self._answers(kind, REQUEST | DUMP, body)

    def order(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send a change, and wait until the kernel has made it.

        Args: flags: CREATE, EXCLUSIVE, REPLACE. Raises as `ask`.
        """
        for _ in self._answers(kind, REQUEST | ACK | flags, body):
            pass

    def transact(self, begin: Order, orders: Sequence[Order], end: Order) -> None:
        """Send changes that the kernel makes completely or not at all. Raises as `ask`.

        Args: begin, end: the messages before and after the changes; the kernel doesn't acknowledge them.
        """
        self._sequence += 1
        *others, (kind, flags, body) = orders
        wanted = [begin, *others, (kind, flags | ACK, body), end]
        self._socket.send(b"".join(self._written(kind, REQUEST | flags, body) for kind, flags, body in wanted))
        for _ in self._received():
            pass

    def _answers(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(self._written(kind, flags, body))
        return self._received()

    def _written(self, kind: int, flags: int, body: bytes) -> bytes:
        padding = bytes(-len(body) % 4)
        return _MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, self._sequence, 0) + body + padding

    def _received(self) -> Iterator[bytes]:
        while True:
            for answer, sequence, message in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:  # a late answer to a request that timed out
                    continue
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    number = -struct.unpack_from("=i", message)[0]
                    if not number:  # the acknowledgement that was asked for
                        return
                    raise OSError(number, os.strerror(number))
                yield message


def generic_family(generic: Asker, name: str) -> int:
    """Return the message number of a generic netlink family. Raises OSError if the kernel has no such family.

    Args: generic: a socket of the protocol GENERIC.
    """
    answer = generic.ask(_CONTROL, GENERIC_HEADER.pack(_GET_FAMILY, 1) + text_attribute(_FAMILY_NAME, name))
    number: int = struct.unpack("=H", dict(attributes(answer[GENERIC_HEADER.size :]))[_FAMILY_ID])[0]
    return number


def open_socket(protocol: int, groups: int = 0) -> socket.socket:
    """Open a netlink socket. Args: groups: multicast groups to join, as bits. Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message. Pure."""
    return ((kind, body) for kind, _, body in _messages(datagram))


def _messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _MESSAGE.size <= len(datagram):
        length, kind, _, sequence, _ = _MESSAGE.unpack_from(datagram, at)
        yield kind, sequence, datagram[at + _MESSAGE.size : at + length]
        at += max((length + 3) & ~3, _MESSAGE.size)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each attribute (struct nlattr, struct rtattr). Pure."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _KIND_BITS, data[at + _ATTRIBUTE.size : at + length]
        at += max((length + 3) & ~3, _ATTRIBUTE.size)


def attribute(kind: int, value: bytes) -> bytes:
    """Write an attribute. Pure."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def text_attribute(kind: int, value: str) -> bytes:
    """Write an attribute that is a zero-terminated string. Pure."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *parts: bytes) -> bytes:
    """Write an attribute that consists of attributes. Pure."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(value: bytes) -> str:
    """Read an attribute that is a zero-terminated string. Pure."""
    return value.split(b"\0", 1)[0].decode(errors="replace")
