"""Route follower: looks at the host's routes after each change, and in between."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress

LOOK_SHARE = 0.1  # of the time, at most, goes to looks: a routing daemon may change a large table all the time
UNKNOWN_AGAIN_S, AGAIN_S = 1.0, 30.0
"""The kernel doesn't announce a router's link address: it needs a moment to find it, and a device that takes the
router's place has another one."""


class RouteFollower(ABC):
    """Calls `_look` now, after each change, and after a while."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Note that routes, interfaces or settings changed; `follow` handles it."""
        self._changed.set()

    async def follow(self) -> None:
        """Look at the routes now and after each change, for ever. Raises KernelError."""
        clock_s = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            began_s = clock_s()
            again_s = UNKNOWN_AGAIN_S if self._look() else AGAIN_S
            await asyncio.sleep((clock_s() - began_s) * (1 / LOOK_SHARE - 1))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), again_s)

    @abstractmethod
    def _look(self) -> bool:
        """Tell the core what there is. Returns whether a router's link address isn't known yet. Raises KernelError."""
