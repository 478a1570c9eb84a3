"""Rental events: what happens to a landlord only. `ngp.core.rental.dispatch` handles them."""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Paid, Prefix
from ngp.core.payment_node import DecodedInvoice


@dataclass(frozen=True, slots=True)
class CreditAsked:
    """A tenant asks for an invoice. Answered by `AnswerTenant` with the same request number.

    Attributes:
        wireguard_key: the tenant's, 32 bytes.
        amount_msat: the credit, without the activation fee.
        face: https, grpc or mesh.
        offer: name of the offer for a new rental; "": the first one in net.conf.
        peer: the neighbour that asks over the mesh link; b"" for another face.
    """

    request: int
    wireguard_key: bytes
    amount_msat: int
    face: str
    offer: str = ""
    peer: bytes = b""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """A tenant doesn't want the rental that it hasn't paid yet. Answered by `AnswerTenant`."""

    request: int
    wireguard_key: bytes


@dataclass(frozen=True, slots=True)
class NetworksHeld:
    """The ledger's answer to HoldNetworks.

    Attributes:
        taken: empty if the networks are held now; otherwise all networks in the ledger that are let or held already.
    """

    rental: bytes
    taken: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class InvoiceHeld:
    """The payment of a hold invoice of ours has arrived at our node, and waits there.

    Attributes:
        blocks_left: after so many blocks the payment ends by itself, and until then the payer's money is bound.
    """

    payment_hash: bytes
    blocks_left: int


@dataclass(frozen=True, slots=True)
class TunnelPeerSet:
    """The tunnel was to serve a tenant whose payment waits for that.

    Attributes:
        payment_hash: of the payment that waits.
        why_not: why the tunnel can't serve the tenant; "": it serves the tenant now.
    """

    payment_hash: bytes
    why_not: str


@dataclass(frozen=True, slots=True)
class TunnelPeerUnmetered:
    """A tenant got no networks in the tunnel, as the kernel lacks a contract that would meter it."""

    wireguard_key: bytes


@dataclass(frozen=True, slots=True)
class RentProven:
    """Somebody shows a preimage for a tenant's invoice; the core checks whether it proves the payment."""

    proof: Paid


@dataclass(frozen=True, slots=True)
class MoneyBackAsked:
    """A tenant whose rental is over asks for what is left of its money. Answered by `AnswerTenant`.

    Attributes:
        decoded: the payment module's reading of the tenant's invoice.
    """

    request: int
    wireguard_key: bytes
    bolt11: str
    decoded: DecodedInvoice


@dataclass(frozen=True, slots=True)
class RekeyAsked:
    """A tenant who proved both keys wants another WireGuard key for its rental. Answered by `AnswerTenant`."""

    request: int
    wireguard_key: bytes
    new_key: bytes


@dataclass(frozen=True, slots=True)
class SwitchRental:
    """The operator switches a rental off or on."""

    rental: bytes
    on: bool


@dataclass(frozen=True, slots=True)
class ReleaseRental:
    """The operator gives a rental's networks back to the pools."""

    rental: bytes


RentalEvent = (
    CreditAsked
    | CancelAsked
    | NetworksHeld
    | InvoiceHeld
    | TunnelPeerSet
    | TunnelPeerUnmetered
    | RentProven
    | MoneyBackAsked
    | RekeyAsked
    | SwitchRental
    | ReleaseRental
)
