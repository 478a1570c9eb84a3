"""Handlers: what the daemon answers to an operator's commands, if neither kernel nor neighbours are needed for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.config import parse
from ngp.core.buying import refunds as buying
from ngp.core.selling import refunds as selling
from ngp.core.values import Check, Now
from ngp.core.world import PaymentNode, World
from ngp.daemon import checkup
from ngp.daemon.desired import desired_network
from ngp.daemon.handlers import Handlers
from ngp.errors import PaymentError, UsageError
from ngp.modules.payment.sandbox import SandboxPayment

WHO = bytes(32)
SETTINGS = parse("MESH_INTERFACES: [eth1]\n", Path("/etc/ngp/net.conf"))


@pytest.fixture
def handlers(tmp_path: Path) -> Iterator[Handlers]:
    """Handlers of a daemon with the sandbox and one account; the events that it gets are dropped."""
    payment = SandboxPayment(tmp_path)
    world = World(SETTINGS, PaymentNode("sandbox", False, True, 1), lambda: bytes(16), Now(1, 1.0))
    world.client(WHO)
    parts = SimpleNamespace(gatekeeper=SimpleNamespace(world=world), payment=payment)
    loop = SimpleNamespace(obey=lambda _event: None, blocked=world.peers.blocked)
    node: Any = SimpleNamespace(parts=parts, loop=loop)
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


def test_a_blocked_neighbour_without_a_link_is_listed_and_can_be_named(handlers: Handlers) -> None:
    gone = b"\x7f" * 32
    handlers._acting._world.peers.blocked.add(gone)

    async def listed() -> list[dict[str, Any]]:
        return [row async for row in handlers.neighbours({})]

    (row,) = asyncio.run(listed())
    assert (row["neighbour"], row["blocked"], row["up"], row["interface"]) == ("7f" * 32, True, False, None)
    assert asyncio.run(handlers.unblock({"neighbour": "7f"})).endswith(" may trade again")


def test_a_neighbour_is_named_by_any_of_its_addresses_unless_another_has_it_too(handlers: Handlers) -> None:
    addresses = {"a": ["192.0.2.2", "fe80::a%mesh0"], "b": ["fe80::b%mesh0", "192.0.2.2"], "c": ["192.0.2.3", ""]}
    world, node = handlers._acting._world, handlers._acting._node
    for name in addresses:
        link = ("mesh0", name.encode())
        world.peers.by_link[link] = SimpleNamespace(identity=name.encode() * 32, link=link)  # type: ignore[assignment]
    node.post = SimpleNamespace(transports=lambda link: addresses[link[1].decode()])  # type: ignore[assignment]
    for written in ("192.0.2.3", "63"):
        assert asyncio.run(handlers.block({"neighbour": written})).startswith((b"c" * 8).hex())
    assert asyncio.run(handlers.block({"neighbour": "fe80::a%mesh0"})).startswith((b"a" * 8).hex())
    with pytest.raises(UsageError, match=r"several neighbours \((61){8}, (62){8}\)"):
        asyncio.run(handlers.block({"neighbour": "192.0.2.2"}))


def test_unblock_does_not_read_like_a_refusal(handlers: Handlers) -> None:
    assert asyncio.run(handlers.unblock({"neighbour": "00"})).endswith(" may trade again")


def test_nobody_is_asked_for_a_refund_that_our_node_can_make_no_invoice_for(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(handlers._acting._node.loop, "obey", told.append)
    locked = SimpleNamespace(why_not="LND is locked: lncli unlock")
    monkeypatch.setattr(handlers._acting._node, "payment", locked, raising=False)
    monkeypatch.setattr(buying, "why_not_ask", lambda *_: "")
    with pytest.raises(PaymentError, match=r"no refund can be asked for.*locked: lncli unlock"):
        asyncio.run(handlers.refund({"neighbour": "00", "ask": True}))
    assert not told


def test_a_refund_that_the_node_may_not_pay_is_refused_before_it_is_offered(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    node = handlers._acting._node
    monkeypatch.setattr(selling, "why_no_refund", lambda *_: "")
    monkeypatch.setattr(selling, "offerable_msat", lambda *_: 322_000)
    monkeypatch.setattr(node.loop, "obey", told.append)

    async def check(spends: bool) -> list[Check]:
        return [Check("LND's macaroon", not spends, "does not allow SendPaymentV2", "lncli bakemacaroon uri:...")]

    monkeypatch.setattr(node.parts.payment, "check", check)
    with pytest.raises(PaymentError, match=r"no refund.*does not allow SendPaymentV2; lncli bakemacaroon"):
        asyncio.run(handlers.refund({"neighbour": "00"}))
    assert not told


def test_a_line_of_a_check_says_what_is_at_fault(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named port, for example, makes a start end with 3, and so a check beside a daemon must end with 3 too."""

    async def payment(*_: object) -> list[Check]:
        return []

    lines = [Check("interface p0", False, "is a port", "", "configuration"), Check("interface m0", False, "is down")]
    monkeypatch.setattr(checkup, "network", lambda *_: lines)
    monkeypatch.setattr(checkup, "payment", payment)
    monkeypatch.setattr(checkup, "neighbours", lambda *_: [])
    monkeypatch.setattr(checkup, "accounts", lambda _: [])
    monkeypatch.setattr(checkup, "effect", lambda *_: Check("in force", True, ""))
    node: Any = handlers._acting._node
    node.settings = parse("MESH_INTERFACES: m0\nQUEUE_NUMBER: 7\n", Path("net.conf"))
    node.loop.ledger_why_not, node.payment = "it is gone", SimpleNamespace(why_not="")
    node.parts.make_links = lambda _: []
    node.loop.refresh, node.parts.network = lambda: None, SimpleNamespace(uncovered=lambda: [])
    node.parts.clock = SimpleNamespace(now=lambda: Now(1_800_000_000, 0.0))
    tried: list[int] = []
    beside = SimpleNamespace(taken=lambda wanted: tried.append(wanted.queue_number) or [], next_hops=lambda _: [])

    async def aside(look: Callable[[Any], list[Check]]) -> list[Check]:
        return look(beside)

    desired = desired_network(node.settings, (), (), ())
    node.host = SimpleNamespace(node_addresses=(), aside=aside, desired=desired)
    told = {row["name"]: row["kind"] for row in asyncio.run(handlers.check({}))}
    assert told == {"interface p0": "configuration", "interface m0": "kernel", "ledger": "ledger", "in force": "kernel"}
    asyncio.run(handlers.check({"text": "MESH_INTERFACES: m0\nQUEUE_NUMBER: 8\n", "path": "net.conf"}))
    assert tried == [7, 8], "the network knows which one is our own"
    node.parts.check_letting = lambda letting: [Check("tunnel", False, f"no {letting.tunnel.outside}", "mend it")]
    text = "LANDLORD: yes\nLANDLORD_POOLS: 203.0.113.0/29\nLANDLORD_OUTSIDE: eth7\n"
    (tunnel,) = [row for row in asyncio.run(handlers.check({"text": text, "path": "x"})) if row["name"] == "tunnel"]
    assert (tunnel["found"], tunnel["kind"]) == ("no eth7", "kernel")
