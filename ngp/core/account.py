"""Account: what a neighbour has prepaid, what it was charged, and what its contracts may still spend in the kernel.

Pure. Every amount is msat and an int, but for the kernel's units (msat / 2^30), in which bytes x price is exact.

The kernel holds a client's account: a packet passes if its contract has bytes left and its account has money left, so
contracts share one balance without dividing it. Bytes are billed by what each contract used; the kernel's sum only says
when to stop. One rule: what the kernel may let through is covered by the balance or by the credit line. Grace is that
credit line: GRACE_DATA bytes at the price of the contract that opens it, once until all is paid. The cost of a
neighbour that takes and never pays is therefore the grace amount and not one byte more. Keys and link addresses cost
nothing to make, so the credit outstanding on an interface is bounded as well (`CreditLine`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

from ngp.core.contract import Contract
from ngp.core.messages import Role
from ngp.core.pricing import cost_units
from ngp.core.records import AccountRecord
from ngp.core.values import MOST_UNITS_AHEAD, UNITS_PER_MSAT, AccountLimit

GRACE_SHARES_PER_INTERFACE = 64
"""How many neighbours may be on unpaid grace on one interface at a time, defaulters of the last hour included."""

DEFAULT_REMEMBERED_S = 3600.0

FROM_THE_FIRST = (0, b"")

Key = TypeVar("Key")


@dataclass(slots=True)
class CreditLine:
    """Grace bytes outstanding on each link address and interface.

    Stops a stranger that makes itself new keys (bounded by its link address) or new link addresses (bounded by the
    interface). A newcomer who finds the interface's credit used up can still prepay.
    """

    outstanding: dict[tuple[str, bytes], int] = field(default_factory=dict)
    forgotten: dict[tuple[str, bytes], int] = field(default_factory=dict)
    on_interface: dict[str, int] = field(default_factory=dict)
    defaults: deque[tuple[float, tuple[str, bytes], int]] = field(default_factory=deque)

    def left_bytes(self, link: tuple[str, bytes], grace_data_bytes: int) -> int:
        """Return how many bytes of credit a link address may still open, >= 0."""
        own = grace_data_bytes - self.outstanding.get(link, 0)
        shared = grace_data_bytes * GRACE_SHARES_PER_INTERFACE - self.on_interface.get(link[0], 0)
        return max(0, min(own, shared))

    def change(self, link: tuple[str, bytes], by_bytes: int) -> None:
        """Open (positive) or give back (negative) credit on a link address."""
        if by_bytes:
            _add(self.outstanding, link, by_bytes)
            forgotten = min(self.forgotten.get(link, 0), max(0, -by_bytes))  # off the interface's sum already
            _add(self.forgotten, link, -forgotten)
            _add(self.on_interface, link[0], by_bytes + forgotten)

    def weighs(self, link: tuple[str, bytes]) -> bool:
        """Say whether what is outstanding on a link address counts on its interface still."""
        return self.outstanding.get(link, 0) > self.forgotten.get(link, 0)

    def remember_default(self, link: tuple[str, bytes], debt_bytes: int, now_mono_s: float) -> None:
        """Let a default weigh on the interface for an hour: then a paying newcomer must not suffer for it any more."""
        self.defaults.append((now_mono_s + DEFAULT_REMEMBERED_S, link, debt_bytes))

    def forget_old_defaults(self, now_mono_s: float) -> None:
        """Take defaults older than an hour off the interface's sum; the account itself stays in debt."""
        while self.defaults and self.defaults[0][0] <= now_mono_s:
            _, link, debt = self.defaults.popleft()
            debt = min(debt, self.outstanding.get(link, 0) - self.forgotten.get(link, 0))
            if debt > 0:
                _add(self.forgotten, link, debt)
                _add(self.on_interface, link[0], -debt)


def _add(table: dict[Key, int], key: Key, by_bytes: int) -> None:
    value = table.get(key, 0) + by_bytes
    if value > 0:
        table[key] = value
    else:
        table.pop(key, None)


