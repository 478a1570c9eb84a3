"""Rental effects: what only a landlord wants done, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.messages import Prefix
from ngp.core.rental.tunnel import TunnelPeer


@dataclass(frozen=True, slots=True)
class AnswerTenant:
    """Answer a tenant's request.

    Attributes:
        request: the number of the request.
        why_not: why it was refused; "": it was done.
        rental: id of the rental for which it was done.
        bolt11: the invoice that belongs to the answer; "": none does.
    """

    request: int
    why_not: str = ""
    rental: bytes = b""
    bolt11: str = ""


@dataclass(frozen=True, slots=True)
class HoldNetworks:
    """Hold networks for a rental in the ledger, which other landlords may share; answered by NetworksHeld."""

    rental: bytes
    networks: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class WatchInvoice:
    """Wait for the payment of a hold invoice. Answered by InvoiceHeld; if the invoice is over, there is no answer."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class SettleInvoice:
    """Have our node take the payment of a hold invoice, which waits there. Answered by RentProven.

    If the node can't take it, the node is asked again for the invoice's state, as by WatchInvoice.
    """

    preimage: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SetTunnelPeer:
    """Let a tenant's traffic through the tunnel, or change its networks or rate.

    Attributes:
        held: hash of a payment that waits for this effect, which is then answered by TunnelPeerSet; b"": no payment
            waits, and there is no answer.
    """

    peer: TunnelPeer
    held: bytes = b""


@dataclass(frozen=True, slots=True)
class RemoveTunnelPeer:
    """Let no more traffic of a tenant through the tunnel."""

    wireguard_key: bytes


RentalEffect = AnswerTenant | HoldNetworks | WatchInvoice | SettleInvoice | SetTunnelPeer | RemoveTunnelPeer
