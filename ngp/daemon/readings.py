"""Readings: what the core learns from the kernel's meters, and when it needs to know it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from ngp.core.default_resale import is_in_use
from ngp.core.effects import Effect, LookUpRoutes, ReadMeters
from ngp.core.events import Event, Hinted, LossesSeen, MessageReceived, RoutesLookedUp, UnsoldSeen, UsageRead
from ngp.core.kernel import Hint, HintKind, MeshRoutes, Reading
from ngp.core.messages import Ask, Propose, Role
from ngp.core.prefixes import default_prefix, sample
from ngp.core.world import World
from ngp.errors import KernelError
from ngp.ports import Network

T = TypeVar("T")

READINGS_AT_ONCE = 32  # in one event, which is then about as much work as one or two events of a neighbour
MOST_BILLERS = 4096
BILL_READ_SHARE = 20  # reading the meter for a neighbour's bills takes at most 1/20 of the time
ROUTES_READ_SHARE = 20  # so does reading our routes for neighbours' questions


class Readings:
    """Reads the meters. Args: tell: receives the readings and hints, as events."""

    def __init__(self, network: Network, world: World, tell: Callable[[Event], None]) -> None:
        self._network, self._world, self._tell = network, world, tell
        self._bill_read_again: dict[bytes, float] = {}
        self._routes_read_again = float("-inf")
        self._unsold_bytes = 0

    def read_all(self) -> None:
        """Tell the core what all contracts and accounts used since the last reading."""
        readings = self._network.read(None)
        accounts = tuple(self._network.read_accounts(None))  # read after the contracts, whose bytes are charged first
        self._tell_in_parts(readings)
        if accounts:
            self._tell(UsageRead((), accounts))
        self._read_losses()

    def _read_losses(self) -> None:
        """Tell the core what we paid for and dropped, as nobody had bought it."""
        counted_bytes = self._network.unsold_bytes()
        if counted_bytes != self._unsold_bytes:
            for losses in _in_parts(tuple(self._network.unsold_by_purchase().items())):
                self._tell(LossesSeen(losses))
        self._unsold_bytes = counted_bytes
        if is_in_use(self._world):
            self._tell(UnsoldSeen(counted_bytes))

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Read the contracts, and look up the routes, about which the core wants to know now."""
        contracts = [one for effect in effects if isinstance(effect, ReadMeters) for one in effect.contracts]
        if contracts:
            self._tell_in_parts(self._network.read(contracts))
        sales = [one for effect in effects if isinstance(effect, LookUpRoutes) for one in effect.contracts]
        if sales:
            onward = self._network.onward_whole
            self._tell(RoutesLookedUp(tuple((contract, onward(prefix)) for contract, prefix in sales)))

    def hinted(self, hints: Sequence[Hint]) -> None:
        """Tell the core of hints; before them, of the readings of the contracts and accounts that they are about."""
        of_account = (HintKind.ACCOUNT_LOW, HintKind.ACCOUNT_EXHAUSTED)
        whole = any(hint.kind in of_account for hint in hints)
        self._tell_in_parts(self._network.read(None if whole else list({hint.key for hint in hints})))
        self._tell(Hinted(tuple(hints)))

    def before_a_bill(self, identity: bytes) -> UsageRead:
        """Read our meter for a neighbour before its bill is compared: with old readings the bill looks too high.

        A flood of bills must not cost more than a twentieth of our time: bills that come faster are compared with the
        previous reading.
        """
        loop_time = asyncio.get_running_loop().time
        began = loop_time()
        if self._bill_read_again.get(identity, began) > began:
            return UsageRead(())
        links = self._world.peers.links_of(identity)
        bought = [key for link in links for key, one in link.contracts.items() if one.role is Role.CLIENT]
        readings = self._network.read(self._world.with_sales(bought)) if bought else ()
        if len(self._bill_read_again) > MOST_BILLERS:
            self._bill_read_again.clear()
        self._bill_read_again[identity] = loop_time() + (loop_time() - began) * BILL_READ_SHARE
        return UsageRead(tuple(readings))

    def with_route(self, received: MessageReceived, proposed: Propose) -> MessageReceived:
        """Add to a proposal which part of its destination our routes lead through the neighbour that offers it.

        With BUY_DEFAULT_ROUTE also whether our default route leads there.

        A renewal gets no such part, and no proposal does if we don't buy: the core doesn't need it then.
        """
        world = self._world
        if not world.settings.buys or proposed.contract in world.contracts:
            return received
        links = {one.number: one.link for one in world.peers.links_of(received.identity)}  # empty: new in this batch
        if not links:
            return received
        sends_to = self._network.sends_to(links, proposed.destination)
        whole = default_prefix(proposed.destination.version)
        sends_all = world.settings.buys_default_route and self._network.sends_to(links, whole) == whole
        return replace(received, sends_to=sends_to, sends_all=sends_all)

    def with_onward(self, received: MessageReceived, asked: Ask) -> MessageReceived:
        """Add to a question for a quote or a renewal where traffic to its destination goes on from here.

        If a quote is asked for a default route into the mesh, add our routes there, too.
        """
        if not self._world.settings.sells:
            return received
        onward = self._network.onward(sample(asked.destination))
        is_default = not (asked.contract or asked.destination.prefixlen) and onward.router is not None
        return replace(received, onward=onward, routes=self._mesh_routes() if is_default else ())

    def _mesh_routes(self) -> tuple[MeshRoutes, ...]:
        """Read our routes into the mesh; nothing if they were read a moment ago.

        A flood of questions must not cost more than a twentieth of our time.
        """
        loop_time = asyncio.get_running_loop().time
        began = loop_time()
        if began < self._routes_read_again:
            return ()
        try:
            return self._network.mesh_routes()
        except KernelError:
            return ()
        finally:
            self._routes_read_again = loop_time() + (loop_time() - began) * ROUTES_READ_SHARE

    def _tell_in_parts(self, readings: Sequence[Reading]) -> None:
        for part in _in_parts(readings):
            self._tell(UsageRead(part))


def _in_parts(many: Sequence[T]) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(many), READINGS_AT_ONCE):
        yield tuple(many[start : start + READINGS_AT_ONCE])
