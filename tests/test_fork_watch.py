"""CHOOSE_ROUTES: what `ngp check` says of it, and how the core is told where the host's routes lead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.config import parse
from ngp.core.events import Event, ForksSeen
from ngp.core.kernel import Fork, Router
from ngp.core.messages import Prefix
from ngp.daemon.fork_watch import ForkWatch, line, occupied, passed_by
from ngp.errors import KernelError

ON = parse("MESH_INTERFACES: [mesh*]\nCHOOSE_ROUTES: yes\n", Path("/etc/ngp/net.conf"))
OFF = replace(ON, choose_routes=False)
HOST: Any = SimpleNamespace(mesh_interfaces=("mesh0",), families=frozenset({4}))
WEST, EAST = (Router("mesh0", None, ip_address(f"192.0.2.{number}")) for number in (1, 2))
FORK = Fork(ip_network("0.0.0.0/0"), (WEST, EAST))


class Network:
    """A host with one fork, which notes when it is looked at, and the routes that are set."""

    def __init__(self) -> None:
        self.fork, self.looks = FORK, 0
        self.theirs: Prefix | None = None
        self.behind: tuple[int, int] | None = None
        self.routes: list[Mapping[Prefix, Router]] = []

    def forks(self, _mesh: object, _families: object) -> tuple[Fork, ...]:
        self.looks += 1
        return (self.fork,)

    def others_in(self, _table: int) -> Prefix | None:
        return self.theirs

    def rule_behind(self, _priority: int) -> tuple[int, int] | None:
        return self.behind

    def set_routes(self, routes: Mapping[Prefix, Router], _table: int, _priority: int) -> None:
        self.routes.append(routes)


@pytest.mark.parametrize(
    ("conf", "forks", "found", "remedy"),
    [
        (ON, (FORK,), "several routers lead to 0.0.0.0/0", ""),
        (ON, (replace(FORK, routers=(WEST,)),), "no route in the mesh leads through several", "add a route through"),
        (ON, (), "no route in the mesh leads through several", "CHOOSE_ROUTES: no"),
        (replace(ON, buys=False), (FORK,), "BUY is no", "CHOOSE_ROUTES: no"),
    ],
)
def test_check_says_what_there_is_to_choose(conf: Any, forks: Any, found: str, remedy: str) -> None:
    said = line(conf, forks)
    assert said.ok and found in said.found and remedy in said.remedy and bool(said.remedy) == bool(remedy)


def test_check_warns_of_a_rule_that_a_chosen_route_passes_by() -> None:
    network: Any = Network()
    assert passed_by(ON, network) == []
    network.behind = (32765, 51820)
    (said,) = passed_by(ON, network)
    assert said.ok and "past the rule 32765 (lookup 51820)" in said.found and "below 10068" in said.remedy
    (said,) = passed_by(replace(ON, route_priority=258), network)
    assert said.remedy == "if it is to come first: another ROUTE_PRIORITY", "only the table local comes first"
    assert passed_by(replace(ON, buys=False), network) == []


def test_the_core_is_told_at_the_start_after_changes_and_until_all_link_addresses_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ngp.daemon.route_follower.UNKNOWN_AGAIN_S", 0.001)
    network, told, conf = Network(), list[Event](), ON

    async def follow() -> None:
        nonlocal conf
        watch: Any = ForkWatch(network, lambda: conf, lambda: HOST, told.append)  # type: ignore[arg-type]
        task = asyncio.create_task(watch.follow())
        while len(told) < 3:
            await asyncio.sleep(0)
        network.fork = replace(FORK, routers=(replace(WEST, link_address=b"\2west1"),))
        while told[-1] != ForksSeen((network.fork,)):
            await asyncio.sleep(0)
        looks = network.looks
        await asyncio.sleep(0.05)
        assert network.looks == looks, "all is known"
        watch.changed()
        while network.looks == looks:
            await asyncio.sleep(0)
        conf = OFF
        watch.changed()
        await asyncio.sleep(0.01)
        assert network.looks == looks + 1 and not task.done()
        task.cancel()

    asyncio.run(asyncio.wait_for(follow(), 60.0))
    assert told[0] == ForksSeen((FORK,)) and network.routes == []


def test_in_a_table_that_another_program_uses_nothing_is_chosen_and_check_and_log_say_so() -> None:
    network, told = Network(), list[Event]()
    assert occupied(ON, network) is None  # type: ignore[arg-type]
    network.theirs = ip_network("198.18.0.0/15")
    said = occupied(ON, network)  # type: ignore[arg-type]
    assert said is not None and not said.ok
    assert "routing table 10325 has a route to 198.18.0.0/15 that isn't ours" in said.found
    assert "ROUTE_TABLE" in said.remedy and "if nothing needs its routes" in said.remedy
    watch = ForkWatch(network, lambda: ON, lambda: HOST, told.append)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"198.18.0.0/15 that isn't ours; set ROUTE_TABLE"):
        asyncio.run(asyncio.wait_for(watch.follow(), 60.0))
    assert told == []


def test_looks_at_a_large_table_that_changes_all_the_time_take_a_tenth_of_the_time() -> None:
    look_s = 0.02

    class Large(Network):
        def forks(self, _mesh: object, _families: object) -> tuple[Fork, ...]:
            time.sleep(look_s)
            return super().forks(_mesh, _families)

    network = Large()

    async def follow() -> float:
        watch: Any = ForkWatch(network, lambda: ON, lambda: HOST, lambda _event: None)  # type: ignore[arg-type]
        began_s, task = time.monotonic(), asyncio.create_task(watch.follow())
        while network.looks < 5:
            watch.changed()
            await asyncio.sleep(0.001)
        task.cancel()
        return time.monotonic() - began_s

    took_s = asyncio.run(asyncio.wait_for(follow(), 60.0))
    assert took_s >= 4 * look_s * 10


def test_without_choose_routes_what_a_killed_daemon_left_is_removed() -> None:
    network, told = Network(), list[Event]()

    async def follow() -> None:
        watch: Any = ForkWatch(network, lambda: OFF, lambda: HOST, told.append)  # type: ignore[arg-type]
        task = asyncio.create_task(watch.follow())
        while not network.routes:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(asyncio.wait_for(follow(), 60.0))
    assert network.routes == [{}] and told == []
