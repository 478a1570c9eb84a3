"""Clock: both of the host's clocks, read together."""

from __future__ import annotations

import time
from pathlib import Path

from ngp.core.values import Now


class SystemClock:
    """UTC seconds for records, CLOCK_MONOTONIC for intervals (the kernel's meter uses the same)."""

    def now(self) -> Now:
        """Read both clocks. Local time is that of the time zone in which the daemon was started."""
        utc_s = int(time.time())
        return Now(utc_s, time.monotonic(), time.localtime(utc_s).tm_gmtoff)


def boot_number() -> int:
    """Return a number that differs after each start of the machine; 0 if the kernel doesn't say."""
    try:
        written = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return 0
    return int(written.replace("-", ""), 16) >> 65  # 63 bits: an integer of the ledger has no more
