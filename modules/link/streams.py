"""Streams: TCP sockets for neighbours on one interface, and the link address at the other end of a connection.

As with datagrams (`udp`), both ends send with hop limit 255 and require it, so no segment comes through a router. And
the sender's MAC in a frame says who the neighbour is. The kernel's neighbour table doesn't: one forged ARP or ND
message changes it.

- Of a connection that a neighbour opens, the kernel keeps the frame of the first segment (TCP_SAVE_SYN, Linux 5.10).
- Of a connection that we open, the kernel shows no frame. We take the MAC that the neighbour table has. We require the
  hop limit only when the connection is open: if the neighbour's kernel refuses it, that answer has the usual hop limit.
- A filter then drops all segments in frames of another sender. So if the table was forged, we hear nothing, as when
  frames are sent elsewhere; what we do hear is from the link address that we report.

Source: tcp(7), socket(7), RFC 5082, linux/filter.h
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from ipaddress import ip_address

from ngp.errors import KernelError
from ngp.modules import rtnetlink

HOP_LIMIT = 255
BACKLOG = 128

_TCP_SAVE_SYN, _TCP_SAVED_SYN, _WITH_FRAME = 27, 28, 2
_SAVED_BYTES = 256
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73
_SO_ATTACH_FILTER = 26
_FRAME = 0xFFE00000  # SKF_LL_OFF: offsets from here are into the frame
_SOURCE = struct.Struct("!6x6s2x")
_SOURCE_AT = 6
_MAC_HEAD, _MAC_TAIL = struct.Struct("!I"), struct.Struct("!4xH")
_LOAD_4, _LOAD_2, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_ALL = 0xFFFFFFFF


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def open_socket(interface: str, version: int) -> socket.socket | None:
    """Open a socket of an IP version (4, 6) for neighbours on an interface; None if the kernel lacks the version.

    Raises: OSError.
    """
    try:
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        one = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if version == 4:
            one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOP_LIMIT)
        else:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOP_LIMIT)
    except OSError:
        one.close()
        raise
    return one


def listen(interface: str, version: int, port: int) -> socket.socket | None:
    """Listen for neighbours on an interface; nobody behind a router can connect.

    Returns and raises as `open_socket`.
    """
    one = open_socket(interface, version)
    if one is None:
        return None
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, _WITH_FRAME)
        _refuse_routers(one)
        one.bind(("" if version == 4 else "::", port))
        one.listen(BACKLOG)
    except OSError:
        one.close()
        raise
    return one


def caller(connection: socket.socket) -> bytes:
    """Return the MAC in whose frame a neighbour's first segment came, on an interface with MACs.

    Raises: OSError, also if the kernel kept no frame: under a flood of connections it answers without remembering any.
    """
    saved = connection.getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, _SAVED_BYTES)
    if len(saved) < _SOURCE.size:
        raise OSError(errno.EAGAIN, "the frame of the first segment wasn't kept")
    (mac,) = _SOURCE.unpack_from(saved)
    return bytes(mac)


def called(index: int, address: str) -> bytes:
    """Return the MAC of a neighbour that we have just connected to. Raises OSError if the kernel doesn't know it."""
    try:
        with rtnetlink.open_asker() as kernel:
            mac = rtnetlink.ask_link_address(kernel, index, ip_address(address))
    except (KernelError, OSError) as error:
        raise OSError(errno.EHOSTUNREACH, "its link address isn't known") from error
    if not any(mac):
        raise OSError(errno.EHOSTUNREACH, "its link address isn't known")
    return mac


def keep_to(connection: socket.socket, mac: bytes) -> None:
    """From now on take in only segments that came through no router, and in frames from this MAC.

    Args: mac: empty if the interface has no MACs.
    Raises: OSError.
    """
    _refuse_routers(connection)
    if mac:
        _filter_frames(connection, mac)


def _refuse_routers(one: socket.socket) -> None:
    if one.family == socket.AF_INET:
        one.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, HOP_LIMIT)
    else:
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, HOP_LIMIT)


def _filter_frames(connection: socket.socket, mac: bytes) -> None:
    head, tail = _MAC_HEAD.unpack_from(mac)[0], _MAC_TAIL.unpack_from(mac)[0]
    instructions = b"".join(
        _INSTRUCTION.pack(*each)
        for each in (
            (_LOAD_4, 0, 0, _FRAME + _SOURCE_AT),
            (_IF_EQUAL, 0, 3, head),
            (_LOAD_2, 0, 0, _FRAME + _SOURCE_AT + _MAC_HEAD.size),
            (_IF_EQUAL, 0, 1, tail),
            (_RETURN, 0, 0, _ALL),
            (_RETURN, 0, 0, 0),
        )
    )
    held = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // _INSTRUCTION.size, ctypes.addressof(held))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))
