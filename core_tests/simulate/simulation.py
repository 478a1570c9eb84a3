"""Simulation: nodes whose core is real, and the one executor that carries out what it wants, on stand-ins and a clock.

A step's records are stored before any effect is carried out, as in the daemon. Subclasses say who is linked to whom and
how messages travel: the playbook of the core's tests has two nodes, `tools/simulate` has a mesh.
"""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from core_tests.simulate.stand_ins import Books, Kernel, Ledger, PaymentNetwork
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import HintKind, Verdict
from ngp.core.messages import Hello
from ngp.core.payment_node import PaymentNode
from ngp.core.peers import Peers
from ngp.core.restore import restore
from ngp.core.settings import Settings
from ngp.core.values import Now
from ngp.core.world import World

UTC_AT_START_S = 1_700_000_000
SETTLES_S = 0.01
HINT_TAKES_S = 0.001
INVOICE_TAKES_S = 0.01
TRACK_TAKES_S = 0.05
INVOICE_VALID_S = 600


@dataclass
class Node:
    """One simulated node.

    Attributes:
        name: the owner of its invoices. link: (interface, link address) by which its neighbours know it.
        boot: how often it was started. held: the packets that wait for a verdict, and since when.
    """

    name: str
    identity: bytes
    link: tuple[str, bytes]
    settings: Settings
    node: PaymentNode
    kernel: Kernel = field(default_factory=Kernel)
    ledger: Books = field(default_factory=Ledger)
    boot: int = 1
    gatekeeper: Gatekeeper = None  # type: ignore[assignment]
    held: dict[int, Callable[[Verdict], None]] = field(default_factory=dict)
    held_since: dict[int, float] = field(default_factory=dict)
    settled: int = 0

    @property
    def world(self) -> World:
        """The core's state."""
        return self.gatekeeper.world


