"""Courier: delivers messages between neighbours over links that lose, double, delay and reorder. No I/O, no clock.

Guarantee: a message that needs delivery reaches the other daemon at most once, and exactly once if the link works again
within GIVE_UP_S; otherwise it is reported undelivered. The same datagram is sent again until the neighbour answers it
(`reply_to`) or acks it. Acks are collected, since a signature is the most expensive step here. A duplicate is
recognised by its sequence, before its signature is checked. It isn't delivered again. It is only acked again, so a
receiver needn't keep its answers. A message whose loss would lose money (`wants_receipt`) is acked only when the caller
has stored its content and calls `acknowledge`; so its sender can rely on the ack, and is told about it (`Delivered`).

Which messages are believed
- An attacker can record a hello to everybody and replay it after we restarted. So a neighbour is *proven* on a link
  only after it sent a hello on this link that names our present boot counter. Until then its hellos are passed up with
  `proven=False`, and the caller may only answer them. All other messages are accepted from proven (identity, link)
  pairs only: a message recorded on one link can't be replayed on another.
- Boot counters are persisted and only grow. A signed message with a larger one shows that its sender restarted: its
  replay window begins anew. Messages in flight to its previous run are reported undelivered and not sent again, as they
  may have arrived. A message with a smaller boot counter is refused as stale.

By which way messages go
- A link address may have several transport addresses, some of which may lead nowhere. A message that stays unanswered
  is sent to the next address (`Outgoing.attempt`). Later messages start with the address at which one was answered.
  Hellos go to all addresses, since they aren't sent again. Acks go to all addresses while no message was answered yet;
  an ack of a duplicate always does, because the first ack may have been lost.

What a flood costs
- The number of signatures checked in a second is limited. All hellos from strangers, and from known neighbours on new
  links, share one small allowance, of which each link address may use only a small part. Each known neighbour has an
  allowance of its own on each of its links. Others can use that up only by forging its link address: anyone who claims
  its identity from another link address uses up only that address's part of the small allowance.
- A neighbour may be proven on few links. A new link replaces the one unused for longest, so copies of its hellos from
  other link addresses don't displace the link that it uses.
- All tables are bounded by `Limits`. Strangers have a table of their own, in which a new one replaces the oldest. A new
  neighbour replaces a known one only after IDLE_S of silence. Behind one link address, at most `identities_per_link`
  identities can be proven.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.signing import SigningKey

from ngp import wire
from ngp.core.allowance import Allowance, SharedAllowance
from ngp.core.events import Delivered, Undelivered
from ngp.core.messages import Ack, Hello, Message
from ngp.core.newest import Newest
from ngp.correspondents import Correspondent, Flight, ProvenLink
from ngp.delivery import Limits, LinkKey, Outgoing, Received, needs_delivery, wants_receipt
from ngp.errors import PeerError
from ngp.replay import WINDOW, ReplayWindow

RETRY_AFTER_S = (0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0, 3.0)
GIVE_UP_S = sum(RETRY_AFTER_S)
ACK_DELAY_S = 0.02
SELF_ACK_S = 0.1  # a message that the caller neither answers nor acknowledges is acked then, before it is sent again
IDLE_S = 600.0
_LINKS_PER_NEIGHBOUR = 4
_STRANGER_LINKS = 1024
_MAX_ACKS_WAITING = WINDOW

Outcome = Delivered | Undelivered


class Courier:
    """Reliable delivery for one daemon.

    Args:
        private_key: our identity.
        boot: our persisted boot counter, 1 or more, larger than at any earlier start.
        max_datagram_bytes: the link's limit; a larger datagram is refused unread.

    `now` is monotonic seconds everywhere. Call `due` at the time of `next_due`; ask `next_due` again after each
    `receive`, which may have made room for waiting messages. Ledger writes that must precede an ack must be done before
    `due` is called.
    """

    def __init__(
        self,
        private_key: Ed25519PrivateKey,
        boot: int,
        max_datagram_bytes: int = wire.MAX_DATAGRAM_BYTES,
        limits: Limits | None = None,
    ) -> None:
        if not 1 <= boot <= wire.MAX_BOOT:
            raise ValueError(f"boot counter {boot} isn't in 1..{wire.MAX_BOOT}")
        self.identity = private_key.public_key().public_bytes_raw()
        self._private_key = SigningKey(private_key.private_bytes_raw())
        self._boot = boot
        self._max_bytes = max_datagram_bytes
        self._limits = limits or Limits()
        self._known: OrderedDict[bytes, Correspondent] = OrderedDict()  # longest silent first
        self._strangers: OrderedDict[bytes, Correspondent] = OrderedDict()
        self._per_link: Counter[LinkKey] = Counter()
        self._stranger_allowance = SharedAllowance(
            self._limits.stranger_rate, self._limits.stranger_link_rate, _STRANGER_LINKS
        )
        self._broadcast_count = 0
        self._former: Newest[bytes, tuple[int, ReplayWindow, int]] = Newest(self._limits.former)
        self._retired_count = 0  # highest count of a forgotten identity: new ones count on, so no sequence comes twice
        self._outstanding = 0
        self._retries: tuple[deque[tuple[float, Flight]], ...] = tuple(deque() for _ in RETRY_AFTER_S)
        self._ack_timers: deque[tuple[float, Correspondent]] = deque()
        self._self_ack_timers: deque[tuple[float, Correspondent, int]] = deque()
        self._forget_timers: deque[tuple[float, Correspondent, int]] = deque()
        self._roomy: dict[bytes, Correspondent] = {}
        self._outcomes: list[Outcome] = []
        self._dropped: Counter[str] = Counter()

    # --- sending

    def send(
        self, identity: bytes | None, link: LinkKey | None, message: Message, now: float, reply_to: int = 0
    ) -> list[Outgoing]:
        """Sign a message and return what to send now; nothing if it must wait, or can't be delivered at all.

        A hello to a neighbour that isn't proven on the link asks for a reply, whatever the message says, so that both
        sides become proven. For a hello to everybody (identity None), call it once for each interface: a neighbour on
        two of them refuses the second copy of a datagram.
        Args: reply_to: id of the received message that this one answers and thereby acks.
        Raises: ValueError when a field is outside the limits of docs/protocol.md.
        """
        if identity is None or link is None:
            return [Outgoing(None, None, self._sealed_broadcast(message))]
        neighbour = self._known.get(identity) or self._strangers.get(identity)
        if type(message) is Hello:
            neighbour = neighbour or self._add_stranger(identity)
            if link not in neighbour.proven:
                message = replace(message, wants_reply=True)
            return [Outgoing(identity, link, self._sealed(neighbour, message, reply_to)[1], None, is_hello=True)]
        if neighbour is None or link not in neighbour.proven:
            return self._give_up(identity, link, message)
        neighbour.self_acks.discard(reply_to)
        if type(message) is Ack:
            return [Outgoing(identity, link, self._sealed(neighbour, message, reply_to)[1], None)]
        if len(neighbour.waiting) >= self._limits.waiting or self._outstanding >= self._limits.total:
            return self._give_up(identity, link, message)
        self._outstanding += 1
        if neighbour.waiting or not self._has_room(neighbour):
            neighbour.waiting.append((link, message, reply_to))
            return []
        return [self._launch(neighbour, link, message, reply_to, now)]

    def acknowledge(self, identity: bytes, message_id: int, now: float) -> None:
        """Ack a received message that gets no answer; the ack goes with the next batch.

        Without this call the courier acks the message by itself a little later, unless it wants a receipt.
        """
        neighbour = self._known.get(identity)
        if neighbour is not None and message_id in neighbour.self_acks:
            neighbour.self_acks.remove(message_id)
            self._queue_ack(neighbour, message_id, now)

    def forget(self, identity: bytes) -> None:
        """Drop a neighbour; its messages in flight are reported undelivered."""
        neighbour = self._known.pop(identity, None) or self._strangers.pop(identity, None)
        if neighbour is not None:
            self._retire(neighbour)

    def is_proven(self, identity: bytes, link: LinkKey) -> bool:
        """Say whether messages from this identity on this link are accepted."""
        neighbour = self._known.get(identity)
        return neighbour is not None and link in neighbour.proven

    def counters(self) -> dict[str, int]:
        """Return the numbers of dropped datagrams, by reason."""
        return dict(self._dropped)

    # --- receiving

    def receive(self, datagram: bytes, link: LinkKey, now: float) -> Received | None:
        """Process a datagram from a link.

        Returns: the message, or None if there is nothing new to pass up (an ack, a duplicate).
        Raises: PeerError: `oversized`, `malformed`, `version`, `own`, `foreign`, `stale`, `replayed`, `unknown` (no
            hello exchanged on this link), `rate`, `busy` (table full), `signature`, `extension`.
        """
        try:
            return self._receive(datagram, link, now)
        except PeerError as error:
            self._dropped[error.reason] += 1
            raise

    def _receive(self, datagram: bytes, link: LinkKey, now: float) -> Received | None:
        sealed = wire.parse(datagram, self.identity, self._max_bytes)
        if sealed.recipient_boot not in (0, self._boot):
            raise PeerError("stale", f"for our boot {sealed.recipient_boot}, this is {self._boot}")
        neighbour = self._known.get(sealed.sender) or self._strangers.get(sealed.sender)
        if neighbour is not None and self._is_duplicate(neighbour, sealed, link, now):
            self._dropped["duplicate"] += 1
            return None
        proven_link = neighbour.proven.get(link) if neighbour is not None else None
        if not sealed.is_hello and (neighbour is None or proven_link is None or sealed.boot != neighbour.boot):
            raise PeerError("unknown", "no hello was exchanged on this link")
        strangers = self._stranger_allowance
        if not (proven_link.allowance.take(now) if proven_link is not None else strangers.take(link, now)):
            raise PeerError("rate", "too many signatures to check")
        message = sealed.open()
        if neighbour is None:
            neighbour = self._add_stranger(sealed.sender)
        self._remember(neighbour, sealed, now)
        if sealed.recipient_boot == self._boot and link not in neighbour.proven:
            self._prove(neighbour, link, now)
        if link in neighbour.proven:
            neighbour.last_link = link
            neighbour.proven.move_to_end(link)
        return self._deliver(neighbour, sealed, message, link, now)

    def _is_duplicate(self, neighbour: Correspondent, sealed: wire.Sealed, link: LinkKey, now: float) -> bool:
        count = sealed.sequence & wire.MAX_COUNT
        if sealed.boot > neighbour.boot:
            return False
        if sealed.boot < neighbour.boot:
            raise PeerError("stale", f"boot {sealed.boot}, seen {neighbour.boot}")
        if sealed.recipient == wire.EVERYBODY:
            if count <= neighbour.broadcast:
                raise PeerError("replayed", "a hello to everybody")
            return False
        if neighbour.window.is_stale(count):
            raise PeerError("stale", "sequence below the window")
        if not neighbour.window.has(count):
            return False
        if sealed.is_hello or link not in neighbour.proven:
            raise PeerError("replayed", f"sequence {count}")
        if not sealed.is_ack and sealed.sequence not in neighbour.self_acks:  # acks of acks would never end
            neighbour.acks_again = True
            self._queue_ack(neighbour, sealed.sequence, now)
        return True

    def _remember(self, neighbour: Correspondent, sealed: wire.Sealed, now: float) -> None:
        if sealed.boot > neighbour.boot:
            self._restart(neighbour, sealed.boot)
        count = sealed.sequence & wire.MAX_COUNT
        if sealed.recipient == wire.EVERYBODY:
            neighbour.broadcast = count
        else:
            neighbour.window.add(count)
        neighbour.heard_at = now
        if neighbour.identity in self._known:
            self._known.move_to_end(neighbour.identity)

    def _deliver(
        self, neighbour: Correspondent, sealed: wire.Sealed, message: Message | wire.Unknown, link: LinkKey, now: float
    ) -> Received | None:
        proven = link in neighbour.proven
        if proven and sealed.reply_to:
            self._acked(neighbour, sealed.reply_to)
        if isinstance(message, wire.Unknown):  # ack it, so that its sender doesn't send it again
            self._dropped["kind"] += 1
            self._queue_ack(neighbour, sealed.sequence, now)
            return None
        if type(message) is Ack:
            for message_id in message.message_ids:
                self._acked(neighbour, message_id)
            return None
        if needs_delivery(message):
            neighbour.self_acks.add(sealed.sequence)
            if wants_receipt(message):
                self._forget_timers.append((now + GIVE_UP_S, neighbour, sealed.sequence))
            else:
                self._self_ack_timers.append((now + SELF_ACK_S, neighbour, sealed.sequence))
        return Received(sealed.sender, link, sealed.boot, message, sealed.sequence, sealed.reply_to, proven)

    # --- neighbours

    def _add_stranger(self, identity: bytes) -> Correspondent:
        if len(self._strangers) >= self._limits.strangers:
            _, oldest = self._strangers.popitem(last=False)
            self._retire(oldest)
        neighbour = self._strangers[identity] = Correspondent(identity, self._retired_count)
        if identity in self._former:
            neighbour.boot, neighbour.window, neighbour.broadcast = self._former.pop(identity)
            neighbour.was_proven = True
        return neighbour

    def _prove(self, neighbour: Correspondent, link: LinkKey, now: float) -> None:
        if self._per_link[link] >= self._limits.identities_per_link:
            raise PeerError("busy", f"{self._per_link[link]} identities behind one link address")
        if neighbour.identity not in self._known:
            if len(self._known) >= self._limits.neighbours:
                self._make_room(now)
            self._strangers.pop(neighbour.identity, None)
            self._known[neighbour.identity] = neighbour
        if len(neighbour.proven) >= _LINKS_PER_NEIGHBOUR:
            dropped, _ = neighbour.proven.popitem(last=False)
            self._leave(dropped)
        neighbour.was_proven = True
        neighbour.proven[link] = ProvenLink(Allowance(self._limits.neighbour_rate))
        self._per_link[link] += 1

    def _make_room(self, now: float) -> None:
        identity, oldest = next(iter(self._known.items()))
        if now - oldest.heard_at < IDLE_S:
            raise PeerError("busy", f"{len(self._known)} neighbours are known and none is silent")
        self.forget(identity)

    def _restart(self, neighbour: Correspondent, boot: int) -> None:
        self._drop_outstanding(neighbour)
        neighbour.boot = boot
        neighbour.window = ReplayWindow()
        neighbour.broadcast = 0
        self._leave(*neighbour.proven)
        neighbour.proven.clear()

    def _retire(self, neighbour: Correspondent) -> None:
        self._drop_outstanding(neighbour)
        self._leave(*neighbour.proven)
        neighbour.proven.clear()
        self._retired_count = max(self._retired_count, neighbour.count)
        if neighbour.was_proven:
            self._former.note(neighbour.identity, (neighbour.boot, neighbour.window, neighbour.broadcast))

    def _leave(self, *links: LinkKey) -> None:
        for link in links:
            self._per_link[link] -= 1
            if not self._per_link[link]:
                del self._per_link[link]

    def _drop_outstanding(self, neighbour: Correspondent) -> None:
        for flight in neighbour.flights.values():
            flight.landed = True
            self._give_up(neighbour.identity, flight.link, flight.message)
        for link, message, _ in neighbour.waiting:
            self._give_up(neighbour.identity, link, message)
        self._outstanding -= len(neighbour.flights) + len(neighbour.waiting)
        neighbour.flights.clear()
        neighbour.waiting.clear()
        neighbour.acks.clear()
        neighbour.self_acks.clear()
        self._roomy.pop(neighbour.identity, None)

    # --- flights

    def _has_room(self, neighbour: Correspondent) -> bool:
        if len(neighbour.flights) >= self._limits.in_flight:
            return False
        # The oldest message in flight must stay inside the neighbour's window, or its copies would be refused.
        oldest = next(iter(neighbour.flights), 0) & wire.MAX_COUNT
        return not oldest or neighbour.count - oldest < WINDOW // 2

    def _launch(self, neighbour: Correspondent, link: LinkKey, message: Message, reply_to: int, now: float) -> Outgoing:
        sequence, datagram = self._sealed(neighbour, message, reply_to)
        attempt = self._answered_attempt(neighbour, link) or 0
        flight = neighbour.flights[sequence] = Flight(neighbour, link, message, sequence, datagram, attempt)
        self._retries[0].append((now + RETRY_AFTER_S[0], flight))
        return Outgoing(neighbour.identity, link, datagram, attempt)

    def _answered_attempt(self, neighbour: Correspondent, link: LinkKey) -> int | None:
        proven_link = neighbour.proven.get(link)
        return proven_link.attempt if proven_link is not None else None

    def _acked(self, neighbour: Correspondent, message_id: int) -> None:
        flight = self._land(neighbour, message_id)
        if flight is not None and flight.link in neighbour.proven:
            neighbour.proven[flight.link].attempt = flight.attempt
        if flight is not None and wants_receipt(flight.message):
            self._outcomes.append(Delivered(neighbour.identity, flight.link, flight.message))

    def _land(self, neighbour: Correspondent, message_id: int) -> Flight | None:
        flight = neighbour.flights.pop(message_id, None)
        if flight is None:
            return None
        flight.landed = True
        self._outstanding -= 1
        if neighbour.waiting:
            self._roomy[neighbour.identity] = neighbour
        return flight

    def _give_up(self, identity: bytes, link: LinkKey, message: Message) -> list[Outgoing]:
        self._outcomes.append(Undelivered(identity, link, message))
        return []

    def _sealed(self, neighbour: Correspondent, message: Message, reply_to: int) -> tuple[int, bytes]:
        sequence = self._boot << 32 | neighbour.count + 1
        boot = neighbour.boot
        datagram = wire.seal(self._private_key, self.identity, neighbour.identity, sequence, boot, message, reply_to)
        neighbour.count += 1  # only now is it sure that the message can be encoded
        return sequence, datagram

    def _sealed_broadcast(self, message: Message) -> bytes:
        if type(message) is not Hello:
            raise ValueError(f"only a hello may be for everybody, not {type(message).__name__}")
        self._broadcast_count += 1
        sequence = self._boot << 32 | self._broadcast_count
        return wire.seal(self._private_key, self.identity, wire.EVERYBODY, sequence, 0, message)

    # --- time

    def next_due(self) -> float | None:
        """Return when to call `due` next, or None if nothing waits. May be too early, as answers arrive meanwhile."""
        if self._outcomes or self._roomy:
            return 0.0
        heads = [queue[0][0] for queue in self._retries if queue]
        heads += [timers[0][0] for timers in (self._ack_timers, self._self_ack_timers) if timers]
        return min(heads, default=None)

    def due(self, now: float) -> list[Outgoing]:
        """Return the datagrams to send now; ask for the `outcomes` afterwards."""
        outgoing = [again for tries in range(len(RETRY_AFTER_S)) for again in self._retried(tries, now)]
        while self._self_ack_timers and self._self_ack_timers[0][0] <= now:
            _, neighbour, message_id = self._self_ack_timers.popleft()
            if message_id in neighbour.self_acks:
                neighbour.self_acks.remove(message_id)
                self._queue_ack(neighbour, message_id, now)
        while self._forget_timers and self._forget_timers[0][0] <= now:  # the message's sender sends no more copies
            _, neighbour, message_id = self._forget_timers.popleft()
            neighbour.self_acks.discard(message_id)
        while self._ack_timers and self._ack_timers[0][0] <= now:
            outgoing += self._acks(self._ack_timers.popleft()[1])
        roomy, self._roomy = self._roomy, {}
        for neighbour in roomy.values():
            while neighbour.waiting and self._has_room(neighbour):
                outgoing.append(self._launch(neighbour, *neighbour.waiting.popleft(), now))
        return outgoing

    def outcomes(self) -> list[Outcome]:
        """Return the messages lost and delivered since the last call; handle these before the next message."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _retried(self, tries: int, now: float) -> Iterator[Outgoing]:
        """Yield the datagrams to send again. Each number of tries has one delay, so its queue is ordered by time."""
        queue = self._retries[tries]
        while queue and queue[0][0] <= now:
            flight = queue.popleft()[1]
            if flight.landed:
                continue
            if tries + 1 == len(RETRY_AFTER_S):
                self._land(flight.neighbour, flight.sequence)
                self._give_up(flight.neighbour.identity, flight.link, flight.message)
                continue
            self._retries[tries + 1].append((now + RETRY_AFTER_S[tries + 1], flight))
            flight.attempt += 1
            yield Outgoing(flight.neighbour.identity, flight.link, flight.datagram, flight.attempt)

    def _queue_ack(self, neighbour: Correspondent, message_id: int, now: float) -> None:
        if len(neighbour.acks) >= _MAX_ACKS_WAITING:
            return
        if not neighbour.acks:
            self._ack_timers.append((now + ACK_DELAY_S, neighbour))
        neighbour.acks[message_id] = None

    def _acks(self, neighbour: Correspondent) -> Iterator[Outgoing]:
        waiting, link = tuple(neighbour.acks), neighbour.last_link
        attempt = None if neighbour.acks_again else self._answered_attempt(neighbour, link)
        neighbour.acks.clear()
        neighbour.acks_again = False
        for start in range(0, len(waiting), wire.MAX_ACKS):
            _, datagram = self._sealed(neighbour, Ack(waiting[start : start + wire.MAX_ACKS]), 0)
            yield Outgoing(neighbour.identity, link, datagram, attempt)
