"""While a default route is resold, the core is told where our routes lead into the mesh; else they aren't even read."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.core.events import Event, MessageReceived, RoutesSeen
from ngp.core.kernel import MeshRoutes, Onward, Router
from ngp.core.messages import Ask
from ngp.daemon.readings import Readings
from ngp.daemon.route_watch import RouteWatch
from ngp.errors import KernelError

DEFAULT = ip_network("0.0.0.0/0")
UNKNOWN, KNOWN = (Router("mesh0", mac, ip_address("192.0.2.1")) for mac in (None, b"\2west1"))


class Network:
    """A host whose default route leads into the mesh; it counts how often its routes are read."""

    def __init__(self) -> None:
        self.default, self.looks, self.fails = UNKNOWN, 0, False

    def mesh_routes(self) -> tuple[MeshRoutes, ...]:
        self.looks += 1
        if self.fails:
            raise KernelError("routes can't be listed")
        return (MeshRoutes(4, self.default),)

    def onward(self, _destination: object) -> Onward:
        return Onward(DEFAULT, self.default)


def test_routes_are_read_after_changes_and_until_the_router_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ngp.daemon.route_follower.UNKNOWN_AGAIN_S", 0.001)
    network, told, in_use = Network(), list[Event](), False
    monkeypatch.setattr("ngp.daemon.route_watch.is_in_use", lambda _world: in_use)

    async def follow() -> None:
        nonlocal in_use
        world: Any = SimpleNamespace(contracts={})
        watch: Any = RouteWatch(network, world, told.append)  # type: ignore[arg-type]
        task = asyncio.create_task(watch.follow())
        await asyncio.sleep(0.02)
        assert network.looks == 0
        in_use = True
        watch.changed()
        while len(told) < 3:
            await asyncio.sleep(0)
        network.default = KNOWN
        while told[-1] != RoutesSeen((MeshRoutes(4, KNOWN),)):
            await asyncio.sleep(0)
        looks = network.looks
        await asyncio.sleep(0.05)
        assert network.looks == looks and not task.done(), "all is known"
        task.cancel()

    asyncio.run(asyncio.wait_for(follow(), 60.0))
    assert told[0] == RoutesSeen((MeshRoutes(4, UNKNOWN),))


@pytest.mark.parametrize(("asked", "looks"), [("0.0.0.0/0", 1), ("198.51.100.1/32", 0)])
def test_a_question_for_a_default_route_brings_the_routes_but_a_flood_of_them_reads_them_seldom(
    monkeypatch: pytest.MonkeyPatch, asked: str, looks: int
) -> None:
    monkeypatch.setattr("ngp.daemon.readings.ROUTES_READ_SHARE", 10**9)
    network, ask = Network(), Ask(ip_network(asked), 0, 0)
    world: Any = SimpleNamespace(settings=SimpleNamespace(sells=True))
    heard = MessageReceived(b"a" * 32, ("mesh0", b"\2aaaaa"), 1, ask, 1)

    async def ask_often() -> list[MessageReceived]:
        readings = Readings(network, world, lambda _event: None)  # type: ignore[arg-type]
        return [readings.with_onward(heard, ask) for _ in range(3)]

    first, *later = asyncio.run(ask_often())
    assert first.routes == (MeshRoutes(4, UNKNOWN),) * looks and first.onward.router == UNKNOWN
    assert network.looks == looks and not any(one.routes for one in later)


def test_routes_that_cannot_be_read_are_none() -> None:
    network, ask = Network(), Ask(DEFAULT, 0, 0)
    network.fails = True
    world: Any = SimpleNamespace(settings=SimpleNamespace(sells=True))
    heard = MessageReceived(b"a" * 32, ("mesh0", b"\2aaaaa"), 1, ask, 1)

    async def once() -> MessageReceived:
        return Readings(network, world, lambda _event: None).with_onward(heard, ask)  # type: ignore[arg-type]

    assert asyncio.run(once()).routes == ()
