"""Purchase: a contract by which we buy from a neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ngp.core.contract import Contract, State
from ngp.core.kernel import FULL_PACKET_BYTES
from ngp.core.messages import Role
from ngp.core.settings import Settings

MOST_LEFT = 8


@dataclass(slots=True, eq=False, kw_only=True)
class Purchase(Contract):
    """A contract that we buy.

    Attributes:
        tolerated_msat: the part of the account's `tolerated_msat` that is for `forgiven_bytes`.
        meter_lost: our meter may have missed some of the contract's traffic: before a start, or because we ended the
            contract before the server did.
        forgiven_bytes: billed bytes above our count that we believed, because our meter may have missed them.
        disowned: we ended the contract, and the server hasn't confirmed yet that it ended it, too.
        compared: the bytes that we had sent when the last statement came, and how many of them it stated; None: no
            statement has come since a start.
        sold_to_bytes, sold_from_bytes: how much of what it carried was sold to those that buy from us; after a start,
            as if all of it was.
        fresh_to_bytes, fresh_from_bytes: what the last reading counted and wasn't found to be sold.
        left_by: clients that left it, or whose traffic came by it though their contract rests on another one, and when
            that was, by the monotonic clock in seconds; since a start, the latest few.
        needed_at: bytes that it had brought, and that we had sent by it, beside what was sold, when it was of use last:
            to a client, or because we sent something. None: no client's contract that rested on it has ended.
        unneeded: we ended it since no client needed it any more, so its early end says nothing against its server.
        ended_by_itself: its server has said so; it may say so again.
    """

    role: ClassVar[Role] = Role.CLIENT

    state: State
    tolerated_msat: int = 0
    meter_lost: bool = False
    forgiven_bytes: int = 0
    disowned: bool = False
    compared: tuple[int, int] | None = None
    sold_to_bytes: int = 0
    sold_from_bytes: int = 0
    fresh_to_bytes: int = 0
    fresh_from_bytes: int = 0
    left_by: tuple[tuple[bytes, float], ...] = ()
    needed_at: tuple[int, int] | None = None
    unneeded: bool = False
    ended_by_itself: bool = False

    @property
    def ours_bytes(self) -> int:
        """What we sent by it ourselves, beside what was sold."""
        return self.used_to_bytes - self.sold_to_bytes

    @property
    def unsold_bytes(self) -> int:
        """What it brought that wasn't sold: for us, or for nobody."""
        return self.used_from_bytes - self.sold_from_bytes

    @property
    def outlived(self) -> bool:
        """Whether a client left it, and something came since we sent by it last: that may be for nobody."""
        return self.needed_at is not None and self.unsold_bytes > self.needed_at[0]

    @property
    def dearest_msat_per_gib(self) -> int:
        """The highest price of its bytes since the last renewal, after a start of all: any of them may be lost."""
        return max(self.prices_beyond(self.renewed_at_bytes))

    def sold(self, to_bytes: int, from_bytes: int) -> None:
        """Note what was sold of what it carried."""
        self.sold_to_bytes += to_bytes
        self.sold_from_bytes += from_bytes
        self.fresh_to_bytes -= to_bytes
        self.fresh_from_bytes -= from_bytes

    def leave(self, client: bytes, now_mono_s: float) -> None:
        """Note in `left_by` that a client left."""
        others = (one for one in self.left_by if one[0] != client)
        self.left_by = (*others, (client, now_mono_s))[-MOST_LEFT:]

    def stated(self, used_to_bytes: int) -> tuple[int, int]:
        """Compare the bytes that we sent with a statement's. Returns both, as they grew since the last statement."""
        before, now = self.compared, (self.used_to_bytes, used_to_bytes)
        if before is None and self.meter_lost:
            before = now
        sent_before, stated_before = before or (0, 0)
        self.compared = now
        return now[0] - sent_before, now[1] - stated_before

    def renewal_bytes(self, settings: Settings) -> int:
        """Return how many bytes before the limit we renew.

        `auto`: a quarter of the data that we buy at a time (of CONTRACT_DATA, or of what the server sells if that is
        less), or what three seconds at the present rate need if that is more. At most four times CONTRACT_DATA, so that
        a burst can't make us buy without end. At least a full packet: if less is left, the next packet doesn't fit.
        """
        if settings.data_renewal_bytes is not None:
            return settings.data_renewal_bytes
        fast = int(self.rate.a_second * 3)
        bought = min(settings.contract_data_bytes, self.data_limit_bytes - self.renewed_at_bytes)
        return max(FULL_PACKET_BYTES, min(max(bought // 4, fast), 4 * settings.contract_data_bytes))

    def renewal_time_s(self, settings: Settings) -> float:
        """Return how many seconds before the contract's end we renew. `auto`: a tenth of the lifetime, 1 to 60 s.

        The server chooses the lifetime. If it is shorter than these seconds, we renew after half of it. Otherwise each
        renewal would make another one due at once.
        """
        wanted = settings.time_renewal_s
        wanted_s = min(60.0, max(1.0, self.lifetime_s / 10)) if wanted is None else float(wanted)
        return wanted_s if wanted_s < self.lifetime_s else self.lifetime_s / 2
