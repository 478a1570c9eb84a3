"""Purchase: a contract by which we buy from a neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ngp.core.contract import Contract, State
from ngp.core.messages import Role
from ngp.core.settings import Settings
from ngp.core.values import FULL_PACKET_BYTES


@dataclass(slots=True, eq=False, kw_only=True)
class Purchase(Contract):
    """A contract that we buy.

    Attributes:
        stated_bytes, stated_msat: the bill, as far as its server has told it.
        tolerated_msat: what of the account's tolerance is this contract's.
        meter_lost, forgiven_bytes: our meter missed some of it (a start, or we ended it before its server did); what
            was believed of its bills above our count.
        disowned: we ended it, and its server hasn't said yet that it is over there too.
    """

    role: ClassVar[Role] = Role.CLIENT

    state: State
    stated_bytes: int = 0
    stated_msat: int = 0
    tolerated_msat: int = 0
    meter_lost: bool = False
    forgiven_bytes: int = 0
    disowned: bool = False

    @property
    def billed_bytes(self) -> int:
        """How far the bill has come."""
        return self.stated_bytes

    def is_with(self, identity: bytes, link: tuple[str, bytes]) -> bool:
        """Say whether a neighbour is its server, on the link that it was made on: nobody else may speak about it."""
        return (self.identity, self.link) == (identity, link)

    def renewal_bytes(self, settings: Settings) -> int:
        """Return how many bytes before the limit we renew.

        `auto`: a quarter of a contract's data, ours or, where it sells less, the server's; or what three seconds at the
        present rate need, but at most four contracts' worth, so that a burst can't make it buy without end. Never less
        than a full packet: what is left would be too little for the next one, and too much to renew.
        """
        if settings.data_renewal_bytes is not None:
            return settings.data_renewal_bytes
        fast = int(self.rate.a_second * 3)
        bought = min(settings.contract_data_bytes, self.data_limit_bytes - self.renewal.at_bytes)
        return max(FULL_PACKET_BYTES, min(max(bought // 4, fast), 4 * settings.contract_data_bytes))

    def renewal_time_s(self, settings: Settings) -> float:
        """Return how many seconds before its end we renew; `auto`: a tenth of the lifetime, 1 to 60 s.

        At most half of the lifetime, which is the server's to choose: else each renewal would call for the next one.
        """
        wanted = settings.time_renewal_s
        wanted_s = min(60.0, max(1.0, self.lifetime_s / 10)) if wanted is None else float(wanted)
        return wanted_s if wanted_s < self.lifetime_s else self.lifetime_s / 2
