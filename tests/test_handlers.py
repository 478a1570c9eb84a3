"""Handlers: what the daemon answers to what an operator types, where no kernel and no neighbour is needed for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.core.events import ChannelsSeen
from ngp.core.values import Channel, ChannelEnd
from ngp.daemon.handlers import Handlers
from ngp.errors import UsageError
from ngp.modules.payment.sandbox import SandboxPayment

WHO = bytes(32)


@pytest.fixture
def handlers(tmp_path: Path) -> Iterator[Handlers]:
    """A daemon with the sandbox's payment node and one account; what it is told goes nowhere."""
    payment = SandboxPayment(tmp_path)
    means = SimpleNamespace(real_money=False)
    world = SimpleNamespace(means=means, by_link={}, neighbours={}, accounts={(WHO, "server"): None})
    parts = SimpleNamespace(gatekeeper=SimpleNamespace(world=world), payment=payment)
    node: Any = SimpleNamespace(parts=parts, tell=lambda _event: None)
    yield Handlers(node)
    asyncio.run(payment.close())


@pytest.mark.parametrize(("name", "value"), [("foo", "on"), ("delay_s", "1"), ("slow", "very")])
def test_a_fault_that_does_not_exist_is_bad_usage(handlers: Handlers, name: str, value: str) -> None:
    with pytest.raises(UsageError) as refused:
        asyncio.run(handlers.fault({"name": name, "value": value}))
    assert "delay_s, " not in str(refused.value)
    assert name == "slow" or "slow, stuck, failed, lost reply, duplicate, down" in str(refused.value)


def test_a_payment_by_hand_is_told_in_the_units_of_the_listings(handlers: Handlers) -> None:
    said = asyncio.run(handlers.payment({"neighbour": "00", "amount_msat": 1_000_000}))
    assert said.startswith("1000 sat (not real money) credited to ")


def test_unblock_does_not_read_like_a_refusal(handlers: Handlers) -> None:
    assert asyncio.run(handlers.unblock({"neighbour": "00"})).endswith(" may trade again")


class OneChannel:
    """A payment module with a channel, as far as `ngp lightning status` asks."""

    seen = [
        Channel("02" + "ab" * 32, "cd" * 32 + ":0", True, True, 2, 1, 1, 1, 0, ChannelEnd(1000), ChannelEnd(1000))
    ]  # fmt: skip

    async def channels(self) -> list[Channel]:
        return self.seen

    async def connect(self, peer: str, host: str) -> None:
        raise NotImplementedError

    async def open_channel(self, peer: str, amount_sat: int, push_sat: int, csv_delay_blocks: int | None) -> str:
        raise NotImplementedError

    async def balance_msat(self) -> int:
        return 1000


def test_the_daemon_trades_by_the_channels_that_the_operator_was_shown() -> None:
    told: list[object] = []
    means = SimpleNamespace(network="regtest", payee=bytes(33))
    settings = SimpleNamespace(payment_module="electrum", payment_amount_msat=100_000)
    world = SimpleNamespace(means=means, by_link={}, settings=settings)
    parts = SimpleNamespace(gatekeeper=SimpleNamespace(world=world), payment=OneChannel())
    node: Any = SimpleNamespace(
        parts=parts, tell=told.append, settings=settings, payment=SimpleNamespace(why_not="")
    )  # fmt: skip
    shown = asyncio.run(Handlers(node).lightning({}))
    assert [one["channel"] for one in shown["channels"]] == [OneChannel.seen[0].point]
    assert told == [ChannelsSeen(tuple(OneChannel.seen))]
