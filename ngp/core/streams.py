"""Streams: what purchases bring that no client pays for, as the rules in `unsold` and `losses` remember it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from ngp.core.kernel import LARGEST_PACKET_BYTES
from ngp.core.newest import Newest
from ngp.core.prefixes import PackedPrefix

Key = TypeVar("Key")

MOST_WITHHELD = 4096
MOST_LOSSES = 4096
LOSS_WINDOW_S = 3600.0
MOST_GRACES = 8  # above so many within that time, a client gets nothing new at a server
NEWCOMERS = b""  # stands for all clients that never paid: keys cost nothing, so they are one


@dataclass(slots=True)
class Debtor:
    """A client that has neither money nor credit left.

    Attributes:
        since_mono_s: since when, or since its latest payment, if that was too small. paid_msat: what it had paid then.
        price_msat_per_gib: of one of its contracts.
        resting: how many of its contracts rested on what we buy when the kernel refused a packet of it last.
        again_mono_s: before that, they aren't gone through for one more refused packet.
        used: ids of the contracts that it used since those that can end were ended; None: look for these among all.
    """

    since_mono_s: float
    paid_msat: int
    price_msat_per_gib: int
    resting: int = 0
    again_mono_s: float = 0.0
    used: dict[bytes, None] | None = None


@dataclass(slots=True)
class Stream:
    """What a purchase brings and nobody pays for, from when we began to look.

    Attributes:
        client: for whom it is, as far as we know.
        base_bytes, ours_base_bytes: what had come, and what had been sent, beside what was sold, when we began to look.
        seen_bytes: what had come since at the latest look. unsold_bytes: the part of it that surely wasn't sold.
        grew_mono_s: when that last grew.
    """

    client: bytes
    base_bytes: int
    ours_base_bytes: int
    grew_mono_s: float
    seen_bytes: int = 0
    unsold_bytes: int = 0


class Lost(NamedTuple):
    """Of what, and for whom, something is counted as lost, or withheld.

    Attributes:
        newcomers: whether for clients that never paid, and not for all.
    """

    server: bytes
    destination: PackedPrefix
    newcomers: bool = False


@dataclass(frozen=True, slots=True)
class Withheld:
    """A destination that isn't sold for a while, since too much came from there that nobody paid for.

    Attributes:
        client: for whom it was, so that its payment ends this; b"": for hosts that hadn't bought it.
        until_mono_s: how long. times: how often in a row it happened.
        price_msat_per_gib: what it costs us; 0 if no payment ends this.
    """

    client: bytes
    until_mono_s: float
    times: int
    price_msat_per_gib: int = 0


@dataclass(slots=True)
class Loss:
    """Bytes that we bought, and that the kernel refused as nobody had bought them from us, since an instant.

    Attributes:
        counted_bytes: those for which what we earned above cost doesn't pay.
        earned_units: of a client: what we earned by it above cost and didn't use for what was lost, in msat / 2^30.
    """

    since_mono_s: float
    lost_bytes: int = 0
    counted_bytes: int = 0
    earned_units: int = 0

    def is_far_above(self, grace_data_bytes: int) -> bool:
        """Say whether it is more than MOST_GRACES times the grace, and than as many packets if there is no grace."""
        return self.counted_bytes > MOST_GRACES * max(grace_data_bytes, LARGEST_PACKET_BYTES)


class Losses(Newest[Key, Loss]):
    """Losses of the last hour; the oldest above MOST_LOSSES are forgotten."""

    def __init__(self) -> None:
        super().__init__(MOST_LOSSES)

    def lately(self, key: Key, now_mono_s: float) -> Loss:
        """Return a loss, or a new one if it is an hour old or unknown. Each hour half of the earnings is forgotten."""
        loss = self.get(key)
        if loss is None:
            return Loss(now_mono_s)
        hours = int((now_mono_s - loss.since_mono_s) / LOSS_WINDOW_S)
        return loss if not hours else Loss(now_mono_s, earned_units=loss.earned_units >> min(hours, 64))


@dataclass(slots=True, eq=False)
class Streams:
    """What `unsold` and `losses` look after.

    Attributes:
        debtors: clients without money or credit for which we bought something.
        of: streams, by purchase.
        by_client: losses by client and server; those of NEWCOMERS at all servers together, under server b"".
        lost_bytes: all that was ever lost, but for what came by default routes.
    """

    debtors: dict[bytes, Debtor] = field(default_factory=dict)
    of: dict[bytes, Stream] = field(default_factory=dict)
    withheld: Newest[Lost, Withheld] = field(default_factory=lambda: Newest(MOST_WITHHELD))
    losses: Losses[Lost] = field(default_factory=Losses)
    by_client: Losses[tuple[bytes, bytes]] = field(default_factory=Losses)
    lost_bytes: int = 0

    def of_client(self, client: bytes, server: bytes, now_mono_s: float) -> Loss:
        """Return what was lost for a client at a server within an hour, and earned by it; it is kept from now on."""
        about = _about(client, server)
        loss = self.by_client.lately(about, now_mono_s)
        self.by_client.note(about, loss)
        return loss

    def is_far_above(self, client: bytes, server: bytes, now_mono_s: float, grace_data_bytes: int) -> bool:
        """Say whether more than MOST_GRACES times the grace was lost for a client at a server within an hour."""
        return self.by_client.lately(_about(client, server), now_mono_s).is_far_above(grace_data_bytes)


def _about(client: bytes, server: bytes) -> tuple[bytes, bytes]:
    return client, b"" if client == NEWCOMERS else server
