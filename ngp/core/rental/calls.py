"""Calls: the parts of a tenant's call to its landlord, which are the same for every face."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """What a tenant asks. Attributes: method: its name. request: its bytes as they were sent, with nonce and keys."""

    method: str
    request: bytes


@dataclass(frozen=True, slots=True)
class Session:
    """What a tenant must know to prove its key to a landlord.

    Attributes:
        landlord: its identity, as the tenant knows it; not as the landlord says.
        tunnel_key: the landlord's WireGuard key, 32 bytes.
        id: 32 random bytes, new at each start of the landlord.
        clock_us: microseconds since the session began.
    """

    landlord: bytes
    tunnel_key: bytes
    id: bytes
    clock_us: int


@dataclass(frozen=True, slots=True)
class Payee:
    """The payment node that makes a landlord's invoices.

    Attributes:
        network: `bitcoin`, ..., `sandbox`.
        key: its public key, 33 bytes; b"" if it has none.
        signature: its signature of the landlord's identity, zbase32; "" if it has made none.
    """

    network: str
    key: bytes
    signature: str
