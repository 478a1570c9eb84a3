"""Values of no single subject; those of one are in `kernel`, `payment_node` and `rental.tunnel`."""

from __future__ import annotations

from dataclasses import dataclass, field

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class LinkPeer:
    """A neighbour as the link knows it: an interface, a link-level address, and the address to send answers to.

    Attributes:
        interface: name of the interface.
        link_address: MAC, 6 bytes; empty on layer-3 interfaces (WireGuard, ipip, tun), which have none.
        transport: where the link module sends answers to (`192.0.2.1`, `fe80::1%eth0`, a MAC). Two peers that differ
            only in `transport` are equal.
    """

    interface: str
    link_address: bytes
    transport: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `ngp check`: what was looked at, what was found, and the command that mends it.

    A line that is ok and has a remedy is a warning: ngp works, but the operator should consider the remedy.

    Attributes:
        kind: which part is at fault (`configuration`: net.conf); "": the part that was looked at. The exit code of
            `ngp check` depends on it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Now:
    """One instant by two clocks: UTC seconds for records, monotonic seconds for intervals.

    Attributes: utc_offset_s: by how much the host's local time is ahead of UTC.
    """

    utc_s: int
    monotonic_s: float
    utc_offset_s: int = 0

    @property
    def local_s(self) -> int:
        """The local time of day, seconds since midnight."""
        return (self.utc_s + self.utc_offset_s) % DAY_S
