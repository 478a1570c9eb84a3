"""A node for tests of the loop: its core fails, and its other parts do nothing but note what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.config import parse
from ngp.core.effects import Effect, Persist
from ngp.core.records import CursorRecord
from ngp.core.values import Now
from ngp.core.world import PaymentNode, World
from ngp.daemon import host_watch
from ngp.daemon.node import Node
from ngp.daemon.parts import Parts
from ngp.ports.network import DesiredNetwork

SETTINGS = parse("MESH_INTERFACES: [eth1]\n", Path("/etc/ngp/net.conf"))


class Broken:
    """A core that fails in the middle of a batch."""

    def __init__(self) -> None:
        self.world = World(SETTINGS, PaymentNode("", False, True, 1), lambda: bytes(16), Now(1, 1.0))
        self.steps = 0

    def step(self, _event: object, _now: Now) -> list[Effect]:
        self.steps += 1
        if self.steps > 1:
            raise RuntimeError("nobody thought of this")
        return [Persist(CursorRecord(1), durable=True)]

    def next_wake_mono_s(self) -> None:
        return None


class Closed:
    """A module, or the ledger, that notes its calls."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def left_out(self, *_: object) -> dict[str, tuple[str, str]]:
        return {}

    def unsold_bytes(self) -> int:
        return 0

    def beside(self) -> Closed:
        return Closed()

    async def settled(self) -> None:
        self.done.append("settled")

    def __getattr__(self, name: str) -> Any:
        def note(*_: object, **__: object) -> Sequence[object]:
            self.done.append(name)
            return ()

        return note


def broken_node(monkeypatch: pytest.MonkeyPatch) -> Node:
    """Make a node whose core fails at its second step, and whose other parts only note their calls."""
    empty = DesiredNetwork(**{name: () for name in DesiredNetwork.__dataclass_fields__})
    monkeypatch.setattr(host_watch, "look_at_host", lambda *_: empty)
    clock = SimpleNamespace(now=lambda: Now(1, 1.0))
    parts: Any = Parts(Path("net.conf"), SETTINGS, clock, Closed(), Closed(), Closed(), Closed(), Broken(), b"k" * 32)  # type: ignore[arg-type]
    return Node(parts, lambda *_: SimpleNamespace(schedule=lambda: None))  # type: ignore[arg-type, return-value]
