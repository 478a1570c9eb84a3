"""Server's account: what we prepaid a server, what it bills, and what our own meter counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ngp.core.account import Account
from ngp.core.buying.loss import Loss
from ngp.core.buying.purchase import Purchase
from ngp.core.messages import Role
from ngp.core.records import AccountRecord


@dataclass(slots=True)
class Backoff:
    """How long we wait before we pay again, after payments that failed in a row."""

    not_before_mono_s: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class Seen:
    """What a server has shown for our payments; see `service`.

    Attributes:
        unseen: how many payments in a row succeeded for which we haven't seen anything yet.
        since_mono_s: when the first of them succeeded.
        base_msat: what the server's statements credited when the first of them was ordered.
        stated_msat: what its latest statement credits.
        came_back: our meter has counted something that came back since then.
        served_msat: what our meter had counted, and what we tolerated, by the time when something came back last.
        served_mono_s: when that was.
        refused: we have declined an invoice since then, for want of service.
        try_again_mono_s: until then nothing is paid, if too much was paid for nothing.
        echo_not_before_mono_s: until then no destination is asked for an echo. echo_by: the purchase by which the last
            one went, until our meter counts that.
    """

    unseen: int = 0
    since_mono_s: float = float("-inf")
    base_msat: int = 0
    stated_msat: int = 0
    came_back: bool = False
    served_msat: int = 0
    served_mono_s: float = float("-inf")
    refused: bool = False
    try_again_mono_s: float = float("-inf")
    echo_not_before_mono_s: float = float("-inf")
    echo_by: bytes = b""

    @property
    def is_credited(self) -> bool:
        """True if a statement has credited something since then."""
        return self.stated_msat > self.base_msat


@dataclass(slots=True, eq=False)
class ServerAccount(Account):
    """Our account with a server. `charged_msat` is the bill, as far as we believe it.

    Attributes:
        billed_msat: the server's latest bill.
        metered_msat: the price of what our own meter counted.
        tolerated_msat: how much more than our meter counted we accept for good: what the meter missed, and what was
            written off as lost.
        came_back_msat: the price of what our meter counted from destinations since the last bill was compared.
        ahead_msat: how much more our meter had counted than was billed, when the last bill came.
        loss: how much of what we send the server gets.
        disputed: the bill is higher than meter and tolerance allow; we agree and pay nothing until `ngp unblock`.
        unpaid: contracts accepted without money: the next payment makes them active, or the server ends them.
        sent: our meter has counted something that we sent through this server.
        seen: what the server has shown for our payments.
        backoff: the pause after failed payments of this server's invoices.
        moved_mono_s: when the server was last found on another link address than that of its contracts.
        refused_mono_s: when it refused a running contract, and was believed what that carried until it had ended.
        declined_hash: payment hash of the invoice that we declined last; b"" after we paid one or said that we would.
        missing_msat: how much of what we paid is missing in the server's statements, as after it restored an older
            ledger.
        unmetered_msat: up to which sum we still believe bills of traffic that was carried while our meter didn't count.
            None: not fixed yet; it will be our money that the server has in hand when the first such bill comes.
        disown_not_before_mono_s: until then no further `Cancel` answers bills of contracts that we don't meter.
    """

    role: ClassVar[Role] = Role.CLIENT

    billed_msat: int = 0
    metered_msat: int = 0
    tolerated_msat: int = 0
    came_back_msat: int = 0
    ahead_msat: int = 0
    loss: Loss = field(default_factory=Loss)
    disputed: bool = False
    unpaid: dict[bytes, Purchase] = field(default_factory=dict)
    sent: bool = False
    seen: Seen = field(default_factory=Seen)
    backoff: Backoff = field(default_factory=Backoff)
    moved_mono_s: float = float("-inf")
    refused_mono_s: float = float("-inf")
    declined_hash: bytes = b""
    missing_msat: int = 0
    unmetered_msat: int | None = None
    disown_not_before_mono_s: float = 0.0

    @property
    def used_msat(self) -> int:
        """What was used so far, by the bill or by our own meter, whichever is more."""
        return max(self.metered_msat, self.charged_msat)

    @property
    def served_msat(self) -> int:
        """The worth of what the server has shown to have carried."""
        return self.seen.served_msat

    def record(self) -> AccountRecord:
        """Return the account's record for the ledger."""
        return AccountRecord(
            identity=self.identity,
            role=self.role,
            paid_msat=self.paid_msat,
            charged_msat=self.charged_msat,
            refunded_msat=self.refunded_msat,
            grace_until_s=0,
            billed_msat=self.billed_msat,
            disputed=self.disputed,
            metered_msat=self.metered_msat - self.unsaved_msat,
            tolerated_msat=self.tolerated_msat,
            reputation_ppm=self.reputation.was_ppm,
            reputation_at_s=self.reputation.at_s,
            unseen_payments=self.seen.unseen,
            served_msat=self.seen.served_msat,
        )
