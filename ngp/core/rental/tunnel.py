"""Tunnel: what the core and the landlord's tunnel tell each other about tenants."""

from __future__ import annotations

from dataclasses import dataclass

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


def tunnel_address(network: Prefix) -> str:
    """Return the address in a rented network that the tenant's end of the tunnel gets, with `/32` or `/128`.

    The tenant may route the network's other addresses on. The first address of an IPv6 subnet belongs to all of its
    routers (RFC 4291, 2.6.1), so the tunnel gets the second.
    """
    first = network[1] if network.version == 6 and network.num_addresses > 1 else network[0]
    return f"{first}/{network.max_prefixlen}"
