"""Load watch: measures how full the way upstream is, for SELL_PRICE_LOAD.

What counts is the fullest of all interfaces by which sold traffic goes on, in its fuller direction: those upstream of
us, and those of neighbours from which we buy now. A driver says how much its interface can carry (a card knows its
speed, a radio or a tunnel doesn't). The operator may say it instead, since the narrow place is often further on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from ngp.core.events import Event, LoadSeen
from ngp.core.settings import FULL_PPM, LoadPrice
from ngp.core.values import Check
from ngp.daemon.logs import WhileItLasts
from ngp.ports import Network
from ngp.ports.network import InterfaceTraffic

LOOK_INTERVAL_S = 5.0

_log = logging.getLogger("ngp")


class LoadWatch:
    """Measures the load.

    Args:
        network: ours.
        wanted: returns SELL_PRICE_LOAD in force.
        upstream: returns the interfaces by which traffic goes on.
        tell: receives each new load, as an event.
        monotonic_s: a clock.
    """

    def __init__(
        self,
        network: Network,
        wanted: Callable[[], LoadPrice | None],
        upstream: Callable[[], Collection[str]],
        tell: Callable[[Event], None],
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network, self._wanted, self._upstream, self._tell = network, wanted, upstream, tell
        self._monotonic_s = monotonic_s
        self._conditions = WhileItLasts()
        self._before: Mapping[str, InterfaceTraffic] = {}
        self._before_mono_s = 0.0
        self._told_ppm = 0

    async def follow(self) -> None:
        """Look for ever. Raises KernelError; the caller then calls this again."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_INTERVAL_S)

    def look(self) -> None:
        """Measure the load since the last look, and tell it if it changed. Raises KernelError."""
        wanted, now, before = self._wanted(), self._monotonic_s(), self._before
        traffic = self._network.traffic(sorted(self._upstream())) if wanted is not None else {}
        passed_s, self._before, self._before_mono_s = now - self._before_mono_s, traffic, now
        for line in unmeasured(wanted, traffic):
            if self._conditions.is_news(line.name):
                _log.warning("%s: %s; %s", line.name, line.found, line.remedy)
        loads = [0]
        for name in traffic.keys() & before.keys():
            can = wanted.bytes_s or traffic[name].bytes_s if wanted is not None else None
            moved = max(
                traffic[name].received_bytes - before[name].received_bytes,
                traffic[name].sent_bytes - before[name].sent_bytes,
            )
            if can and passed_s > 0:
                loads.append(min(FULL_PPM, int(moved * FULL_PPM / (can * passed_s))))
        if max(loads) != self._told_ppm:
            self._told_ppm = max(loads)
            self._tell(LoadSeen(self._told_ppm))


def unmeasured(wanted: LoadPrice | None, traffic: Mapping[str, InterfaceTraffic]) -> list[Check]:
    """Warn of interfaces whose load can't be told, since nobody says what they carry."""
    if wanted is None or wanted.bytes_s is not None:
        return []
    found = "its driver doesn't tell its speed, so its load doesn't count for SELL_PRICE_LOAD"
    remedy = "add what it carries in one direction, for example SELL_PRICE_LOAD: {from: 70 %, factor: 3, rate: 6 MB/s}"
    return [Check(f"load of {name}", True, found, remedy) for name, one in traffic.items() if one.bytes_s is None]
