"""Client's account: what a client has prepaid, what it was charged, and what its contracts may spend in the kernel.

Pure. Every amount is msat and an int, except for the kernel's units (msat / 2^30), in which bytes x price is exact.

The kernel holds the account: a packet passes if its contract has bytes left and its account has money left, so
contracts share one balance without dividing it. The bill is the sum of what each contract used; the sum that the kernel
counts only decides when traffic stops. Everything that the kernel may let through is covered, by the balance or by
credit. The credit is the grace: GRACE_DATA bytes at the price of the contract for which it is opened. No new credit is
opened before all of the old one is paid. So a neighbour that never pays costs the grace, and not one byte more. Keys
and link addresses cost nothing to make, so the outstanding credit on an interface is bounded as well (`CreditLine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from ngp.core.account import Account
from ngp.core.kernel import MOST_UNITS_AHEAD, UNITS_PER_MSAT, AccountLimit, Reading
from ngp.core.messages import Role
from ngp.core.money import Order
from ngp.core.newest import Newest
from ngp.core.records import AccountRecord, BilledRecord
from ngp.core.selling.sale import Sale

GRACE_SHARES_PER_INTERFACE = 64
"""How many neighbours on one interface may use unpaid grace at a time, including defaulters of the last hour."""

MOST_UNTOLD = 256
FROM_THE_FIRST = (0, b"")
"""The place before the first closed contract, in the order of closing (`ClientAccount.recall_after`)."""

Key = TypeVar("Key")


@dataclass(slots=True)
class Credit:
    """Grace that an account has until all is paid: `data_bytes` at the price of the contract for which it was opened.

    Attributes:
        data_bytes: the credit's size. When the credit's time is over, it is reduced to what was used. Only
            `CreditLine.change` changes it.
        until_mono_s: when it ends; put off while an account that has paid uses none of it.
        link: the link of the contract for which it was opened. All of it counts there, whichever contracts use it.
        weighs: the credit counts towards the limit of its interface, too. A credit that isn't paid in time does so for
            one more hour.
    """

    data_bytes: int
    price_msat_per_gib: int
    until_mono_s: float
    link: tuple[str, bytes]
    weighs: bool = True

    @property
    def units(self) -> int:
        """The credit's worth, in the kernel's unit of money."""
        return self.data_bytes * self.price_msat_per_gib

    def used_bytes(self, debt_msat: int) -> int:
        """Return how many bytes of the credit a debt amounts to, rounded up."""
        return min(self.data_bytes, -(-debt_msat * UNITS_PER_MSAT // self.price_msat_per_gib))


@dataclass(slots=True)
class CreditLine:
    """Outstanding grace bytes on each link address and each interface.

    The limit for a link address stops an attacker who makes new keys; the limit for an interface stops one who makes
    new link addresses. If the interface's credit is used up, an honest newcomer can still prepay.
    """

    outstanding: dict[tuple[str, bytes], int] = field(default_factory=dict)
    on_interface: dict[str, int] = field(default_factory=dict)

    def left_bytes(self, link: tuple[str, bytes], grace_data_bytes: int) -> int:
        """Return how many bytes of credit a link address may still open, >= 0."""
        own = grace_data_bytes - self.outstanding.get(link, 0)
        shared = grace_data_bytes * GRACE_SHARES_PER_INTERFACE - self.on_interface.get(link[0], 0)
        return max(0, min(own, shared))

    def change(self, credit: Credit, by_bytes: int) -> None:
        """Make a credit larger (positive) or smaller."""
        credit.data_bytes += by_bytes
        _add(self.outstanding, credit.link, by_bytes)
        if credit.weighs:
            _add(self.on_interface, credit.link[0], by_bytes)

    def forget_on_interface(self, credit: Credit) -> None:
        """Count a credit on its link address alone: newcomers must not suffer for an old default."""
        if credit.weighs:
            _add(self.on_interface, credit.link[0], -credit.data_bytes)
            credit.weighs = False

    def count_on_interface(self, credit: Credit) -> None:
        """Count a credit that is open on its interface, too."""
        if not credit.weighs:
            credit.weighs = True
            _add(self.on_interface, credit.link[0], credit.data_bytes)


def _add(table: dict[Key, int], key: Key, by_bytes: int) -> None:
    value = table.get(key, 0) + by_bytes
    if value > 0:
        table[key] = value
    else:
        table.pop(key, None)


@dataclass(slots=True)
class Refunding:
    """The state of a client's refund.

    Attributes:
        promised_msat: promised or being paid back; no contract may spend it.
        pending: a refund that waits until the kernel can't spend its sum any more.
        offered_msat, offered_mono_s: an offer that no invoice has answered yet, and when it was made.
        was_asked: the client asked for the offer.
    """

    promised_msat: int = 0
    pending: Order | None = None
    offered_msat: int = 0
    offered_mono_s: float = 0.0
    was_asked: bool = False


@dataclass(slots=True)
class KernelShare:
    """What the kernel knows about an account.

    Attributes:
        offset_units: the kernel's limit is paid - refunded, plus this (see `ClientAccount.limit`).
        told: limit, credit and end of the credit as last set in the kernel; None: the kernel doesn't know the account.
        spent_units: what the account had spent when the kernel was last read.
        counting: number of counts that are asked for and not answered yet. 2: the second one follows the first, because
            the limit changed after the first was asked for.
    """

    offset_units: int = 0
    told: tuple[int, int, float] | None = None
    spent_units: int = 0
    counting: int = 0


@dataclass(slots=True, eq=False)
class ClientAccount(Account):
    """A client's account with us. `charged_msat`, the price of what was metered, is the bill.

    Attributes:
        priced: number of open contracts of which some bytes cost something.
        unpaid: contracts accepted without money: the next payment makes them active, or they end.
        credit: the grace that is open or owed; None if there is none.
        is_out: the kernel refused a packet for lack of the account's money, and nothing was paid since.
        unstated: contracts (open or just closed) whose totals the client hasn't got yet.
        untold: why contracts are over whose end the client hasn't acknowledged, by id; only the latest (`endings`).
        billed_untold: the bills of such contracts that the client has acknowledged.
        tell_next: ids of those of them of which it isn't told before it has stored others; the last one comes first.
        recall_after: the bills of contracts closed after this place (time of closing, id) must be read from the ledger
            and sent again; None: no bill must be.
        most_asked_msat: the most that the client would pay at once; 0: no limit.
        unsold_bytes: what we bought for the client since it couldn't pay, and couldn't sell to it (`ngp.core.unsold`).
        unsold_mono_s: since when none of it was forgotten.
        budget_told_mono_s: when the client last said that its budgets don't allow more.
    """

    role: ClassVar[Role] = Role.SERVER

    priced: int = 0
    unpaid: dict[bytes, Sale] = field(default_factory=dict)
    credit: Credit | None = None
    is_out: bool = False
    kernel: KernelShare = field(default_factory=KernelShare)
    unstated: dict[bytes, Sale] = field(default_factory=dict)
    untold: Newest[bytes, str] = field(default_factory=lambda: Newest(MOST_UNTOLD))
    billed_untold: Newest[bytes, BilledRecord] = field(default_factory=lambda: Newest(MOST_UNTOLD))
    tell_next: list[bytes] = field(default_factory=list)
    recall_after: tuple[int, bytes] | None = None
    refund: Refunding = field(default_factory=Refunding)
    most_asked_msat: int = 0
    unsold_bytes: int = 0
    unsold_mono_s: float = 0.0
    budget_told_mono_s: float = float("-inf")

    @property
    def reserved_msat(self) -> int:
        """Money set aside because each priced contract's charge is rounded up at its end. Credit is never set aside."""
        return min(self.priced, max(0, self.balance_msat - self.refund.promised_msat))

    @property
    def funds_msat(self) -> int:
        """Prepaid money that may be spent or paid back; negative while grace is used."""
        return self.balance_msat - self.refund.promised_msat - self.reserved_msat

    @property
    def debt_msat(self) -> int:
        """Grace that was used and isn't paid yet."""
        return max(0, -self.balance_msat)

    def open_credit(self, now_mono_s: float) -> Credit | None:
        """Return the credit that the client may use now, if there is any. Args: now_mono_s: monotonic seconds."""
        return self.credit if self.credit is not None and self.credit.until_mono_s > now_mono_s else None

    def grace_left_bytes(self, grace_data_bytes: int) -> int:
        """Return how many bytes of its grace an account hasn't used yet."""
        if self.credit is None:
            return 0 if self.debt_msat else grace_data_bytes
        return self.credit.data_bytes - self.credit.used_bytes(self.debt_msat)

    def charge(self, sale: Sale, reading: Reading) -> int:
        """Charge a contract's cumulative counters; counters that haven't grown change nothing.

        Returns:
            The msat charged by this call, >= 0.
        """
        if reading.used_bytes <= sale.used_bytes:
            return 0
        due_msat = sale.count(reading)
        self.charged_msat += due_msat
        self.unsaved_msat += due_msat
        return due_msat

    # --- the kernel's share -------------------------------------------------------------------------------------------

    def count_from(self, spent_units: int, sales: Sequence[Sale]) -> None:
        """Compute the limit anew from what the kernel spent, so that limit - spent = money - charges.

        Args:
            spent_units: read before the contracts' counters, so that these include all bytes that were paid with it.
            sales: all open contracts of the account, charged by the readings that followed.
        """
        unrounded = sum(sale.rounding_units for sale in sales)
        self.kernel.spent_units = spent_units
        self.kernel.offset_units = spent_units - self.charged_msat * UNITS_PER_MSAT + unrounded

    def close(self, sale: Sale) -> None:
        """Take a contract, whose last reading was charged, out of the kernel's limit."""
        self.priced -= sale.priced
        self.kernel.offset_units -= sale.rounding_units

    def limit(self, now_mono_s: float, low_msat: int) -> AccountLimit:
        """Return the limit that the kernel should have for the account now.

        The limit changes only by known sums: payments, refunds, what is set aside for rounding, and the part of this
        that a contract didn't need at its end. So the limit is right whatever the kernel spends meanwhile. If the
        balance is too low to set aside what rounding may need, the credit is raised by the missing part. Otherwise
        rounding could take all credit, since at a low price all grace is worth only a few msat.

        Args:
            now_mono_s: monotonic seconds.
            low_msat: the kernel gives one hint when no more money than this is left.
        """
        money_msat = self.paid_msat - self.refunded_msat - self.refund.promised_msat
        units = self.kernel.offset_units + (money_msat - self.priced) * UNITS_PER_MSAT
        credit, credit_units, ends_in_s = self.open_credit(now_mono_s), 0, 0.0
        if credit is not None:
            credit_units = credit.units + (self.priced - self.reserved_msat) * UNITS_PER_MSAT
            ends_in_s = credit.until_mono_s - now_mono_s
        return AccountLimit(
            account=self.identity,
            limit_units=min(units, self.kernel.spent_units + MOST_UNITS_AHEAD),
            credit_units=credit_units,
            credit_ends_in_s=ends_in_s,
            low_water_units=max(self.kernel.spent_units + 1, units - low_msat * UNITS_PER_MSAT),
        )

    def record(self, grace_until_s: int = 0) -> AccountRecord:
        """Return the account's record for the ledger. Args: grace_until_s: when the credit ends, UTC seconds."""
        credit = self.credit
        interface, link_address = credit.link if credit is not None else ("", b"")
        return AccountRecord(
            identity=self.identity,
            role=self.role,
            paid_msat=self.paid_msat,
            charged_msat=self.charged_msat - self.unsaved_msat,
            refunded_msat=self.refunded_msat,
            grace_until_s=grace_until_s,
            billed_msat=0,
            grace_data_bytes=credit.data_bytes if credit is not None else 0,
            grace_price_msat_per_gib=credit.price_msat_per_gib if credit is not None else 0,
            reputation_ppm=self.reputation.was_ppm,
            reputation_at_s=self.reputation.at_s,
            grace_interface=interface,
            grace_link_address=link_address,
        )
