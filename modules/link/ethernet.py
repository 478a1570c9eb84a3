"""Ethernet link: EtherType 0x88B5 (IEEE 802 local experimental), for neighbours that have no IP addresses yet.

Frames don't pass routers, so the source MAC of a frame is the neighbour's, and no table has to be asked. Ethernet pads
frames to 60 bytes, so the datagram's length is sent before the datagram; otherwise the receiver would take the padding
for a part of the datagram, and the signature wouldn't fit. scapy describes the frame. Importing scapy takes half a
second, so it is imported only when an EthernetLink is made.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
from typing import Any

from ngp.core.values import LinkPeer
from ngp.errors import KernelError
from ngp.modules.link.base import InletLink, InletPort
from ngp.modules.link.inlet import Arrival, Inlet

ETHERTYPE = 0x88B5
EVERYBODY = "ff:ff:ff:ff:ff:ff"
MAX_DATAGRAM_BYTES = 1280

_LENGTH = struct.Struct("!H")
_ARPHRD_ETHER = 1
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_GONE = {errno.ENODEV, errno.ENXIO, errno.ENETDOWN}


def _load_ether() -> Any:
    """Import scapy's frame, and suppress scapy's start-up warnings: they are about features that ngp doesn't use."""
    logger = logging.getLogger("scapy.runtime")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        from scapy.layers.l2 import Ether
    finally:
        logger.setLevel(level)
    return Ether


def mac_text(mac: bytes) -> str:
    """Write a MAC in the usual form."""
    return mac.hex(":")


class _EthernetPort(InletPort):
    """The packet socket on one interface."""

    def __init__(self, interface: str, ether: Any, inlet: Inlet | None) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        self._ether = ether
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            if inlet is not None:  # before bind(), so that nothing is ever queued
                inlet.filter(self._socket, "ethernet")
            with contextlib.suppress(OSError):  # since Linux 4.20; on an older one the filter ignores our own frames
                self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.bind((interface, ETHERTYPE))
            _, _, _, hardware, self._mac = self._socket.getsockname()
            if hardware != _ARPHRD_ETHER:
                raise KernelError(
                    f"{interface} carries no Ethernet frames; list it in IGNORE_INTERFACE or use LINK_INTERFACE: udp"
                )
        except BaseException:
            self._socket.close()
            raise

    def peer(self, arrival: Arrival) -> LinkPeer:
        return LinkPeer(self.interface, arrival.mac, mac_text(arrival.mac))

    def send(self, peer: LinkPeer, datagram: bytes) -> bool:
        return self._transmit(mac_text(peer.link_address), datagram)

    def broadcast(self, datagram: bytes) -> bool:
        return self._transmit(EVERYBODY, datagram)

    def _transmit(self, destination: str, datagram: bytes) -> bool:
        header = bytes(self._ether(dst=destination, src=mac_text(self._mac), type=ETHERTYPE))
        try:
            self._socket.send(header + _LENGTH.pack(len(datagram)) + datagram)
        except OSError:  # interface down or gone, no buffer
            return False
        return True

    def close(self) -> None:
        self._socket.close()


class EthernetLink(InletLink):
    """ngp in Ethernet frames; implements `ngp.ports.Link`."""

    max_datagram_bytes = MAX_DATAGRAM_BYTES

    def __init__(self) -> None:
        super().__init__()
        self._ether = _load_ether()

    def open_port(self, interface: str, on_trial: bool) -> InletPort | None:
        try:
            return _EthernetPort(interface, self._ether, None if on_trial else self._inlet)
        except OSError as error:
            if error.errno is None or error.errno in _GONE:  # the interface vanished; if_nametoindex gives no errno
                return None
            raise KernelError(
                f"Ethernet frames on {interface}: {error.strerror}; ngp needs root (CAP_NET_RAW)"
            ) from error
