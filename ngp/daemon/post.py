"""Post: passes messages between the core and the links. The courier ensures delivery, the links carry datagrams.

A link address is answered through the link module and at the transport address that `ways` has learned for it. By the
rules of `ways` a forged or recorded datagram can't divert a neighbour's answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ngp.core.allowance import Allowance
from ngp.core.effects import Greet
from ngp.core.events import Event, MessageReceived
from ngp.core.messages import Hello, Invoice, Message, Refund
from ngp.core.payment_node import DecodedInvoice
from ngp.core.values import LinkPeer
from ngp.courier import Courier
from ngp.daemon.logs import RateLimit
from ngp.daemon.ways import Way, Ways
from ngp.delivery import LinkKey, Outgoing, Received
from ngp.errors import LedgerError, PeerError
from ngp.identity import payee_statement
from ngp.ports import Link, Payment

MOST_PAYEES = 8192
DECODES_PER_SECOND = 50
VERSION_TOLD_EVERY_S = 3600.0
VERSIONS_TOLD = 4
_log = logging.getLogger("ngp.post")


class Post:
    """Sends and receives for the daemon.

    Args:
        tell: receives neighbours' messages, as events.
        payment: checks the signatures of the payment nodes that neighbours announce.
        decode: decodes the invoices that neighbours send, as `payment_watch.decoder` does.

    Attributes:
        links: those in use.
        ourselves: the hello that we say, without asking for a reply; it changes with settings and host.
    """

    def __init__(
        self,
        courier: Courier,
        links: Sequence[Link],
        payment: Payment,
        decode: Callable[[str], DecodedInvoice],
        ourselves: Hello,
        tell: Callable[[Event], None],
    ) -> None:
        self.ourselves = ourselves
        self._courier = courier
        self.links = tuple(links)
        self._payment, self._decode = payment, decode
        self._tell = tell
        self._ways = Ways()
        self._decodes: dict[bytes, Allowance] = {}
        self._payees: dict[tuple[bytes, str, bytes, str], bool] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._dropped: dict[str, int] = {}
        self._versions_by_link = RateLimit(burst=1, every_s=VERSION_TOLD_EVERY_S)
        self._versions = RateLimit(burst=VERSIONS_TOLD, every_s=VERSION_TOLD_EVERY_S / VERSIONS_TOLD)
        self.frozen = False
        self.in_turn: Callable[[LinkKey, Callable[[], Event | None]], bool] = self._at_once

    async def open(self, interfaces: Sequence[str]) -> None:
        """Open every link on these interfaces. Raises KernelError."""
        for link in self.links:
            await link.open(interfaces, partial(self._received, link))

    async def update(self, interfaces: Sequence[str], addresses: Sequence[str]) -> None:
        """Follow a changed list of interfaces, and of neighbours' addresses (NGP_INTERFACE)."""
        for link in self.links:
            link.name_neighbours(addresses)
            await link.update(interfaces)

    async def close(self) -> None:
        """Close every link."""
        if self._timer is not None:
            self._timer.cancel()
        for link in self.links:
            await link.close()

    def counters(self) -> dict[str, int]:
        """Return the numbers of ignored datagrams and messages, by reason."""
        counts = self._courier.counters()
        for more in (self._dropped, *(link.counters() for link in self.links)):
            for reason, number in more.items():
                counts[reason] = counts.get(reason, 0) + number
        return counts

    def transport(self, link: LinkKey) -> str:
        """Return the transport address behind a link address, for listings."""
        return self._ways.transport(link)

    def transports(self, link: LinkKey) -> list[str]:
        """Return all transport addresses of a link address: the operator may name a neighbour by any of them."""
        return self._ways.transports(link)

    # --- out ----------------------------------------------------------------------------------------------------------

    def send(self, identity: bytes, link: LinkKey, message: Message, reply_to: int = 0) -> None:
        """Send a message to a neighbour."""
        try:
            self._carry(self._courier.send(identity, link, message, self._now(), reply_to))
        except ValueError as error:
            # The protocol can't express a value. The neighbour never gets the message, so nothing is agreed.
            self._count("unsendable")
            _log.error("a %s for %s can't be sent: %s", type(message).__name__, identity.hex()[:8], error)
        self.schedule()

    def acknowledge(self, identity: bytes, message_id: int) -> None:
        """Acknowledge a message with the next batch."""
        self._courier.acknowledge(identity, message_id, self._now())
        self.schedule()

    def greet(self, greet: Greet) -> None:
        """Say hello to one neighbour or to an interface."""
        if greet.identity:
            hello = replace(self.ourselves, wants_reply=greet.wants_reply)
            self.send(greet.identity, greet.link, hello, greet.reply_to)
        else:
            self.broadcast(greet.interface)

    def broadcast(self, interface: str) -> None:
        """Say hello to everybody on an interface."""
        for outgoing in self._courier.send(None, None, replace(self.ourselves, wants_reply=True), self._now()):
            for link in self.links:
                link.broadcast(interface, outgoing.datagram)

    def _carry(self, batch: Sequence[Outgoing]) -> None:
        for outgoing in batch:
            ways = self._ways_for(outgoing)
            if not ways:
                self._count("no_way")
            for way in ways:
                way.link.send(way.peer, outgoing.datagram)

    def _ways_for(self, outgoing: Outgoing) -> list[Way]:
        if outgoing.link is None:
            return []
        if outgoing.attempt is None:
            return self._ways.every(outgoing.link, outgoing.datagram if outgoing.is_hello else b"")
        way = self._ways.pick(outgoing.link, outgoing.attempt)
        return [way] if way is not None else []

    # --- in -----------------------------------------------------------------------------------------------------------

    def _received(self, link: Link, peer: LinkPeer, datagram: bytes) -> None:
        key = (peer.interface, peer.link_address)
        if self.frozen:
            return  # not acknowledged, so the neighbour sends it again
        if not self.in_turn(key, partial(self._open, key, link, peer, datagram)):
            self._count("busy")  # the neighbour sends it again too

    def _at_once(self, _link: LinkKey, work: Callable[[], Event | None]) -> bool:
        event = work()
        if event is not None:
            self._tell(event)
        return True

    def _open(self, key: LinkKey, link: Link, peer: LinkPeer, datagram: bytes) -> Event | None:
        """Check a datagram, the most expensive step here, and return the event for the core, if any."""
        try:
            received = self._courier.receive(datagram, key, self._now())
        except PeerError as error:
            _log.debug("from %s on %s: %s", peer.link_address.hex(), peer.interface, error)
            if error.reason == "replayed":
                self._learn_from_copy(key, link, peer, datagram)
            elif error.reason == "version":
                self._tell_of_version(peer, error)
            return None
        finally:
            self.schedule()
        if received is None:
            return None
        # If the sender restarted: first report what its previous run didn't get, then its new message.
        self._tell_outcomes()
        if received.proven:
            link.trust(peer)
        hello = datagram if isinstance(received.message, Hello) else b""
        self._ways.learn(key, link, peer, received.proven, hello)
        return self._hand_up(received)

    def _tell_of_version(self, peer: LinkPeer, error: PeerError) -> None:
        """Log a neighbour of another version: each once an hour, and few per interface, as anybody can make up MACs."""
        who = f"neighbour {peer.link_address.hex(':')}" if peer.link_address else "neighbour"
        if self._versions_by_link.take(f"{peer.interface} {who}") is not None:
            what = f"the {who} on {peer.interface} can't be understood ({error})"
            text = f"{what}; update whichever router has the older ngp"
            self._versions.warn(_log, peer.interface, text)

    def _learn_from_copy(self, key: LinkKey, link: Link, peer: LinkPeer, datagram: bytes) -> None:
        """Answer a hello by another way too if a copy of it came by that way."""
        answer = self._ways.learn_copy(key, link, peer, datagram)
        if answer:
            link.send(peer, answer)

    def _hand_up(self, received: Received) -> Event | None:
        if not received.proven:
            if isinstance(received.message, Hello):
                hello = replace(self.ourselves, wants_reply=True)
                self.send(received.sender, received.link, hello, received.message_id)
            return None
        decoded, message = None, received.message
        if isinstance(message, Hello) and message.payee_proof and not self._payee_proven(received.sender, message):
            self._count("payee_unproven")
            message = replace(message, payee=b"", payee_proof="")
        if isinstance(message, Invoice | Refund) and message.bolt11:
            try:
                decoded = self._decode_for(received.sender, message.bolt11)
            except PeerError as error:
                self._count(error.reason)
                _log.debug("from %s: %s", received.sender.hex()[:8], error)
            except LedgerError as error:  # a server makes another invoice when this one isn't paid
                self._count("invoices_unchecked")
                _log.warning("an invoice from %s is ignored: %s", received.sender.hex()[:8], error)
                return None
        return MessageReceived(
            received.sender,
            received.link,
            received.boot,
            message,
            received.message_id,
            decoded,
        )

    def _payee_proven(self, sender: bytes, hello: Hello) -> bool:
        """Say whether the announced payment node signed that it is this neighbour's; each signature is checked once.

        False also if the neighbour made us check too many signatures in this second.
        """
        shown = (sender, hello.network, hello.payee, hello.payee_proof)
        if shown not in self._payees:
            if not self._allowed(sender):
                return False
            if len(self._payees) >= MOST_PAYEES:
                self._payees.clear()
            signer = self._payment.verify(payee_statement(sender, hello.network), hello.payee_proof)
            self._payees[shown] = signer == hello.payee.hex()
        return self._payees[shown]

    def _decode_for(self, sender: bytes, bolt11: str) -> DecodedInvoice:
        """Decode an invoice, unless the neighbour sends too many. Raises PeerError, LedgerError."""
        if not self._allowed(sender):
            raise PeerError("invoices", "too many invoices a second")
        return self._decode(bolt11)

    def _allowed(self, sender: bytes) -> bool:
        """Count a check of a signature, which takes a millisecond: a neighbour may cause DECODES_PER_SECOND.

        Returns whether this check is allowed.
        """
        if sender not in self._decodes and len(self._decodes) > MOST_PAYEES:
            self._decodes.clear()
        return self._decodes.setdefault(sender, Allowance(DECODES_PER_SECOND)).take(self._now())

    def _count(self, reason: str) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1

    # --- time ---------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def schedule(self) -> None:
        """Set the timer that calls `_due` when the courier next has work."""
        at = self._courier.next_due()
        if at is None or self.frozen:
            return
        loop = asyncio.get_running_loop()
        if self._timer is not None and not self._timer.cancelled() and self._timer.when() <= max(at, loop.time()):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        if self.frozen:
            return
        self._carry(self._courier.due(self._now()))
        self._tell_outcomes()
        self.schedule()

    def _tell_outcomes(self) -> None:
        for outcome in self._courier.outcomes():
            self._tell(outcome)
