"""Sale: a contract by which a neighbour buys from us."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from ngp.core.contract import Contract, State
from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.messages import Role
from ngp.core.pricing import cost_units


@dataclass(frozen=True, slots=True)
class Offer:
    """The terms of a renewal that a client was offered."""

    data_limit_bytes: int
    lifetime_s: int
    price_msat_per_gib: int


@dataclass(slots=True, eq=False, kw_only=True)
class Sale(Contract):
    """A contract that we sell.

    Attributes:
        round: round of the negotiation, from 1.
        renewal_offer: a renewal that waits for the client's accept, in state `renewing`.
        held: handles of the first packets, which wait for the client's answer.
    """

    role: ClassVar[Role] = Role.SERVER

    state: State = State.QUOTED
    round: int = 1
    renewal_offer: Offer | None = None
    held: list[int] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """True if the client refused or didn't answer in time: for a while the kernel drops packets for it."""
        return self.state in (State.REJECTED, State.LAPSED)

    @property
    def priced(self) -> bool:
        """True if any of its bytes cost something: then its charge may be rounded up, even if the price is 0 now."""
        return any(price for _, price in self.prices)

    @property
    def highest_msat_per_gib(self) -> int:
        """The highest price of bytes that may still come: the kernel has one price for all, and mustn't charge less."""
        if len(self.prices) == 1:
            return self.prices[0][1]
        to_come = [price for (_, price), (end, _) in pairwise(self.prices) if end > self.used_bytes]
        return max([self.price_msat_per_gib, *to_come])

    @property
    def rounding_units(self) -> int:
        """The part of the charge that comes from rounding up, >= 0 and below 1 msat."""
        return self.charged_msat * UNITS_PER_MSAT - cost_units(self.used_bytes, self.prices)

    def crossed_price(self, before_bytes: int) -> bool:
        """Say whether the price of the next byte differs from the price at an earlier count."""
        return any(before_bytes < start <= self.used_bytes for start, _ in self.prices[1:])
