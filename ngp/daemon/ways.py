"""Ways: the transport addresses at which a neighbour's link address was heard and is answered. No I/O, no clock.

One hello comes several times: by IPv4's broadcast, by ff02::1, in a bare frame. The courier accepts the first copy and
treats the others as replays. But the first may have come from an address that can't be answered (an interface without
IPv4 sends from another interface's address). So all ways are remembered, hellos are answered by all of them, and a
message that stays unanswered is sent again by the next way. `Outgoing.attempt` counts these attempts; after an answer
the courier keeps to the way by which it had sent the answered message.

Against attackers: a way is learned only from a message that the courier accepted, or from an exact copy of the last
hello that it accepted, on the same interface and from the same link address. So forged or recorded datagrams, and those
from another MAC, teach nothing. A copy never replaces a way by which a message was accepted, and a way by which our
messages are answered stays in use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from ngp.core.newest import Newest
from ngp.core.values import LinkPeer
from ngp.delivery import LinkKey
from ngp.ports import Link

MOST_LINKS = 8192
MOST_WAYS = 4  # IPv4, IPv6's link-local and another address, a bare frame


@dataclass(slots=True)
class Way:
    """A link module and the address to send to. `taken`: a proven neighbour's message came by it, not only a copy."""

    link: Link
    peer: LinkPeer
    taken: bool
    heard: int


@dataclass(slots=True)
class _Known:
    """A link address: its ways in the order in which they were learned, and the last hellos of both sides."""

    ways: list[Way] = field(default_factory=list)
    in_use: int = 0
    hello: bytes = b""
    answer: bytes = b""


class Ways:
    """The ways to all link addresses; those silent for longest are forgotten first."""

    def __init__(self) -> None:
        self._known: Newest[LinkKey, _Known] = Newest(MOST_LINKS)
        self._heard = 0

    def learn(self, key: LinkKey, link: Link, peer: LinkPeer, proven: bool, hello: bytes = b"") -> None:
        """Remember the way of a message that the courier accepted.

        Args:
            proven: as the courier says; an unproven sender's way replaces no other.
            hello: the datagram, if it was a hello.
        """
        known = self._known.get(key) or _Known()
        self._known.note(key, known)
        known.hello = _digest(hello) if hello else known.hello
        self._note(known, link, peer, taken=proven)

    def learn_copy(self, key: LinkKey, link: Link, peer: LinkPeer, datagram: bytes) -> bytes | None:
        """Remember another way by which the last hello came again.

        Returns: our answer to that hello, which must be sent by the new way too; empty if there was no answer. None if
            the way was known, or if this is no copy of the last hello.
        """
        known = self._known.get(key)
        if known is None or known.hello != _digest(datagram):
            return None
        return known.answer if self._note(known, link, peer, taken=False) else None

    def every(self, key: LinkKey, hello: bytes = b"") -> list[Way]:
        """Return all ways to a link address, for a message that is sent only once.

        Args: hello: the message, if it is a hello: `learn_copy` returns it for ways that are learned later.
        """
        known = self._known.get(key)
        if known is None:
            return []
        known.answer = hello or known.answer
        return list(known.ways)

    def pick(self, key: LinkKey, attempt: int) -> Way | None:
        """Return the way for an attempt; successive attempts take the ways in turn."""
        known = self._known.get(key)
        if known is None:
            return None
        known.in_use = attempt % len(known.ways)
        return known.ways[known.in_use]

    def transport(self, key: LinkKey) -> str:
        """Return the transport address to which we sent last, else the one heard first; "" if no message was heard."""
        known = self._known.get(key)
        return known.ways[min(known.in_use, len(known.ways) - 1)].peer.transport if known is not None else ""

    def transports(self, key: LinkKey) -> list[str]:
        """Return every transport address of a link address."""
        known = self._known.get(key)
        return [way.peer.transport for way in known.ways] if known is not None else []

    def _note(self, known: _Known, link: Link, peer: LinkPeer, taken: bool) -> bool:
        """Remember a way if there is room. Returns whether it is new and was kept."""
        self._heard += 1
        for way in known.ways:
            if way.link is link and way.peer.transport == peer.transport:
                way.heard, way.taken = self._heard, way.taken or taken
                return False
        new = Way(link, peer, taken, self._heard)
        if len(known.ways) < MOST_WAYS:
            known.ways.append(new)
            return True
        number, oldest = min(enumerate(known.ways), key=lambda each: (each[1].taken, each[1].heard))
        if oldest.taken and not taken:
            return False
        known.ways[number] = new
        return True


def _digest(datagram: bytes) -> bytes:
    return blake2b(datagram, digest_size=16).digest()
