"""Node: the running daemon. It starts and ends the loop and what watches beside it, and applies net.conf."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any

from ngp import __version__
from ngp.config import changes, keep_until_restart, load, refuse_shown_secret, unwise
from ngp.core.effects import Effect
from ngp.core.events import Event, SettingsChanged
from ngp.core.messages import Hello
from ngp.core.rental.landlord import GIVE_BACK_FIRST, who_would_lose
from ngp.core.rental.rental import RentalState
from ngp.core.restore import restore
from ngp.core.settings import Settings
from ngp.daemon import checkup
from ngp.daemon.channel_watch import ChannelWatch
from ngp.daemon.fork_watch import ForkWatch
from ngp.daemon.host_watch import HostWatch, own_addresses
from ngp.daemon.landlord import Landlord
from ngp.daemon.last_books import charge_former
from ngp.daemon.link_calls import LinkCalls
from ngp.daemon.load_watch import LoadWatch
from ngp.daemon.logs import WhileItLasts
from ngp.daemon.loop import Loop
from ngp.daemon.parts import Parts
from ngp.daemon.payment_watch import PaymentWatch
from ngp.daemon.post import Post
from ngp.daemon.route_watch import RouteWatch
from ngp.errors import ConfigError, KernelError, NgpError, PaymentError
from ngp.ports import Network

READ_INTERVAL_S = 1.0
HELLO_INTERVAL_S = 10.0
PRUNE_INTERVAL_S = 3600.0
KEEP_UP_S = 5.0

_log = logging.getLogger("ngp")


class Node:
    """Connects the daemon's parts, and starts and stops them.

    Args:
        parts: opened and not yet started.
        make_post: builds the post (messages to and from neighbours) once the node can receive events from it.
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
        self.began_blank = False
        self.loop = Loop(parts, lambda tell: make_post(self._ourselves(), tell), self._told, self._carry_out)
        self.post, tell = self.loop.post, self.loop.tell
        self.host = HostWatch(parts.settings, parts.network, self.post, parts.node_addresses)
        self.payment = PaymentWatch(parts.payment, parts.gatekeeper.world, self.post, parts.identity, tell)
        self.channels = ChannelWatch(parts.gatekeeper.world, parts.payment, parts.payment.wait_ready, tell)
        self.landlord: Landlord | None = None
        self.calls = LinkCalls(parts.gatekeeper.world, self.post, self._answer_call)
        self._load = LoadWatch(parts.network, lambda: self.settings.load_price, self._ways_on, tell)
        self.forks = ForkWatch(parts.network, lambda: self.settings, lambda: self.host.desired, tell)
        self.routes = RouteWatch(parts.network, parts.gatekeeper.world, tell)
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
            routes = parts.network.mesh_routes() if self.settings.sells and self.settings.buys else ()
            effects = restore(parts.gatekeeper, parts.ledger.load(now.utc_s), adopted, now, routes)
            gc.freeze()
        finally:
            gc.enable()
        self.loop.executor.store(effects)
        self.loop.executor.carry_out(effects)
        await self._let(self.settings)
        if former is not None:
            _log.info("charged what %d contracts of another version of ngp carried, and made them anew", former)
        if adopted.contracts:
            _log.info("took over %d contracts that went on running", len(adopted.contracts))
        running = asyncio.get_running_loop()
        await self.post.open(self.host.desired.mesh_interfaces)
        parts.network.start(running, self.loop.held, self.loop.hinted)
        parts.network.watch(running, self._host_changed, self.host.look_at_gate)
        self._tasks = [
            running.create_task(self._keep_up(work))
            for work in (
                self._read_usage,
                self._say_hello,
                self._prune,
                self.payment.follow,
                self.channels.follow,
                self.host.follow,
                self.forks.follow,
                self.routes.follow,
                self.host.keep_gate,
                self._load.follow,
            )
        ]
        self.loop.schedule_tick()

    def _host_changed(self) -> None:
        self.host.changed()
        self.forks.changed()
        self.routes.changed()

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
                self.loop.crash(error)
                return

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
        self.loop.finish()
        if self.loop.crashed:
            self.let_go()
            return
        self.close_tasks()
        await self.loop.executor.close()
        if self.landlord is not None:
            await self.landlord.close(clean_up=True)
        await self.post.close()
        parts.network.clean_up(self.settings.closed_when_stopped)
        await parts.payment.close()
        parts.ledger.close()

    async def _close_gate(self) -> None:
        """Block our contracts, present and new ones, and wait for packets on their way: none passes after the last
        reading."""
        self.loop.executor.block_all()
        self.parts.network.block_all()
        try:
            await self.parts.network.settled()
        except KernelError as error:
            _log.error("%s", error)

    def close_tasks(self) -> None:
        """Cancel the background tasks, and the watch of the host's interfaces, and process no event any more."""
        self.loop.close()
        for task in self._tasks:
            task.cancel()
        self.calls.close()
        self.parts.network.stop_watching()

    # --- beside the loop ----------------------------------------------------------------------------------------------

    def _told(self, event: Event) -> None:
        self.channels.note(event)

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        if self.landlord is not None:
            self.landlord.carry_out(effects)
        self.calls.carry_out(effects)

    async def _read_usage(self) -> None:
        while True:
            await asyncio.sleep(READ_INTERVAL_S)
            self.loop.read_all()
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
        self.loop.tell(SettingsChanged(self.settings))
        self.loop.drain()  # the tunnel gets its tenants from the core, with the terms of now
        await self.host.apply(self.settings)
        self.forks.changed()
        self.routes.changed()
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
        self.loop.drain()  # a payment that arrived meanwhile may have begun a rental
        if lost := who_would_lose(self.parts.gatekeeper.world.letting, wanted.letting):
            raise ConfigError(f"{lost}; {GIVE_BACK_FIRST}")
        return wanted

    async def warn_of_lacks(self) -> list[str]:
        """Log the failures and warnings of `ngp check`, since a start and a reload go on in spite of them.

        Returns: what was logged.
        """
        lines = [f"{line.name}: {line.found}; {line.remedy}" for line in await self.host.lacks()]
        lines += [f"{line.name} {line.found}; right: {line.remedy}" for line in unwise(self.settings)]
        world = self.parts.gatekeeper.world
        free = checkup.free_beyond(await self.host.routers_to_free(), world)
        lost = checkup.rentals(world.letting, self.settings)
        lines += [f"{line.name}: {line.found}; {line.remedy}" for line in (*free, *lost)]
        for line in lines:
            _log.warning("%s", line)
        return lines

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_INTERVAL_S)
            while self.parts.ledger.prune(self.parts.clock.now().utc_s):
                await asyncio.sleep(0.1)
