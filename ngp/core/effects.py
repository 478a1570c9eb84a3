"""Effects: what the core wants done, as data, so that a test reads as a transcript.

The daemon's one executor carries them out in order, after the records of the same step are in the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.kernel import AccountLimit, Grant, KernelNeighbour, Router, Verdict
from ngp.core.messages import Address, Answer, Call, Message, Prefix
from ngp.core.records import PaymentKind, Record
from ngp.core.rental.effects import RentalEffect


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a neighbour."""

    identity: bytes
    link: tuple[str, bytes]
    message: Message
    reply_to: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge a message that needs no other answer."""

    identity: bytes
    message_id: int


@dataclass(frozen=True, slots=True)
class Greet:
    """Say hello: to one neighbour, or (identity empty) to everybody on the interface."""

    interface: str
    identity: bytes = b""
    link: tuple[str, bytes] = ("", b"")
    reply_to: int = 0
    wants_reply: bool = False  # of one neighbour; a hello to everybody asks for replies anyway


@dataclass(frozen=True, slots=True)
class Decide:
    """Give a verdict on a held packet."""

    handle: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SetNeighbour:
    """Enter a neighbour into the kernel's tables, or change it there."""

    neighbour: KernelNeighbour


@dataclass(frozen=True, slots=True)
class ForgetNeighbour:
    """Take a neighbour out of the kernel's tables."""

    neighbour: int


@dataclass(frozen=True, slots=True)
class GrantContract:
    """Create or change a contract in the kernel."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class HaltContract:
    """Stop a contract in the kernel but keep it there. Answered by `Halted` when none of its packets is on its way.

    The contract's books are closed with the reading in `Halted`, not before.
    """

    grant: Grant


@dataclass(frozen=True, slots=True)
class RevokeContract:
    """Take a contract out of the kernel's tables."""

    contract: bytes


@dataclass(frozen=True, slots=True)
class LimitAccount:
    """Create or change a client's account in the kernel."""

    limit: AccountLimit


@dataclass(frozen=True, slots=True)
class ForgetAccount:
    """Take an account that has no contracts any more out of the kernel."""

    account: bytes


@dataclass(frozen=True, slots=True)
class CountAccount:
    """Read what an account spent, then the counters of its contracts. Answered by `AccountCounted`.

    Attributes:
        contracts: all contracts of the account that are not over.
    """

    account: bytes
    contracts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SetRoutes:
    """Make our routes: these and no others. Attributes: as in `Network.set_routes`."""

    routes: tuple[tuple[Prefix, Router], ...]
    table: int
    priority: int


@dataclass(frozen=True, slots=True)
class SetElsewhere:
    """Except these prefixes and no others from clients' contracts for default routes that we resell."""

    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class ReadMeters:
    """Read what these contracts used up to now. Answered by `UsageRead`."""

    contracts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class LookUpRoutes:
    """Look where our routes lead for the destinations of these contracts. Answered by `RoutesLookedUp`."""

    contracts: tuple[tuple[bytes, Prefix], ...]


@dataclass(frozen=True, slots=True)
class MakeInvoice:
    """Have our payment node make an invoice; answered by InvoiceMade or InvoiceFailed.

    Attributes:
        preimage: 32 bytes: make a hold invoice, whose payment waits until we hand the preimage to our node; b"": make
            an ordinary invoice.
    """

    identity: bytes
    kind: PaymentKind
    amount_msat: int
    memo: str
    expiry_s: int
    preimage: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class PayInvoice:
    """Pay an invoice; its payment is already in the ledger, as pending. Answered by a PaymentOutcome.

    Attributes:
        via_peer: public key of the neighbour's payment node, hex: a channel to that node is used if there is one.
    """

    bolt11: str
    payment_hash: bytes
    fee_limit_msat: int
    timeout_s: float
    via_peer: str | None = None


@dataclass(frozen=True, slots=True)
class AskEcho:
    """Ask a destination that we buy for an echo; our meter counts the answer."""

    destination: Address


@dataclass(frozen=True, slots=True)
class TrackPayment:
    """Ask the payment node for the outcome of a payment. Answered by a PaymentOutcome."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class ProveSettlement:
    """Hand a preimage to a payment module that settles by proof."""

    preimage: bytes


@dataclass(frozen=True, slots=True)
class CancelInvoice:
    """Cancel an invoice at our payment node. Answered by InvoiceCancelled once nobody can pay it any more."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class Persist:
    """Write a record. `durable` (money): the transaction must be flushed to the disk before anything else happens."""

    record: Record
    durable: bool = False


@dataclass(frozen=True, slots=True)
class RecallBills:
    """Read the bills of closed contracts that a client hasn't acknowledged yet. Answered by one page, `BillsRecalled`.

    Attributes:
        after: (time of closing in UTC seconds, id) of the last contract before the page.
    """

    identity: bytes
    after: tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class HandOver:
    """Hand over what a neighbour sent about renting: a call to our landlord, or an answer to this machine's tenant."""

    identity: bytes
    link: tuple[str, bytes]
    message: Call | Answer


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line to the log; never a secret."""

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
    | SetRoutes
    | SetElsewhere
    | ReadMeters
    | LookUpRoutes
    | MakeInvoice
    | PayInvoice
    | AskEcho
    | TrackPayment
    | ProveSettlement
    | CancelInvoice
    | Persist
    | RecallBills
    | HandOver
    | Log
    | RentalEffect
)
