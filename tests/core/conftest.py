"""A landlord with the shipped terms; and whatever a test's nodes say must be something that can be sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from let import Landlord
from nacl.signing import SigningKey

from ngp import wire
from ngp.core import effects as fx
from ngp.core.events import Event
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.values import Now

OURS = b"o" * 32


class Unsigned:
    """Signing takes long, and encodes nothing."""

    def sign(self, payload: bytes) -> SimpleNamespace:
        return SimpleNamespace(signature=bytes(64))


@pytest.fixture(autouse=True)
def sendable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode each message of the core as the daemon would: one that the encoder refuses would never arrive."""
    step = Gatekeeper.step

    def step_and_seal(self: Gatekeeper, event: Event, now: Now) -> list[fx.Effect]:
        effects = step(self, event, now)
        for effect in effects:
            if isinstance(effect, fx.Send):
                wire.seal(cast(SigningKey, Unsigned()), OURS, effect.identity, 1 << 32, 1, effect.message, 0)
        return effects

    monkeypatch.setattr(Gatekeeper, "step", step_and_seal)


@pytest.fixture
def landlord(tmp_path: Path) -> Iterator[Landlord]:
    with closing(Landlord(tmp_path)) as made:
        yield made
