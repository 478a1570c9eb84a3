"""The payment node goes away and comes back; its settlements, and its signature in our hellos, still arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.core.messages import Hello
from ngp.core.payment_node import Settlement
from ngp.core.values import Check
from ngp.daemon.payment_watch import PaymentWatch
from ngp.errors import PaymentError

HASH = b"h" * 32


class PaymentNode:
    """Is away, then serves, and ends its stream after the settlements that follow the cursor."""

    def __init__(self) -> None:
        self.away = "LND is locked: lncli unlock"
        self.signed: list[bytes] = []
        self.asked_from: list[int] = []
        self.lacks: list[Check] = []

    async def wait_ready(self) -> None:
        if self.away:
            raise PaymentError(self.away)

    async def check(self, spends: bool) -> list[Check]:
        return [Check("login", True, "allows what is needed"), *(self.lacks if spends else [])]

    async def sign(self, message: bytes) -> str:
        self.signed.append(message)
        return "signature"

    async def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        self.asked_from.append(cursor)
        yield Settlement(cursor + 1, HASH, 5_000)


def world_at(cursor: int, spends: bool = True) -> Any:
    node, settings = SimpleNamespace(network="regtest"), SimpleNamespace(spends=spends)
    return SimpleNamespace(money=SimpleNamespace(cursor=cursor), node=node, settings=settings)


@pytest.mark.parametrize("spends", [True, False])
def test_what_may_not_be_done_with_the_node_is_logged_at_once_and_once(
    caplog: pytest.LogCaptureFixture, spends: bool
) -> None:
    node: Any = PaymentNode()
    node.away, node.lacks = "", [Check("LND's macaroon", False, "does not allow SendPaymentV2", "lncli bakemacaroon")]
    post: Any = SimpleNamespace(ourselves=Hello("regtest", True, True, (), "ngp", False))
    watch = PaymentWatch(node, world_at(7, spends), post, b"k" * 32, lambda _: None)

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(PaymentError, match="ended"):
                await watch.follow()

    asyncio.run(scenario())
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert told == ["LND's macaroon: does not allow SendPaymentV2; lncli bakemacaroon"] * spends


def test_a_reload_by_which_we_spend_tells_what_we_may_not_do_each_time_and_logs_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node: Any = PaymentNode()
    node.lacks = [Check("LND's macaroon", False, "does not allow SendPaymentV2", "lncli bakemacaroon")]
    post: Any = SimpleNamespace(ourselves=Hello("regtest", True, True, (), "ngp", False))
    watch = PaymentWatch(node, world_at(7, spends=False), post, b"k" * 32, lambda _: None)
    spending: Any = SimpleNamespace(spends=True)
    told = [asyncio.run(watch.warn_of_lacks(spending)) for _ in range(2)]
    assert told == [["LND's macaroon: does not allow SendPaymentV2; lncli bakemacaroon"]] * 2
    assert [one.getMessage() for one in caplog.records] == told[0]


def test_settlements_come_behind_the_last_one_whenever_the_node_can_be_asked() -> None:
    node: Any = PaymentNode()
    world = world_at(7)
    post: Any = SimpleNamespace(ourselves=Hello("regtest", True, True, (), "ngp", False))
    told: list[object] = []
    watch = PaymentWatch(node, world, post, b"k" * 32, told.append)

    async def scenario() -> None:
        assert watch.why_not
        with pytest.raises(PaymentError, match="locked"):
            await watch.follow()
        assert watch.why_not == node.away and not told
        node.away = ""
        for world.money.cursor in (7, 8):
            with pytest.raises(PaymentError, match="ended"):
                await watch.follow()

    asyncio.run(scenario())
    assert told == [Settlement(8, HASH, 5_000), Settlement(9, HASH, 5_000)]
    assert node.asked_from == [7, 8]
    assert post.ourselves.payee_proof == "signature" and len(node.signed) == 1
    assert "ended" in watch.why_not