@dataclass(slots=True)
class Credit:
    """Grace that an account was given, until all is paid: `data_bytes` at the price of the contract that opened it.

    Attributes:
        data_bytes: counted on each of `links`; what was used of it once its time is over.
        until_mono_s: when it ends; moved on while none of it is used.
        links: where the account has contracts, or had some when it used it.
    """

    data_bytes: int
    price_msat_per_gib: int
    until_mono_s: float
    links: set[tuple[str, bytes]]

    @property
    def units(self) -> int:
        """Its worth, as the kernel counts money."""
        return self.data_bytes * self.price_msat_per_gib

    def used_bytes(self, debt_msat: int) -> int:
        """Return how much of it a debt comes to, rounded up."""
        return min(self.data_bytes, -(-debt_msat * UNITS_PER_MSAT // self.price_msat_per_gib))


@dataclass(slots=True)
class Patience:
    """When a client pays again after payments that failed in a row."""

    not_before_mono_s: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class PendingRefund:
    """An invoice for a refund that is paid once the kernel has said what is left (`refunds.counted`)."""

    bolt11: str
    payment_hash: bytes
    amount_msat: int
    fee_limit_msat: int


@dataclass(slots=True, eq=False)
class Account:
    """One neighbour's account in one role. paid = charged + refunded + balance, always.

    Attributes:
        paid_msat, charged_msat, refunded_msat: cumulative; `charged_msat` is what was metered, priced.
        running: contracts that are not over. priced: those of a server's that cost something.
        unpaid: a server's, accepted without money: the next payment makes them active, or their time ends.
        credit: a server's: the grace that is open or owed; None while none is.
        offset_units: what, added to paid - refunded, makes the limit that the kernel is told (see `limit`).
        told: the limit that the kernel was told last, with when its credit ends; None: it doesn't know the account.
        spent_units: what the kernel said last that was spent.
        counting: so often the kernel is being asked what was spent, and what of it by which contract.
        unstated: contracts (running or just closed) whose totals the client hasn't been told yet.
        recall_after: from where on (closed when, id) closed contracts' bills are to be told again out of the ledger.
        patience: a client's, with invoices of this server that can't be paid.
        refunding_msat: promised or being paid back; no contract may spend it.
        pending_refund: one whose sum is fixed when the kernel has stopped spending it.
        refund_offered_msat, refund_offered_mono_s, refund_asked: a server's offer that no invoice has met, when it was
            made, and whether the client had asked for it.
        refund_ask_mono_s, refund_told_mono_s: when a refund was last asked for, and the operator last told so.
        invoice: hash of the top-up invoice that waits to be paid; `invoice_asked` while the node makes one.
        most_asked_msat, budget_told_mono_s: what the client would pay at most at once, 0: no limit; when it last said
            that its budgets don't allow more.
        top_up_msat, topped_up_mono_s, topped_up_at_msat: the last top-up, when, and what was charged by then.
        rate_msat_s: recent spending, smoothed.
        metered_msat, tolerated_msat, disputed: a client's own sum, what of the bill it can't have metered (first
            packets), and whether the bill left both behind.
        told_paid_msat: a client's: what the server said it was paid, since our start.
        unsaved_msat: the part of `charged_msat` (a client's: of `metered_msat`) whose contracts aren't in the ledger
            yet; a restart charges it again.
        invoices_declined: in a row, for the pause before the next one.
        sent: a client's own meter has counted something that we sent by this server.
        moved_mono_s: when a server was last found on another link address than its contracts'.
        why_not: why it isn't topped up, for the listings; empty while nothing is in the way.
        disown_not_before_mono_s: until then a client says nothing about stated contracts that it doesn't know.
    """

    identity: bytes
    role: Role
    paid_msat: int = 0
    charged_msat: int = 0
    refunded_msat: int = 0
    running: int = 0
    priced: int = 0
    unpaid: dict[bytes, Contract] = field(default_factory=dict)
    credit: Credit | None = None
    offset_units: int = 0
    told: tuple[int, int, float] | None = None
    spent_units: int = 0
    counting: int = 0
    unstated: dict[bytes, Contract] = field(default_factory=dict)
    recall_after: tuple[int, bytes] | None = None
    refunding_msat: int = 0
    pending_refund: PendingRefund | None = None
    invoice: bytes = b""
    invoice_asked: bool = False
    invoice_not_before_mono_s: float = 0.0
    invoices_declined: int = 0
    patience: Patience = field(default_factory=Patience)
    refund_offered_msat: int = 0
    refund_offered_mono_s: float = 0.0
    refund_asked: bool = False
    refund_ask_mono_s: float = float("-inf")
    refund_told_mono_s: float = float("-inf")
    moved_mono_s: float = float("-inf")
    most_asked_msat: int = 0
    budget_told_mono_s: float = float("-inf")
    top_up_msat: int = 0
    topped_up_mono_s: float = 0.0
    topped_up_at_msat: int = 0
    rate_msat_s: float = 0.0
    rated_mono_s: float = 0.0
    billed_msat: int = 0
    metered_msat: int = 0
    tolerated_msat: int = 0
    disputed: bool = False
    told_paid_msat: int = 0
    unsaved_msat: int = 0
    sent: bool = False
    why_not: str = ""
    disown_not_before_mono_s: float = 0.0

    @property
    def balance_msat(self) -> int:
        """Prepaid and not yet charged; negative while grace is used."""
        return self.paid_msat - self.charged_msat - self.refunded_msat

    @property
    def reserved_msat(self) -> int:
        """What is set aside because each priced contract's charge is rounded up at its end; never of credit."""
        return min(self.priced, max(0, self.balance_msat - self.refunding_msat))

    @property
    def funds_msat(self) -> int:
        """Paid money that may be spent, or paid back; negative while grace is used."""
        return self.balance_msat - self.refunding_msat - self.reserved_msat

    @property
    def debt_msat(self) -> int:
        """Grace that was used and isn't paid yet."""
        return max(0, -self.balance_msat)

    def grace_left_bytes(self, grace_data_bytes: int) -> int:
        """Return how much of its grace an account hasn't used, at the price that this has or would have."""
        if self.credit is None:
            return 0 if self.debt_msat else grace_data_bytes
        return self.credit.data_bytes - self.credit.used_bytes(self.debt_msat)

    @property
    def empty(self) -> bool:
        """True where nothing would be lost by forgetting it."""
        used = self.paid_msat or self.charged_msat or self.metered_msat
        return not (used or self.running or self.invoice)

    @property
    def stands(self) -> bool:
        """True where there is, or was, or may soon be money; what else there can be is the grace that was used."""
        return bool(self.paid_msat or self.running or self.invoice or self.invoice_asked)

    def charge(self, contract: Contract, used_to_bytes: int, used_from_bytes: int) -> int:
        """Charge a contract's cumulative counters; a lower count than known changes nothing.

        Returns:
            The msat charged by this call, >= 0.
        """
        if used_to_bytes + used_from_bytes <= contract.used_bytes:
            return 0
        contract.used_to_bytes, contract.used_from_bytes = used_to_bytes, used_from_bytes
        due = contract.due_msat(contract.used_bytes) - contract.charged_msat
        contract.charged_msat += due
        contract.unsaved_msat += due
        self.charged_msat += due
        self.unsaved_msat += due
        return due

    # --- the kernel's share -------------------------------------------------------------------------------------------

    def count_from(self, spent_units: int, contracts: list[Contract]) -> None:
        """Begin anew to reckon the limit from what the kernel spent, so that limit - spent = money - charges.

        Args:
            spent_units: read before the contracts' counters, which so contain at least what it contains.
            contracts: those of the account that are not over, as they were read and charged since.
        """
        unrounded = sum(_rounding_units(contract) for contract in contracts)
        self.spent_units = spent_units
        self.offset_units = spent_units - self.charged_msat * UNITS_PER_MSAT + unrounded

    def close(self, contract: Contract) -> None:
        """Take out a contract after its last reading, which was charged."""
        self.running -= 1
        self.priced -= contract.price_msat_per_gib > 0
        self.offset_units -= _rounding_units(contract)
        self.unpaid.pop(contract.contract, None)

    def limit(self, now_mono_s: float, low_msat: int) -> AccountLimit:
        """Return what the kernel should know of the account now.

        The limit moves by known sums only: payments, refunds, what is set aside for rounding, and what of that a
        contract didn't need at its end. So it is right whatever the kernel spends meanwhile. What is set aside is not
        at the cost of credit: at a low price all grace is worth a few msat.

        Args:
            now_mono_s: monotonic seconds.
            low_msat: when no more money than that is left the kernel says so, once.
        """
        money_msat = self.paid_msat - self.refunded_msat - self.refunding_msat
        units = self.offset_units + (money_msat - self.priced) * UNITS_PER_MSAT
        credit, credit_units, ends_in_s = self.credit, 0, 0.0
        if credit is not None and credit.until_mono_s > now_mono_s:
            credit_units = credit.units + (self.priced - self.reserved_msat) * UNITS_PER_MSAT
            ends_in_s = credit.until_mono_s - now_mono_s
        return AccountLimit(
            account=self.identity,
            limit_units=min(units, self.spent_units + MOST_UNITS_AHEAD),
            credit_units=credit_units,
            credit_ends_in_s=ends_in_s,
            low_water_units=max(self.spent_units + 1, units - low_msat * UNITS_PER_MSAT),
        )

    def record(self, grace_until_s: int = 0) -> AccountRecord:
        """Return what the ledger keeps of it."""
        server = self.role is Role.SERVER
        owed = self.credit if self.debt_msat else None
        return AccountRecord(
            identity=self.identity,
            role=self.role,
            paid_msat=self.paid_msat,
            charged_msat=self.charged_msat - (self.unsaved_msat if server else 0),
            refunded_msat=self.refunded_msat,
            grace_until_s=grace_until_s,
            billed_msat=self.billed_msat,
            disputed=self.disputed,
            metered_msat=0 if server else self.metered_msat - self.unsaved_msat,
            tolerated_msat=self.tolerated_msat,
            grace_data_bytes=owed.data_bytes if owed is not None else 0,
            grace_price_msat_per_gib=owed.price_msat_per_gib if owed is not None else 0,
        )


def _rounding_units(contract: Contract) -> int:
    """Return by how much a contract's charge is more than it cost exactly, >= 0 and below 1 msat."""
    return contract.charged_msat * UNITS_PER_MSAT - cost_units(contract.used_bytes, contract.prices)
