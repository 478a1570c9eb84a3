"""Service time: the seconds that a landlord's machine has run, which is what rent is owed for.

The monotonic clock of a machine goes on when the daemon is killed, and no correction of the clock moves it. Over a
reboot the count goes on from where the ledger has it, at most a minute earlier: nobody pays for time in which the
machine was off, or for a clock that was wrong. While net.conf lets nothing, the count stands: there is no tunnel.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.rental.records import ServiceRecord
from ngp.core.values import Now


@dataclass(slots=True)
class ServiceClock:
    """Counts service time.

    Attributes:
        boot: a number that differs after each start of the machine; 0: unknown, every start counts as a new one.
        before_ms: service time when the monotonic clock showed `since_ms`.
        goes_on: False while net.conf lets nothing: then service time stands still.
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
        """Return when, by the monotonic clock, a service time is reached; 1 ms is added, so that no timer is early."""
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
        """Let service time go on, or stand still, from now on."""
        self.before_ms, self.since_ms, self.goes_on = self.at_ms(now), int(now.monotonic_s * 1000), on

    def record(self, now: Now) -> ServiceRecord:
        """Return what the ledger should have now. If service time stands still, a start adds nothing to the record."""
        return ServiceRecord(self.boot if self.goes_on else 0, self.at_ms(now), int(now.monotonic_s * 1000))
