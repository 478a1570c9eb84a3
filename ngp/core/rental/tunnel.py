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
