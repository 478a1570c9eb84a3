"""Correspondents: what the courier keeps about each identity with which it exchanges messages."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from ngp.core.allowance import Allowance
from ngp.core.messages import Message
from ngp.delivery import LinkKey
from ngp.replay import ReplayWindow


@dataclass(slots=True, eq=False)
class Flight:
    """A message in flight: sent, and not acknowledged yet. `landed`: it is over, so the message isn't sent again."""

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
    """All that is kept about one identity.

    Attributes:
        count: number of messages that we made for the identity; the lower half of each message's sequence.
        broadcast: the count in its last hello to everybody.
        proven: the links where the identity is proven.
        acks: ids of messages from the identity that the next ack will acknowledge.
        acks_again: one of `acks` is for a duplicate.
        self_acks: ids of messages from the identity that the caller hasn't answered or acknowledged yet.
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
