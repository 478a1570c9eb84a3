"""Correspondents: what the courier keeps of each identity that it exchanges messages with."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from ngp.core.allowance import Allowance
from ngp.core.messages import Message
from ngp.delivery import LinkKey
from ngp.replay import ReplayWindow


@dataclass(slots=True, eq=False)
class Flight:
    """A message in flight, not yet acknowledged."""

    neighbour: Correspondent
    link: LinkKey
    message: Message
    sequence: int
    datagram: bytes
    attempt: int
    landed: bool = False


@dataclass(slots=True, eq=False)
class ProvenLink:
    """A link where a neighbour is proven: its allowance, and which `Outgoing.attempt` was answered last, if any."""

    allowance: Allowance
    attempt: int | None = None


@dataclass(slots=True, eq=False)
class Correspondent:
    """All that is kept of one identity.

    Attributes:
        count: number of messages that we made for it; the lower half of their sequences.
        broadcast: count of its last hello to everybody.
        proven: the links where it is proven.
        acks_again: one of `acks` is for a duplicate.
        self_acks: its messages that nobody has acked yet.
    """

    identity: bytes
    count: int
    boot: int = 0
    window: ReplayWindow = field(default_factory=ReplayWindow)
    broadcast: int = 0
    heard_at: float = 0.0
    proven: OrderedDict[LinkKey, ProvenLink] = field(default_factory=OrderedDict)  # longest unused first
    was_proven: bool = False
    last_link: LinkKey = ("", b"")
    flights: OrderedDict[int, Flight] = field(default_factory=OrderedDict)
    waiting: deque[tuple[LinkKey, Message, int]] = field(default_factory=deque)
    acks: dict[int, None] = field(default_factory=dict)
    acks_again: bool = False
    self_acks: set[int] = field(default_factory=set)