class Simulation(ABC):
    """Nodes with one clock and one payment network. Subclasses bring `_send` and `_greet`, the links."""

    bills_a_page = 1024

    def __init__(self, seed: int, payments: PaymentNetwork | None = None) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.utc_ahead_s = 0
        self.payments = payments or PaymentNetwork(self.chance)
        self.pay_takes_s = 0.2
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._ids, self._handles = count(1 << 32), count(1)

    def clock(self) -> Now:
        """Return the present time."""
        return Now(UTC_AT_START_S + int(self.now) + self.utc_ahead_s, self.now)

    def at(self, when: float, deed: Callable[[], None]) -> None:
        """Do something at an instant of the monotonic clock."""
        heapq.heappush(self._agenda, (when, next(self._handles), deed))

    def handle(self) -> int:
        """Return a new name for a held packet."""
        return next(self._handles)

    # --- a node's daemon

    def fresh(self, node: Node) -> None:
        """Give a node an empty world, as a daemon has that starts."""
        world = World(
            settings=node.settings,
            node=node.node,
            new_id=lambda: self.chance.randbytes(16),
            now=self.clock(),
            peers=Peers(first_number=node.boot * 1000),
            identity=node.identity,
        )
        node.gatekeeper = Gatekeeper(world)

    def happen(self, node: Node, event: ev.Event) -> None:
        """Step the core, store the records, then carry out the effects."""
        self.carry_out(node, node.gatekeeper.step(event, self.clock()))

    def carry_out(self, node: Node, effects: list[fx.Effect]) -> None:
        """Store the records of a step, then carry out its effects."""
        node.ledger.put_all(effect.record for effect in effects if isinstance(effect, fx.Persist))
        for effect in effects:
            if not isinstance(effect, fx.Persist):
                self._do(node, effect)

    def crash(self, node: Node, reboot: bool = False, reading_takes_s: float = 0.0) -> None:
        """Kill the daemon and start it again; held packets are lost, the kernel goes on unless the machine reboots.

        The node's books must be a `Ledger`.

        Args: reading_takes_s: how long the start takes to read the kernel's tables.
        """
        for decide in list(node.held.values()):
            decide(Verdict.DROP)
        node.held.clear()
        node.held_since.clear()
        node.boot += 1
        if reboot:
            node.kernel = Kernel()
        self.fresh(node)
        node.settled = node.ledger.cursor
        adopted = node.kernel.adopted(self.now)
        self.now += reading_takes_s
        assert isinstance(node.ledger, Ledger)
        snapshot = node.ledger.load(self.clock().utc_s)
        self.carry_out(node, restore(node.gatekeeper, snapshot, adopted, self.clock()))
        self.carry_out(node, [fx.Greet(node.link[0])])

    def hello(self, node: Node, wants_reply: bool) -> Hello:
        """Return what a node says about itself."""
        return Hello(
            node.node.network, node.settings.sells, node.settings.buys, (), "ngp", wants_reply, node.node.payee
        )

    @abstractmethod
    def _send(self, node: Node, effect: fx.Send) -> None: ...

    @abstractmethod
    def _greet(self, node: Node, effect: fx.Greet) -> None: ...

    def _do(self, node: Node, effect: fx.Effect) -> None:  # one case for each effect
        read = node.kernel.read
        match effect:
            case fx.Send():
                self._send(node, effect)
            case fx.Greet():
                self._greet(node, effect)
            case fx.Decide():
                assert effect.handle in node.held, f"handle {effect.handle} has its verdict already"
                node.held_since.pop(effect.handle)
                node.held.pop(effect.handle)(effect.verdict)
            case fx.SetNeighbour():
                node.kernel.neighbours[effect.neighbour.neighbour] = effect.neighbour
            case fx.ForgetNeighbour():
                node.kernel.neighbours.pop(effect.neighbour, None)
            case fx.GrantContract():
                node.kernel.grant([effect.grant], self.now)
            case fx.HaltContract():
                node.kernel.grant([effect.grant], self.now)
                contract = effect.grant.contract
                self._when_settled(node, lambda: ev.Halted(contract, *read([contract])))
            case fx.RevokeContract():
                node.kernel.revoke(effect.contract)
            case fx.LimitAccount():
                node.kernel.limit(effect.limit, self.now)
            case fx.ForgetAccount():
                node.kernel.forget(effect.account)
            case fx.CountAccount():
                spent, which = node.kernel.accounts[effect.account].spent, effect
                self._when_settled(node, lambda: ev.AccountCounted(which.account, spent, read(which.contracts)))
            case fx.ReadMeters():
                wanted = effect.contracts
                self._when_settled(node, lambda: ev.UsageRead(read(wanted)))
            case fx.RecallBills():
                page = node.ledger.unacknowledged(effect.identity, effect.after, self.bills_a_page)
                self._soon(node, ev.BillsRecalled(effect.identity, *page))
            case fx.Acknowledge() | fx.AskEcho() | fx.HandOver() | fx.Log() | fx.LookUpRoutes() | fx.ProveSettlement():
                pass  # nothing here depends on them; the payment network settles by itself
            case _:
                self._do_with_money(node, effect)

    def _do_with_money(self, node: Node, effect: fx.Effect) -> None:
        match effect:
            case fx.MakeInvoice():
                payment_hash = self.payments.invoice(node.name, effect.amount_msat)
                made = ev.InvoiceMade(
                    effect.identity, effect.kind, payment_hash.hex(), payment_hash, effect.amount_msat, INVOICE_VALID_S
                )
                self._soon(node, made, INVOICE_TAKES_S)
            case fx.CancelInvoice():
                if self.payments.cancel(effect.payment_hash):
                    self._soon(node, ev.InvoiceCancelled(effect.payment_hash), INVOICE_TAKES_S)
            case fx.PayInvoice():
                outcome = self.payments.pay(node.name, effect.payment_hash, effect.fee_limit_msat)
                self._soon(node, outcome, self.pay_takes_s)
            case fx.TrackPayment():
                self._soon(node, self.payments.track(node.name, effect.payment_hash), TRACK_TAKES_S)
            case _:
                raise AssertionError(f"nobody here carries out {effect!r}")

    def _when_settled(self, node: Node, event: Callable[[], ev.Event]) -> None:
        """Deliver a reading once every packet has left the meter."""
        boot = node.boot

        def read() -> None:
            if node.boot == boot:
                self.happen(node, event())

        self.at(self.now + SETTLES_S, read)

    def _soon(self, node: Node, event: ev.Event, in_s: float = 0.0) -> None:
        boot = node.boot

        def arrive() -> None:
            if node.boot == boot:
                self.happen(node, event)

        self.at(self.now + in_s, arrive)

    def _hints(self, node: Node) -> None:
        """Tell a node's core what its kernel hinted at since the last call."""
        if node.kernel.hints:
            hints = tuple(node.kernel.hints)
            node.kernel.hints.clear()
            of_account = any(h.kind in (HintKind.ACCOUNT_LOW, HintKind.ACCOUNT_EXHAUSTED) for h in hints)
            kernel = node.kernel
            readings = kernel.changed() if of_account else kernel.read(dict.fromkeys(h.key for h in hints))
            self._soon(node, ev.UsageRead(readings), HINT_TAKES_S)
            self._soon(node, ev.Hinted(hints), HINT_TAKES_S)
