"""The daemon's part of held payments: what the payment node is asked, what the tunnel answers, what a start refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from let import letting
from playbook import settings
from shop import TUNNEL, TunnelOnPaper

from ngp.core.effects import MakeInvoice
from ngp.core.events import Event, InvoiceMade
from ngp.core.messages import Paid
from ngp.core.records import PaymentKind
from ngp.core.rental.effects import SettleInvoice, SetTunnelPeer, WatchInvoice
from ngp.core.rental.events import InvoiceHeld, RentProven, TunnelPeerSet
from ngp.core.rental.tunnel import TunnelPeer
from ngp.daemon import checkup
from ngp.daemon import executor as executor_module
from ngp.daemon.executor import Executor
from ngp.daemon.landlord import Landlord
from ngp.errors import KernelError, PaymentError
from ngp.ports.payment import NewInvoice, PaymentCapabilities

PREIMAGE = bytes(range(32))
HASH = sha256(PREIMAGE).digest()
WHO = b"w" * 32
PEER = TunnelPeer(b"k" * 32, (ip_network("192.0.2.1/32"),), None)


class Node:
    """A payment node. `answers`: to `wait_held` and `settle_invoice`, one after the other; an error is raised."""

    def __init__(self, *answers: int | None | PaymentError) -> None:
        self.answers = list(answers)
        self.is_ours = True
        self.asked: list[object] = []

    async def confirm_node(self) -> None:
        if not self.is_ours:
            self.is_ours = True
            raise PaymentError("LND is another node now")

    async def create_invoice(
        self, amount_msat: int, _memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice:
        self.asked.append((preimage, hold))
        return NewInvoice("lnbcrt1", HASH, amount_msat, expiry_s)

    async def wait_held(self, payment_hash: bytes) -> int | None:
        self.asked.append(payment_hash)
        return self._next()

    async def settle_invoice(self, preimage: bytes) -> None:
        self.asked.append(preimage)
        self._next()

    def _next(self) -> int | None:
        answer = self.answers.pop(0)
        if isinstance(answer, PaymentError):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "WATCH_AGAIN_S", 0.0)


def told(node: Any, *effects: Any) -> list[Event]:
    """Carry effects out, and return the events that result from them."""
    events: list[Event] = []
    unused: Any = None

    async def run() -> None:
        executor = Executor(unused, unused, node, unused, events.append, pytest.fail)
        executor.carry_out(effects)
        await asyncio.gather(*executor._tasks)

    asyncio.run(run())
    return events


AWAY = PaymentError("LND doesn't answer")


def test_a_hold_invoice_is_made_of_the_preimage_that_the_ledger_will_have() -> None:
    node = Node()
    asked = MakeInvoice(WHO, PaymentKind.RENT, 1_000, "rent", 600, PREIMAGE)
    assert told(node, asked, replace(asked, preimage=b"")) == [
        InvoiceMade(WHO, PaymentKind.RENT, "lnbcrt1", HASH, 1_000, 600, PREIMAGE),
        InvoiceMade(WHO, PaymentKind.RENT, "lnbcrt1", HASH, 1_000, 600),
    ]
    assert node.asked == [(PREIMAGE, True), (None, False)]


def test_a_node_that_is_away_is_asked_again_until_it_says_what_became_of_the_invoice() -> None:
    assert told(Node(AWAY, AWAY, 80), WatchInvoice(HASH)) == [InvoiceHeld(HASH, 80)]
    assert told(Node(AWAY, None), WatchInvoice(HASH)) == []


def test_another_node_that_does_not_know_the_invoice_is_not_believed() -> None:
    node = Node(None, 80)
    node.is_ours = False
    assert told(node, WatchInvoice(HASH)) == [InvoiceHeld(HASH, 80)]


def test_a_payment_counts_when_the_node_has_taken_it_and_else_its_state_decides() -> None:
    assert told(Node(None), SettleInvoice(PREIMAGE)) == [RentProven(Paid(HASH, PREIMAGE))]
    assert told(Node(AWAY, AWAY, 70), SettleInvoice(PREIMAGE)) == [InvoiceHeld(HASH, 70)]
    assert told(Node(AWAY, None), SettleInvoice(PREIMAGE)) == [], "its settlement will be reported, or there is none"


class FailingTunnel(TunnelOnPaper):
    """A tunnel whose calls fail while `why` isn't empty."""

    why = ""

    def set_up(self, desired: Any, peers: Sequence[TunnelPeer]) -> None:
        self._fail()
        super().set_up(desired, peers)

    def set_peers(self, peers: Sequence[TunnelPeer]) -> None:
        self._fail()
        super().set_peers(peers)

    def _fail(self) -> None:
        if self.why:
            raise KernelError(self.why)


def test_the_tunnel_says_whether_it_has_a_tenant_whose_payment_waits() -> None:
    events: list[Event] = []
    unused: Any = None
    granted: set[bytes] = set()
    tunnel = FailingTunnel()
    landlord = Landlord(tunnel, [], unused, X25519PrivateKey.generate(), lambda: (), granted.issuperset, events.append)
    landlord.letting = type("Letting", (), {"changed": lambda _: None})()  # type: ignore[assignment]
    terms = replace(letting(), tunnel=TUNNEL)

    def answer() -> str:
        landlord.carry_out([SetTunnelPeer(PEER, HASH)])
        event = events.pop()
        assert isinstance(event, TunnelPeerSet) and event.payment_hash == HASH and not events
        return event.why_not

    assert answer() == "the tunnel can't be changed right now", "nothing is set up yet"
    asyncio.run(landlord.apply(terms))
    assert answer() == "" and tunnel.peers == {PEER.wireguard_key: PEER}
    tunnel.why = "no such device"
    assert answer() == "no such device"
    assert answer() == "the tunnel can't be changed right now"
    tunnel.why = ""
    assert answer() == "" and tunnel.peers == {PEER.wireguard_key: PEER}, "what was missing is made first"
    landlord.carry_out([SetTunnelPeer(PEER)])
    assert not events, "nobody waits for this one"


@pytest.mark.parametrize(
    ("wish", "why_not", "refused"),
    [("yes", "use lnd", True), ("yes", "", False), ("auto", "use lnd", False), ("no", "use lnd", False)],
)
def test_only_a_wish_that_the_node_can_not_fulfil_is_refused_with_the_remedy(
    wish: str, why_not: str, refused: bool
) -> None:
    class Payment:
        def capabilities(self) -> PaymentCapabilities:
            return PaymentCapabilities(False, False, 1, why_not)

    node: Any = Payment()
    wanted = settings(letting=replace(letting(), hold=wish))
    found = checkup.holding(wanted, node)
    assert len(found) == refused
    if not refused:
        checkup.refuse_without_holding(wanted, node)
        return
    with pytest.raises(PaymentError, match=r"LANDLORD_HOLD is yes, but sandbox .*use lnd; or write LANDLORD_HOLD: "):
        checkup.refuse_without_holding(wanted, node)
    assert checkup.holding(settings(letting=None), node) == []
