"""Account: what both sides keep about money that one prepaid to the other. paid = charged + refunded + balance, always.

Pure. Every amount is msat and an int. A neighbour may have two accounts: as our client (`selling.account`) and as our
server (`buying.account`); they are never netted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ngp.core.messages import Role
from ngp.core.rate import Rate
from ngp.core.reputation import Reputation


@dataclass(frozen=True, slots=True)
class TopUp:
    """A top-up that was paid: its amount, its time, and what had been used by then."""

    amount_msat: int = 0
    at_mono_s: float = 0.0
    used_msat: int = 0


NO_TOP_UP = TopUp()


@dataclass(slots=True)
class OwnInvoice:
    """The invoice of ours that the neighbour should pay: a client for a top-up, a server for a refund.

    Attributes:
        payment_hash: hash of the invoice that waits for its payment; b"" if there is no such invoice.
        asked: our node is making an invoice.
        not_before_mono_s: until then no other invoice is made, and the one that waits isn't sent again.
        declined: how many invoices the neighbour declined in a row.
        hurried_mono_s: when we last didn't wait until `not_before_mono_s`, because the neighbour said that it would pay
            now.
    """

    payment_hash: bytes = b""
    asked: bool = False
    not_before_mono_s: float = 0.0
    declined: int = 0
    hurried_mono_s: float = float("-inf")


@dataclass(slots=True, eq=False)
class Account:
    """One neighbour's account in one role.

    Attributes:
        paid_msat, charged_msat, refunded_msat: cumulative.
        running: number of contracts that aren't closed.
        unsaved_msat: the part of `charged_msat` that isn't in the ledger yet, as the contracts aren't written at every
            reading. After a crash the ledger lacks it, and the start charges it from the kernel's counters.
        rate: msat charged a second, smoothed.
        why_not: why the account isn't topped up, for the listings; empty while nothing is in the way.
        refund_ask_mono_s: when a refund was last asked for.
        reputation: how far the neighbour has kept its word.
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
    reputation: Reputation = Reputation()

    @property
    def balance_msat(self) -> int:
        """Prepaid and not yet charged; negative while grace is used."""
        return self.paid_msat - self.charged_msat - self.refunded_msat

    @property
    def used_msat(self) -> int:
        """What was used so far: the bill. For our account with a server it is our own meter's count if that is more."""
        return self.charged_msat

    @property
    def served_msat(self) -> int:
        """The worth of what the seller has shown to have carried. We know it of ourselves: it is what we charged."""
        return self.charged_msat

    @property
    def empty(self) -> bool:
        """True if nothing would be lost by forgetting the account."""
        return not (self.worth_keeping or self.used_msat)

    @property
    def worth_keeping(self) -> bool:
        """True if money is, was or may soon be on the account. If False, nothing but grace was ever used."""
        return bool(self.paid_msat or self.running or self.invoice.payment_hash or self.invoice.asked)
