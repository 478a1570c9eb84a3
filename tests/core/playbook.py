"""Playbook: two simulated nodes with kernels, ledgers and a payment network, so that a test reads as a story.

Only the core is real; `core_tests.simulate` simulates the rest. Messages may be late, reordered, doubled or lost, and a
crash may come between any two effects.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from core_tests.simulate.simulation import Node as SimulatedNode
from core_tests.simulate.simulation import Simulation
from core_tests.simulate.stand_ins import PAYEES
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.buying.account import ServerAccount
from ngp.core.kernel import HeldPacket, Onward, Verdict
from ngp.core.messages import Accept, Hello, Invoice, Message, Prefix, Propose, Refund, Role, Statement
from ngp.core.payment_node import PaymentNode, Settlement
from ngp.core.records import ContractRecord
from ngp.core.selling.account import ClientAccount
from ngp.core.settings import Budgets, FeeLimit, Margin, Settings
from ngp.delivery import wants_receipt

HOST_ADDRESS = ip_address("198.51.100.1")
MSAT_PER_KB = 1 << 20  # msat/GiB
GIVE_UP_S = 15.0


def settings(**changes: object) -> Settings:
    """Return settings like the shipped ones, with changes."""
    usual = Settings(
        link_modules=("udp",),
        network_module="ip",
        payment_module="sandbox",
        mesh_interfaces=("eth1",),
        ignore_interfaces=(),
        lan_interfaces=None,
        ngp_addresses=(),
        modules={},
        csv_delay_blocks=1008,
        account_id=None,
        sells=True,
        buys=True,
        default_msat_per_gib=5 * MSAT_PER_KB,
        sell_msat_per_gib=5 * MSAT_PER_KB,
        sell_min_msat_per_gib=5 * MSAT_PER_KB,
        buy_msat_per_gib=5 * MSAT_PER_KB,
        buy_max_msat_per_gib=5 * MSAT_PER_KB,
        resale_margin=Margin(100_000, 0),
        load_price=None,
        prices=(),
        contract_data_bytes=100 << 20,
        contract_time_s=3600,
        data_renewal_bytes=None,
        time_renewal_s=None,
        payment_amount_msat=100_000,
        trust_amount_msat=200_000,  # so that it doesn't matter in tests of something else
        grace_data_bytes=256 << 10,
        grace_time_s=10,
        refund_when_asked=False,
        budgets=Budgets(20_000_000, None, 50_000_000, 200_000_000, None),
        fee_limit=FeeLimit(10_000, 1000),
        verify_tolerance_ppm=10_000,
        free_destinations=(),
        payment_services=(),
        payment_services_bytes_s=32 << 10,
        unpaid_bytes_s=0,
        closed_when_stopped=False,
        queue_number=1,
        state_dir="/nowhere",
        contracts_max=131072,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@dataclass
class Node(SimulatedNode):
    """One of the two nodes, with what tests look at and change."""

    log: list[object] = field(default_factory=list)
    sends_to_peer: bool = True  # its kernel says that what it sends goes through the other node
    sends_to_host: str = ""  # if set, only packets to this host go there
    crash_after: int = -1

    def sends_to(self, message: object) -> Prefix | None:
        """Return the part of a proposal's destination to which this node's traffic goes through the other node."""
        if not isinstance(message, Propose) or not self.sends_to_peer:
            return None
        return ip_network(self.sends_to_host) if self.sends_to_host else message.destination

    @property
    def sends_all(self) -> bool:
        """Whether the node's default route leads to the other node, and it buys default routes."""
        return self.settings.buys_default_route and self.sends_to_peer and not self.sends_to_host


