"""Clock: both of the host's clocks, read together."""

from __future__ import annotations

import time

from ngp.core.values import Now


class SystemClock:
    """UTC seconds for records, CLOCK_MONOTONIC for intervals (the kernel's meter uses the same)."""

    def now(self) -> Now:
        """Read both clocks."""
        return Now(int(time.time()), time.monotonic())
