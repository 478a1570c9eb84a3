"""Loop: events in, the core's step, records stored, effects carried out.

Everything that happens is queued as an event. The loop takes events in batches, so that a burst of accepts costs one
transaction and one batch of map updates. It takes them from all neighbours in turn, so that a flooding neighbour delays
only itself. A timer that is due is an event too, a Tick.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ngp.core.effects import Effect
from ngp.core.events import Event, MessageReceived, Stopping, Tick
from ngp.core.kernel import HeldPacket, Hint, Verdict
from ngp.core.messages import Ask, Invoice, Propose, Statement
from ngp.daemon.executor import LEDGER_RETRY_S, Executor, frozen_text
from ngp.daemon.fair_queue import STRANGERS, FairQueue
from ngp.daemon.parts import Parts
from ngp.daemon.post import Post
from ngp.daemon.readings import Readings
from ngp.errors import LedgerError, RecordError

BATCH_EVENTS = 32  # of all neighbours in turn; more would make a neighbour's first packet wait longer for its own turn

_log = logging.getLogger("ngp")


class Loop:
    """Takes events, and carries out what the core wants done about them.

    Args:
        parts: opened.
        make_post: builds the post, given where its events go.
        told: hears of each event when it is queued.
        carry_out: carries out the effects that are neither the executor's nor the meters'.

    Attributes:
        ledger_why_not: why nothing can be written to the ledger now; empty if it can.
        crashed: a defect of our own stopped the daemon, or is about to.
        stopping: set when the daemon should end.
    """

    def __init__(
        self,
        parts: Parts,
        make_post: Callable[[Callable[[Event], None]], Post],
        told: Callable[[Event], None],
        carry_out: Callable[[Sequence[Effect]], None],
    ) -> None:
        self._parts, self._told, self._carry_out = parts, told, carry_out
        self.ledger_why_not = ""
        self.crashed = self._closed = False
        self.stopping = asyncio.Event()
        self._events = FairQueue()
        self._pump: asyncio.Handle | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._unstored: list[Effect] = []
        self._blocked_before: frozenset[bytes] | None = None
        self.post = make_post(self.tell)
        self.post.in_turn = self._in_turn
        self.executor = Executor(parts.ledger, parts.network, parts.payment, self.post, self.tell, self.crash)
        self._readings = Readings(parts.network, parts.gatekeeper.world, self.tell)

    def tell(self, event: Event) -> None:
        """Queue an event: a held packet among the work of its neighbour, all others as this host's own work."""
        self._events.add(event, self._cause_of(event.link) if isinstance(event, HeldPacket) else None)
        self._told(event)
        self._pump_soon()

    def obey(self, event: Event) -> None:
        """Process an operator's command at once, so that the answer is true. Raises LedgerError if it can't."""
        if self.ledger_why_not:
            raise LedgerError(f"nothing was done, as nothing can be written: {self.ledger_why_not}")
        blocked = frozenset(self._parts.gatekeeper.world.peers.blocked)
        self.tell(event)
        self.drain()
        self._require_alive()
        if self._unstored:
            self._blocked_before = blocked
            raise LedgerError(f"not done yet, it will be when the ledger can be written: {self.ledger_why_not}")

    @property
    def blocked(self) -> frozenset[bytes]:
        """Blocked neighbours as ledger and kernel know them: without a change that can't be written yet."""
        before = self._blocked_before
        return frozenset(self._parts.gatekeeper.world.peers.blocked) if before is None else before

    def _in_turn(self, link: tuple[str, bytes], work: Callable[[], Event | None]) -> bool:
        """Queue a neighbour's datagram unread. Returns False if too much of its work waits already."""
        sender = self._cause_of(link)
        if not self._events.add_message(work, sender, self._parts.gatekeeper.world.has_traded_at_all(sender)):
            return False
        self._pump_soon()
        return True

    def _cause_of(self, link: tuple[str, bytes]) -> bytes:
        neighbour = self._parts.gatekeeper.world.peers.by_link.get(link)
        return neighbour.identity if neighbour is not None else STRANGERS

    def _pump_soon(self) -> None:
        if self._pump is None:
            self._pump = asyncio.get_running_loop().call_soon(self._run_pump)

    def _run_pump(self) -> None:
        self._pump = None
        if not self._goes_on:
            return
        try:
            self._run_batch()
        except Exception as error:
            self.crash(error)

    def drain(self) -> None:
        """Process all waiting events, as long as batches can be stored."""
        while self._events and self._goes_on:
            self._run_pump()

    @property
    def _goes_on(self) -> bool:
        """Whether events are processed now."""
        return not (self._unstored or self.crashed or self._closed)

    def _run_batch(self) -> None:
        parts, effects = self._parts, self._unstored
        now = parts.clock.now()
        for work in self._events.take(BATCH_EVENTS):
            event = work() if callable(work) else work
            if event is None:
                continue
            if isinstance(event, MessageReceived):
                if isinstance(event.message, Statement | Invoice):
                    effects += parts.gatekeeper.step(self._readings.before_a_bill(event.identity), now)
                elif isinstance(event.message, Propose):
                    event = self._readings.with_route(event, event.message)
                elif isinstance(event.message, Ask):
                    event = self._readings.with_onward(event, event.message)
            effects += parts.gatekeeper.step(event, now)
        self._finish_batch()
        if self._events:
            self._pump_soon()
        self.schedule_tick()

    def _finish_batch(self) -> None:
        effects = self._unstored
        try:
            self.executor.store(effects)
        except RecordError as error:
            self.crash(error)  # waiting doesn't help; a restart goes on from the ledger, which has whole batches only
            return
        except LedgerError as error:
            self._freeze(error)
            return
        if self.ledger_why_not:
            _log.info("the ledger can be written again")
            self.ledger_why_not, self.post.frozen = "", False
        self._unstored, self._blocked_before = [], None
        self.executor.carry_out(effects)
        self._carry_out(effects)
        self._readings.carry_out(effects)
        self.post.schedule()

    def _freeze(self, error: LedgerError) -> None:
        """Accept no events until the batch is stored."""
        if not self.ledger_why_not:
            _log.error("%s", frozen_text(error))
        self.ledger_why_not, self.post.frozen = str(error), True
        asyncio.get_running_loop().call_later(LEDGER_RETRY_S, self._thaw)

    def _thaw(self) -> None:
        if self._closed:
            return
        self._finish_batch()
        if not self._unstored:
            self._run_pump()

    def schedule_tick(self) -> None:
        """Wake the core when its next timer is due."""
        at = self._parts.gatekeeper.next_wake_mono_s()
        if at is None:
            return
        running = asyncio.get_running_loop()
        if self._wake is not None:
            if not self._wake.cancelled() and running.time() < self._wake.when() <= at:
                return
            self._wake.cancel()
        self._wake = running.call_at(at, self._tick)

    def _tick(self) -> None:
        self._wake = None
        self.tell(Tick())

    # --- meters -------------------------------------------------------------------------------------------------------

    def held(self, packet: HeldPacket) -> None:
        """Queue a held packet; drop it while nothing can be written."""
        if self._unstored:
            self._parts.network.verdict(packet.handle, Verdict.DROP)
            return
        self.tell(packet)

    def hinted(self, hints: Sequence[Hint]) -> None:
        """Queue hints, and the readings that they are about; the kernel's limits hold while nothing can be written."""
        if not self._unstored:
            self._readings.hinted(hints)

    def read_all(self) -> None:
        """Queue what all contracts and accounts used, unless nothing can be written."""
        if not self._unstored:
            self._readings.read_all()

    def refresh(self) -> None:
        """Read the meters now, so that a listing shows what has passed up to this moment."""
        self.read_all()
        self._run_pump()

    def write_totals(self) -> None:
        """Write the meter's present readings to the ledger, which gets them only once a minute. Raises LedgerError."""
        self._readings.read_all()
        self.drain()
        if self._unstored:  # this batch waits to be written, and is older than the totals
            self._finish_batch()
        self._require_alive()
        if self._unstored:
            raise LedgerError(self.ledger_why_not)
        world = self._parts.gatekeeper.world
        world.effects = []
        self._parts.gatekeeper.flush(most=len(world.unflushed))
        try:
            self.executor.store(world.effects)
        except LedgerError as error:
            self._unstored = [*self._unstored, *world.effects]  # the core returns these only once
            self._freeze(error)
            raise

    def _require_alive(self) -> None:
        if self.crashed:
            raise LedgerError("the daemon stops after a defect, see its log: start it, then run this again")
        if self._closed:
            raise LedgerError("nothing was done, as the daemon stops: start it, then run this again")

    # --- end ----------------------------------------------------------------------------------------------------------

    def crash(self, error: Exception) -> None:
        """Stop at once after a defect of our own, as if killed: the state in memory may be half changed.

        The ledger has whole batches only, and the kernel goes on carrying, counting and cutting. So the next start
        takes over as after kill -9. Going on would book money from a state that was never intended.
        """
        _log.critical(
            "stopped by an error of ngp's own (%r); contracts go on in the kernel, nothing is lost: `ngp start` takes "
            "over; please report what follows", error, exc_info=error,
        )  # fmt: skip
        self.crashed = True
        self._unstored = []  # perhaps half a batch, which must not be stored
        self.stopping.set()

    def finish(self) -> None:
        """Process the meters' last readings and all that waits, and write it, as nothing passes any more."""
        self._readings.read_all()
        self.tell(Stopping())
        self.drain()
        if self._unstored:
            self._store_last()

    def _store_last(self) -> None:
        """Try once more to write what the ledger refused: the kernel's counters, which have it, are removed next."""
        self._finish_batch()
        self.drain()
        if self._unstored:
            _log.error("stopped while the ledger can't be written: traffic since its last entry is never charged")

    def close(self) -> None:
        """Process no event from here on: what it caused would come to a kernel that is cleaned up, and stay there."""
        self._closed = True
        for handle in (self._pump, self._wake):
            if handle is not None:
                handle.cancel()
