"""Playbook: two nodes, their kernels, ledgers and a payment network, simulated, so that a test reads as a story.

Only the core is real. The kernel follows the real one's rules (pass if used + bytes <= granted, the buyer's meter never
refuses, each hint once for a value), the ledger stores a step's records before any effect is carried out, messages may
be late, reordered, doubled or lost, and a crash may come between any two effects.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import ip_address, ip_network
from itertools import count

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.messages import Accept, Hello, Invoice, Message, Paid, Prefix, Refund, Role, Statement, StatementLine
from ngp.core.records import (
    AccountRecord,
    BilledRecord,
    ContractRecord,
    CursorRecord,
    Direction,
    ForgetLink,
    ForgetNeighbours,
    JournalRecord,
    NeighbourRecord,
    PaymentRecord,
    PaymentState,
    Record,
    Snapshot,
)
from ngp.core.restore import restore
from ngp.core.settings import Budgets, FeeLimit, Settings
from ngp.core.values import (
    UNKNOWN_PAYMENT,
    AdoptedContract,
    DecodedInvoice,
    Grant,
    Hint,
    HintKind,
    KernelNeighbour,
    Now,
    PaymentOutcome,
    PaymentStatus,
    Reading,
    Verdict,
)
from ngp.core.world import Means, World

UTC_AT_START_S = 1_700_000_000
HOST_ADDRESS = ip_address("198.51.100.1")
MSAT_PER_KB = 1 << 20  # msat/GiB
BILLS_A_PAGE = 2  # so that a few contracts already are several pages
GIVE_UP_S = 15.0
PAYEES = {"gateway": b"\2" + b"g" * 32, "client": b"\2" + b"c" * 32}  # the nodes' keys


def settings(**changes: object) -> Settings:
    """Return settings like the shipped ones, with changes."""
    usual = Settings(
        link_modules=("udp",),
        network_module="ip",
        payment_module="sandbox",
        mesh_interfaces=("eth1",),
        ignore_interfaces=(),
        ngp_addresses=(),
        lnd_connect=None,
        lnd_host=None,
        lnd_cert=None,
        lnd_macaroon=None,
        electrum_host=None,
        electrum_user=None,
        electrum_password_file=None,
        electrum_wallet=None,
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
class Slot:
    """One contract in the simulated kernel."""

    grant: Grant
    expires_at: float
    used_to: int
    used_from: int
    refused: int = 0
    told_depleted: int = -1


class Kernel:
    """Gate and meter of one node."""

    def __init__(self) -> None:
        self.slots: dict[bytes, Slot] = {}
        self.entries: dict[tuple[int, Role], dict[Prefix, Slot]] = {}
        self.neighbours: dict[int, KernelNeighbour] = {}
        self.hints: list[Hint] = []
        self.passed: dict[bytes, int] = {}
        self.last_of: dict[bytes, Reading] = {}

    def grant(self, grant: Grant, now: float) -> None:
        slot = self.slots.get(grant.contract)
        if slot is None:
            slot = Slot(grant, 0.0, grant.used_to_base_bytes, grant.used_from_base_bytes)
            self.slots[grant.contract] = slot
        slot.grant, slot.expires_at = grant, now + grant.expires_in_s
        self.entries.setdefault((grant.neighbour, grant.role), {})[grant.destination] = slot

    def revoke(self, contract: bytes) -> Reading | None:
        slot = self.slots.pop(contract, None)
        if slot is None:
            return None
        entries = self.entries[slot.grant.neighbour, slot.grant.role]
        if entries.get(slot.grant.destination) is slot:
            del entries[slot.grant.destination]
        return self.reading(slot)

    @staticmethod
    def reading(slot: Slot) -> Reading:
        return Reading(slot.grant.contract, slot.used_to, slot.used_from, slot.refused)

    def find(self, neighbour: int, role: Role, address: str) -> Slot | None:
        where = ip_address(address)
        found = [
            (prefix.prefixlen, slot)
            for prefix, slot in self.entries.get((neighbour, role), {}).items()
            if where in prefix
        ]
        return max(found, key=lambda item: item[0])[1] if found else None

    def carry(self, neighbour: int, role: Role, address: str, size: int, towards: bool, now: float) -> bool | None:
        """Let a packet through (True), refuse it (False), or say that nothing covers it (None)."""
        slot = self.find(neighbour, role, address)
        if slot is None:
            return None
        grant, used = slot.grant, slot.used_to + slot.used_from
        if role is Role.SERVER:
            if grant.blocked or now >= slot.expires_at:
                return False
            if used + size > grant.granted_bytes:
                slot.refused += size
                if slot.told_depleted != grant.granted_bytes:
                    slot.told_depleted = grant.granted_bytes
                    self.hints.append(Hint(HintKind.DEPLETED, grant.contract))
                return False
        if towards:
            slot.used_to += size
        else:
            slot.used_from += size
        self.passed[grant.contract] = self.passed.get(grant.contract, 0) + size
        if used < grant.low_water_bytes <= used + size:
            self.hints.append(Hint(HintKind.LOW, grant.contract))
        return True

    def changed(self) -> tuple[Reading, ...]:
        """Read what changed since the last call."""
        readings = []
        for contract, slot in self.slots.items():
            reading = self.reading(slot)
            if self.last_of.get(contract) != reading:
                self.last_of[contract] = reading
                readings.append(reading)
        return tuple(readings)


class Ledger:
    """Upserts by key."""

    def __init__(self) -> None:
        self.neighbours: dict[object, NeighbourRecord] = {}
        self.accounts: dict[tuple[bytes, Role], AccountRecord] = {}
        self.contracts: dict[bytes, ContractRecord] = {}
        self.payments: dict[tuple[Direction, bytes], PaymentRecord] = {}
        self.journal: list[JournalRecord] = []
        self.cursor = 0

    def put(self, record: Record) -> None:
        match record:
            case NeighbourRecord():
                self.neighbours[record.identity, record.interface, record.link_address] = record
            case AccountRecord():
                self.accounts[record.identity, record.role] = record
            case ContractRecord():
                self.contracts[record.contract] = record
            case PaymentRecord():
                before = self.payments.get((record.direction, record.payment_hash))
                final = (PaymentState.SETTLED, PaymentState.SUCCEEDED)
                assert before is None or before.state not in final or before.state is record.state, "paid twice"
                self.payments[record.direction, record.payment_hash] = record
            case CursorRecord():
                self.cursor = record.cursor
            case JournalRecord():
                self.journal.append(record)
            case BilledRecord():
                known = self.contracts.get(record.contract)
                theirs = known is not None and (known.role, known.identity) == (record.role, record.identity)
                if known and theirs and known.closed_at_s and known.billed_bytes < record.billed_bytes:
                    self.contracts[record.contract] = replace(known, billed_bytes=record.billed_bytes)
            case ForgetLink():
                self.neighbours.pop((record.identity, record.interface, record.link_address), None)
            case ForgetNeighbours():
                self._forget(record.identities)

    def _forget(self, identities: tuple[bytes, ...]) -> None:
        self.neighbours = {key: one for key, one in self.neighbours.items() if one.identity not in identities}
        self.accounts = {key: one for key, one in self.accounts.items() if one.identity not in identities}
        self.journal = [line for line in self.journal if line.identity not in identities or line.payment_hash]
        self.contracts = {key: one for key, one in self.contracts.items() if one.identity not in identities}

    def unacknowledged(
        self, identity: bytes, after: tuple[int, bytes], limit: int
    ) -> tuple[tuple[StatementLine, ...], tuple[int, bytes] | None]:
        found = sorted(
            ((c.closed_at_s, c.contract), StatementLine(c.contract, c.used_to_bytes, c.used_from_bytes, c.charged_msat))
            for c in self.contracts.values()
            if c.role is Role.SERVER and c.closed_at_s and c.billed_bytes < c.used_to_bytes + c.used_from_bytes
            if c.identity == identity and (c.closed_at_s, c.contract) > after
        )[:limit]
        return tuple(line for _, line in found), found[-1][0] if len(found) == limit else None

    def snapshot(self, now_s: int) -> Snapshot:
        spent = [
            payment
            for payment in self.payments.values()
            if payment.direction is Direction.OUT and payment.state in (PaymentState.PENDING, PaymentState.SUCCEEDED)
        ]
        by_neighbour: dict[bytes, int] = {}
        for payment in spent:
            cost = payment.amount_msat + payment.fee_msat
            by_neighbour[payment.identity] = by_neighbour.get(payment.identity, 0) + cost
        return Snapshot(
            neighbours=tuple(self.neighbours.values()),
            accounts=tuple(self.accounts.values()),
            contracts=tuple(
                c for c in self.contracts.values() if not c.closed_at_s or c.closed_at_s > now_s - 3600
            ),
            payments=tuple(self.payments.values()),
            cursor=self.cursor,
            spent_hour_msat=0,
            spent_day_msat=0,
            spent_total_msat=sum(by_neighbour.values()),
            spent_by_neighbour_msat=tuple(by_neighbour.items()),
        )


class Mint:
    """The payment network that both nodes are on."""

    def __init__(self, chance: random.Random) -> None:
        self.preimages: dict[bytes, bytes] = {}
        self.invoices: dict[bytes, tuple[str, int]] = {}
        self.paid: dict[bytes, int] = {}
        self.stream: dict[str, list[tuple[int, bytes, int]]] = {}
        self.outcomes: list[PaymentStatus] = []
        self.sent: dict[str, dict[bytes, int]] = {}
        self.unknown: dict[bytes, PaymentStatus] = {}
        self.fee_msat = 0
        self.cancelled: set[bytes] = set()
        self.away = False
        self._chance = chance

    def invoice(self, owner: str, amount_msat: int) -> bytes:
        preimage = self._chance.randbytes(32)
        payment_hash = sha256(preimage).digest()
        self.preimages[payment_hash] = preimage
        self.invoices[payment_hash] = (owner, amount_msat)
        return payment_hash

    def decode(self, bolt11: str) -> DecodedInvoice | None:
        try:
            payment_hash = bytes.fromhex(bolt11)
        except ValueError:
            return None
        if payment_hash not in self.invoices:
            return None
        owner, amount = self.invoices[payment_hash]
        payee = PAYEES[owner].hex() if owner in PAYEES else owner
        return DecodedInvoice(payment_hash, amount, 600, payee, "sandbox", "")

    def settle(self, payer: str, payment_hash: bytes) -> PaymentOutcome:
        """Move the money, once."""
        owner, amount = self.invoices[payment_hash]
        if payment_hash not in self.paid:
            self.paid[payment_hash] = amount
            self.sent.setdefault(payer, {})[payment_hash] = amount
            stream = self.stream.setdefault(owner, [])
            stream.append((len(stream) + 1, payment_hash, amount))
        return PaymentOutcome(payment_hash, PaymentStatus.SUCCEEDED, self.preimages[payment_hash], self.fee_msat)

    def cancel(self, payment_hash: bytes) -> bool:
        """Take no money for an invoice any more; False: too late, or the payee's node is away."""
        if self.away or payment_hash in self.paid or payment_hash in self.unknown:
            return False
        self.cancelled.add(payment_hash)
        return True

    def pay(self, payer: str, payment_hash: bytes, fee_limit_msat: int) -> PaymentOutcome:
        refused = payment_hash in self.cancelled or self.fee_msat > fee_limit_msat
        if payment_hash not in self.invoices or refused:
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason="no route")  # made up by somebody
        status = self.outcomes.pop(0) if self.outcomes else PaymentStatus.SUCCEEDED
        if payment_hash in self.paid or status is PaymentStatus.SUCCEEDED:
            return self.settle(payer, payment_hash)
        if status is PaymentStatus.PENDING:
            self.unknown.setdefault(
                payment_hash, self._chance.choice((PaymentStatus.SUCCEEDED, PaymentStatus.FAILED))
            )
        return PaymentOutcome(payment_hash, status, reason="" if status is PaymentStatus.PENDING else "no route")

    def track(self, payer: str, payment_hash: bytes) -> PaymentOutcome:
        if payment_hash in self.paid or self.unknown.get(payment_hash) is PaymentStatus.SUCCEEDED:
            return self.settle(payer, payment_hash)
        self.unknown.pop(payment_hash, None)
        return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)


