"""Contract: what two neighbours agreed for one destination, and the only moves it can make.

    quoted -> accepted -> active -> renewing -> closed(exhausted | expired | unpaid | cancelled)
    quoted -> rejected -> quoted (bounded rounds), quoted -> lapsed

`accepted` runs on grace, `active` on a payment. States are persisted by name. An illegal move raises and changes
nothing; the diagram in docs/protocol.md is drawn from `MOVES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ngp.core.messages import Prefix, Role
from ngp.core.openings import Pools
from ngp.core.pricing import amount_due_msat
from ngp.core.records import ContractRecord


class State(StrEnum):
    """Where a contract stands."""

    QUOTED = "quoted"
    ACCEPTED = "accepted"
    ACTIVE = "active"
    RENEWING = "renewing"
    REJECTED = "rejected"
    LAPSED = "lapsed"
    CLOSED = "closed"


class CloseReason(StrEnum):
    """Why a contract is closed."""

    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    UNPAID = "unpaid"
    CANCELLED = "cancelled"


MOVES: dict[State, frozenset[State]] = {
    State.QUOTED: frozenset({State.ACCEPTED, State.ACTIVE, State.REJECTED, State.LAPSED}),
    State.REJECTED: frozenset({State.QUOTED}),
    State.LAPSED: frozenset(),
    State.ACCEPTED: frozenset({State.ACTIVE, State.RENEWING, State.CLOSED}),
    State.ACTIVE: frozenset({State.RENEWING, State.CLOSED}),
    State.RENEWING: frozenset({State.ACCEPTED, State.ACTIVE, State.CLOSED}),
    State.CLOSED: frozenset(),
}

MOST_IDLE_RENEWALS = 8
IDLE_RENEWAL_PAUSE_S = 3.0

RUNNING = frozenset({State.ACCEPTED, State.ACTIVE, State.RENEWING})


class IllegalMove(Exception):
    """A move that the table doesn't have: a defect of ours, never a neighbour's doing."""


@dataclass(slots=True, eq=False)
class Contract:
    """One contract as either side keeps it. Data are L3 bytes, money msat; `_at_s` UTC, `_mono_s` monotonic seconds.

    Attributes:
        link: (interface, link address) of the neighbour; the contract holds for that link alone.
        neighbour: the kernel's number of that link.
        prices: schedule by offset, see `pricing`.
        unsaved_msat: charged since the ledger was last told.
        meter_lost, forgiven_bytes: our meter missed some of it (a start, or we ended it before its server did); what
            was believed of its bills above our count.
        disowned: we ended what we bought, and its server hasn't said yet that it is over there too.
        halting: the reason for which it is being closed, while the kernel's last reading is awaited.
        offered: a renewal that waits for its accept: (data limit, lifetime, price).
        renewed_at_bytes, renewed_mono_s: what was used at the last renewal, and when that was.
        idle_renewals: in a row, without a byte carried in between.
        pools: where it is counted as an opening that came to nothing so far.
    """

    contract: bytes
    role: Role
    identity: bytes
    link: tuple[str, bytes]
    neighbour: int
    destination: Prefix
    prices: list[tuple[int, int]]
    data_limit_bytes: int
    lifetime_s: int
    state: State = State.QUOTED
    reason: str = ""
    round: int = 1
    used_to_bytes: int = 0
    used_from_bytes: int = 0
    charged_msat: int = 0
    billed_bytes: int = 0
    billed_msat: int = 0
    tolerated_msat: int = 0
    opened_at_s: int = 0
    expires_at_s: int = 0
    closed_at_s: int = 0
    expires_mono_s: float = 0.0
    quoted_until_mono_s: float = 0.0
    carried_mono_s: float = 0.0
    rate_bytes_s: float = 0.0
    unsaved_msat: int = 0
    meter_lost: bool = False
    forgiven_bytes: int = 0
    disowned: bool = False
    halting: CloseReason | None = None
    offered: tuple[int, int, int] | None = None
    renewed_at_bytes: int = 0
    renewed_mono_s: float = 0.0
    idle_renewals: int = 0
    pools: Pools = ()
    held: list[int] = field(default_factory=list)

    @property
    def used_bytes(self) -> int:
        """Bytes carried so far, both directions."""
        return self.used_to_bytes + self.used_from_bytes

    @property
    def price_msat_per_gib(self) -> int:
        """The price agreed last."""
        return self.prices[-1][1]

    @property
    def dearest_msat_per_gib(self) -> int:
        """The highest price of a byte that may still be carried: the kernel, which knows one price, never asks less."""
        prices = self.prices
        if len(prices) == 1:
            return prices[0][1]
        return max(
            price
            for position, (_, price) in enumerate(prices)
            if position + 1 == len(prices) or prices[position + 1][0] > self.used_bytes
        )

    def crossed_price(self, before_bytes: int) -> bool:
        """Say whether another price of the schedule holds for the next byte than did at a count before."""
        return any(before_bytes < start <= self.used_bytes for start, _ in self.prices[1:])

    @property
    def running(self) -> bool:
        """True while traffic may pass or is about to."""
        return self.state in RUNNING

    @property
    def refused(self) -> bool:
        """True while a refusal is remembered."""
        return self.state in (State.REJECTED, State.LAPSED)

    def move(self, state: State) -> None:
        """Change state.

        Raises:
            IllegalMove: if the table doesn't have the move; nothing is changed then.
        """
        if state not in MOVES[self.state]:
            raise IllegalMove(f"contract {self.contract.hex()} can't go from {self.state} to {state}")
        self.state = state

    def due_msat(self, used_bytes: int) -> int:
        """Price cumulative bytes under this contract's schedule, msat."""
        return amount_due_msat(used_bytes, self.prices)

    def reprice(self, from_offset_bytes: int, price_msat_per_gib: int) -> None:
        """Let a price hold from an offset on; earlier bytes keep theirs. The same price adds nothing."""
        if price_msat_per_gib == self.price_msat_per_gib:
            return
        while len(self.prices) > 1 and self.prices[-1][0] >= from_offset_bytes:
            self.prices.pop()
        if from_offset_bytes == 0:
            self.prices[0] = (0, price_msat_per_gib)
        else:
            self.prices.append((from_offset_bytes, price_msat_per_gib))

    def note_renewal(self, now_mono_s: float) -> None:
        """Remember a renewal and whether anything was carried since the one before."""
        self.idle_renewals = self.idle_renewals + 1 if self.since_renewal_bytes <= 0 else 0
        self.renewed_at_bytes, self.renewed_mono_s = self.used_bytes, now_mono_s

    @property
    def since_renewal_bytes(self) -> int:
        """What was carried since the last renewal, or since the contract was opened."""
        return self.used_bytes - self.renewed_at_bytes

    def renews_idly(self, now_mono_s: float) -> bool:
        """Say whether it was renewed again and again for nothing: each renewal is a write to either side's ledger."""
        idle = self.idle_renewals >= MOST_IDLE_RENEWALS and self.since_renewal_bytes <= 0
        return idle and now_mono_s - self.renewed_mono_s < IDLE_RENEWAL_PAUSE_S

    def record(self) -> ContractRecord:
        """Return what the ledger keeps of it."""
        interface, link_address = self.link
        return ContractRecord(
            contract=self.contract,
            role=self.role,
            identity=self.identity,
            interface=interface,
            link_address=link_address,
            destination=str(self.destination),
            state=self.state.value,
            reason=self.reason,
            prices=tuple(self.prices),
            data_limit_bytes=self.data_limit_bytes,
            lifetime_s=self.lifetime_s,
            used_to_bytes=self.used_to_bytes,
            used_from_bytes=self.used_from_bytes,
            charged_msat=self.charged_msat,
            billed_bytes=self.billed_bytes,
            opened_at_s=self.opened_at_s,
            expires_at_s=self.expires_at_s,
            closed_at_s=self.closed_at_s,
        )
