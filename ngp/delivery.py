"""Delivery: the courier's input and output values, and which messages it must deliver."""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Ack, Cancel, Hello, Message, Paid, Statement

LinkKey = tuple[str, bytes]  # interface, link address


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the courier.

    Attributes:
        neighbours, strangers: identities that are proven on a link, and identities that were only heard.
        former: identities no longer known whose replay window is kept; otherwise their old messages could be replayed.
        identities_per_link: known identities behind one link address.
        in_flight: unanswered messages to one neighbour; at most half the replay window.
        waiting: messages to one neighbour that wait to be sent.
        total: messages to all neighbours together, in flight and waiting.
        stranger_rate: signatures checked per second, or at once, for all unknown (identity, link) together.
        stranger_link_rate: the part of stranger_rate that one link address may use.
        neighbour_rate: signatures checked per second for each known (identity, link).
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
    """A datagram to send; identity and link are None if it is for everybody on the caller's interface.

    Attributes:
        attempt: selects one of the ways to the link address; the next attempt takes the next way. None: send the
            datagram by all ways, since it isn't sent again if it is lost.
        is_hello: the datagram will also be sent by ways that are learned later.
    """

    identity: bytes | None
    link: LinkKey | None
    datagram: bytes
    attempt: int | None = 0
    is_hello: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A new message.

    `proven`: the message is no replay, and its sender is on this link. If False, it is a hello: only answer it.
    """

    sender: bytes
    link: LinkKey
    boot: int
    message: Message
    message_id: int
    reply_to: int
    proven: bool


def needs_delivery(message: Message) -> bool:
    """Say whether a message is sent again until it arrives: all but acks, and hellos, which are repeated anyway."""
    return type(message) is not Hello and type(message) is not Ack


def wants_receipt(message: Message) -> bool:
    """Say whether a message is acked only after its receiver has stored its content: bills, proofs, contracts' ends."""
    return type(message) in (Statement, Paid, Cancel)
