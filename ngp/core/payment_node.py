"""Payment node: what the core and the payment module tell each other about the node, its invoices and its payments.

Plain data; `ngp.ports.payment` says what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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


@dataclass(frozen=True, slots=True)
class PaymentNode:
    """What the core needs to know about our payment module.

    Attributes:
        payee: public key of the module's Lightning node; b"" if it has none.
        holds: the module can make hold invoices.
    """

    network: str
    real_money: bool
    settles_by_proof: bool
    least_amount_msat: int
    payee: bytes = b""
    holds: bool = False
