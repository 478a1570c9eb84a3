"""Money: the invoices that our payment node made for us, and the payments that it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.budget import Spending
from ngp.core.payment_node import DecodedInvoice
from ngp.core.reach import Reach
from ngp.core.records import PaymentRecord


@dataclass(frozen=True, slots=True)
class Order:
    """A payment that we make, or promised to make: of another node's invoice, with the highest fee for its routing."""

    bolt11: str
    payment_hash: bytes
    amount_msat: int
    fee_limit_msat: int


@dataclass(slots=True, eq=False)
class Money:
    """Our invoices and our payments; those that ended long ago are forgotten.

    Attributes:
        invoices, payments: by payment hash.
        spending: what was paid, for the budgets.
        reach: the channels of our payment node; None if the node doesn't report channels: then payments are unbounded.
        unheard_of: payments of ours that the node didn't know when it was asked about them for the first time.
        cursor: how far the node's stream of settlements was read.
    """

    invoices: dict[bytes, PaymentRecord] = field(default_factory=dict)
    payments: dict[bytes, PaymentRecord] = field(default_factory=dict)
    spending: Spending = field(default_factory=Spending)
    reach: Reach | None = None
    unheard_of: set[bytes] = field(default_factory=set)
    cursor: int = 0

    def payments_to(self, identity: bytes) -> list[PaymentRecord]:
        """Return our payments for one account, whatever became of them."""
        return [one for one in self.payments.values() if one.identity == identity]

    def knows(self, payment_hash: bytes) -> bool:
        """Say whether one of our payments or invoices here has this hash; the ledger would refuse a second one."""
        return payment_hash in self.payments or payment_hash in self.invoices

    def is_used(self, invoice: DecodedInvoice) -> bool:
        """Say whether another node's invoice has a hash that we had before, however long ago: it is never paid."""
        return invoice.was_ordered or self.knows(invoice.payment_hash)
