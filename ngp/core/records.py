"""Records: what must survive the process. The core returns them; the store writes those of a step in one transaction.

Every record is absolute (an upsert by key), so that writing one twice changes nothing. Times are UTC seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ngp.core.messages import Prefix, Role
from ngp.core.rental.records import RentalRecord, ServiceRecord
from ngp.core.reputation import STRANGERS_PPM


class Direction(StrEnum):
    """Whether money came in or went out."""

    IN = "in"
    OUT = "out"


class PaymentKind(StrEnum):
    """What a payment is for."""

    TOP_UP = "top-up"  # a client prepays, or pays its debt
    REFUND = "refund"  # a server pays a client's money back
    RENT = "rent"  # a tenant pays for its rental
    MANUAL = "manual"  # sandbox only: the operator credits a neighbour by hand


class PaymentState(StrEnum):
    """States of a payment or invoice; OPEN and PENDING are not final."""

    OPEN = "open"  # our invoice, not yet paid
    SETTLED = "settled"  # our invoice, paid
    PENDING = "pending"  # our payment, outcome not known yet: its amount counts as spent
    SUCCEEDED = "succeeded"  # our payment, preimage at hand
    FAILED = "failed"  # our payment, finally failed
    WITHDRAWN = "withdrawn"  # our invoice, taken back; the ledger has it as open until our node can't be paid for it
    CANCELLED = "cancelled"  # our invoice, which nobody paid and nobody can pay any more


@dataclass(frozen=True, slots=True)
class NeighbourRecord:
    """A neighbour's identity on one link. Key: (identity, interface, link_address)."""

    identity: bytes
    interface: str
    link_address: bytes
    boot: int
    sells: bool
    buys: bool
    first_seen_s: int
    last_seen_s: int


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """Whether the operator blocked a neighbour. Key: identity. It outlives the neighbour's links and accounts."""

    identity: bytes
    blocked: bool


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """Totals of one account. Key: (identity, role). paid = charged + refunded + balance, always.

    `grace_until_s`, `grace_data_bytes`, `grace_price_msat_per_gib` and the link (`grace_interface`,
    `grace_link_address`) describe the credit that is open or owed.
    Only a client's record has `metered_msat`: the sum of its contracts' charges by the client's own meter; and
    `unseen_payments`: for how many in a row of the last payments it saw nothing, and `served_msat`: what had been used
    when something came back last.
    `reputation_ppm` is the other side's reputation as it was at `reputation_at_s`.
    """

    identity: bytes
    role: Role
    paid_msat: int
    charged_msat: int
    refunded_msat: int
    grace_until_s: int
    billed_msat: int
    disputed: bool = False
    metered_msat: int = 0
    tolerated_msat: int = 0
    grace_data_bytes: int = 0
    grace_price_msat_per_gib: int = 0
    reputation_ppm: int = STRANGERS_PPM
    reputation_at_s: int = 0
    unseen_payments: int = 0
    served_msat: int = 0
    grace_interface: str = ""
    grace_link_address: bytes = b""


class ContractRecord(NamedTuple):
    """One contract. Key: contract. `prices` are (from_offset_bytes, msat per GiB) in rising order of offset.

    `kind` is `traffic`, or `subnet` for a period of a rental. Such a contract has no data limit, lifetime or bill, and
    prices only if the traffic is metered.
    `billed_bytes` says how far the bill has got. A client's record has what the server billed; a server's record has
    what its client acknowledged after the contract's end.
    `path` has the marks of its sellers, one after the other; `rests_on` is a purchase (`ngp.core.contract`).
    """

    contract: bytes
    role: Role
    identity: bytes
    interface: str
    link_address: bytes
    destination: str
    state: str
    reason: str
    prices: tuple[tuple[int, int], ...]
    data_limit_bytes: int
    lifetime_s: int
    used_to_bytes: int
    used_from_bytes: int
    charged_msat: int
    billed_bytes: int
    opened_at_s: int
    expires_at_s: int
    closed_at_s: int
    kind: str = "traffic"
    path: bytes = b""
    rests_on: bytes = b""

    @property
    def used_bytes(self) -> int:
        """Bytes carried so far, both directions."""
        return self.used_to_bytes + self.used_from_bytes


@dataclass(frozen=True, slots=True)
class PaymentRecord:
    """One payment or invoice. Key: (direction, payment_hash), so that no payment counts twice.

    `preimage` is a secret until the payment is settled; it never leaves the ledger for a log or listing. An invoice of
    ours that is open has one if it is a hold invoice.
    """

    direction: Direction
    payment_hash: bytes
    kind: PaymentKind
    identity: bytes
    amount_msat: int
    fee_msat: int
    state: PaymentState
    bolt11: str
    preimage: bytes
    created_at_s: int
    settled_at_s: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CursorRecord:
    """How far the payment node's stream of settlements was read; written together with the last settlement's credit."""

    cursor: int


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One line of `ngp ledger`, appended: payments, charges, refunds, contract changes and statements.

    `contract` and `payment_hash` are empty where they don't apply.
    """

    time_s: int
    kind: str
    identity: bytes
    contract: bytes
    amount_msat: int
    payment_hash: bytes
    state: str


@dataclass(frozen=True, slots=True)
class BilledRecord:
    """How far the bill of a closed contract has got. Writing it raises `billed_bytes` in the contract's row, if any."""

    contract: bytes
    role: Role
    identity: bytes
    billed_bytes: int


@dataclass(frozen=True, slots=True)
class ForgetLink:
    """Remove one link of a neighbour that has other links."""

    identity: bytes
    interface: str
    link_address: bytes


@dataclass(frozen=True, slots=True)
class ForgetNeighbours:
    """Remove what is stored about identities that never paid us, that we never paid, and whose contracts are all over.

    Only their blocks stay, because the operator made these.
    """

    identities: tuple[bytes, ...]


Record = (
    NeighbourRecord
    | BlockRecord
    | AccountRecord
    | ContractRecord
    | BilledRecord
    | PaymentRecord
    | CursorRecord
    | JournalRecord
    | ForgetLink
    | ForgetNeighbours
    | RentalRecord
    | ServiceRecord
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the ledger holds at a start: neighbours, accounts, and the contracts and payments that are not over.

    Attributes:
        blocked: identities that the operator blocked.
        contracts: of kind `traffic` only.
        rentals: those that aren't released; and the released ones with money left, an open period, or an invoice that
            may still be paid.
        others: networks that other landlords with the same database let or hold now.
        service: the service time; None: nothing was let yet.
    """

    neighbours: tuple[NeighbourRecord, ...]
    accounts: tuple[AccountRecord, ...]
    contracts: tuple[ContractRecord, ...]
    payments: tuple[PaymentRecord, ...]
    cursor: int
    spent_total_msat: int
    spent_by_neighbour_msat: tuple[tuple[bytes, int], ...]
    blocked: tuple[bytes, ...] = ()
    rentals: tuple[RentalRecord, ...] = ()
    others: tuple[Prefix, ...] = ()
    service: ServiceRecord | None = None
