"""Effects: what the core wants done, as data, so that a test reads as a transcript.

The daemon's one executor carries them out in order, after the records of the same step are in the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Message
from ngp.core.records import PaymentKind, Record
from ngp.core.values import AccountLimit, Grant, KernelNeighbour, Verdict


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a neighbour."""

    identity: bytes
    link: tuple[str, bytes]
    message: Message
    reply_to: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell the sender that its message arrived and needs no other answer."""

    identity: bytes
    link: tuple[str, bytes]
    message_id: int


@dataclass(frozen=True, slots=True)
class Greet:
    """Say hello: to one neighbour, or (identity empty) to everybody on the interface."""

    interface: str
    identity: bytes = b""
    link: tuple[str, bytes] = ("", b"")
    reply_to: int = 0


@dataclass(frozen=True, slots=True)
class Decide:
    """Give a verdict on a held packet."""

    handle: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SetNeighbour:
    """Tell the kernel of a neighbour."""

    neighbour: KernelNeighbour


@dataclass(frozen=True, slots=True)
class ForgetNeighbour:
    """Take a neighbour out of the kernel's tables."""

    neighbour: int


@dataclass(frozen=True, slots=True)
class GrantContract:
    """Create or change the kernel's share of a contract."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class HaltContract:
    """Stop a contract in the kernel, keep it there, and answer with `Halted` when none of its packets is on its way.

    Books are closed by the reading that follows the stop, never before it.
    """

    grant: Grant


@dataclass(frozen=True, slots=True)
class RevokeContract:
    """Take a contract out of the kernel, where nothing passes by it any more."""

    contract: bytes


@dataclass(frozen=True, slots=True)
class LimitAccount:
    """Create or change the kernel's share of a client's account."""

    limit: AccountLimit


@dataclass(frozen=True, slots=True)
class ForgetAccount:
    """Take an account that has no contracts any more out of the kernel."""

    account: bytes


@dataclass(frozen=True, slots=True)
class CountAccount:
    """Read what an account spent, then what of it by which contract. Answered by `AccountCounted`.

    Attributes:
        contracts: the account's, all that are not over.
        payment_hash: of the refund that waits for this; b"": of none.
    """

    account: bytes
    contracts: tuple[bytes, ...]
    payment_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class MakeInvoice:
    """Have our payment node make an invoice; answered by InvoiceMade or InvoiceFailed."""

    identity: bytes
    kind: PaymentKind
    amount_msat: int
    memo: str
    expiry_s: int


@dataclass(frozen=True, slots=True)
class PayInvoice:
    """Pay; the intent is in the ledger already. Answered by PaymentResult."""

    bolt11: str
    payment_hash: bytes
    fee_limit_msat: int
    timeout_s: float
    via_peer: str | None = None


@dataclass(frozen=True, slots=True)
class TrackPayment:
    """Ask the payment node what became of a payment. Answered by PaymentResult."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class ProveSettlement:
    """Hand a preimage to a payment module that settles by proof."""

    preimage: bytes


@dataclass(frozen=True, slots=True)
class CancelInvoice:
    """Have our payment node take no money for an invoice any more. Answered by InvoiceCancelled once it is so."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class Persist:
    """Write a record. `durable`: the transaction must survive a power cut before anything else happens (money)."""

    record: Record
    durable: bool = False


@dataclass(frozen=True, slots=True)
class RecallBills:
    """Read which closed contracts' bills a client hasn't acknowledged yet, from a place in their order on.

    Answered by `BillsRecalled` with one page of them.
    """

    identity: bytes
    after: tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Log:
    """Say something to the operator; never a secret."""

    level: int
    text: str


Effect = (
    Send
    | Acknowledge
    | Greet
    | Decide
    | SetNeighbour
    | ForgetNeighbour
    | GrantContract
    | HaltContract
    | RevokeContract
    | LimitAccount
    | ForgetAccount
    | CountAccount
    | MakeInvoice
    | PayInvoice
    | TrackPayment
    | ProveSettlement
    | CancelInvoice
    | Persist
    | RecallBills
    | Log
)
