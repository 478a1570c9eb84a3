"""Tunnel: what the core and the landlord's tunnel tell each other about tenants."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.messages import Prefix


@dataclass(frozen=True, slots=True)
class TunnelPeer:
    """A tenant in the landlord's tunnel.

    Attributes:
        wireguard_key: the tenant's public key, 32 bytes.
        networks: the only addresses from which the tenant may send, and whose packets the tenant gets; empty: nothing
            passes.
        rate_bytes_s: most bytes a second in each direction; None: no limit.
        contracts: ids of the contracts that meter the tenant in the kernel: without them the tenant gets no networks;
            empty: its traffic isn't metered.
    """

    wireguard_key: bytes
    networks: tuple[Prefix, ...]
    rate_bytes_s: int | None = None
    contracts: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredTunnel:
    """The landlord's tunnel as it should be while the daemon runs. Its peers, the tenants, are set one by one.

    Attributes:
        interface: its name. mtu: in bytes.
        port: UDP, on all addresses.
        private_key: 32 bytes; a secret.
        outside: interface towards the internet.
        pools: prefixes from which networks are let, without what is excluded. Packets to a part of them that isn't let
            are refused, not routed back.
        proxy: answer for let addresses on `outside` by ARP and NDP.
        kind: `auto`, `kernel` or `userspace`.
    """

    interface: str
    port: int
    private_key: bytes = field(repr=False)
    outside: str
    pools: tuple[Prefix, ...]
    proxy: bool
    kind: str
    mtu: int


@dataclass(frozen=True, slots=True)
class PeerReading:
    """What the tunnel knows of a tenant: bytes are cumulative since the peer was added; times UTC seconds, 0: never."""

    wireguard_key: bytes
    received_bytes: int
    sent_bytes: int
    handshake_at_s: int
    endpoint: str


@dataclass(frozen=True, slots=True)
class LetTraffic:
    """What the operator's firewall must let pass so that tenants can ask, and be reached. Only checks look at it.

    Attributes:
        outside: interface towards the internet.
        tunnel_port: UDP port of the tunnel, on all addresses.
        tunnel_versions: the IP versions by which tenants are told to reach the tunnel; empty: those of which `outside`
            has an address.
        faces: (address, port) pairs, TCP, where tenants ask.
        pools: prefixes from which networks are let.
    """

    outside: str
    tunnel_port: int
    tunnel_versions: frozenset[int]
    faces: tuple[tuple[str, int], ...]
    pools: tuple[Prefix, ...]
