"""Playbook: two simulated nodes with kernels, ledgers and a payment network, so that a test reads as a story.

Only the core is real; `stand_ins` simulates the rest. A step's records are stored before any effect is carried out.
Messages may be late, reordered, doubled or lost, and a crash may come between any two effects.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import count

from stand_ins import PAYEES, Kernel, Ledger, PaymentNetwork

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.buying.account import ServerAccount
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import HeldPacket, HintKind, Verdict
from ngp.core.messages import Accept, Hello, Invoice, Message, Paid, Prefix, Propose, Refund, Role, Statement
from ngp.core.money import PaymentNode
from ngp.core.payment_node import Settlement
from ngp.core.peers import Peers
from ngp.core.records import ContractRecord
from ngp.core.restore import restore
from ngp.core.selling.account import ClientAccount
from ngp.core.settings import Budgets, FeeLimit, Settings
from ngp.core.values import Now
from ngp.core.world import World

UTC_AT_START_S = 1_700_000_000
HOST_ADDRESS = ip_address("198.51.100.1")
MSAT_PER_KB = 1 << 20  # msat/GiB
BILLS_A_PAGE = 2  # so that a few contracts already need several pages
GIVE_UP_S = 15.0
SETTLES_S = 0.01


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
        prices=(),
        contract_data_bytes=100 << 20,
        contract_time_s=3600,
        data_renewal_bytes=None,
        time_renewal_s=None,
        payment_amount_msat=100_000,
        grace_data_bytes=256 << 10,
        grace_time_s=10,
        refund_when_asked=False,
        budgets=Budgets(20_000_000, None, 50_000_000, 200_000_000, None),
        fee_limit=FeeLimit(10_000, 1000),
        free_destinations=(),
        payment_services=(),
        payment_services_bytes_s=32 << 10,
        closed_when_stopped=False,
        queue_number=1,
        state_dir="/nowhere",
        contracts_max=131072,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@dataclass
class Node:
    """One simulated node."""

    name: str
    identity: bytes
    link: tuple[str, bytes]  # as its neighbour sees it
    settings: Settings
    node: PaymentNode
    kernel: Kernel = field(default_factory=Kernel)
    ledger: Ledger = field(default_factory=Ledger)
    boot: int = 1
    gatekeeper: Gatekeeper = None  # type: ignore[assignment]
    held: dict[int, Callable[[Verdict], None]] = field(default_factory=dict)
    held_since: dict[int, float] = field(default_factory=dict)
    log: list[object] = field(default_factory=list)
    sends_to_peer: bool = True  # its kernel says that what it sends goes through the other node
    sends_to_host: str = ""  # if set, only packets to this host go there
    settled: int = 0
    crash_after: int = -1

    @property
    def world(self) -> World:
        return self.gatekeeper.world

    def sends_to(self, message: object) -> Prefix | None:
        """Return the part of a proposal's destination to which this node's traffic goes through the other node."""
        if not isinstance(message, Propose) or not self.sends_to_peer:
            return None
        return ip_network(self.sends_to_host) if self.sends_to_host else message.destination


class Sim:
    """The simulation of a gateway and a client, with its own clock."""

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
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.utc_ahead_s = 0
        self.loss, self.doubles, self.late_s, self.latency_s, self.proof = loss, doubles, late_s, latency_s, proof
        self.payments = PaymentNetwork(self.chance)
        self.pay_takes_s = 0.2
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._ids, self._handles = count(1 << 32), count(1)
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
            self._fresh(node)
            self._rounds(node)
        self.carry_out(self.client, [fx.Greet("eth1")])
        self.run(0.1)

    def peer(self, node: Node) -> Node:
        return self.client if node is self.gateway else self.gateway

    def clock(self) -> Now:
        return Now(UTC_AT_START_S + int(self.now) + self.utc_ahead_s, self.now)

    def _fresh(self, node: Node) -> None:
        world = World(
            settings=node.settings,
            node=node.node,
            new_id=lambda: self.chance.randbytes(16),
            now=self.clock(),
            peers=Peers(first_number=node.boot * 1000),
        )
        node.gatekeeper = Gatekeeper(world)

    def at(self, when: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._handles), deed))

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

    def happen(self, node: Node, event: ev.Event) -> None:
        """Step the core, store the records, then carry out the effects; or crash on the way."""
        self.carry_out(node, node.gatekeeper.step(event, self.clock()))

    def carry_out(self, node: Node, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Persist):
                node.ledger.put(effect.record)
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

    def crash(self, node: Node, reboot: bool = False, reading_takes_s: float = 0.0) -> None:
        """Kill the daemon and start it again; held packets are lost, the kernel goes on unless the machine reboots.

        Args: reading_takes_s: how long the start takes to read the kernel's tables.
        """
        for decide in list(node.held.values()):
            decide(Verdict.DROP)
        node.held.clear()
        node.held_since.clear()
        node.boot += 1
        if reboot:
            node.kernel = Kernel()
        self._fresh(node)
        node.settled = node.ledger.cursor
        adopted = node.kernel.adopted(self.now)
        self.now += reading_takes_s
        snapshot = node.ledger.load(self.clock().utc_s)
        self.carry_out(node, restore(node.gatekeeper, snapshot, adopted, self.clock()))
        self.carry_out(node, [fx.Greet("eth1")])

    def _do(self, node: Node, effect: fx.Effect) -> None:
        read = node.kernel.read
        match effect:
            case fx.Send():
                self._post(node, effect.message)
            case fx.Greet():
                says = (node.settings.sells, node.settings.buys, (), "ngp", not effect.identity, node.node.payee)
                about = Hello(node.node.network, *says)
                self._post(node, about)
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
                self._when_settled(node, lambda: ev.Halted(effect.grant.contract, *read([effect.grant.contract])))
            case fx.RevokeContract():
                node.kernel.revoke(effect.contract)
            case fx.LimitAccount():
                node.kernel.limit(effect.limit, self.now)
            case fx.ForgetAccount():
                node.kernel.forget(effect.account)
            case fx.CountAccount():
                spent, which = node.kernel.accounts[effect.account].spent, effect
                self._when_settled(node, lambda: ev.AccountCounted(which.account, spent, read(which.contracts)))
            case fx.MakeInvoice():
                payment_hash = self.payments.invoice(node.name, effect.amount_msat)
                made = ev.InvoiceMade(
                    effect.identity, effect.kind, payment_hash.hex(), payment_hash, effect.amount_msat, 600
                )
                self._soon(node, made, 0.01)
            case fx.CancelInvoice():
                if self.payments.cancel(effect.payment_hash):
                    self._soon(node, ev.InvoiceCancelled(effect.payment_hash), 0.01)
            case fx.PayInvoice():
                outcome = self.payments.pay(node.name, effect.payment_hash, effect.fee_limit_msat)
                self._soon(node, outcome, self.pay_takes_s)
            case fx.RecallBills():
                page = node.ledger.unacknowledged(effect.identity, effect.after, BILLS_A_PAGE)
                self._soon(node, ev.BillsRecalled(effect.identity, *page))
            case fx.TrackPayment():
                self._soon(node, self.payments.track(node.name, effect.payment_hash), 0.05)
            case fx.Acknowledge() | fx.HandOver() | fx.Log() | fx.ProveSettlement():
                pass  # tests look at the log of effects; the payment network settles by itself
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
            part = other.sends_to(message)
            received = ev.MessageReceived(node.identity, node.link, boot, message, message_id, decoded, part)
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
        if not isinstance(message, Statement | Paid):
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

    def up(self, destination: str, size: int = 1000) -> None:
        """Send a packet from the client to a destination."""
        self.client.kernel.carry(self.number(self.client), Role.CLIENT, destination, size, True, self.now)
        self._hints(self.client)
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
        packet = HeldPacket(handle, self.client.link, ip_address(destination), ip_network("0.0.0.0/0"))
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

    def _hints(self, node: Node) -> None:
        if node.kernel.hints:
            hints = tuple(node.kernel.hints)
            node.kernel.hints.clear()
            of_account = any(h.kind in (HintKind.ACCOUNT_LOW, HintKind.ACCOUNT_EXHAUSTED) for h in hints)
            named = node.kernel.slots if of_account else dict.fromkeys(h.key for h in hints)
            self._soon(node, ev.UsageRead(node.kernel.read(named)), 0.001)
            self._soon(node, ev.Hinted(hints), 0.001)

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
