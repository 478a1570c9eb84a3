"""The core is told of the channels at once, after each payment, and again when the node comes back."""

from __future__ import annotations

import asyncio

import pytest

from ngp.core.events import ChannelsSeen, PaymentResult, SettlementSeen, Tick
from ngp.core.values import Channel, PaymentOutcome, PaymentStatus
from ngp.daemon import channel_watch
from ngp.daemon.channel_watch import ChannelWatch
from ngp.errors import PaymentError

PAID = PaymentResult(PaymentOutcome(b"h" * 32, PaymentStatus.SUCCEEDED))


class Manager:
    """A node without channels, which may be away."""

    away = ""
    looks = 0

    async def channels(self) -> list[Channel]:
        self.looks += 1
        if self.away:
            raise PaymentError(self.away)
        return []

    async def connect(self, peer: str, host: str) -> None: ...

    async def open_channel(self, peer: str, amount_sat: int, push_sat: int, csv_delay_blocks: int | None) -> str:
        return ""


def test_channels_are_looked_at_after_what_moves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_watch, "LEAST_PAUSE_S", 0.0)
    node = Manager()
    told: asyncio.Queue[object] = asyncio.Queue()
    watch = ChannelWatch(node, told.put_nowait)

    async def scenario() -> None:
        task = asyncio.ensure_future(watch.follow())
        for event in (PAID, SettlementSeen(1, b"h" * 32, 5), PAID):
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

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert node.looks == 5


def test_a_module_without_channels_is_left_alone() -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ChannelWatch(object(), lambda event: None).follow(), 0.01)

    asyncio.run(scenario())
