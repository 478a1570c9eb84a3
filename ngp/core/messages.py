"""Messages: what two neighbours say to each other, as values. `ngp.wire` turns them into signed bytes and back.

Messages hold durations, never points in time: the clocks of two routers need not agree. Money is msat and data is L3
bytes; all amounts are ints. docs/protocol.md lists the same fields with their limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

MOST_DATA_BYTES = 1 << 60
"""The largest data limit that a message can carry."""
MARK_BYTES = 8
"""A node's mark in a path: the first bytes of its identity."""
MOST_HOPS = 16
"""Most nodes in a path."""

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


def mark(identity: bytes) -> bytes:
    """Return the mark of a node in a path (see `Ask` and `Propose`)."""
    return identity[:MARK_BYTES]


class Role(StrEnum):
    """Which side of a contract this node is."""

    SERVER = "server"
    CLIENT = "client"


class RejectReason(StrEnum):
    """Why an ask, a proposal or an accept is refused; the message carries this word.

    docs/protocol.md says under "Reasons" what each word means, and which side sends it.
    """

    PRICE = "price"
    NOT_BUYING = "not buying"
    NOT_SELLING = "not selling"
    NOT_RENEWING = "not renewing"
    NETWORK = "network"
    LAPSED = "lapsed"
    BLOCKED = "blocked"
    TERMS = "terms"
    BUSY = "busy"
    LOOP = "loop"
    UPSTREAM = "upstream"


class DeclineReason(StrEnum):
    """Why an invoice isn't paid, or no refund is offered; the message carries this word.

    docs/protocol.md says under "Reasons" what each word means, and which side sends it.
    """

    NOT_BUYING = "not buying"
    BUDGET = "budget"
    AMOUNT = "amount"
    NETWORK = "network"
    LAPSED = "lapsed"
    BLOCKED = "blocked"
    TERMS = "terms"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Hello:
    """Introduce a node to the neighbours on a link; the only message that may be broadcast.

    Attributes:
        network: the payment network as the sender's payment node calls it, `mainnet`, `testnet4`, `signet`, ..., or
            `sandbox`. Neighbours on different networks don't trade (`ngp.core.networks`).
        sells, buys: the roles that the sender offers.
        addresses: the sender's own addresses: traffic to and from them is local to it and never charged.
        software: name and version, for the listing only.
        wants_reply: the receiver answers with a hello of its own, to the sender alone.
        payee: public key of the sender's payment node, which signs its invoices; 33 bytes, or empty.
        payee_proof: the payment node's signature of the sender's identity (zbase32, as `lnd signmessage` makes it);
            empty if the node can't sign.
    """

    network: str
    sells: bool
    buys: bool
    addresses: tuple[Address, ...]
    software: str
    wants_reply: bool
    payee: bytes = b""
    payee_proof: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """Client asks for a quote before it sends traffic. With `contract`, it asks for a renewal of that contract.

    Attributes:
        destination: the prefix that the client wants to reach.
        data_limit_bytes, lifetime_s: what the client would like; 0: the server chooses.
        contract: id of the contract to renew, or empty.
        wait_ms: how long the client waits for the answer; 0: the server chooses.
        path: who asks for whom: a mark of each node from the first client to the sender.
    """

    destination: Prefix
    data_limit_bytes: int
    lifetime_s: int
    contract: bytes = b""
    wait_ms: int = 0
    path: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Propose:
    """Server proposes terms. For a renewal, `contract` is the running one; the price holds from `from_offset_bytes` on.

    Attributes:
        contract: 16 random bytes chosen by the server.
        data_limit_bytes: cumulative limit of the contract once accepted (for a renewal: the new, larger total).
        lifetime_s: from the accept on.
        quote_valid_s: how long the server honours an accept at this price.
        from_offset_bytes: cumulative byte offset from which the price holds; 0 for a new contract.
        round: 1 for the first proposal; grows with each counter-offer.
        path: who sells to whom: a mark of each node from the sender to the last one that sells. Empty in a renewal.
    """

    contract: bytes
    destination: Prefix
    price_msat_per_gib: int
    data_limit_bytes: int
    lifetime_s: int
    quote_valid_s: int
    from_offset_bytes: int
    round: int
    path: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Accept:
    """Client accepts. It repeats the terms, so that its signature covers them and not an id alone."""

    contract: bytes
    price_msat_per_gib: int
    data_limit_bytes: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse terms, as a server or as a client. With a counter-offer the negotiation goes on, without one it is over.

    Attributes:
        contract: the contract's id; empty if this refuses an `Ask` for a quote.
        counter_msat_per_gib: the counter-offer: the price that the sender would agree to; None: no counter-offer.
        destination: that of the `Ask` for a quote; None in all other cases.
    """

    contract: bytes
    reason: RejectReason
    counter_msat_per_gib: int | None = None
    destination: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Say that the sender's side of a contract is over, or never existed. The contract ends on the other side as well.

    Attributes:
        reason: a `CloseReason` if the sender closed it. It is text, so that a later version can add reasons.
    """

    contract: bytes
    reason: str = "cancelled"


@dataclass(frozen=True, slots=True)
class Invoice:
    """Server asks for a top-up of the client's account."""

    bolt11: str
    amount_msat: int


@dataclass(frozen=True, slots=True)
class Declined:
    """Decline an invoice, or, without a payment hash, decline a client's request for a refund.

    Attributes:
        payment_hash: of the invoice, or empty.
        amount_msat: what the sender would pay instead, or 0.
    """

    payment_hash: bytes
    reason: DeclineReason
    amount_msat: int = 0


@dataclass(frozen=True, slots=True)
class Paid:
    """Payer proves a payment: SHA-256 of the preimage is the invoice's payment hash (BOLT 11)."""

    payment_hash: bytes
    preimage: bytes


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One contract's cumulative totals in a statement."""

    contract: bytes
    used_to_bytes: int
    used_from_bytes: int
    charged_msat: int

    @property
    def used_bytes(self) -> int:
        """Bytes of both directions."""
        return self.used_to_bytes + self.used_from_bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """Server's cumulative totals of the account and of the contracts that changed. It is signed, so it is a bill."""

    paid_msat: int
    charged_msat: int
    refunded_msat: int
    lines: tuple[StatementLine, ...]


@dataclass(frozen=True, slots=True)
class Refund:
    """Pay back what a client prepaid. The server offers an amount; the client answers with an invoice for it.

    A client that wants its money back sends this message without amount and invoice: it asks for an offer.
    """

    amount_msat: int
    bolt11: str = ""


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender's daemon stops. Contracts run on to their limits."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Acknowledge messages that need no other answer: many in one datagram, so that few signatures are needed."""

    message_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A part of a tenant's call to a landlord; docs/rental-protocol.md describes whole calls.

    Attributes: number: chosen by the tenant, for this call and its answer. part: from 0 on. parts: how many there are.
    """

    number: int
    part: int
    parts: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of a landlord's answer to a call. The whole answer is empty if nothing is let to this neighbour.

    Attributes: as those of `Call`; `number` is the call's.
    """

    number: int
    part: int
    parts: int
    content: bytes


Message = (
    Hello
    | Ask
    | Propose
    | Accept
    | Reject
    | Cancel
    | Invoice
    | Declined
    | Paid
    | Statement
    | Refund
    | Bye
    | Ack
    | Call
    | Answer
)
