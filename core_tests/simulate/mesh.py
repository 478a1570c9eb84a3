"""Mesh: many nodes on the links of a graph, each with the core and the settings as shipped; their messages and clocks.

A broadcast is lost as often as the link's quality says. A unicast frame is sent again by the radio, and a message also
by the courier, at the courier's own intervals. What the daemon does on time happens at the same intervals here: hellos,
readings of the meter, a reading before each bill.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from core_tests.simulate.graph import NOWHERE, Edge, Graph, Routes
from core_tests.simulate.lies import Lie, told_by
from core_tests.simulate.money import Wallets
from core_tests.simulate.simulation import Node, Simulation
from core_tests.simulate.stand_ins import Books, Ledger
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.kernel import Onward, Router, Verdict
from ngp.core.messages import Ask, Hello, Invoice, Message, Prefix, Propose, Refund, Role, Statement
from ngp.core.payment_node import PaymentNode, PaymentOutcome, PaymentStatus, Settlement
from ngp.core.settings import Settings
from ngp.courier import GIVE_UP_S, RETRY_AFTER_S
from ngp.daemon.node import HELLO_INTERVAL_S, READ_INTERVAL_S
from ngp.delivery import wants_receipt

INTERFACE = "mesh0"
FIRST_ADDRESS = IPv4Address("10.0.0.0")
SWITCHED_ON_WITHIN_S = 1.0
SETTLEMENT_TAKES_S = 0.05


@dataclass(eq=False)
class MeshNode(Node):
    """A node of the mesh.

    Attributes:
        number: in the graph. address: where others send to. edges: its links.
        awake: it is switched on. lie: how it cheats, if it does.
        wakes_at: when its core is ticked next. reads: a reading of its meter is due.
    """

    number: int = 0
    address: IPv4Address = FIRST_ADDRESS
    edges: dict[int, Edge] = field(default_factory=dict)
    awake: bool = False
    lie: Lie | None = None
    wakes_at: float = math.inf
    reads: bool = False

    def number_of(self, other: MeshNode) -> int:
        """Return the number by which this node's kernel knows another one; 0: it doesn't."""
        neighbour = self.world.peers.by_link.get(other.link)
        return neighbour.number if neighbour is not None else 0


class Mesh(Simulation):
    """The nodes of a graph; `switch_on` starts them.

    Args:
        restarts: nodes may be switched off and on again, so their ledgers keep all that a start reads.
    """

    def __init__(
        self, graph: Graph, settings: Settings, seed: int, channel_msat: int | None = None, restarts: bool = False
    ) -> None:
        super().__init__(seed)
        self.payments = self.wallets = Wallets(self.chance, channel_msat)
        self.wallets.settled = self._settled
        self.wallets.later = lambda seconds, deed: self.at(self.now + seconds, deed)
        self.graph, self.routes = graph, Routes(graph)
        self.steps = self.messages = 0
        self.began = self.now
        self.nodes = [_made(number, graph, settings, restarts) for number in range(graph.nodes)]
        self._by_link = {node.link: node for node in self.nodes}

    # --- time

    def run(self, seconds: float, progress: Callable[[float], None] = lambda elapsed_s: None) -> None:
        """Let time pass. Args: progress: is told the elapsed mesh time, about once in a mesh second."""
        end, agenda, told = self.now + seconds, self._agenda, self.now
        while agenda and agenda[0][0] <= end:
            when, _, deed = heapq.heappop(agenda)
            self.now = max(self.now, when)
            deed()
            if self.now >= told + 1.0:
                told = self.now
                progress(self.elapsed_s)
        self.now = end

    @property
    def elapsed_s(self) -> float:
        """The mesh time since the beginning."""
        return self.now - self.began

    # --- nodes

    def switch_on(self) -> None:
        """Start all nodes within a second, as after a power cut."""
        for node in self.nodes:
            self.at(self.now + self.chance.random() * SWITCHED_ON_WITHIN_S, lambda node=node: self._start(node))  # type: ignore[misc]

    def _start(self, node: MeshNode) -> None:
        self.fresh(node)
        node.awake = True
        self.carry_out(node, [fx.Greet(INTERFACE)])
        self._hello_later(node, node.boot)

    def switch_off(self, node: MeshNode) -> None:
        """Cut a node's power."""
        node.awake, node.boot, node.wakes_at, node.reads = False, node.boot + 1, math.inf, False
        for decide in list(node.held.values()):
            decide(Verdict.DROP)
        node.held.clear()
        node.held_since.clear()

    def switch_on_again(self, node: MeshNode) -> None:
        """Start a node after a power cut, from its ledger; its kernel knows nothing any more."""
        node.awake, passed = True, node.kernel.passed
        self.crash(node, reboot=True)
        node.kernel.passed = passed  # the audit wants all that was ever let through
        for missed in self.payments.stream.get(node.name, [])[node.settled :]:
            self.happen(node, Settlement(*missed))
        self._hello_later(node, node.boot)

    def _hello_later(self, node: MeshNode, boot: int) -> None:
        def greet() -> None:
            if node.boot == boot:
                self.carry_out(node, [fx.Greet(INTERFACE)])
                self.at(self.now + HELLO_INTERVAL_S, greet)

        self.at(self.now + HELLO_INTERVAL_S, greet)

    def stop(self) -> None:
        """Stop all daemons in good order, so that the ledgers have everything."""
        for node in self.nodes:
            self._read(node)
            self.happen(node, ev.Stopping())

    # --- a node's daemon

    def happen(self, node: Node, event: ev.Event) -> None:
        """Step a node's core, and carry out the effects."""
        self.steps += 1
        super().happen(node, event)

    def carry_out(self, node: Node, effects: list[fx.Effect]) -> None:
        """Store the records, carry out the effects, and see when the core wants to be woken."""
        super().carry_out(node, effects)
        assert isinstance(node, MeshNode)
        due = node.gatekeeper.next_wake_mono_s()
        if due is not None and due < node.wakes_at:
            node.wakes_at = due
            self.at(due, lambda: self._tick(node, due))

    def _tick(self, node: MeshNode, due: float) -> None:
        if node.wakes_at == due and node.awake:
            node.wakes_at = math.inf
            self.happen(node, ev.Tick())

    def metered(self, node: MeshNode) -> None:
        """Note that a node's meter counted something: its hints are told at once, its counters within a second."""
        self._hints(node)
        if not node.reads:
            node.reads, boot = True, node.boot
            phase = node.number * 0.618034 % READ_INTERVAL_S  # nodes don't read at the same instant
            next_read = (math.floor((self.now - phase) / READ_INTERVAL_S) + 1) * READ_INTERVAL_S + phase
            self.at(next_read, lambda: self._read(node) if node.boot == boot else None)

    def _read(self, node: MeshNode) -> None:
        node.reads = False
        readings, accounts = node.kernel.changed(), node.kernel.changed_accounts(self.now)
        if readings or accounts:
            self.happen(node, ev.UsageRead(readings, accounts))

    def _do_with_money(self, node: Node, effect: fx.Effect) -> None:
        assert isinstance(node, MeshNode)
        if isinstance(effect, fx.PayInvoice) and node.lie is Lie.PAYS_NOTHING:
            failed = PaymentOutcome(effect.payment_hash, PaymentStatus.FAILED, reason="I don't pay")
            self._soon(node, failed, self.pay_takes_s)
        else:
            super()._do_with_money(node, effect)

    def _settled(self, owner: str, settlement: Settlement) -> None:
        node = self.nodes[int(owner[-8:], 16)]
        if node.awake:
            self._soon(node, settlement, SETTLEMENT_TAKES_S)

    # --- messages

    def _send(self, node: Node, effect: fx.Send) -> None:
        assert isinstance(node, MeshNode)
        other = self._by_link[effect.link]
        edge = node.edges[other.number]
        delay = edge.delay_s
        for pause_s in (*RETRY_AFTER_S, 0.0):
            if not edge.loss or self.chance.random() >= edge.loss:
                break
            delay += pause_s
        else:
            self._undelivered(node, other, effect.message)
            return
        self._post(node, other, told_by(node.lie, effect.message), delay)

    def _greet(self, node: Node, effect: fx.Greet) -> None:
        assert isinstance(node, MeshNode)
        hello = self.hello(node, wants_reply=not effect.identity)
        heard: Iterable[int] = (self._by_link[effect.link].number,) if effect.identity else node.edges
        for number in heard:
            edge = node.edges[number]
            loss = edge.loss if effect.identity else 1 - edge.quality
            if not loss or self.chance.random() >= loss:
                self._post(node, self.nodes[number], hello, edge.delay_s)

    def _post(self, node: MeshNode, other: MeshNode, message: Message, delay_s: float) -> None:
        message_id, boot, their_boot = next(self._ids), node.boot, other.boot
        bolt11 = message.bolt11 if isinstance(message, Invoice | Refund) else ""
        decoded = self.payments.decode(bolt11) if bolt11 else None

        def arrive() -> None:
            if other.boot != their_boot or not other.awake:
                if not isinstance(message, Hello):
                    self._undelivered(node, other, message)
                return
            self.messages += 1
            if isinstance(message, Statement | Invoice):
                self._read_before_a_bill(other, node.identity)
            sends_to = self._sends_to(other, node, message.destination) if isinstance(message, Propose) else None
            onward = self.onward(other, message.destination) if isinstance(message, Ask) else Onward()
            heard = node.identity, node.link, boot, message, message_id, decoded, sends_to, onward
            self.happen(other, ev.MessageReceived(*heard))
            if wants_receipt(message) and node.boot == boot:
                self._soon(node, ev.Delivered(other.identity, other.link, message), delay_s)

        self.at(self.now + delay_s, arrive)

    def _undelivered(self, node: MeshNode, other: MeshNode, message: Message) -> None:
        self._soon(node, ev.Undelivered(other.identity, other.link, message), GIVE_UP_S)

    def _read_before_a_bill(self, node: MeshNode, server: bytes) -> None:
        links = node.world.peers.links_of(server)
        bought = [key for link in links for key, one in link.contracts.items() if one.role is Role.CLIENT]
        if bought:
            self.happen(node, ev.UsageRead(node.kernel.read(node.world.with_sales(bought))))

    def onward(self, node: MeshNode, destination: Prefix) -> Onward:
        """Say where packets to a destination go on from a node; not by a router if the destination is the next node."""
        target = int(destination.network_address) - int(FIRST_ADDRESS)
        following = self.routes.next_hop(node.number, target)
        if following in (NOWHERE, target):
            return Onward()
        return Onward(destination, Router(*self.nodes[following].link))

    def _sends_to(self, node: MeshNode, server: MeshNode, destination: Prefix) -> Prefix | None:
        """Return a proposal's destination if the node's route to it leads through the server; never on the link."""
        target = int(destination.network_address) - int(FIRST_ADDRESS)
        if target == server.number or self.routes.next_hop(node.number, target) != server.number:
            return None
        return destination


def _made(number: int, graph: Graph, settings: Settings, restarts: bool) -> MeshNode:
    identity = number.to_bytes(32, "little")
    payee = b"\2" + identity
    return MeshNode(
        name=payee.hex(),
        identity=identity,
        link=(INTERFACE, b"\2\0" + number.to_bytes(4, "big")),
        settings=settings,
        node=PaymentNode("sandbox", False, True, 1000, payee=payee),
        ledger=Ledger() if restarts else Books(),
        number=number,
        address=FIRST_ADDRESS + number,
        edges=graph.edges[number],
    )
