"""Far end: where the one neighbour of an interface without frames may hear a hello, and what stands in the way.

A tunnel has no MACs, and often no multicast either; what the kernel can send there depends on its kind and addresses:

- a peer address (`ip address add ... peer ...`, PPP) is the neighbour's;
- so is the other address of a /31 or /127; the few of a small subnet are all asked;
- a tunnel to one other end (ipip, GRE, sit) carries the subnet's broadcast address, 255.255.255.255 and, where it
  carries IPv6, ff02::1; so does a tun, if the program behind it does;
- WireGuard carries what the allowed-ips of its one peer cover, and these name the peer's own address as a rule.

A tunnel to several other ends (WireGuard with several peers, ipip without a remote) is one neighbour to us, and only an
address says which: NGP_INTERFACE, or a peer address.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MOST_HOSTS = 14  # of a subnet: /28, /124
EVERYBODY_V4, EVERYBODY_V6 = IPv4Address("255.255.255.255"), IPv6Address("ff02::1")

_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_REQUEST, _DUMP, _ERROR, _DONE = 0x1, 0x300, 2, 3
_RTM_GETLINK, _RTM_GETADDR = 18, 22
_IFLA_LINKINFO, _IFLA_INFO_KIND, _IFF_POINTOPOINT = 18, 1, 0x10
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_GENL_CONTROL, _CONTROL_GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2
_WG_IFNAME, _WG_PEERS, _WG_PUBLIC_KEY, _WG_ALLOWED_IPS = 2, 8, 1, 9  # linux/wireguard.h
_WG_IPADDR, _WG_MASK = 2, 3
_NETLINK_GENERIC = 16  # socket has no name for it
_TIMEOUT_S = 5
_RECEIVE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class FarEnd:
    """What the kernel knows of an interface's other end.

    Attributes:
        kind: as `ip -d link` says.
        networks: of its own addresses.
        peers: the other ends' addresses, where ours are point-to-point.
        own: its own addresses.
        to_one: whatever leaves reaches one other end.
        allowed: the allowed-ips of each WireGuard peer; None: it is no WireGuard.
    """

    kind: str
    networks: tuple[Network, ...]
    peers: tuple[Address, ...]
    own: tuple[Address, ...]
    to_one: bool
    allowed: tuple[tuple[Network, ...], ...] | None = None

    @property
    def has_ipv4(self) -> bool:
        """Whether what it says by IPv4 bears an address of its own."""
        return any(address.version == 4 for address in self.own)

    def addresses(self) -> list[Address]:
        """Return the addresses that only the neighbour can have, or one of a few of which it has one. Pure."""
        found, own, peers = list(self.peers), frozenset(self.own), frozenset(self.peers)  # there may be thousands
        if self.to_one:
            for network in self.networks:
                if network.num_addresses <= MOST_HOSTS + 2:
                    found += [address for address in network.hosts() if address not in own]
            if self.allowed is not None:
                found += self._named_by_allowed_ips()
        return [address for address in dict.fromkeys(found) if address in peers or self._carries(address)]

    def groups(self) -> list[Address]:
        """Return the addresses for everybody that reach the other end; IPv4's where `addresses` has none. Pure."""
        if not self.to_one:
            return []
        everybody: list[Address] = [EVERYBODY_V6]
        if self.has_ipv4 and all(address.version == 6 for address in self.addresses()):
            subnets = [network.broadcast_address for network in self.networks if _has_broadcast(network)]
            everybody = [*subnets, EVERYBODY_V4, EVERYBODY_V6]
        return [address for address in everybody if self._carries(address)]

    def _named_by_allowed_ips(self) -> list[Address]:
        single = [network[0] for each in self.allowed or () for network in each if network.num_addresses == 1]
        on_link = [address for address in single if any(address in network for network in self.networks)]
        return (on_link or single)[:MOST_HOSTS]

    def _carries(self, address: Address) -> bool:
        if self.allowed is not None:
            return any(address in network for each in self.allowed for network in each)
        return address.version == 4 or any(own.version == 6 for own in self.own)


