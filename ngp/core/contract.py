"""Contract: what two neighbours agreed for one destination, and the only moves it can make.

    quoting -> quoted -> accepted -> active -> renewing -> halting -> closed(exhausted | expired | unpaid | cancelled)
    quoted -> rejected -> quoted (bounded rounds), quoted -> lapsed; quoting -> rejected | lapsed

An `accepted` contract runs on grace, or waits for money; an `active` one runs on a payment. States are stored by name.
An illegal move raises an error and changes nothing; the diagram in docs/protocol.md is drawn from `MOVES`. `Sale` adds
what only the server keeps, `Purchase` what only the client keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import ClassVar, Self

from ngp.core.kernel import Reading
from ngp.core.messages import MARK_BYTES, Role
from ngp.core.openings import Pools
from ngp.core.prefixes import PackedPrefix
from ngp.core.pricing import amount_due_msat
from ngp.core.rate import Rate
from ngp.core.records import ContractRecord


class State(StrEnum):
    """How far a contract has come; docs/protocol.md says under "Contract states" what each state means."""

    QUOTING = "quoting"
    QUOTED = "quoted"
    ACCEPTED = "accepted"
    ACTIVE = "active"
    RENEWING = "renewing"
    HALTING = "halting"
    REJECTED = "rejected"
    LAPSED = "lapsed"
    CLOSED = "closed"


class CloseReason(StrEnum):
    """Why a contract is closed."""

    EXHAUSTED = "exhausted"  # its data was used up, and it wasn't renewed
    EXPIRED = "expired"  # its lifetime was over, or it carried nothing in an hour from its start
    UNPAID = "unpaid"  # its credit was used up, or the time of its credit was over
    UPSTREAM = "upstream"  # the purchase that the sale rested on is over, or costs more now
    CANCELLED = "cancelled"  # blocked, ended by the other side, or its link belongs to another identity now


MOVES: dict[State, frozenset[State]] = {
    State.QUOTING: frozenset({State.QUOTED, State.REJECTED, State.LAPSED}),
    State.QUOTED: frozenset({State.ACCEPTED, State.ACTIVE, State.REJECTED, State.LAPSED}),
    State.REJECTED: frozenset({State.QUOTED}),
    State.LAPSED: frozenset(),
    State.ACCEPTED: frozenset({State.ACTIVE, State.RENEWING, State.HALTING}),
    State.ACTIVE: frozenset({State.RENEWING, State.HALTING}),
    State.RENEWING: frozenset({State.ACCEPTED, State.ACTIVE, State.HALTING}),
    State.HALTING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}

IN_USE_S = 10.0  # a contract that carried traffic within this time is in use
RUNNING = frozenset({State.ACCEPTED, State.ACTIVE, State.RENEWING})
_RESUMED = {state.value: state for state in State} | dict.fromkeys((State.RENEWING, State.HALTING), State.ACTIVE)


class IllegalMove(Exception):
    """A move that the table doesn't have: a defect of ngp, which no neighbour can cause."""