class Sim(Simulation):
    """The simulation of a gateway and a client, with its own clock."""

    bills_a_page = 2  # so that a few contracts already need several pages

    def __init__(
        self,
        gateway: Settings | None = None,
        client: Settings | None = None,
        seed: int = 1,
        loss: float = 0.0,
        doubles: float = 0.0,
        late_s: float = 0.0,
        proof: bool = True,
        latency_s: float = 0.005,
        client_network: str = "sandbox",
        gateway_network: str = "sandbox",
    ) -> None:
        super().__init__(seed)
        self.loss, self.doubles, self.late_s, self.latency_s, self.proof = loss, doubles, late_s, latency_s, proof
        node = PaymentNode(gateway_network, False, True, 1000)
        gateways, clients = (replace(node, payee=PAYEES[name]) for name in ("gateway", "client"))
        clients = replace(clients, network=client_network)
        self.gateway = Node("gateway", b"G" * 32, ("eth1", b"\2gggg\1"), gateway or settings(), gateways)
        self.client = Node("client", b"C" * 32, ("eth1", b"\2cccc\1"), client or settings(sells=False), clients)
        self.delivered_up = 0
        self.delivered_down = 0
        self.refusals: list[Verdict] = []
        self.silenced: set[type] = set()
        for node in (self.gateway, self.client):
            self.fresh(node)
            self._rounds(node)
        self.carry_out(self.client, [fx.Greet("eth1")])
        self.run(0.1)

    def peer(self, node: Node) -> Node:
        return self.client if node is self.gateway else self.gateway

    def _rounds(self, node: Node) -> None:
        def read() -> None:
            readings, accounts = node.kernel.changed(), node.kernel.changed_accounts(self.now)
            if readings or accounts:
                self.happen(node, ev.UsageRead(readings, accounts))
            self._stream(node)
            self.at(self.now + 0.5, read)

        def greet() -> None:
            self.carry_out(node, [fx.Greet("eth1")])
            self.at(self.now + 20.0, greet)

        self.at(self.now + 0.5, read)
        self.at(self.now + 20.0, greet)

    def _stream(self, node: Node) -> None:
        for cursor, payment_hash, amount in self.payments.stream.get(node.name, [])[node.settled :]:
            node.settled = cursor
            self.happen(node, Settlement(cursor, payment_hash, amount))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            wake, waking = math.inf, self.gateway
            for node in (self.gateway, self.client):
                due = node.gatekeeper.next_wake_mono_s()
                if due is not None and due < wake:
                    wake, waking = due, node
            then = self._agenda[0][0] if self._agenda else math.inf
            if wake > end and then > end:
                break
            if wake <= then:
                self.now = max(self.now, wake)
                self.happen(waking, ev.Tick())
            else:
                self.now = max(self.now, then)
                heapq.heappop(self._agenda)[2]()
        self.now = end

    # --- a node's daemon

    def carry_out(self, node: Node, effects: list[fx.Effect]) -> None:
        """Store the records, then carry out the effects; or crash on the way."""
        node.ledger.put_all(effect.record for effect in effects if isinstance(effect, fx.Persist))
        for effect in effects:
            if isinstance(effect, fx.Persist):
                continue
            if node.crash_after == 0:
                node.crash_after = -1
                self.crash(node)
                return
            if node.crash_after > 0:
                node.crash_after -= 1
            node.log.append(effect)
            self._do(node, effect)

    def _send(self, node: Node, effect: fx.Send) -> None:
        self._post(node, effect.message)

    def _greet(self, node: Node, effect: fx.Greet) -> None:
        self._post(node, self.hello(node, wants_reply=not effect.identity))

    # --- the link

    def _post(self, node: Node, message: Message) -> None:
        if type(message) in self.silenced:
            return
        other, message_id, boot = self.peer(node), next(self._ids), node.boot
        their_boot = other.boot
        bolt11 = message.bolt11 if isinstance(message, Invoice | Refund) else ""
        decoded = self.payments.decode(bolt11) if bolt11 else None

        def arrive() -> None:
            if other.boot != their_boot and not isinstance(message, Hello):
                self._soon(node, ev.Undelivered(other.identity, other.link, message))  # the receiver has restarted
                return
            if isinstance(message, Statement | Invoice) and (readings := other.kernel.changed()):
                self.happen(other, ev.UsageRead(readings))  # as a daemon does before a bill
            part, whole = other.sends_to(message), other.sends_all
            received = ev.MessageReceived(
                node.identity, node.link, boot, message, message_id, decoded, part, sends_all=whole
            )
            self.happen(other, received)
            if node.boot == boot:
                self._receipt(node, other, message, other.boot == their_boot)

        if self.chance.random() < self.loss:
            if not isinstance(message, Hello):
                self._soon(node, ev.Undelivered(other.identity, other.link, message), GIVE_UP_S)
            return
        delay = self.latency_s + self.chance.random() * self.late_s
        self.at(self.now + delay, arrive)
        if self.chance.random() < self.doubles:
            self.at(self.now + delay + self.chance.random() * self.late_s, arrive)

    def _receipt(self, node: Node, other: Node, message: Message, survived: bool) -> None:
        """Tell the sender whether a message was delivered: it wasn't if the receiver crashed while handling it."""
        if not wants_receipt(message):
            return
        if survived and self.chance.random() >= self.loss:
            self._soon(node, ev.Delivered(other.identity, other.link, message), self.latency_s)
        else:
            self._soon(node, ev.Undelivered(other.identity, other.link, message), GIVE_UP_S)

    # --- traffic

    def number(self, node: Node) -> int:
        """Return the kernel's number of the other node."""
        other = self.peer(node)
        found = [n for n, it in node.kernel.neighbours.items() if (it.interface, it.link_address) == other.link]
        return max(found, default=0)

    def up(self, destination: str, size: int = 1000, lost: bool = False) -> None:
        """Send a packet from the client to a destination; a lost one leaves the client and doesn't arrive."""
        self.client.kernel.carry(self.number(self.client), Role.CLIENT, destination, size, True, self.now)
        self._hints(self.client)
        if not lost:
            self._gate(destination, size)

    def _gate(self, destination: str, size: int) -> None:
        gateway = self.gateway
        passed = gateway.kernel.carry(self.number(gateway), Role.SERVER, destination, size, True, self.now)
        if passed:
            self.delivered_up += size
        self._hints(gateway)
        if passed is not None:
            return
        handle = next(self._handles)

        def decide(verdict: Verdict) -> None:
            if verdict is Verdict.REPEAT:
                self._gate(destination, size)
            else:
                self.refusals.append(verdict)

        gateway.held[handle] = decide
        gateway.held_since[handle] = self.now
        packet = HeldPacket(handle, self.client.link, ip_address(destination), Onward(ip_network("0.0.0.0/0")))
        self.happen(gateway, packet)

    def down(self, source: str, size: int = 1000, lost: bool = False) -> None:
        """Send a packet from a remote address to the client; a lost one leaves the gateway and doesn't arrive."""
        gateway, client = self.gateway, self.client
        if gateway.kernel.carry(self.number(gateway), Role.SERVER, source, size, False, self.now):
            self.delivered_down += size
            if not lost:
                client.kernel.carry(self.number(client), Role.CLIENT, source, size, False, self.now)
        self._hints(gateway)
        self._hints(client)

    def flow(self, destination: str, bytes_a_second: int, seconds: float, size: int = 1000) -> None:
        """Send packets evenly over a time: one in twenty up, the others down."""
        packets = max(1, int(bytes_a_second * seconds / size))
        for number in range(packets):
            if number % 20:
                self.down(destination, size)
            else:
                self.up(destination, size)
            self.run(seconds / packets)

    # --- questions of a test

    def sent(self, node: Node, kind: type) -> list[Message]:
        """Return the messages of a kind that a node sent."""
        return [e.message for e in node.log if isinstance(e, fx.Send) and isinstance(e.message, kind)]  # type: ignore[attr-defined]

    def contracts(self, node: Node) -> list[ContractRecord]:
        return list(node.ledger.contracts.values())

    @property
    def passed(self) -> int:
        return self.delivered_up + self.delivered_down

    @property
    def accepts(self) -> list[Message]:
        return self.sent(self.client, Accept)


# --- helpers that many tests share


def states(sim: Sim) -> list[tuple[str, str]]:
    """Return the states of the gateway's contracts, each with the reason of its end."""
    return [(c.state, c.reason) for c in sim.contracts(sim.gateway)]


def account(sim: Sim) -> ClientAccount:
    """Return the client's account with the gateway, as the gateway has it."""
    return sim.gateway.world.clients[sim.client.identity]


def bought(sim: Sim) -> ServerAccount:
    """Return the client's account with the gateway, as the client has it."""
    return sim.client.world.servers[sim.gateway.identity]


def tell(sim: Sim, node: Node, message: object, **changes: object) -> list[fx.Effect]:
    """Let a node receive a message from the other node, and return the effects."""
    sender = sim.peer(node)
    heard = ev.MessageReceived(sender.identity, sender.link, sender.boot, message, 7 << 32)  # type: ignore[arg-type]
    heard = replace(heard, sends_to=node.sends_to(message))
    effects = node.gatekeeper.step(replace(heard, **changes), sim.clock())  # type: ignore[arg-type]
    sim.carry_out(node, effects)
    return effects
