"""Loss: which share of a bill the link may have lost, so that an honest bill is higher than our meter's count.

A server counts what we send when it arrives, and what comes back before the link may lose it. So its bill of the one
direction is lower than our count, and that of the other is higher. How much it lacks of what we sent is the loss of the
link, in the server's own signed words, and each byte that it states as lost is one that it doesn't bill. What comes
back is believed to be lost alike, and VERIFY_TOLERANCE of the bill on top.

What we send after the server's gate closed is missing in its count too, and a server that carries much for us back may
gain by stating that little arrived. So no more than MOST_LOSS_PPM is believed, however much is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.settings import FULL_PPM

MOST_LOSS_PPM = 100_000
REMEMBERED_SHARE = (31, 32)  # each statement leaves this much of the weight of those before it


@dataclass(slots=True)
class Loss:
    """What we sent a server and what of it arrived there, by our meter and by its statements; old bytes count less."""

    sent_bytes: int = 0
    arrived_bytes: int = 0

    def fade(self) -> None:
        """Let what was noted so far count less: links change."""
        part, whole = REMEMBERED_SHARE
        self.sent_bytes = self.sent_bytes * part // whole
        self.arrived_bytes = self.arrived_bytes * part // whole

    def note(self, sent_bytes: int, arrived_bytes: int) -> None:
        """Note what was sent of one contract since its last statement, and what arrived by the server's count."""
        self.sent_bytes += max(0, sent_bytes)
        self.arrived_bytes += max(0, arrived_bytes)

    @property
    def ppm(self) -> int:
        """The measured share that was lost, in millionths; 0 if nothing was sent."""
        if not self.sent_bytes:
            return 0
        return max(0, self.sent_bytes - self.arrived_bytes) * FULL_PPM // self.sent_bytes

    def may_be_lost(self, counted: int, tolerance_ppm: int) -> tuple[int, int]:
        """Return how much more than our meter counted an honest bill may be.

        Args:
            counted: what our meter counted, in any unit.
            tolerance_ppm: the share of a bill that may be lost beside what is measured, below one half.

        Returns:
            That sum, and the part of `counted` that was too small to matter and counts the next time.
        """
        lost_ppm = min(self.ppm, MOST_LOSS_PPM) + tolerance_ppm
        if not lost_ppm:
            return 0, 0
        lost, rest = divmod(counted * lost_ppm, FULL_PPM - lost_ppm)
        return lost, rest // lost_ppm