@dataclass(slots=True, eq=False, kw_only=True)
class Contract:
    """What both sides keep about a contract. Data are L3 bytes, money msat; `_at_s` UTC, `_mono_s` monotonic seconds.

    Attributes:
        id: 16 bytes; the server made it.
        link: the neighbour's (interface, link address) on which the contract was agreed.
        link_number: the kernel's number of that link.
        prices: schedule by offset, see `pricing`.
        reason: why the contract was refused, is halting or closed.
        charged_msat: the price of what was carried. For a sale this is the bill; for a purchase it is the price of what
            our own meter counted.
        billed_bytes: how much the server has billed. Always 0 for a sale: only the ledger knows what its client has
            acknowledged.
        unsaved_msat: what was charged since the contract was last written to the ledger.
        begun_mono_s: when it was agreed or renewed last, which may be later than its lifetime says.
        rate: bytes carried a second; `rate.at_mono_s` is when the contract last carried traffic.
        returned_mono_s: when the latest bytes from the destination were counted.
        renewed_at_bytes: what had been used at the last renewal.
        path: who sells to whom: a mark of each node from the contract's server on; see `Propose`.
        rests_on: id of the purchase with which a sale's traffic goes on; b"": the traffic leaves without one.
        opened_for: identity of the client for which we bought it or had it renewed last; b"": a sale, or for ourselves.
        pools: the pools in which the contract is counted until it is used (see `openings`).
        of_stranger: no money has passed to or from the neighbour, and contracts with such neighbours have limited room.
    """

    role: ClassVar[Role]

    id: bytes
    identity: bytes
    link: tuple[str, bytes]
    link_number: int
    destination: PackedPrefix
    prices: tuple[tuple[int, int], ...]
    data_limit_bytes: int
    lifetime_s: int
    state: State
    reason: str = ""
    used_to_bytes: int = 0
    used_from_bytes: int = 0
    charged_msat: int = 0
    billed_bytes: int = 0
    unsaved_msat: int = 0
    opened_at_s: int = 0
    expires_at_s: int = 0
    closed_at_s: int = 0
    begun_mono_s: float = 0.0
    expires_mono_s: float = 0.0
    rate: Rate = field(default_factory=Rate)
    returned_mono_s: float = 0.0
    renewed_at_bytes: int = 0
    path: tuple[bytes, ...] = ()
    rests_on: bytes = b""
    opened_for: bytes = b""
    pools: Pools = ()
    of_stranger: bool = False

    @property
    def used_bytes(self) -> int:
        """Bytes carried so far, both directions."""
        return self.used_to_bytes + self.used_from_bytes

    @property
    def price_msat_per_gib(self) -> int:
        """The price agreed last."""
        return self.prices[-1][1]

    @property
    def running(self) -> bool:
        """True while traffic may pass or is about to."""
        return self.state in RUNNING

    @property
    def open(self) -> bool:
        """True while the contract is running, or while its last bytes aren't counted yet."""
        return self.state in RUNNING or self.state is State.HALTING

    def in_use(self, now_mono_s: float) -> bool:
        """Say whether the contract carried traffic, or was agreed, within the last seconds."""
        return now_mono_s - self.rate.at_mono_s <= IN_USE_S

    def move(self, state: State) -> None:
        """Change state.

        Raises:
            IllegalMove: if the table doesn't have the move; the contract stays as it is.
        """
        if state not in MOVES[self.state]:
            raise IllegalMove(f"contract {self.id.hex()} can't go from {self.state} to {state}")
        self.state = state

    def due_msat(self, used_bytes: int) -> int:
        """Price cumulative bytes under this contract's schedule, msat."""
        return amount_due_msat(used_bytes, self.prices)

    def count(self, reading: Reading) -> int:
        """Take new cumulative counters and price them. Returns the msat by which the charge grew, >= 0."""
        self.used_to_bytes, self.used_from_bytes = reading.used_to_bytes, reading.used_from_bytes
        due_msat = self.due_msat(self.used_bytes) - self.charged_msat
        self.charged_msat += due_msat
        self.unsaved_msat += due_msat
        return due_msat

    @property
    def highest_msat_per_gib(self) -> int:
        """The highest price of bytes that may still come."""
        return max(self.prices_beyond(self.used_bytes))

    def prices_beyond(self, used_bytes: int) -> list[int]:
        """Return the prices of the bytes after so many, msat/GiB; the one agreed last is the last."""
        if len(self.prices) == 1:
            return [self.prices[0][1]]
        earlier = [price for (_, price), (end, _) in pairwise(self.prices) if end > used_bytes]
        return [*earlier, self.price_msat_per_gib]

    def reprice(self, from_offset_bytes: int, price_msat_per_gib: int) -> None:
        """Set the price from an offset on; earlier bytes keep theirs. Setting the same price again changes nothing."""
        if price_msat_per_gib == self.price_msat_per_gib:
            return
        earlier = (one for one in self.prices if one[0] < from_offset_bytes)
        self.prices = (*earlier, (from_offset_bytes, price_msat_per_gib))

    def renew(self, price_msat_per_gib: int, data_limit_bytes: int, lifetime_s: int) -> None:
        """Take over the terms of a renewal. Its price holds for the bytes above the limit that held so far."""
        self.renewed_at_bytes = self.used_bytes
        self.reprice(self.data_limit_bytes, price_msat_per_gib)
        self.data_limit_bytes, self.lifetime_s = data_limit_bytes, lifetime_s

    @property
    def since_renewal_bytes(self) -> int:
        """What was carried since the last renewal, or since the contract was opened."""
        return self.used_bytes - self.renewed_at_bytes

    @classmethod
    def of_record(
        cls,
        record: ContractRecord,
        identity: bytes,
        link: tuple[str, bytes],
        link_number: int,
        destination: PackedPrefix,
    ) -> Self:
        """Return a contract as the ledger has it; one that was being renewed or halted is active again.

        Args: identity, link, destination: the record's, as objects that others have too, to save memory.
        """
        state = _RESUMED[record.state]
        return cls(
            id=record.contract,
            identity=identity,
            link=link,
            link_number=link_number,
            destination=destination,
            prices=record.prices,
            data_limit_bytes=record.data_limit_bytes,
            lifetime_s=record.lifetime_s,
            state=state,
            reason=record.reason,
            used_to_bytes=record.used_to_bytes,
            used_from_bytes=record.used_from_bytes,
            charged_msat=record.charged_msat,
            opened_at_s=record.opened_at_s,
            expires_at_s=record.expires_at_s,
            path=_marks(record.path) if record.path else (),
            rests_on=record.rests_on,
        )

    def record(self) -> ContractRecord:
        """Return the contract's record for the ledger."""
        interface, link_address = self.link
        return ContractRecord(
            contract=self.id,
            role=self.role,
            identity=self.identity,
            interface=interface,
            link_address=link_address,
            destination=str(self.destination),
            state=self.state.value,
            reason=self.reason,
            prices=self.prices,
            data_limit_bytes=self.data_limit_bytes,
            lifetime_s=self.lifetime_s,
            used_to_bytes=self.used_to_bytes,
            used_from_bytes=self.used_from_bytes,
            charged_msat=self.charged_msat,
            billed_bytes=self.billed_bytes,
            opened_at_s=self.opened_at_s,
            expires_at_s=self.expires_at_s,
            closed_at_s=self.closed_at_s,
            path=b"".join(self.path),
            rests_on=self.rests_on,
        )


def _marks(joined: bytes) -> tuple[bytes, ...]:
    """Take the marks of a path apart."""
    return tuple(joined[at : at + MARK_BYTES] for at in range(0, len(joined), MARK_BYTES))