@dataclass
class Node:
    """One simulated node."""

    name: str
    identity: bytes
    link: tuple[str, bytes]  # as its neighbour sees it
    settings: Settings
    means: Means
    kernel: Kernel = field(default_factory=Kernel)
    ledger: Ledger = field(default_factory=Ledger)
    boot: int = 1
    gatekeeper: Gatekeeper = None  # type: ignore[assignment]
    held: dict[int, Callable[[Verdict], None]] = field(default_factory=dict)
    held_since: dict[int, float] = field(default_factory=dict)
    log: list[object] = field(default_factory=list)
    settled: int = 0
    crash_after: int = -1

    @property
    def world(self) -> World:
        return self.gatekeeper.world


class Sim:
    """A gateway, a client, and time."""

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
    ) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.loss, self.doubles, self.late_s, self.latency_s, self.proof = loss, doubles, late_s, latency_s, proof
        self.mint = Mint(self.chance)
        self.pay_takes_s = 0.2
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._ids, self._handles = count(1 << 32), count(1)
        means = Means("sandbox", False, True, 1000)
        gateways, clients = (replace(means, payee=PAYEES[name]) for name in ("gateway", "client"))
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
        return Now(UTC_AT_START_S + int(self.now), self.now)

    def _fresh(self, node: Node) -> None:
        world = World(
            settings=node.settings,
            means=node.means,
            new_id=lambda: self.chance.randbytes(16),
            now=self.clock(),
            first_number=node.boot * 1000,
        )
        node.gatekeeper = Gatekeeper(world)

    def at(self, when: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._handles), deed))

    def _rounds(self, node: Node) -> None:
        def read() -> None:
            readings = node.kernel.changed()
            if readings:
                self.happen(node, ev.UsageRead(readings))
            self._stream(node)
            self.at(self.now + 0.5, read)

        def greet() -> None:
            self.carry_out(node, [fx.Greet("eth1")])
            self.at(self.now + 20.0, greet)

        self.at(self.now + 0.5, read)
        self.at(self.now + 20.0, greet)

    def _stream(self, node: Node) -> None:
        for cursor, payment_hash, amount in self.mint.stream.get(node.name, [])[node.settled :]:
            node.settled = cursor
            self.happen(node, ev.SettlementSeen(cursor, payment_hash, amount))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            wakes = [
                (wake, node)
                for node in (self.gateway, self.client)
                if (wake := node.gatekeeper.next_wake_mono_s()) is not None
            ]
            wake, node = min(wakes, key=lambda item: item[0], default=(float("inf"), self.gateway))
            then = self._agenda[0][0] if self._agenda else float("inf")
            if min(wake, then) > end:
                break
            if wake <= then:
                self.now = max(self.now, wake)
                self.happen(node, ev.Tick())
            else:
                self.now = max(self.now, then)
                heapq.heappop(self._agenda)[2]()
        self.now = end

    # --- a node's daemon

    def happen(self, node: Node, event: ev.Event) -> None:
        """Step, store, then carry out; or crash on the way."""
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

    def crash(self, node: Node, reboot: bool = False) -> None:
        """Kill the daemon and start it again; held packets are lost, the kernel goes on unless the machine reboots."""
        for decide in list(node.held.values()):
            decide(Verdict.DROP)
        node.held.clear()
        node.held_since.clear()
        node.boot += 1
        if reboot:
            node.kernel = Kernel()
        self._fresh(node)
        adopted = [
            AdoptedContract(replace(slot.grant, expires_in_s=slot.expires_at - self.now), node.kernel.reading(slot))
            for slot in node.kernel.slots.values()
        ]
        node.settled = node.ledger.cursor
        snapshot = node.ledger.snapshot(self.clock().utc_s)
        self.carry_out(node, restore(node.gatekeeper, snapshot, adopted, self.clock()))
        self.carry_out(node, [fx.Greet("eth1")])

    def _do(self, node: Node, effect: fx.Effect) -> None:
        match effect:
            case fx.Send():
                self._post(node, effect.message, effect.reply_to)
            case fx.Greet():
                says = (node.settings.sells, node.settings.buys, (), "ngp", not effect.identity, node.means.payee)
                about = Hello(node.means.network, *says)
                self._post(node, about, effect.reply_to)
            case fx.Decide():
                assert effect.handle in node.held, f"handle {effect.handle} has its verdict already"
                node.held_since.pop(effect.handle)
                node.held.pop(effect.handle)(effect.verdict)
            case fx.SetNeighbour():
                node.kernel.neighbours[effect.neighbour.neighbour] = effect.neighbour
            case fx.ForgetNeighbour():
                node.kernel.neighbours.pop(effect.neighbour, None)
            case fx.GrantContract():
                node.kernel.grant(effect.grant, self.now)
            case fx.HaltContract():
                node.kernel.grant(effect.grant, self.now)
                reading = node.kernel.reading(node.kernel.slots[effect.grant.contract])
                self._soon(node, ev.Halted(effect.grant.contract, reading))
            case fx.RevokeContract():
                last = node.kernel.revoke(effect.contract)
                if last is not None:
                    self._soon(node, ev.UsageRead((last,)))
            case fx.MakeInvoice():
                payment_hash = self.mint.invoice(node.name, effect.amount_msat)
                made = ev.InvoiceMade(
                    effect.identity, effect.kind, payment_hash.hex(), payment_hash, effect.amount_msat, 600
                )
                self._soon(node, made, 0.01)
            case fx.CancelInvoice():
                if self.mint.cancel(effect.payment_hash):
                    self._soon(node, ev.InvoiceCancelled(effect.payment_hash), 0.01)
            case fx.PayInvoice():
                outcome = self.mint.pay(node.name, effect.payment_hash, effect.fee_limit_msat)
                self._soon(node, ev.PaymentResult(outcome), self.pay_takes_s)
            case fx.RecallBills():
                page = node.ledger.unacknowledged(effect.identity, effect.after, BILLS_A_PAGE)
                self._soon(node, ev.BillsRecalled(effect.identity, *page))
            case fx.TrackPayment():
                self._soon(node, ev.PaymentResult(self.mint.track(node.name, effect.payment_hash)), 0.05)
            case _:
                pass

    def _soon(self, node: Node, event: ev.Event, in_s: float = 0.0) -> None:
        boot = node.boot

        def arrive() -> None:
            if node.boot == boot:
                self.happen(node, event)

        self.at(self.now + in_s, arrive)

    # --- the link

    def _post(self, node: Node, message: Message, reply_to: int) -> None:
        if type(message) in self.silenced:
            return
        other, message_id, boot = self.peer(node), next(self._ids), node.boot
        their_boot = other.boot
        decoded = self.mint.decode(message.bolt11) if isinstance(message, Invoice | Refund) and message.bolt11 else None

        def arrive() -> None:
            if other.boot != their_boot and not isinstance(message, Hello):
                self._soon(node, ev.Undelivered(other.identity, other.link, message))  # it was for the former life
                return
            received = ev.MessageReceived(node.identity, node.link, boot, message, message_id, reply_to, decoded)
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
        """Tell the sender what became of a message that its receiver took, unless the receiver died of it."""
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
        """Send a packet of the client towards a destination."""
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
        packet = ev.PacketHeld(
            handle, self.client.link, ip_address("192.0.2.7"), ip_address(destination), size, ip_network("0.0.0.0/0")
        )
        self.happen(gateway, packet)

    def down(self, source: str, size: int = 1000) -> None:
        """Send a packet of a remote address towards the client."""
        gateway, client = self.gateway, self.client
        if gateway.kernel.carry(self.number(gateway), Role.SERVER, source, size, False, self.now):
            self.delivered_down += size
            client.kernel.carry(self.number(client), Role.CLIENT, source, size, False, self.now)
        self._hints(gateway)
        self._hints(client)

    def _hints(self, node: Node) -> None:
        if node.kernel.hints:
            hints = tuple(node.kernel.hints)
            node.kernel.hints.clear()
            slots = [node.kernel.slots[h.contract] for h in hints if h.contract in node.kernel.slots]
            self._soon(node, ev.Hinted(hints, tuple(node.kernel.reading(slot) for slot in slots)), 0.001)

    def flow(self, destination: str, bytes_a_second: int, seconds: float, size: int = 1000) -> None:
        """Send a packet up and download the rest, evenly, while time passes."""
        packets = max(1, int(bytes_a_second * seconds / size))
        for number in range(packets):
            if number % 20:
                self.down(destination, size)
            else:
                self.up(destination, size)
            self.run(seconds / packets)

    # --- what a test asks

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
