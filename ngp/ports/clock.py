"""Clock: the time, which the core gets with each event."""

from __future__ import annotations

from typing import Protocol

from ngp.core.values import Now


class Clock(Protocol):
    """The source of time; tests have their own."""

    def now(self) -> Now: ...
