"""Payment node: what the core and the payment module tell each other about the node, its invoices and its payments.

Plain data; `ngp.ports.payment` says what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class PaymentCapabilities:
    """What a payment module can do; the core's rules adapt to it.

    Attributes:
        real_money: False for the sandbox; every listing says so.
        settles_by_proof: the module has no payment network: handing a preimage to `settle_invoice` settles the invoice.
        least_amount_msat: smallest invoice that the module makes (1,000 where only whole sat are possible).
        why_no_holding: why the module can't make hold invoices, whose payment waits until we take it or give it back,
            with the remedy; "" if it can.
    """

    real_money: bool
    settles_by_proof: bool
    least_amount_msat: int
    why_no_holding: str = "it can't hold payments back: use lnd"


@dataclass(frozen=True, slots=True)
class PaymentInfo:
    """The Lightning node that the payment module uses.

    Attributes:
        account_id: the node's public key.
        network: the Lightning network that the node is on: `mainnet`, `testnet4`, ...; `sandbox`.
        addresses: `host:port` where others reach the node, as it announces them. A node whose addresses change is
            still the same node.
    """

    account_id: str
    network: str
    addresses: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class NewInvoice:
    """An invoice that we made."""

    bolt11: str
    payment_hash: bytes
    amount_msat: int
    expires_in_s: int


class InvoiceState(StrEnum):
    """State of an invoice of ours."""

    OPEN = "open"  # it can be paid
    ACCEPTED = "accepted"  # a payment has arrived, but the node hasn't settled or booked it yet
    SETTLED = "settled"  # it is paid
    CANCELLED = "cancelled"  # it can't be paid any more


@dataclass(frozen=True, slots=True)
class Settlement:
    """An invoice of our node was paid. A settlement may come twice, and the invoice may be one that ngp didn't make.

    Attributes:
        cursor: the place of this settlement in the node's stream of settlements; reading can go on after it.
    """

    cursor: int
    payment_hash: bytes
    amount_msat: int


@dataclass(frozen=True, slots=True)
class DecodedInvoice:
    """The contents of another node's BOLT11 string.

    `was_ordered`: the ledger has a payment of ours with this hash, however long ago. Such an invoice is never paid: a
    new record of it would contradict the ledger, which then refuses to write anything.
    """

    payment_hash: bytes
    amount_msat: int | None
    expires_in_s: int
    payee: str
    network: str
    memo: str
    was_ordered: bool = False


class PaymentStatus(StrEnum):
    """Outcome of a payment of ours. PENDING holds until the node says otherwise: never pay a pending invoice again."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PENDING = "pending"


UNKNOWN_PAYMENT = "unknown"
"""The reason of a failure if the node never heard of the payment."""


@dataclass(frozen=True, slots=True)
class PaymentOutcome:
    """How a payment ended, or that it is pending: preimage and fee if it succeeded, the reason if it failed."""

    payment_hash: bytes
    status: PaymentStatus
    preimage: bytes = b""
    fee_msat: int = 0
    reason: str = ""
