"""Service time: the seconds that a landlord's machine has run, which is what rent is owed for.

The monotonic clock of a machine goes on when the daemon is killed, and no correction of the clock moves it. Over a
reboot the count goes on from where the ledger has it, at most a minute earlier: nobody pays for time in which the
machine was off, or for a clock that was wrong. While net.conf lets nothing, the count stands: there is no tunnel.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.records import ServiceRecord
from ngp.core.values import Now


@dataclass(slots=True)
class ServiceClock:
    """Counts service time.

    Attributes:
        boot: a number that differs after each start of the machine; 0: unknown, every start counts as a new one.
        before_ms: service time when the monotonic clock showed `since_ms`.
        goes_on: False while nothing is let.
    """

    boot: int = 0
    before_ms: int = 0
    since_ms: int = 0
    goes_on: bool = True

    def at_ms(self, now: Now) -> int:
        """Return the service time now, in milliseconds."""
        return self.before_ms + (max(0, int(now.monotonic_s * 1000) - self.since_ms) if self.goes_on else 0)

    def at_s(self, now: Now) -> int:
        """Return the service time now, in whole seconds."""
        return self.at_ms(now) // 1000

    def mono_s(self, service_s: int) -> float:
        """Return when the monotonic clock will show a service time; the millisecond after it, so that it has come."""
        return (service_s * 1000 - self.before_ms + self.since_ms + 1) / 1000

    def restore(self, record: ServiceRecord | None, now: Now) -> None:
        """Go on from the ledger's record."""
        self.since_ms = int(now.monotonic_s * 1000)
        if record is None:
            return
        self.before_ms = record.before_ms
        if record.boot and record.boot == self.boot and record.since_ms <= self.since_ms:
            self.since_ms = record.since_ms

    def turn(self, on: bool, now: Now) -> None:
        """Go on, or stand, from now on."""
        self.before_ms, self.since_ms, self.goes_on = self.at_ms(now), int(now.monotonic_s * 1000), on

    def record(self, now: Now) -> ServiceRecord:
        """Return what the ledger should have now. After a record of a clock that stands, a start counts no time."""
        return ServiceRecord(self.boot if self.goes_on else 0, self.at_ms(now), int(now.monotonic_s * 1000))
