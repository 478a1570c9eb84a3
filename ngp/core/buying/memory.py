"""Memory of a buyer: what it declined, what is over, and how often it may ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.allowance import Allowance
from ngp.core.buying.account import Backoff
from ngp.core.buying.fork import Forks
from ngp.core.buying.purchase import Purchase
from ngp.core.messages import Prefix, Propose
from ngp.core.newest import Newest
from ngp.core.peers import Link

MOST_QUESTIONS_A_SECOND = 32
MOST_ENDED = 4096
MOST_QUOTES = 4096
MOST_DEFAULTS = 256


@dataclass(frozen=True, slots=True)
class Quote:
    """A server's offer that we may still accept. Attributes: until_mono_s: how long, by the monotonic clock."""

    propose: Propose
    link: Link
    until_mono_s: float


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
        questions: how often `ask_for` may ask servers; the hosts that send through us choose the destinations.
        forks: where the routes lead through several neighbours (CHOOSE_ROUTES).
    """

    declined: dict[tuple[bytes, Link, Prefix], float] = field(default_factory=dict)
    ended: Newest[bytes, Purchase] = field(default_factory=lambda: Newest(MOST_ENDED))
    backoff: Backoff = field(default_factory=Backoff)
    quotes: Newest[tuple[bytes, Prefix], Quote] = field(default_factory=lambda: Newest(MOST_QUOTES))
    asked: Newest[tuple[bytes, Prefix], float] = field(default_factory=lambda: Newest(MOST_QUOTES))
    default_asked: Newest[tuple[bytes, Prefix], float] = field(default_factory=lambda: Newest(MOST_DEFAULTS))
    forks: Forks = field(default_factory=Forks)
    questions: Allowance = field(default_factory=lambda: Allowance(MOST_QUESTIONS_A_SECOND))
