"""What the payment node is asked, and which of its answers are believed, while another node may answer in its place."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.core.effects import (
    CancelInvoice,
    Decide,
    GrantContract,
    Log,
    MakeInvoice,
    PayInvoice,
    RevokeContract,
    SetElsewhere,
    TrackPayment,
)
from ngp.core.events import Event, InvoiceCancelled, InvoiceFailed, InvoiceMade
from ngp.core.kernel import Grant, Verdict
from ngp.core.messages import Role
from ngp.core.payment_node import UNKNOWN_PAYMENT, PaymentOutcome, PaymentStatus
from ngp.core.prefixes import PackedPrefix
from ngp.core.records import PaymentKind
from ngp.core.rental.effects import HoldNetworks
from ngp.core.rental.events import NetworksHeld
from ngp.daemon import executor as executor_module
from ngp.daemon.executor import Executor
from ngp.errors import KernelError, LedgerError, PaymentError
from ngp.ports.payment import InvoiceState, NewInvoice

HASH = b"h" * 32
NETWORKS = (ip_network("192.0.2.1/32"),)
WHO = b"w" * 32
INVOICE = MakeInvoice(WHO, PaymentKind.TOP_UP, 1_000, "top-up", 600)
PAY = PayInvoice("lnbcrt1", HASH, 0, 1.0)


class Node:
    """A payment node that knows nothing of us, like another one in the place of ours.

    `is_ours` says which one it is.
    """

    def __init__(self, is_ours: bool = False) -> None:
        self.is_ours = is_ours
        self.asked: list[str] = []

    async def confirm_node(self) -> None:
        if not self.is_ours:
            raise PaymentError("LND is another node now")

    async def create_invoice(
        self, amount_msat: int, _memo: str, expiry_s: int, _preimage: bytes | None, hold: bool
    ) -> NewInvoice:
        assert not hold
        self.asked.append("create_invoice")
        return NewInvoice("lnbcrt1", HASH, amount_msat, expiry_s)

    async def pay(self, *_: object) -> PaymentOutcome:
        self.asked.append("pay")
        return await self.track(HASH)

    async def track(self, payment_hash: bytes) -> PaymentOutcome:
        return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)

    async def cancel_invoice(self, _payment_hash: bytes) -> None: ...

    async def lookup_invoice(self, _payment_hash: bytes) -> InvoiceState:
        return InvoiceState.CANCELLED


def told(node: Any, *effects: Any) -> list[Event]:
    """Carry effects out, and return the events that result from them."""
    events: list[Event] = []
    unused: Any = None

    class Network:
        def revoke(self, _: object) -> list[object]:
            return []

    network: Any = Network()

    async def run() -> None:
        executor = Executor(unused, network, node, unused, events.append, pytest.fail)
        executor.carry_out(effects)
        await asyncio.gather(*executor._tasks)

    asyncio.run(run())
    return events


def test_nothing_is_asked_of_another_node_in_place_of_ours_and_no_failure_is_believed() -> None:
    """Another node knows none of our payments: two of its answers would book as failed what is on its way at ours."""
    node = Node()
    pending = PaymentOutcome(HASH, PaymentStatus.PENDING)
    assert told(node, PAY, TrackPayment(HASH)) == [pending, pending]
    assert told(node, INVOICE) == [InvoiceFailed(WHO, INVOICE.kind, "LND is another node now")]
    assert not told(node, CancelInvoice(HASH)), "our node still takes money for it"
    assert not node.asked


def test_a_node_that_is_replaced_while_it_pays_leaves_the_payment_pending() -> None:
    node = Node(is_ours=True)

    async def replaced(*_: object) -> PaymentOutcome:
        node.is_ours = False
        return await node.track(HASH)

    node.pay = replaced  # type: ignore[method-assign]
    assert told(node, PAY) == [PaymentOutcome(HASH, PaymentStatus.PENDING)]


def test_the_node_in_use_is_believed() -> None:
    failed = PaymentOutcome(HASH, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)
    assert told(Node(is_ours=True), PAY, TrackPayment(HASH), CancelInvoice(HASH), INVOICE) == [
        failed, failed, InvoiceCancelled(HASH), InvoiceMade(WHO, INVOICE.kind, "lnbcrt1", HASH, 1_000, 600)
    ]  # fmt: skip


def test_a_line_for_the_log_waits_until_the_packet_is_released() -> None:
    """Writing a line takes longer than releasing the packet, and whoever sent the packet waits."""
    deeds: list[object] = []

    class Network:
        def verdict(self, handle: int, _verdict: Verdict) -> None:
            deeds.append(handle)

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            deeds.append(record.getMessage())

    unused: Any = None
    network: Any = Network()
    log, lines = logging.getLogger("ngp"), Lines()
    log.addHandler(lines)
    try:
        executor = Executor(unused, network, unused, unused, unused, pytest.fail)
        executor.carry_out([Log(logging.WARNING, "sold"), Decide(3, Verdict.REPEAT)])
    finally:
        log.removeHandler(lines)
    assert deeds == [3, "sold"]


def test_networks_are_held_as_soon_as_the_ledger_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [LedgerError("the disk is full"), LedgerError("the disk is full"), ()]
    events: list[Event] = []

    class Ledger:
        def hold_networks(self, rental: bytes, networks: object) -> object:
            assert (rental, networks) == (WHO, NETWORKS)
            answer = answers.pop(0)
            if isinstance(answer, LedgerError):
                raise answer
            return answer

    ledger: Any = Ledger()
    unused: Any = None
    monkeypatch.setattr(executor_module, "LEDGER_RETRY_S", 0.0)

    async def run() -> None:
        executor = Executor(ledger, unused, unused, unused, events.append, pytest.fail)
        executor.carry_out([HoldNetworks(WHO, NETWORKS)])
        await asyncio.gather(*executor._tasks)

    asyncio.run(run())
    assert events == [NetworksHeld(WHO)] and not answers


def test_a_grant_that_fails_takes_no_other_along(caplog: pytest.LogCaptureFixture) -> None:
    """The table is full until the contract that ended is out of it; one that nobody can grant is named, and no more."""
    table = {b"old", b"halting"}
    halted: list[bytes] = []
    unused: Any = None

    class Network:
        def grant(self, grants: list[Grant]) -> None:
            if any(one.contract == b"bad" for one in grants) or len(table | {one.contract for one in grants}) > 3:
                raise KernelError(f"refused {len(grants)}")
            table.update(one.contract for one in grants)
            halted.extend(one.contract for one in grants if one.limit_bytes == 0)

        def revoke(self, contracts: list[bytes]) -> None:
            table.difference_update(contracts)

    def granted(contract: bytes, limit_bytes: int = 1) -> Grant:
        return Grant(contract, 7, Role.SERVER, PackedPrefix.of(ip_network("10.0.0.1/32")), limit_bytes, 60.0, WHO, 1)

    network: Any = Network()
    executor = Executor(unused, network, unused, unused, pytest.fail, pytest.fail)
    grants = [granted(b"new"), granted(b"bad"), granted(b"newer"), granted(b"halting", limit_bytes=0)]
    executor.carry_out([*map(GrantContract, grants), RevokeContract(b"old")])
    assert table == {b"halting", b"new", b"newer"} and halted == [b"halting"]
    assert caplog.messages == ["refused 1"]


def test_what_a_resold_default_route_does_not_cover_is_entered_before_its_contract() -> None:
    did: list[str] = []
    unused: Any = None
    network: Any = SimpleNamespace(
        grant=lambda _grants: did.append("grant"), set_elsewhere=lambda prefixes: did.append(f"except {prefixes[0]}")
    )
    whole = Grant(b"c" * 16, 7, Role.SERVER, PackedPrefix.of(ip_network("0.0.0.0/0")), 1 << 20, 60.0, WHO, resold=True)
    executor = Executor(unused, network, unused, unused, unused, pytest.fail)
    executor.carry_out([GrantContract(whole), SetElsewhere(NETWORKS)])
    assert did == ["except 192.0.2.1/32", "grant"]
