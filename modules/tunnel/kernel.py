"""The kernel's own WireGuard, by generic netlink. Source: linux/wireguard.h"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address

from ngp.core.host_port import join_host_port
from ngp.core.messages import Prefix
from ngp.modules import netlink, rtnetlink
from ngp.modules.netlink import GENERIC_HEADER, Asker, attribute, attributes, generic_family, nested, text_attribute
from ngp.modules.tunnel.device import Peer, PeerChange, Standing
from ngp.ports.letting import PeerReading

_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_IFNAME, _PRIVATE_KEY, _LISTEN_PORT, _PEERS = 2, 3, 6, 8
_PUBLIC_KEY, _FLAGS, _ENDPOINT, _HANDSHAKE, _RECEIVED, _SENT, _ALLOWED_IPS = 1, 3, 4, 6, 7, 8, 9
_FAMILY, _ADDRESS, _MASK = 1, 2, 3
_REMOVE_ME, _REPLACE_ALLOWED_IPS = 0x1, 0x2
_NO_KEY = bytes(32)
_MESSAGE_BYTES = 16 << 10  # sent at a time: an attribute holds 64 kB at most, and a socket's buffer little more
_LACKING = {errno.EOPNOTSUPP, errno.ENOENT, errno.EPROTONOSUPPORT}


class KernelDevice:
    """WireGuard in the kernel."""

    implementation = "kernel"
    kind = "wireguard"

    def why_not(self) -> tuple[str, str]:
        """Return why this host can't use the kernel's WireGuard, and the remedy; ("", "") if it can.

        If the kernel has WireGuard as a module, it loads that module when it is asked.
        """
        try:
            with Asker(netlink.GENERIC) as generic:
                generic_family(generic, self.kind)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            return "this kernel has no WireGuard", "modprobe wireguard"
        return "", ""

    def make(self, name: str) -> None:
        """Make an interface."""
        with Asker() as route:
            rtnetlink.make_link(route, name, self.kind)

    def read(self, name: str) -> Standing:
        """Return what an interface has."""
        key, port = b"", 0
        peers: dict[bytes, Peer] = {}
        with Asker(netlink.GENERIC) as generic:
            question = GENERIC_HEADER.pack(_GET_DEVICE, _VERSION) + text_attribute(_IFNAME, name)
            for part in generic.dump(generic_family(generic, self.kind), question):
                said = dict(attributes(part[GENERIC_HEADER.size :]))
                key = said.get(_PRIVATE_KEY, key)
                port = struct.unpack("=H", said[_LISTEN_PORT])[0] if _LISTEN_PORT in said else port
                for _, each in attributes(said.get(_PEERS, b"")):
                    _add_peer(peers, dict(attributes(each)))
        return Standing(b"" if key == _NO_KEY else key, port, peers)

    def set(self, name: str, private_key: bytes, port: int) -> None:
        """Set key and UDP port."""
        self._order(name, attribute(_PRIVATE_KEY, private_key), attribute(_LISTEN_PORT, struct.pack("=H", port)))

    def change(self, name: str, changes: Sequence[PeerChange]) -> None:
        """Change peers, in this order."""
        parts: list[bytes] = []
        for change in itertools.chain.from_iterable(map(_parts, changes)):
            if sum(map(len, parts)) + len(change) > _MESSAGE_BYTES:
                self._order(name, nested(_PEERS, *parts))
                parts = []
            parts.append(change)
        self._order(name, nested(_PEERS, *parts))

    def await_end(self, name: str) -> None:
        """Return at once: the kernel deletes an interface completely."""

    def _order(self, name: str, *parts: bytes) -> None:
        with Asker(netlink.GENERIC) as generic:
            head = GENERIC_HEADER.pack(_SET_DEVICE, _VERSION) + text_attribute(_IFNAME, name)
            generic.order(generic_family(generic, self.kind), head + b"".join(parts))


def _parts(change: PeerChange) -> Iterable[bytes]:
    """Write a peer's change, in several parts if it has many networks; only the first part replaces them. Pure."""
    key = attribute(_PUBLIC_KEY, change.wireguard_key)
    if change.networks is None:
        yield nested(0, key, attribute(_FLAGS, struct.pack("=I", _REMOVE_ME)))
        return
    networks = list(map(_allowed_ip, change.networks))
    for at in range(0, max(len(networks), 1), 100):
        flags = attribute(_FLAGS, struct.pack("=I", _REPLACE_ALLOWED_IPS if at == 0 else 0))
        yield nested(0, key, flags, nested(_ALLOWED_IPS, *networks[at : at + 100]))


def _allowed_ip(network: Prefix) -> bytes:
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return nested(
        0,
        attribute(_FAMILY, struct.pack("=H", family)),
        attribute(_ADDRESS, network.network_address.packed),
        attribute(_MASK, bytes([network.prefixlen])),
    )


def _add_peer(peers: dict[bytes, Peer], said: dict[int, bytes]) -> None:
    """Note a peer; one with many networks comes in several parts."""
    key, known = said[_PUBLIC_KEY], peers.get(said[_PUBLIC_KEY])
    networks = tuple(map(_network_text, attributes(said.get(_ALLOWED_IPS, b""))))
    if known is not None:
        peers[key] = Peer(known.reading, known.networks_text + networks)
        return
    received, sent = (struct.unpack("=Q", said.get(kind, bytes(8)))[0] for kind in (_RECEIVED, _SENT))
    (handshake_s,) = struct.unpack_from("=q", said.get(_HANDSHAKE, bytes(16)))
    reading = PeerReading(key, received, sent, handshake_s, _endpoint(said.get(_ENDPOINT, b"")))
    peers[key] = Peer(reading, networks)


def _network_text(part: tuple[int, bytes]) -> str:
    said = dict(attributes(part[1]))
    (family,) = struct.unpack("=H", said[_FAMILY])
    return f"{socket.inet_ntop(family, said[_ADDRESS])}/{said[_MASK][0]}"


def _endpoint(address: bytes) -> str:
    """Read struct sockaddr_in or sockaddr_in6; "" if there is none. Pure."""
    with suppress(struct.error, ValueError):
        family, port = struct.unpack_from("=H", address)[0], struct.unpack_from("!H", address, 2)[0]
        if family == socket.AF_INET:
            return join_host_port(str(ip_address(address[4:8])), port)
        if family == socket.AF_INET6:
            return join_host_port(str(ip_address(address[8:24])), port)
    return ""
