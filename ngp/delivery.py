"""Delivery: what the courier is given and gives, as values, and what it owes each kind of message."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.messages import Ack, Hello, Message, Paid, Statement

LinkKey = tuple[str, bytes]  # interface, link address


@dataclass(frozen=True, slots=True)
class Limits:
    """What the courier holds at most.

    Attributes:
        neighbours, strangers: identities known and heard of.
        former: replay windows of identities that were known; without them, old messages could be brought in again.
        identities_per_link: known identities behind one link address.
        in_flight: messages to one neighbour that await their answer; at most half the replay window.
        waiting: messages to one neighbour that wait for a place in flight.
        total: messages to all neighbours together, in flight and waiting.
        stranger_rate: signatures checked a second for all unknown (identity, link) together; also the burst.
        stranger_link_rate: the part of it that one link address may use.
        neighbour_rate: the same for each known one.
    """

    neighbours: int = 4096
    strangers: int = 256
    former: int = 16384
    identities_per_link: int = 64
    in_flight: int = 1024
    waiting: int = 8192
    total: int = 65536
    stranger_rate: int = 400
    stranger_link_rate: int = 20
    neighbour_rate: int = 5000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A datagram to send; identity and link are None when it is for everybody on the caller's interface.

    Attributes:
        attempt: by which of the ways to the link address, each in turn. None: by all of them, as nobody notices
            whether it arrived.
        is_hello: to be answered, so also by a way that is found out later.
    """

    identity: bytes | None
    link: LinkKey | None
    datagram: bytes
    attempt: int | None = 0
    is_hello: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A message, delivered this once. `proven`: the sender spoke just now, on this link; else only answer its hello."""

    sender: bytes
    link: LinkKey
    boot: int
    message: Message
    message_id: int
    reply_to: int
    proven: bool


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A message that won't be sent again; why: `timeout`, `restarted`, `unknown`, `full`, `forgotten`."""

    identity: bytes
    link: LinkKey
    message: Message
    why: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message that wants a receipt, and that the neighbour has acknowledged."""

    identity: bytes
    link: LinkKey
    message: Message


@dataclass(frozen=True, slots=True)
class Due:
    """What `Courier.due` wants sent and told."""

    outgoing: list[Outgoing]
    undelivered: list[Undelivered]
    delivered: list[Delivered] = field(default_factory=list)


def needs_delivery(message: Message) -> bool:
    """Whether a message is sent again until it arrived: all but hellos, which are repeated anyway, and acks."""
    return type(message) is not Hello and type(message) is not Ack


def wants_receipt(message: Message) -> bool:
    """Whether a message counts as arrived only when its receiver has stored what it says: bills and proofs."""
    return type(message) is Statement or type(message) is Paid
