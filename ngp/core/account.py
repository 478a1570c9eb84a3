"""Account: what a neighbour has prepaid and what its contracts may still spend.

Pure. Every amount is msat and an int. Reserve on grant, charge what the kernel metered, release the rest: a neighbour
never pays for bytes that were not carried, and never gets a byte that was not covered.

One rule: what is granted to contracts is covered by the balance or by the credit line. Grace is that credit line: one
pool of bytes a neighbour and link address, used up once until it is paid for, charged like all else when it is. The
cost of a neighbour that takes and never pays is therefore the grace amount and not one byte more. Keys and link
addresses cost nothing to make, so the credit outstanding on an interface is bounded as well (`CreditLine`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

from ngp.core.contract import Contract
from ngp.core.messages import Role
from ngp.core.pricing import affordable_bytes
from ngp.core.records import AccountRecord

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
class Patience:
    """When a client pays again after payments that failed in a row."""

    not_before_mono_s: float = 0.0
    failures: int = 0


@dataclass(slots=True, eq=False)
class Account:
    """One neighbour's account in one role. paid = charged + refunded + balance, always.

    Attributes:
        paid_msat, charged_msat, refunded_msat: cumulative; `charged_msat` is what was metered, priced.
        liability_msat: what the contracts' grants may still cost.
        grace_value_msat: the part of the liability that stands on credit.
        debts: grace bytes that closed contracts used on a link and nobody paid yet; `debt_msat` is what they cost.
        grace_until_mono_s: when the running grace ends; None while none is in use.
        on_grace: running contracts with a part on credit.
        waiting: running contracts that run on credit or are short of budget: the next payment serves them.
        unstated: contracts (running or just closed) whose totals the client hasn't been told yet.
        recall_after: from where on (closed when, id) closed contracts' bills are to be told again out of the ledger.
        patience: a client's, with invoices of this server that can't be paid.
        refunding_msat: promised or being paid back; no contract may spend it.
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
        grace_bytes: credit of running contracts.
        lenders: running contracts that hold budget, the one that asked for more longest ago first.
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
    liability_msat: int = 0
    grace_value_msat: int = 0
    debts: dict[tuple[str, bytes], int] = field(default_factory=dict)
    debt_msat: int = 0
    grace_until_mono_s: float | None = None
    on_grace: dict[bytes, Contract] = field(default_factory=dict)
    waiting: dict[bytes, Contract] = field(default_factory=dict)
    unstated: dict[bytes, Contract] = field(default_factory=dict)
    recall_after: tuple[int, bytes] | None = None
    running: int = 0
    refunding_msat: int = 0
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
    grace_bytes: int = 0
    lenders: dict[bytes, Contract] = field(default_factory=dict)
    sent: bool = False
    why_not: str = ""
    disown_not_before_mono_s: float = 0.0

    @property
    def balance_msat(self) -> int:
        """Prepaid and not yet charged; negative while grace is used."""
        return self.paid_msat - self.charged_msat - self.refunded_msat

    @property
    def reserved_msat(self) -> int:
        """What running contracts hold of the balance, credit not counted."""
        return self.liability_msat - self.grace_value_msat

    @property
    def funds_msat(self) -> int:
        """Paid money that no contract holds yet; not spent by debts that stand on grace."""
        return self.balance_msat + self.debt_msat - self.reserved_msat - self.refunding_msat

    @property
    def grace_bytes_in_use(self) -> int:
        """Credit outstanding: of running contracts and of closed ones."""
        return sum(self.debts.values()) + self.grace_bytes

    @property
    def empty(self) -> bool:
        """True where nothing would be lost by forgetting it."""
        used = self.paid_msat or self.charged_msat or self.metered_msat
        return not (used or self.running or self.debts or self.invoice)

    @property
    def stands(self) -> bool:
        """True where there is, or was, or may soon be money; what else there can be is the grace that was used."""
        return bool(self.paid_msat or self.running or self.invoice or self.invoice_asked)

    def carry(self, contract: Contract) -> None:
        """Enter a contract's present liability into the sums; call after every change of a contract."""
        liability = contract.due_msat(contract.granted_bytes) - contract.charged_msat if contract.granted_bytes else 0
        value = 0
        if contract.grace_bytes:
            value = contract.due_msat(contract.granted_bytes) - contract.due_msat(
                contract.granted_bytes - contract.grace_bytes
            )
            self.on_grace[contract.contract] = contract
        else:
            self.on_grace.pop(contract.contract, None)
        self.grace_bytes += contract.grace_bytes - contract.carried_grace_bytes
        contract.carried_grace_bytes = contract.grace_bytes
        self.liability_msat += liability - contract.liability_msat
        self.grace_value_msat += value - contract.grace_value_msat
        contract.liability_msat, contract.grace_value_msat = liability, value

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
        contract.granted_bytes = max(contract.granted_bytes, contract.used_bytes)  # carried is owed
        self.carry(contract)
        return due

    def extend_paid(self, contract: Contract, wanted_bytes: int, shares: int = 1) -> int:
        """Grant bytes against paid money, as far as one of so many equal shares goes. Returns the bytes granted.

        What stands on credit isn't rounded up on top: at a low price one msat would be megabytes beyond the grace.
        """
        if contract.grace_bytes and self.funds_msat <= 0 and contract.price_msat_per_gib:
            return 0
        granted = affordable_bytes(
            self.funds_msat // shares,
            contract.granted_bytes,
            contract.granted_bytes + wanted_bytes,
            contract.prices,
        )
        contract.granted_bytes += granted
        self.carry(contract)
        return granted

    def extend_on_grace(self, contract: Contract, wanted_bytes: int, left_bytes: int, credit: CreditLine) -> int:
        """Grant bytes on credit, as far as the credit line goes. Returns the bytes granted."""
        granted = min(wanted_bytes, left_bytes)
        if granted <= 0:
            return 0
        contract.granted_bytes += granted
        contract.grace_bytes += granted
        credit.change(contract.link, granted)
        self.carry(contract)
        return granted

    def redeem(self, credit: CreditLine) -> None:
        """Pay credit back out of funds: closed contracts' debts first, then running ones."""
        if self.debts:
            self._redeem_debts(credit)
        for contract in list(self.on_grace.values()):
            start = contract.granted_bytes - contract.grace_bytes
            paid = affordable_bytes(self.funds_msat, start, contract.granted_bytes, contract.prices)
            contract.grace_bytes -= paid
            credit.change(contract.link, -paid)
            self.carry(contract)
            if contract.grace_bytes:
                break
        if not self.on_grace and not self.debts:
            self.grace_until_mono_s = None

    def _redeem_debts(self, credit: CreditLine) -> None:
        paid_msat = min(max(0, self.funds_msat), self.debt_msat)
        for link, debt_bytes in list(self.debts.items()):
            paid_bytes = debt_bytes if paid_msat == self.debt_msat else debt_bytes * paid_msat // self.debt_msat
            credit.change(link, -paid_bytes)
            _add(self.debts, link, -paid_bytes)
        self.debt_msat -= paid_msat

    def give_back(self, contract: Contract, keep_bytes: int, credit: CreditLine) -> None:
        """Take unused budget back, credit first, but for `keep_bytes`; the kernel must have stopped at that already."""
        unused = max(0, contract.granted_bytes - contract.used_bytes - keep_bytes)
        on_credit = min(unused, contract.grace_bytes)
        credit.change(contract.link, -on_credit)
        contract.granted_bytes -= unused
        contract.grace_bytes -= on_credit
        self.carry(contract)

    def settle(self, contract: Contract, credit: CreditLine) -> int:
        """Close a contract's books after its last reading: release what is left, turn used credit into a debt.

        Returns:
            The debt, in bytes, before free money pays it.
        """
        self.give_back(contract, 0, credit)
        debt_bytes = contract.grace_bytes
        if debt_bytes:
            _add(self.debts, contract.link, debt_bytes)
            self.debt_msat += contract.grace_value_msat
            contract.grace_bytes = 0
            self.carry(contract)
        self.redeem(credit)
        return debt_bytes

    def record(self, grace_until_s: int = 0) -> AccountRecord:
        """Return what the ledger keeps of it."""
        server = self.role is Role.SERVER
        return AccountRecord(
            identity=self.identity,
            role=self.role,
            paid_msat=self.paid_msat,
            charged_msat=self.charged_msat - (self.unsaved_msat if server else 0),
            refunded_msat=self.refunded_msat,
            grace_debt_bytes=self.grace_bytes_in_use,
            grace_until_s=grace_until_s,
            billed_msat=self.billed_msat,
            disputed=self.disputed,
            metered_msat=0 if server else self.metered_msat - self.unsaved_msat,
            tolerated_msat=self.tolerated_msat,
        )
