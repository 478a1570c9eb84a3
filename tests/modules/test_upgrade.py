"""Upgrades that change LAYOUT: the old tables' counts are read to the byte, and meanwhile nothing passes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_lab import CLIENT, INTERNET, desired, dropped, passes, sh
from meter_lab import World, metered, received, true_wire

from core_tests import next_layout
from ngp.core.kernel import Adopted, Reading
from ngp.core.messages import Role
from ngp.errors import KernelError
from ngp.modules.network import bpf, former, hooks, layout, meter
from ngp.modules.network.datapath import Datapath
from ngp.modules.network.gate import Gate
from ngp.modules.network.settle import ProgramsWait
from ngp.ports.network import KernelState

HOST = f"{INTERNET[4]}/32"
PING = 84


class Killed(BaseException):
    """Ends a start at once, like kill -9: no code that handles errors catches it."""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next_layout.make(tmp_path_factory.mktemp("later"))


@pytest.fixture(params=["tcx", "clsact"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path, request.param == "tcx") as built:
        yield built


def upgraded(world: World) -> Datapath:
    """Release the meter as a killed daemon does, and return the datapath of the next version."""
    world.datapath.close()
    world.datapath = Datapath(world.state, world.datapath._use_tcx)
    return world.datapath


def by_contract(readings: list[Reading] | None) -> dict[bytes, tuple[int, int]]:
    assert readings is not None
    return {each.contract: (each.used_to_bytes, each.used_from_bytes) for each in readings}


def assert_nothing_passes(world: World) -> None:
    before = received(world.lab.internet, 4), received(world.lab.client, 4)
    assert dropped(world.lab.client, INTERNET[4]) and dropped(world.lab.internet, CLIENT[4])
    assert (received(world.lab.internet, 4), received(world.lab.client, 4)) == before, "in neither direction"


def assert_made_anew(world: World, contract: bytes) -> None:
    """Continue as the core does after it has charged: grant the contract with its counts so far, and a new account."""
    world.datapath.set_neighbours([world.neighbour()])
    world.limit()
    world.grant(HOST, contract=contract, used_to_base_bytes=PING, used_from_base_bytes=PING)
    assert passes(world.lab.client, INTERNET[4])
    assert world.used(contract) == (2 * PING, 2 * PING)


def traces(world: World) -> list[str]:
    """Return what others can see of ngp in the kernel."""
    seen = sh("tc qdisc show; nft list ruleset") + "\n".join(path.name for path in world.state.rglob("*"))
    programs = [f"{name} {each}" for each in hooks.Direction for index, name in socket.if_nameindex()
                if hooks.attached(index, each)]  # fmt: skip
    return [line for line in seen.splitlines() if "ngp" in line.lower() or "clsact" in line] + programs


def test_what_the_tables_of_another_layout_counted_is_read_to_the_byte_and_contracts_are_made_anew(
    world: World, later: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_wire(world)
    contract, gone = world.grant(HOST), world.grant("198.51.100.1/32")
    other = world.grant("fd00:77::/32", used_to_base_bytes=70, used_from_base_bytes=30)
    bought = world.grant("198.51.100.0/24", role=Role.CLIENT)
    assert passes(world.lab.client, INTERNET[4])
    world.datapath.revoke([gone])
    with monkeypatch.context() as next_version:
        next_layout.pretend(next_version.setattr, later)
        new = upgraded(world)
        assert new.kernel_state() == KernelState(meter=True, sells=True, gate=True)
        assert passes(world.lab.client, INTERNET[6]), "until it is stopped it goes on"
        with pytest.raises(KernelError, match="was counted, not charged"):
            new.set_up(desired())
        expected = {contract: (PING, PING), other: (70 + 104, 30 + 104), bought: (0, 0)}
        assert by_contract(new.end_former(desired())) == expected
        assert_nothing_passes(world)
        assert by_contract(upgraded(world).end_former(desired())) == expected, "and the same after a crash"
        assert world.datapath.set_up(desired()) == Adopted()
        assert_nothing_passes(world)
        assert_made_anew(world, contract)
        assert upgraded(world).end_former(desired()) is None
        assert [each.grant.contract for each in world.datapath.set_up(desired()).contracts] == [contract]
        assert passes(world.lab.client, INTERNET[4]) and world.used(contract) == (3 * PING, 3 * PING)
        world.datapath.clean_up(leave_closed=False)
        assert not traces(world)


# In this order, the interface that a start searches first (m0, the lower index) gets the new programs last.
_AFTER_THE_OTHERS = ("m1", "m0")


@pytest.mark.parametrize(
    ("where", "name", "nth", "interfaces"),
    [
        *((ProgramsWait, "wait", 1, ("m0",)), (former, "_reading", 1, ("m0",)), (Path, "unlink", 12, ("m0",))),
        *((bpf, "pin", 14, ("m0",)), (meter.Meter, "take_over", 1, ("m0",)), (hooks, "attach", 1, ("m0",))),
        *((hooks, "attach", 2, _AFTER_THE_OTHERS), (Gate, "apply", 1, ("m0",)), (meter.Meter, "narrow", 1, ("m0",))),
        *((Path, "unlink", 1, ()), (Path, "unlink", 12, ()), (bpf, "pin", 1, ()), (bpf, "pin", 14, ())),
    ],
)
def test_killed_at_any_step_of_an_upgrade_it_starts_again_with_the_same_counts(
    tmp_path: Path, later: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, nth: int, interfaces: Any
) -> None:
    """This is also tried without mesh interfaces: then only the pins lead to the tables."""
    wanted = desired(mesh_interfaces=interfaces)
    with metered(tmp_path, True) as world:
        true_wire(world)
        contract = world.grant(HOST)
        assert passes(world.lab.client, INTERNET[4])
        if not interfaces:
            sh("ip link del m0; ip link del m1")
        next_layout.pretend(monkeypatch.setattr, later)
        begun = upgraded(world)
        with monkeypatch.context() as dying, pytest.raises(Killed):
            dying.setattr(where, name, dies_at(nth, getattr(where, name)))
            begun.end_former(wanted)
            begun.set_up(wanted)
        if interfaces:
            assert_nothing_passes(world)
        readings = upgraded(world).end_former(wanted)
        assert readings is None or by_contract(readings) == {contract: (PING, PING)}
        assert readings is not None or where not in (ProgramsWait, former), "it is not booked yet"
        assert readings is None or interfaces is not _AFTER_THE_OTHERS, "ours are there, so it is booked"
        assert world.datapath.set_up(wanted) == Adopted()
        if interfaces:
            assert_made_anew(world, contract)
        world.datapath.clean_up(leave_closed=False)
        assert not traces(world)


def dies_at(nth: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that replaces another one and kills the caller at its nth call."""
    calls = iter(range(1, nth + 1))

    def called(*words: Any, **more: Any) -> Any:
        if next(calls, nth) == nth:
            raise Killed
        return real(*words, **more)

    return called


