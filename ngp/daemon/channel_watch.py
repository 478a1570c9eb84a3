"""Channel watch: the core is told what our payment node's channels can carry, now and then and after each payment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ngp.core.events import ChannelsSeen, Event, PaymentResult, SettlementSeen
from ngp.ports import ChannelManager

LOOK_INTERVAL_S = 30.0
LEAST_PAUSE_S = 1.0


class ChannelWatch:
    """Looks at the channels.

    Args:
        payment: the payment module; where it isn't a ChannelManager there is nothing to look at, and nothing bounds a
            payment.
        tell: takes what was seen, as an event.
    """

    def __init__(self, payment: object, tell: Callable[[Event], None]) -> None:
        self._manager = payment if isinstance(payment, ChannelManager) else None
        self._tell = tell
        self._moved = asyncio.Event()

    def note(self, event: Event) -> None:
        """Look again soon after what moves a balance."""
        if isinstance(event, PaymentResult | SettlementSeen):
            self._moved.set()

    async def follow(self) -> None:
        """Look for ever. Raises PaymentError when the node doesn't answer: call again; what is known stays."""
        while self._manager is not None:
            self._moved.clear()
            self._tell(ChannelsSeen(tuple(await self._manager.channels())))
            await asyncio.sleep(LEAST_PAUSE_S)  # many payments are one look
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), LOOK_INTERVAL_S)
        await asyncio.get_running_loop().create_future()
