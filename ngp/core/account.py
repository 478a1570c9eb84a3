"""Account: what both sides keep of money that one prepaid to the other. paid = charged + refunded + balance, always.

Pure. Every amount is msat and an int. A neighbour may have two: as our client (`selling.account`) and as our server
(`buying.account`); they are never netted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ngp.core.messages import Role
from ngp.core.rate import Rate


@dataclass(frozen=True, slots=True)
class TopUp:
    """A top-up that was paid: how much, when, and what was charged by then."""

    amount_msat: int = 0
    at_mono_s: float = 0.0
    charged_msat: int = 0


NO_TOP_UP = TopUp()


@dataclass(slots=True)
class OwnInvoice:
    """The invoice of ours that the neighbour is to pay: a client for a top-up, a server for a refund.

    Attributes:
        payment_hash: of the one that waits to be paid, b"": none does.
        asked: our node is making one.
        not_before_mono_s: until then no other is made, nor this one sent again.
        declined: how many were declined in a row.
    """

    payment_hash: bytes = b""
    asked: bool = False
    not_before_mono_s: float = 0.0
    declined: int = 0


@dataclass(slots=True, eq=False)
class Account:
    """One neighbour's account in one role.

    Attributes:
        paid_msat, charged_msat, refunded_msat: cumulative.
        running: contracts that aren't closed.
        unsaved_msat: the part of the charges whose contracts aren't in the ledger yet; a restart charges it again.
        rate: of what is charged, smoothed.
        why_not: why it isn't topped up, for the listings; empty while nothing is in the way.
        refund_ask_mono_s: when a refund was last asked for.
    """

    role: ClassVar[Role]

    identity: bytes
    paid_msat: int = 0
    charged_msat: int = 0
    refunded_msat: int = 0
    running: int = 0
    unsaved_msat: int = 0
    rate: Rate = field(default_factory=Rate)
    top_up: TopUp = NO_TOP_UP
    invoice: OwnInvoice = field(default_factory=OwnInvoice)
    why_not: str = ""
    refund_ask_mono_s: float = float("-inf")

    @property
    def balance_msat(self) -> int:
        """Prepaid and not yet charged; negative while grace is used."""
        return self.paid_msat - self.charged_msat - self.refunded_msat

    @property
    def used_msat(self) -> int:
        """What was used so far, by the bill or by our own meter."""
        return self.charged_msat

    @property
    def empty(self) -> bool:
        """True where nothing would be lost by forgetting it."""
        return not (self.paid_msat or self.used_msat or self.running or self.invoice.payment_hash)

    @property
    def worth_keeping(self) -> bool:
        """True where there is, or was, or may soon be money; what else there can be is the grace that was used."""
        return bool(self.paid_msat or self.running or self.invoice.payment_hash or self.invoice.asked)
