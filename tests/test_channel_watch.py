"""The core learns the channels' state at once, after each payment, and again when the node is back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.core.channels import Channel
from ngp.core.events import ChannelsSeen, Tick
from ngp.core.payment_node import PaymentOutcome, PaymentStatus, Settlement
from ngp.daemon import channel_watch
from ngp.daemon.channel_watch import ChannelWatch
from ngp.errors import PaymentError
from ngp.ports import ChannelManager

WORLD: Any = SimpleNamespace(accounts=[])
PAID = PaymentOutcome(b"h" * 32, PaymentStatus.SUCCEEDED)


async def ready() -> None:
    """Return at once: the node serves."""


class Manager(ChannelManager):
    """A node without channels, which may be away."""

    away = ""
    looks = 0

    async def channels(self) -> list[Channel]:
        self.looks += 1
        if self.away:
            raise PaymentError(self.away)
        return []


def test_channels_are_looked_at_after_what_moves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_watch, "LEAST_PAUSE_S", 0.0)
    node = Manager()
    told: asyncio.Queue[object] = asyncio.Queue()
    watch = ChannelWatch(WORLD, node, ready, told.put_nowait)

    async def scenario() -> None:
        task = asyncio.ensure_future(watch.follow())
        for event in (PAID, Settlement(1, b"h" * 32, 5), PAID):
            assert await told.get() == ChannelsSeen(())
            watch.note(Tick())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert told.empty()
            watch.note(event)
        await told.get()
        node.away = "LND is locked: lncli unlock"
        watch.note(PAID)
        with pytest.raises(PaymentError, match="locked"):
            await task

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert node.looks == 5


def test_channels_are_looked_at_often_while_somebody_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_watch, "LEAST_PAUSE_S", 0.0)
    monkeypatch.setattr(channel_watch, "HELD_UP_INTERVAL_S", 0.001)  # if nobody waits, a look takes place every 30 s
    waiting: Any = SimpleNamespace(accounts=[SimpleNamespace(why_not="no channel", running=1)])
    told: asyncio.Queue[object] = asyncio.Queue()

    async def scenario() -> None:
        task = asyncio.ensure_future(ChannelWatch(waiting, Manager(), ready, told.put_nowait).follow())
        for _ in range(5):
            await told.get()
        waiting.accounts.clear()
        await asyncio.sleep(0.01)
        while not told.empty():
            told.get_nowait()
        await asyncio.sleep(0.05)
        assert told.empty()
        task.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_node_that_does_not_serve_is_asked_for_nothing_more() -> None:
    async def locked() -> None:
        raise PaymentError("LND is locked: lncli unlock")

    node = Manager()
    with pytest.raises(PaymentError, match="^LND is locked: lncli unlock$"):  # one trouble, reported in one way
        asyncio.run(ChannelWatch(WORLD, node, locked, lambda event: None).follow())
    assert not node.looks


def test_a_module_without_channels_is_left_alone() -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ChannelWatch(WORLD, object(), ready, lambda event: None).follow(), 0.01)

    asyncio.run(scenario())
