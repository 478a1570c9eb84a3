"""Node: the running daemon. One loop: events in, the core's step, records stored, effects carried out.

Everything that happens is queued as an event. The pump takes events in batches, so that a burst of accepts costs one
transaction and one batch of map updates. It takes them from all neighbours in turn, so that a flooding neighbour delays
only itself. A timer that is due is an event too, a Tick.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngp import __version__
from ngp.config import changes, keep_until_restart, load, refuse_shown_secret, unwise
from ngp.core.effects import Effect
from ngp.core.events import Event, MessageReceived, SettingsChanged, Stopping, Tick
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import HeldPacket, Hint, Verdict
from ngp.core.messages import Ask, Hello, Invoice, Propose, Statement
from ngp.core.rental.landlord import GIVE_BACK_FIRST, who_would_lose
from ngp.core.rental.rental import RentalState
from ngp.core.rental.terms import LettingSettings
from ngp.core.restore import restore
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.daemon import checkup
from ngp.daemon.channel_watch import ChannelWatch
from ngp.daemon.executor import LEDGER_RETRY_S, Executor, frozen_text
from ngp.daemon.fair_queue import STRANGERS, FairQueue
from ngp.daemon.fork_watch import ForkWatch
from ngp.daemon.host_watch import HostWatch, own_addresses
from ngp.daemon.landlord import Landlord
from ngp.daemon.last_books import charge_former
from ngp.daemon.link_calls import LinkCalls
from ngp.daemon.load_watch import LoadWatch
from ngp.daemon.logs import WhileItLasts
from ngp.daemon.payment_watch import PaymentWatch
from ngp.daemon.post import Post
from ngp.daemon.readings import Readings
from ngp.errors import ConfigError, KernelError, LedgerError, NgpError, PaymentError, RecordError
from ngp.ports import Clock, Ledger, Link, Network, Payment, Store

BATCH_EVENTS = 32  # of all neighbours in turn; more would make a neighbour's first packet wait longer for its own turn
READ_INTERVAL_S = 1.0
HELLO_INTERVAL_S = 10.0
PRUNE_INTERVAL_S = 3600.0
KEEP_UP_S = 5.0

_log = logging.getLogger("ngp")


@dataclass(slots=True)
class Parts:
    """The parts that main() found and opened for the node; `ledger` is the open ledger of `store`.

    `make_links` returns the links for other settings, not opened. `check_letting` looks at the host for the landlord's
    settings, in any thread.
    """

    config_path: Path
    settings: Settings
    clock: Clock
    store: Store
    ledger: Ledger
    network: Network
    payment: Payment
    gatekeeper: Gatekeeper
    identity: bytes
    node_addresses: tuple[str, ...] = ()
    make_links: Callable[[Settings], Sequence[Link]] = lambda _settings: ()
    check_letting: Callable[[LettingSettings], list[Check]] = lambda _settings: []


class Node:
    """Runs the parts together.

    Args:
        parts: opened and not yet started.
        make_post: builds the post once the node can receive its events.
        make_landlord: builds the landlord when net.conf says for the first time that something is let.
    """

    def __init__(
        self,
        parts: Parts,
        make_post: Callable[[Hello, Callable[[Event], None]], Post],
        make_landlord: Callable[[Node], Landlord] | None = None,
    ) -> None:
        self.parts = parts
        self._make_landlord = make_landlord
        self.settings = parts.settings
        self.identity = parts.identity
        self.started_mono_s = parts.clock.now().monotonic_s
        self.ledger_why_not = ""
        self.began_blank = False
        self.stopping = asyncio.Event()
        self.post = make_post(self._ourselves(), self.tell)
        self.host = HostWatch(parts.settings, parts.network, self.post, parts.node_addresses)
        self.payment = PaymentWatch(parts.payment, parts.gatekeeper.world, self.post, parts.identity, self.tell)
        self.channels = ChannelWatch(parts.gatekeeper.world, parts.payment, parts.payment.wait_ready, self.tell)
        self.landlord: Landlord | None = None
        self.calls = LinkCalls(parts.gatekeeper.world, self.post, self._answer_call)
        self._executor = Executor(parts.ledger, parts.network, parts.payment, self.post, self.tell, self.crash)
        self._readings = Readings(parts.network, parts.gatekeeper.world, self.tell)
        self._load = LoadWatch(parts.network, lambda: self.settings.load_price, self._ways_on, self.tell)
        self.forks = ForkWatch(parts.network, lambda: self.settings, lambda: self.host.desired, self.tell)
        self._events = FairQueue()
        self.post.in_turn = self._in_turn
        self._pump: asyncio.Handle | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._unstored: list[Effect] = []
        self._blocked_before: frozenset[bytes] | None = None
        self.crashed = self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._conditions = WhileItLasts()
        self._reloading = asyncio.Lock()

    # --- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Set up the kernel or take over what runs there, resume the books, open the links.

        Raises NgpError. What was in the kernel before is then left there.
        """
        parts = self.parts
        gc.disable()  # what is read back isn't garbage, and the collector would take longer than the reading
        try:
            self.host.refuse(self.settings, parts.network)
            former = charge_former(parts.network, parts.ledger, self.settings, self.host.desired)
            if self._meters_tenants() and (former is not None or not parts.network.kernel_state().meter):
                self._close_tunnel()
            adopted = parts.network.set_up(self.host.desired)
            self.began_blank = not adopted.contracts
            now = parts.clock.now()
            effects = restore(parts.gatekeeper, parts.ledger.load(now.utc_s), adopted, now)
            gc.freeze()
        finally:
            gc.enable()
        self._executor.store(effects)
        self._executor.carry_out(effects)
        await self._let(self.settings)
        if former is not None:
            _log.info("charged what %d contracts of another version of ngp carried, and made them anew", former)
        if adopted.contracts:
            _log.info("took over %d contracts that went on running", len(adopted.contracts))
        loop = asyncio.get_running_loop()
        await self.post.open(self.host.desired.mesh_interfaces)
        parts.network.start(loop, self._held, self._hinted)
        parts.network.watch(loop, self._host_changed, self.host.look_at_gate)
        self._tasks = [
            loop.create_task(self._keep_up(work))
            for work in (
                self._read_usage,
                self._say_hello,
                self._prune,
                self.payment.follow,
                self.channels.follow,
                self.host.follow,
                self.forks.follow,
                self.host.keep_gate,
                self._load.follow,
            )
        ]
        self._schedule_tick()

    def _host_changed(self) -> None:
        self.host.changed()
        self.forks.changed()

    def _meters_tenants(self) -> bool:
        """Say whether a tenant's traffic has a price; the others' tunnel is taken over without a meter, undisturbed."""
        rentals = self.parts.ledger.rentals() if self.settings.letting is not None else ()
        return any(one.price_msat_per_gib and one.state != RentalState.RELEASED for one, _ in rentals)

    def _close_tunnel(self) -> None:
        """Remove the tunnel that a killed daemon left, if its meter is gone. Raises: ConfigError, KernelError.

        Until the contracts are granted anew, nothing would charge the tenants' traffic in the tunnel.
        """
        self._find_landlord(self.settings)
        if self.landlord is not None:
            self.landlord.tunnel.clean_up()

    def _find_landlord(self, settings: Settings) -> None:
        if settings.letting is not None and self.landlord is None and self._make_landlord is not None:
            self.landlord = self._make_landlord(self)

    async def _let(self, settings: Settings) -> None:
        """Let as net.conf says. Raises: ConfigError, KernelError."""
        self._find_landlord(settings)
        if self.landlord is not None:
            await self.landlord.apply(settings.letting)

    async def _keep_up(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Keep an endless task running: after an error of host or node, try again."""
        while True:
            try:
                await work()
            except NgpError as error:
                if self._conditions.is_news(str(error)):
                    _log.warning("%s; tried again every %g s", error, KEEP_UP_S)
                await asyncio.sleep(KEEP_UP_S)
            except Exception as error:
                self.crash(error)
                return

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

    def let_go(self) -> None:
        """Close everything after `crash`, without a change to kernel or ledger."""
        self.close_tasks()
        if self.landlord is not None:
            self.landlord.tunnel.close()
        self.parts.network.close()
        self.parts.ledger.close()

    async def stop(self) -> None:
        """Say good-bye to neighbours, write the last totals, remove everything from the kernel."""
        parts = self.parts
        await self._close_gate()
        self._readings.read_all()
        self.tell(Stopping())
        self._drain()
        if self._unstored:
            self._store_last()
        if self.crashed:
            self.let_go()
            return
        self.close_tasks()
        await self._executor.close()
        if self.landlord is not None:
            await self.landlord.close(clean_up=True)
        await self.post.close()
        parts.network.clean_up(self.settings.closed_when_stopped)
        await parts.payment.close()
        parts.ledger.close()

    def _store_last(self) -> None:
        """Try once more to write what the ledger refused: the kernel's counters, which have it, are removed next."""
        self._finish_batch()
        self._drain()
        if self._unstored:
            _log.error("stopped while the ledger can't be written: traffic since its last entry is never charged")

    async def _close_gate(self) -> None:
        """Block our contracts, present and new ones, and wait for packets on their way: none passes after the last
        reading."""
        self._executor.block_all()
        self.parts.network.block_all()
        try:
            await self.parts.network.settled()
        except KernelError as error:
            _log.error("%s", error)

    def write_totals(self) -> None:
        """Write the meter's present readings to the ledger, which gets them only once a minute. Raises LedgerError."""
        self._readings.read_all()
        self._drain()
        if self._unstored:  # this batch waits to be written, and is older than the totals
            self._finish_batch()
        self._require_alive()
        if self._unstored:
            raise LedgerError(self.ledger_why_not)
        world = self.parts.gatekeeper.world
        world.effects = []
        self.parts.gatekeeper.flush(most=len(world.unflushed))
        try:
            self._executor.store(world.effects)
        except LedgerError as error:
            self._unstored = [*self._unstored, *world.effects]  # the core returns these only once
            self._freeze(error)
            raise

    def _require_alive(self) -> None:
        if self.crashed:
            raise LedgerError("the daemon stops after a defect, see its log: start it, then run this again")
        if self._closed:
            raise LedgerError("nothing was done, as the daemon stops: start it, then run this again")

    def close_tasks(self) -> None:
        """Cancel the background tasks, the timers, and the watch of the host's interfaces.

        From here on no event is processed: what it caused would come to a kernel that is cleaned up, and stay there.
        """
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self.calls.close()
        self.parts.network.stop_watching()
        for handle in (self._pump, self._wake):
            if handle is not None:
                handle.cancel()

    # --- events -------------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Queue an event: a held packet among the work of its neighbour, all others as this host's own work."""
        self._events.add(event, self._cause_of(event.link) if isinstance(event, HeldPacket) else None)
        self.channels.note(event)
        self._pump_soon()

    def obey(self, event: Event) -> None:
        """Process an operator's command at once, so that the answer is true. Raises LedgerError if it can't."""
        if self.ledger_why_not:
            raise LedgerError(f"nothing was done, as nothing can be written: {self.ledger_why_not}")
        blocked = frozenset(self.parts.gatekeeper.world.peers.blocked)
        self.tell(event)
        self._drain()
        self._require_alive()
        if self._unstored:
            self._blocked_before = blocked
            raise LedgerError(f"not done yet, it will be when the ledger can be written: {self.ledger_why_not}")

    @property
    def blocked(self) -> frozenset[bytes]:
        """Blocked neighbours as ledger and kernel know them: without a change that can't be written yet."""
        before = self._blocked_before
        return frozenset(self.parts.gatekeeper.world.peers.blocked) if before is None else before

    def _in_turn(self, link: tuple[str, bytes], work: Callable[[], Event | None]) -> bool:
        """Queue a neighbour's datagram unread. Returns False if too much of its work waits already."""
        sender = self._cause_of(link)
        if not self._events.add_message(work, sender, self.parts.gatekeeper.world.has_traded_at_all(sender)):
            return False
        self._pump_soon()
        return True

    def _cause_of(self, link: tuple[str, bytes]) -> bytes:
        neighbour = self.parts.gatekeeper.world.peers.by_link.get(link)
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

    def _drain(self) -> None:
        """Process all waiting events, as long as batches can be stored."""
        while self._events and self._goes_on:
            self._run_pump()

    @property
    def _goes_on(self) -> bool:
        """Whether events are processed now."""
        return not (self._unstored or self.crashed or self._closed)

    def _run_batch(self) -> None:
        parts, effects = self.parts, self._unstored
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
        self._schedule_tick()

    def _finish_batch(self) -> None:
        effects = self._unstored
        try:
            self._executor.store(effects)
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
        self._executor.carry_out(effects)
        if self.landlord is not None:
            self.landlord.carry_out(effects)
        self.calls.carry_out(effects)
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

    def _schedule_tick(self) -> None:
        at = self.parts.gatekeeper.next_wake_mono_s()
        if at is None:
            return
        loop = asyncio.get_running_loop()
        if self._wake is not None:
            if not self._wake.cancelled() and loop.time() < self._wake.when() <= at:
                return
            self._wake.cancel()
        self._wake = loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._wake = None
        self.tell(Tick())

    # --- kernel -------------------------------------------------------------------------------------------------------

    def _held(self, packet: HeldPacket) -> None:
        if self._unstored:
            self.parts.network.verdict(packet.handle, Verdict.DROP)
            return
        self.tell(packet)

    def _hinted(self, hints: Sequence[Hint]) -> None:
        if not self._unstored:
            self._readings.hinted(hints)

    def refresh(self) -> None:
        """Read the meters now, so that a listing shows what has passed up to this moment."""
        if not self._unstored:
            self._readings.read_all()
            self._run_pump()

    async def _read_usage(self) -> None:
        while True:
            await asyncio.sleep(READ_INTERVAL_S)
            if not self._unstored:
                self._readings.read_all()
            if self.landlord is not None:
                self.landlord.catch_up()

    def _ways_on(self) -> set[str]:
        """Return the interfaces by which sold traffic goes on: those upstream, and those by which we buy."""
        servers = self.parts.gatekeeper.world.servers.values()
        links = [self.parts.gatekeeper.world.peers.any_link(one.identity) for one in servers if one.running]
        return {*self.host.desired.upstream_interfaces, *(link.link[0] for link in links if link is not None)}

    # --- neighbours ---------------------------------------------------------------------------------------------------

    async def _say_hello(self) -> None:
        """Say hello at the start and at intervals, so that new and returning neighbours are found."""
        pause = 0.5
        while True:
            self.host.greet()
            await asyncio.sleep(pause)
            pause = min(HELLO_INTERVAL_S, pause * 2)

    async def _answer_call(self, content: bytes, neighbour: bytes, who: Hashable) -> bytes:
        """Answer a neighbour's call about renting; empty if nothing is let over the mesh link."""
        return b"" if self.landlord is None else await self.landlord.answer(content, neighbour, who)

    def _ourselves(self) -> Hello:
        node, settings = self.parts.gatekeeper.world.node, self.settings
        addresses, software = own_addresses(self.parts.network), f"ngp {__version__}"
        return Hello(node.network, settings.sells, settings.buys, addresses, software, False, node.payee)

    # --- settings and ledger ------------------------------------------------------------------------------------------

    async def reload(self) -> str:
        """Read net.conf again. A bad file, or one that expects another payment node, changes nothing.

        Returns what was applied. Raises ConfigError, KernelError, PaymentError.
        """
        async with self._reloading:  # of two versions of the file the earlier one must not be applied last
            return await self._reload()

    async def _reload(self) -> str:
        try:
            wanted = await self._read_settings()
        except (ConfigError, KernelError, PaymentError) as error:
            _log.error("net.conf not applied, the old settings stay in force: %s", error)
            raise
        found = changes(self.settings, wanted)
        self.settings = keep_until_restart(self.settings, wanted)
        self.tell(SettingsChanged(self.settings))
        self._drain()  # the tunnel gets its tenants from the core, with the terms of now
        await self.host.apply(self.settings)
        self.forks.changed()
        try:
            await self._let(self.settings)
        except (ConfigError, KernelError) as error:
            text = f"net.conf is applied, but tenants can't use all of it: {error}"
            _log.error("%s", text)
            raise type(error)(f"{text}; then reload again") from error
        text = f"applied: {', '.join(found.applied) or 'nothing changed'}"
        if found.needs_restart:
            text += f"; these need a restart (ngp stop; ngp start): {', '.join(found.needs_restart)}"
        if self.settings.mesh_interfaces and not self.host.desired.mesh_interfaces:
            text += "; there is no mesh interface, so nothing is gated"
        _log.info("net.conf reloaded; %s", text)
        told = [*await self.warn_of_lacks(), *await self.payment.warn_of_lacks(self.settings)]
        return "; ".join((text, *(f"WARNING {one}" for one in told)))

    async def _read_settings(self) -> Settings:
        """Read net.conf and check that this host allows it. Raises ConfigError, KernelError, PaymentError."""
        wanted = await asyncio.to_thread(load, self.parts.config_path, trusted_only=True)
        refuse_shown_secret(wanted, self.parts.config_path)
        checkup.refuse_other_node(wanted, self.parts.gatekeeper.world.node.payee.hex())
        checkup.refuse_without_holding(wanted, self.parts.payment)

        def refuse(network: Network) -> None:
            self.host.refuse(wanted, network)
            self.host.refuse_open(wanted, network)

        await self.host.aside(refuse)
        self._drain()  # a payment that arrived meanwhile may have begun a rental
        if lost := who_would_lose(self.parts.gatekeeper.world.letting, wanted.letting):
            raise ConfigError(f"{lost}; {GIVE_BACK_FIRST}")
        return wanted

    async def warn_of_lacks(self) -> list[str]:
        """Log the failures and warnings of `ngp check`, since a start and a reload go on in spite of them.

        Returns: what was logged.
        """
        lines = [f"{line.name}: {line.found}; {line.remedy}" for line in await self.host.lacks()]
        lines += [f"{line.name} {line.found}; right: {line.remedy}" for line in unwise(self.settings)]
        lost = checkup.rentals(self.parts.gatekeeper.world.letting, self.settings)
        lines += [f"{line.name}: {line.found}; {line.remedy}" for line in lost]
        for line in lines:
            _log.warning("%s", line)
        return lines

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_INTERVAL_S)
            while self.parts.ledger.prune(self.parts.clock.now().utc_s):
                await asyncio.sleep(0.1)
