"""Lines: how many lines of the log neighbours may cause, so that none can push out what the operator must read.

The log is a few megabytes, and a neighbour can cause lines for nothing: it stops and comes back, or asks for a contract
and declines it. So the lines that a neighbour's messages and packets cause are limited. A neighbour that money passed
to or from has an allowance of its own; all others on an interface share one, since keys cost nothing. Warnings have
another allowance than the rest: a neighbour must not hide them behind lines that it causes at will. The next line that
passes says how many were left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ngp.core.allowance import Allowance
from ngp.core.effects import Effect, Log
from ngp.core.newest import Newest

# Lines of the log: at once; a second of a neighbour that money passed to or from; a second of all others together.
MOST_AT_ONCE = 2000
A_SECOND_OF_TRADER = 10.0
A_SECOND_OF_STRANGERS = 1.0
MOST_HOLDERS = 4096


@dataclass(slots=True)
class _Held:
    allowance: Allowance
    left_out: int = 0


class LineLimits:
    """The allowances of all neighbours."""

    def __init__(self) -> None:
        self._of: Newest[tuple[bytes, bool], _Held] = Newest(MOST_HOLDERS)

    def __len__(self) -> int:
        return len(self._of)

    def limited(
        self, effects: Sequence[Effect], identity: bytes, interface: str, has_traded: bool, now_mono_s: float
    ) -> list[Effect]:
        """Return a step's effects without the lines that are too many.

        Args:
            identity, interface: of the neighbour whose message or packet caused the effects.
            has_traded: whether money has passed between us and the neighbour.
        """
        whose, rate = (identity, A_SECOND_OF_TRADER) if has_traded else (interface.encode(), A_SECOND_OF_STRANGERS)
        passed: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Log):
                held = self._holder((whose, effect.level >= logging.WARNING), rate)
                if not held.allowance.take(now_mono_s):
                    held.left_out += 1
                    continue
                if held.left_out:
                    about = "about this neighbour" if has_traded else f"about neighbours that never paid on {interface}"
                    effect = replace(effect, text=f"{effect.text} ({held.left_out} lines {about} left out)")
                    held.left_out = 0
            passed.append(effect)
        return passed

    def _holder(self, key: tuple[bytes, bool], rate: float) -> _Held:
        held = self._of.get(key) or _Held(Allowance(rate, MOST_AT_ONCE))
        self._of.note(key, held)
        return held