def far_end(interface: str) -> FarEnd:
    """Ask the kernel about an interface. Raises OSError."""
    index = socket.if_nametoindex(interface)
    with _open(socket.NETLINK_ROUTE) as route:
        link = next(_ask(route, _RTM_GETLINK, _REQUEST, struct.pack("=BxHiII", 0, 0, index, 0, 0)))
        (flags,) = struct.unpack_from("=I", link, 8)
        info = dict(_attributes(link[16:])).get(_IFLA_LINKINFO, b"")
        kind = dict(_attributes(info)).get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
        answers = list(_ask(route, _RTM_GETADDR, _REQUEST | _DUMP, struct.pack("=BBBBi", 0, 0, 0, 0, index)))
    networks: list[Network] = []
    peers: list[Address] = []
    own: list[Address] = []
    for answer in answers:
        length, where = answer[1], struct.unpack_from("=I", answer, 4)[0]
        found = dict(_attributes(answer[8:]))
        if where != index or _IFA_ADDRESS not in found:
            continue
        address = ip_address(found[_IFA_ADDRESS])
        local = ip_address(found.get(_IFA_LOCAL, found[_IFA_ADDRESS]))
        own.append(local)
        if address != local:
            peers.append(address)
        elif not local.is_link_local:
            networks.append(ip_interface(f"{local}/{length}").network)
    allowed = _allowed_ips(interface) if kind == "wireguard" else None
    to_one = bool(flags & _IFF_POINTOPOINT) and (allowed is None or len(allowed) == 1)
    return FarEnd(kind, tuple(networks), tuple(peers), tuple(own), to_one, allowed)


def _has_broadcast(network: Network) -> bool:
    return network.version == 4 and network.prefixlen < 31


def _allowed_ips(interface: str) -> tuple[tuple[Network, ...], ...]:
    """Ask WireGuard for its peers; the answer also holds its private key, which isn't looked at."""
    peers: dict[bytes, list[Network]] = {}
    with _open(_NETLINK_GENERIC) as generic:
        asked = _attribute(_FAMILY_NAME, b"wireguard\0")
        answer = next(_ask(generic, _GENL_CONTROL, _REQUEST, struct.pack("=BBH", _CONTROL_GETFAMILY, 1, 0) + asked))
        (family,) = struct.unpack("=H", dict(_attributes(answer[4:]))[_FAMILY_ID])
        device = struct.pack("=BBH", 0, 1, 0) + _attribute(_WG_IFNAME, interface.encode() + b"\0")
        for part in _ask(generic, family, _REQUEST | _DUMP, device):
            for _, peer in _attributes(dict(_attributes(part[4:])).get(_WG_PEERS, b"")):
                said = dict(_attributes(peer))
                known = peers.setdefault(said[_WG_PUBLIC_KEY], [])
                known += map(_allowed_ip, _attributes(said.get(_WG_ALLOWED_IPS, b"")))
    return tuple(map(tuple, peers.values()))


def _allowed_ip(attribute: tuple[int, bytes]) -> Network:
    said = dict(_attributes(attribute[1]))
    return ip_network((said[_WG_IPADDR], said[_WG_MASK][0]), strict=False)


def _open(protocol: int) -> socket.socket:
    asker = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    asker.settimeout(_TIMEOUT_S)
    return asker


def _ask(asker: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Send a request and yield what answers it, without the header. Raises OSError with the kernel's number."""
    asker.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
    while True:
        data = asker.recv(_RECEIVE_BYTES)
        while len(data) >= _HEADER.size:
            length, answer, _, _, _ = _HEADER.unpack_from(data)
            message, data = data[_HEADER.size : length], data[max((length + 3) & ~3, _HEADER.size) :]
            if answer == _DONE:
                return
            if answer == _ERROR:
                number = -struct.unpack_from("=i", message)[0]
                raise OSError(number, os.strerror(number))
            yield message
            if not flags & _DUMP:
                return


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[max((length + 3) & ~3, _ATTRIBUTE.size) :]
