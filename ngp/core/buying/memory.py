"""Memory of a buyer: what it declined, what it was offered, and what is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.buying.account import Backoff
from ngp.core.buying.fork import Forks
from ngp.core.buying.purchase import Purchase
from ngp.core.messages import Prefix, Propose
from ngp.core.newest import Newest
from ngp.core.peers import Link

MOST_ENDED = 4096
MOST_QUOTES = 4096
MOST_DEFAULTS = 256
MOST_MISSED = 4096


@dataclass(frozen=True, slots=True)
class Quote:
    """A server's offer that we may still accept. Attributes: until_mono_s: how long, by the monotonic clock."""

    propose: Propose
    link: Link
    until_mono_s: float


@dataclass(slots=True)
class Missed:
    """A purchase that its server ended by itself while it carried traffic.

    Attributes:
        until_mono_s: how long we ask for a new one.
        pause_s: the time between the last question and the next one.
        asked_mono_s: when we asked for the destination last; infinitely long ago if we haven't yet.
    """

    purchase: Purchase
    until_mono_s: float
    pause_s: float
    asked_mono_s: float = float("-inf")


@dataclass(slots=True, eq=False)
class BuyingMemory:
    """What a buyer remembers beside its purchases.

    Attributes:
        declined: when we last declined a proposal, by its server's identity, link and destination; only the latest.
        ended: purchases that are over, because the statement with their last bytes comes after the server's notice.
        backoff: the pause after failed payments that all servers share through which we haven't sent anything yet.
        quotes: what servers offered when we asked on behalf of our clients. Nothing is bought yet.
        asked: what we asked servers for on behalf of our clients, and until when an answer may still come.
        default_asked: when we asked servers for their default route (BUY_DEFAULT_ROUTE), unless they sold it to us.
        bought: what was bought in the present step; sales may have to follow.
        missed: what we ask for anew (`endings`), by identity and destination.
        left: purchases whose traffic goes another way now (`rerouting`); they end when they carry nothing any more.
        forks: where the routes lead through several neighbours (CHOOSE_ROUTES).
    """

    declined: dict[tuple[bytes, Link, Prefix], float] = field(default_factory=dict)
    ended: Newest[bytes, Purchase] = field(default_factory=lambda: Newest(MOST_ENDED))
    backoff: Backoff = field(default_factory=Backoff)
    quotes: Newest[tuple[bytes, Prefix], Quote] = field(default_factory=lambda: Newest(MOST_QUOTES))
    asked: Newest[tuple[bytes, Prefix], float] = field(default_factory=lambda: Newest(MOST_QUOTES))
    default_asked: Newest[tuple[bytes, Prefix], float] = field(default_factory=lambda: Newest(MOST_DEFAULTS))
    forks: Forks = field(default_factory=Forks)
    bought: list[Purchase] = field(default_factory=list)
    missed: Newest[tuple[bytes, Prefix], Missed] = field(default_factory=lambda: Newest(MOST_MISSED))
    left: dict[bytes, None] = field(default_factory=dict)
