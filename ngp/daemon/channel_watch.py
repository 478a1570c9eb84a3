"""Channel watch: tells the core what our payment node's channels can carry, at intervals and after each payment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ngp.core.events import ChannelsSeen, Event
from ngp.core.payment_node import PaymentOutcome, Settlement
from ngp.core.world import World
from ngp.ports import ChannelManager

LOOK_INTERVAL_S = 30.0
HELD_UP_INTERVAL_S = 3.0  # while an account waits for a channel that can pay
LEAST_PAUSE_S = 1.0


class ChannelWatch:
    """Looks at the channels.

    Args:
        world: holds the accounts that may wait for a channel.
        payment: the payment module. If it isn't a ChannelManager, there are no channels to look at, and channels limit
            no payment.
        ready: returns when the node can be used; the first look waits for that.
        tell: receives what was seen, as an event.
    """

    def __init__(
        self, world: World, payment: object, ready: Callable[[], Awaitable[None]], tell: Callable[[Event], None]
    ) -> None:
        self._world = world
        self._manager = payment if isinstance(payment, ChannelManager) else None
        self._ready = ready
        self._tell = tell
        self._moved = asyncio.Event()

    def note(self, event: Event) -> None:
        """Look again soon if the event moved a balance."""
        if isinstance(event, PaymentOutcome | Settlement):
            self._moved.set()

    async def follow(self) -> None:
        """Look for ever. Raises PaymentError when the node doesn't answer; the caller then calls this again."""
        if self._manager is not None:
            await self._ready()
        while self._manager is not None:
            self._moved.clear()
            self._tell(ChannelsSeen(tuple(await self._manager.channels())))
            await asyncio.sleep(LEAST_PAUSE_S)  # one look serves many payments
            for _ in range(round(LOOK_INTERVAL_S / HELD_UP_INTERVAL_S)):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._moved.wait(), HELD_UP_INTERVAL_S)
                if self._moved.is_set() or self._somebody_waits():
                    break
        await asyncio.get_running_loop().create_future()

    def _somebody_waits(self) -> bool:
        """Say whether a contract may soon be cut because no channel can pay."""
        return any(account.why_not and account.running for account in self._world.accounts)
