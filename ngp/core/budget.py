"""Budget: how much of the operator's money may go out, counted across restarts.

A payment whose outcome is unknown counts as spent until the node says that it failed. A payment that would break a
limit is refused before money moves, and the log names the limit.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from ngp.core.pricing import show_money
from ngp.core.settings import Budgets
from ngp.core.values import DAY_S, Now

HOUR_S = 3600
PAYMENT = "BUDGET_PAYMENT"


@dataclass(slots=True)
class Spent:
    """What was spent within one second of UTC; also when that was and when it was noted, by the monotonic clock."""

    amount_msat: int
    at_mono_s: float
    noted_mono_s: float


@dataclass(slots=True)
class Spending:
    """Outgoing payments, fees included, msat; `recent`: by UTC second.

    An hour or a day is over only when both clocks, UTC and monotonic, say so. Otherwise the same budgets could be spent
    again after the UTC clock was set ahead, and perhaps back.
    """

    recent: dict[int, Spent] = field(default_factory=dict)
    by_neighbour: dict[bytes, int] = field(default_factory=lambda: defaultdict(int))
    total_msat: int = 0

    def add(self, identity: bytes, amount_msat: int, at_s: int, now: Now) -> None:
        """Count a payment when it is stored as pending; a negative amount with the same time corrects it."""
        self.note(amount_msat, at_s, now)
        self.by_neighbour[identity] += amount_msat
        if not self.by_neighbour[identity]:
            del self.by_neighbour[identity]  # the payment failed; made-up keys must not leave entries here
        self.total_msat += amount_msat

    def note(self, amount_msat: int, at_s: int, now: Now) -> None:
        """Count a payment for the budgets of an hour and a day only, because the other sums have it already."""
        at_mono_s = now.monotonic_s - max(0, now.utc_s - at_s)
        self.recent.setdefault(at_s, Spent(0, at_mono_s, now.monotonic_s)).amount_msat += amount_msat

    def within_msat(self, seconds: int, now: Now) -> int:
        """Sum what was spent in the last `seconds`; payments that a wrong clock dated later than now count too."""
        day_s, day_mono_s = now.utc_s - DAY_S, now.monotonic_s - DAY_S
        for at_s in [at for at, spent in self.recent.items() if at <= day_s and spent.noted_mono_s <= day_mono_s]:
            del self.recent[at_s]
        since_s, since_mono_s = now.utc_s - seconds, now.monotonic_s - seconds
        counted = (spent for at, spent in self.recent.items() if at > since_s or spent.at_mono_s > since_mono_s)
        return sum(spent.amount_msat for spent in counted)


def broken_limit(budgets: Budgets, spending: Spending, identity: bytes, amount_msat: int, now: Now) -> str | None:
    """Name the limit that a payment would break; if there are several, the one with the least room.

    Args:
        amount_msat: the payment, with the highest fee that it may cost.

    Returns:
        The net.conf key with its value and what to do, or None if the payment is within all limits.
    """
    limits = _limits(budgets, spending, identity, now)
    key, limit, spent = min(limits, key=lambda each: each[1] - each[2], default=("", amount_msat, 0))
    if spent + amount_msat <= limit:
        return None
    so_far = "" if key == PAYMENT else f"spent {show_money(spent)}, "
    of = f"{so_far}this payment {show_money(amount_msat)} with its fee"
    return f"{key} {show_money(limit)} ({of}): raise {key} in net.conf, then ngp reload"


def room_msat(budgets: Budgets, spending: Spending, identity: bytes, now: Now) -> int:
    """Return the largest payment within all limits now, msat."""
    return max(0, min(limit - spent for _, limit, spent in _limits(budgets, spending, identity, now)))


def _limits(budgets: Budgets, spending: Spending, identity: bytes, now: Now) -> list[tuple[str, int, int]]:
    """Return the key and value of each limit that is set, and what was spent of it."""
    limits = (
        (PAYMENT, budgets.payment_msat, 0),
        ("BUDGET_NEIGHBOUR", budgets.neighbour_msat, spending.by_neighbour.get(identity, 0)),
        ("BUDGET_HOUR", budgets.hour_msat, spending.within_msat(HOUR_S, now)),
        ("BUDGET_DAY", budgets.day_msat, spending.within_msat(DAY_S, now)),
        ("BUDGET_TOTAL", budgets.total_msat, spending.total_msat),
    )
    return [(key, limit, spent) for key, limit, spent in limits if limit is not None]