def test_interfaces_that_are_no_longer_mesh_are_let_go_with_the_old_tables(
    world: World, later: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the old programs stayed there, a later start would find them, with tables that were charged long ago."""
    world.grant(HOST)
    next_layout.pretend(monkeypatch.setattr, later)
    new = upgraded(world)
    new.end_former(desired())
    new.set_up(desired(mesh_interfaces=("m1",)))
    assert passes(world.lab.client, INTERNET[4]), "nobody pays there any more"
    assert not hooks.attached(socket.if_nametoindex("m0"), hooks.Direction.OUT)
    assert sh("tc qdisc show dev m0 clsact") == ""


@pytest.mark.parametrize("number", [layout.LAYOUT + 2, min(layout.BOOKS) - 1])
def test_tables_of_a_layout_that_is_not_known_are_refused_and_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    contract = world.grant(HOST)
    world.datapath.close()
    with monkeypatch.context() as unknown:
        unknown.setattr(former, "read_layout", lambda _tables: number)
        for attempt in (world.datapath.end_former, world.datapath.set_up):
            with pytest.raises(KernelError, match=f"LAYOUT {number}.*ngp stop"):
                attempt(desired())
        (line,) = [each for each in world.datapath.check(desired()) if each.name == "contracts"]
        assert not line.ok and f"LAYOUT {number}" in line.found
    assert passes(world.lab.client, INTERNET[4])
    assert [each.grant.contract for each in world.datapath.set_up(desired()).contracts] == [contract]
    assert world.used(contract) == (PING, PING)


def test_nothing_is_stopped_where_the_kernel_would_not_take_the_next_programs(
    world: World, later: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = world.grant(HOST)
    next_layout.pretend(monkeypatch.setattr, later)
    new = upgraded(world)
    with monkeypatch.context() as spoiled:
        spoiled.setattr(bpf, "object_path", lambda: tmp_path / "absent.o")
        with pytest.raises(KernelError, match="missing"):
            new.end_former(desired())
    assert passes(world.lab.client, INTERNET[4])
    assert by_contract(new.end_former(desired())) == {contract: (PING, PING)}
    assert by_contract(new.end_former(None)) == {contract: (PING, PING)}, "as ngp stop does"
    (line,) = [each for each in new.check(desired()) if each.name == "contracts"]
    assert line.ok and "another version" in line.found
