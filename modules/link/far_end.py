"""Far end: the addresses at which the one neighbour of an interface without frames may hear a hello.

A tunnel has no MACs, and often no multicast. Which addresses reach the other end depends on the kind of the tunnel and
on our addresses on it:

- a peer address (`ip address add ... peer ...`, PPP) is the neighbour's;
- in a /31 or /127, the address that isn't ours is the neighbour's; in another small subnet all addresses are asked;
- a tunnel to one other end (ipip, GRE, sit) carries the subnet's broadcast address, 255.255.255.255 and, if it carries
  IPv6, ff02::1; a tun carries them if the program behind it does;
- WireGuard with one peer carries the peer's allowed-ips, which usually include the peer's own address.

A tunnel to several other ends (WireGuard with several peers, ipip without a remote) counts as one neighbour. An address
must say which of these ends is the neighbour: in NGP_INTERFACE, or as a peer address.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

from ngp.modules import netlink
from ngp.modules.netlink import GENERIC_HEADER, Asker, attributes

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MOST_HOSTS = 14  # all hosts of a subnet are asked if it has no more than this: /28, /124
EVERYBODY_V4, EVERYBODY_V6 = IPv4Address("255.255.255.255"), IPv6Address("ff02::1")

_RTM_GETLINK, _RTM_GETADDR = 18, 22
_IFLA_LINKINFO, _IFLA_INFO_KIND, _IFF_POINTOPOINT = 18, 1, 0x10
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_WG_GET_DEVICE, _WG_VERSION = 0, 1  # linux/wireguard.h
_WG_IFNAME, _WG_PEERS, _WG_PUBLIC_KEY, _WG_ALLOWED_IPS = 2, 8, 1, 9
_WG_IPADDR, _WG_MASK = 2, 3


@dataclass(frozen=True, slots=True)
class FarEnd:
    """What the kernel knows about an interface's other end.

    Attributes:
        kind: as shown by `ip -d link`.
        networks: the subnets of our addresses on the interface.
        peers: the other end's addresses, where ours are point-to-point.
        own: our addresses on the interface.
        to_one: whether all packets reach the same other end.
        allowed: the allowed-ips of each WireGuard peer; None if the interface isn't WireGuard's.
    """

    kind: str
    networks: tuple[Network, ...]
    peers: tuple[Address, ...]
    own: tuple[Address, ...]
    to_one: bool
    allowed: tuple[tuple[Network, ...], ...] | None = None

    @property
    def has_ipv4(self) -> bool:
        """Say whether the interface has an IPv4 address of its own, as the source of IPv4 packets."""
        return any(address.version == 4 for address in self.own)

    def addresses(self) -> list[Address]:
        """Return the addresses that only the neighbour can have, and all addresses of small subnets. Pure."""
        found, own, peers = list(self.peers), frozenset(self.own), frozenset(self.peers)  # there may be thousands
        if self.to_one:
            for network in self.networks:
                if network.num_addresses <= MOST_HOSTS + 2:
                    found += [address for address in network.hosts() if address not in own]
            if self.allowed is not None:
                found += self._named_by_allowed_ips()
        return [address for address in dict.fromkeys(found) if address in peers or self._carries(address)]

    def groups(self) -> list[Address]:
        """Return broadcast and multicast addresses that reach the other end. Pure.

        Those of IPv4 are left out if `addresses` has an IPv4 address.
        """
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
    with Asker() as route:
        link = route.ask(_RTM_GETLINK, struct.pack("=BxHiII", 0, 0, index, 0, 0))
        (flags,) = struct.unpack_from("=I", link, 8)
        info = dict(attributes(link[16:])).get(_IFLA_LINKINFO, b"")
        kind = netlink.text(dict(attributes(info)).get(_IFLA_INFO_KIND, b""))
        answers = list(route.dump(_RTM_GETADDR, struct.pack("=BBBBi", 0, 0, 0, 0, index)))
    networks: list[Network] = []
    peers: list[Address] = []
    own: list[Address] = []
    for answer in answers:
        length, where = answer[1], struct.unpack_from("=I", answer, 4)[0]
        found = dict(attributes(answer[8:]))
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
    """Ask WireGuard for its peers; the private key in the answer is ignored."""
    peers: dict[bytes, list[Network]] = {}
    with Asker(netlink.GENERIC) as generic:
        device = GENERIC_HEADER.pack(_WG_GET_DEVICE, _WG_VERSION) + netlink.text_attribute(_WG_IFNAME, interface)
        for part in generic.dump(netlink.generic_family(generic, "wireguard"), device):
            for _, peer in attributes(dict(attributes(part[GENERIC_HEADER.size :])).get(_WG_PEERS, b"")):
                said = dict(attributes(peer))
                known = peers.setdefault(said[_WG_PUBLIC_KEY], [])
                known += map(_allowed_ip, attributes(said.get(_WG_ALLOWED_IPS, b"")))
    return tuple(map(tuple, peers.values()))


def _allowed_ip(attribute: tuple[int, bytes]) -> Network:
    said = dict(attributes(attribute[1]))
    return ip_network((said[_WG_IPADDR], said[_WG_MASK][0]), strict=False)
