"""Reputation: how far the other side of an account keeps its word, from 0 to 1.

There is one rule. A stranger has one half. Each time that a neighbour keeps its word, its reputation goes a tenth of
the way to 1; each time that it breaks it, half of the way to 0; and by each 30 days that pass, half of the way back to
one half. So trust grows slowly and is lost quickly, and nothing is remembered for ever.

A server keeps its word if it credits our payment and something comes back through it then. It breaks it by a bill that
we dispute, and by payments for which we see nothing. A client keeps its word if it pays while its credit lasts, and
breaks it if it pays later, or not yet. A client that disputes our bill isn't worse for that alone: an honest one must
be free to do so, and if it owes us something, it leaves that unpaid.

No rule of trade reads it, since a neighbour with a bad one takes a new key. What bounds losses holds for all: the
budgets, the grace, disputes, and `buying.service`. It tells the operator with whom trade goes well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pow

from ngp.core.settings import FULL_PPM
from ngp.core.values import DAY_S

STRANGERS_PPM = FULL_PPM // 2
HALVING_S = 30 * DAY_S


@dataclass(frozen=True, slots=True)
class Reputation:
    """A reputation in millionths, as it was at a time, UTC seconds."""

    was_ppm: int = STRANGERS_PPM
    at_s: int = 0

    def ppm(self, now_s: int) -> int:
        """Return the reputation now, 0 to 1,000,000."""
        halvings = max(0, now_s - self.at_s) / HALVING_S
        return STRANGERS_PPM + round((self.was_ppm - STRANGERS_PPM) * pow(0.5, halvings))

    def kept(self, now_s: int) -> Reputation:
        """Return the reputation after the neighbour kept its word."""
        ppm = self.ppm(now_s)
        return Reputation(ppm + (FULL_PPM - ppm) // 10, now_s)

    def broken(self, now_s: int) -> Reputation:
        """Return the reputation after the neighbour broke its word."""
        return Reputation(self.ppm(now_s) // 2, now_s)
