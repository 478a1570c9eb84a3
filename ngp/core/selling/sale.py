"""Sale: a contract by which a neighbour buys from us."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import ClassVar

from ngp.core.contract import Contract, State
from ngp.core.kernel import UNITS_PER_MSAT, Onward
from ngp.core.messages import Address, Ask, Prefix, Role
from ngp.core.pricing import cost_units

_PRICE = itemgetter(1)


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
        offered_until_mono_s: until when the terms that were proposed last may be accepted.
        kept_until_mono_s: until when the terms that were proposed may be proposed again; 0: they weren't proposed yet.
        held: handles of the first packets, which wait for the client's answer.
        first: destination of the first of them; None if the client asked before it sent.
        asked: id of the client's `Ask` that waits for an answer; 0: none does.
        asked_by: a mark of each node on whose behalf we sell this; the last one is the client.
        seller: identity of the neighbour to which the traffic goes on, if we buy it there; b"": we don't.
        unbought: it was agreed without money before what it rests on was bought, and waits for money: until then it
            reserves nothing there, also if that is bought for another client meanwhile.
        waits_for: server and destination of the question whose answer this contract waits for.
        wanted: the renewal that the client asked for, and that waits until the purchase has room; and where our route
            led then.
    """

    role: ClassVar[Role] = Role.SERVER

    state: State = State.QUOTED
    round: int = 1
    renewal_offer: Offer | None = None
    offered_until_mono_s: float = 0.0
    kept_until_mono_s: float = 0.0
    held: list[int] = field(default_factory=list)
    first: Address | None = None
    asked: int = 0
    asked_by: tuple[bytes, ...] = ()
    seller: bytes = b""
    unbought: bool = False
    waits_for: tuple[bytes, Prefix] | None = None
    wanted: tuple[Ask, Onward] | None = None

    @property
    def reserved_bytes(self) -> int:
        """What the client may still send and receive, by the terms that were agreed or offered; 0 if it isn't open.

        Nothing is reserved for a contract that waits for money (`unbought`).
        """
        offered = self.renewal_offer.data_limit_bytes if self.renewal_offer is not None else 0
        is_reserved = self.open and not self.unbought
        return max(0, max(offered, self.data_limit_bytes) - self.used_bytes) if is_reserved else 0

    @property
    def least_msat_per_gib(self) -> int:
        """The lowest price of bytes that may still come, or of a renewal that the client may accept."""
        return min(*self.prices_beyond(self.used_bytes), (self.renewal_offer or self).price_msat_per_gib)

    @property
    def agreed(self) -> bool:
        """True if the client has accepted a quote, and waits until the purchase has room."""
        return self.state is State.QUOTED and self.waits_for is not None

    @property
    def asker(self) -> bytes:
        """The mark of the node behind the client on whose behalf it asks; empty if it asks for itself."""
        return self.asked_by[-2] if len(self.asked_by) > 1 else b""

    @property
    def refused(self) -> bool:
        """True if the client refused or didn't answer in time: for a while the kernel drops packets for it."""
        return self.state in (State.REJECTED, State.LAPSED)

    @property
    def priced(self) -> bool:
        """True if any of its bytes cost something: then its charge may be rounded up, even if the price is 0 now."""
        return any(map(_PRICE, self.prices))

    @property
    def rounding_units(self) -> int:
        """The part of the charge that comes from rounding up, >= 0 and below 1 msat."""
        return self.charged_msat * UNITS_PER_MSAT - cost_units(self.used_bytes, self.prices)

    def crossed_price(self, before_bytes: int) -> bool:
        """Say whether the price of the next byte differs from the price at an earlier count."""
        return any(before_bytes < start <= self.used_bytes for start, _ in self.prices[1:])
