"""Stand-ins for what surrounds the core of a simulated node: its kernel, its ledger, and the payment network of both.

The kernel follows the real one's rules (a packet passes if its contract has bytes left and its account has money left,
the buyer's meter never refuses, each hint once for a limit). The ledger keeps the last record of each key. The payment
network moves money once for an invoice.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from hashlib import sha256
from ipaddress import ip_address

from ngp.core.messages import Prefix, Role, StatementLine
from ngp.core.records import (
    AccountRecord,
    BilledRecord,
    BlockRecord,
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
from ngp.core.values import (
    UNKNOWN_PAYMENT,
    AccountLimit,
    AccountReading,
    DecodedInvoice,
    Grant,
    Hint,
    HintKind,
    KernelNeighbour,
    PaymentOutcome,
    PaymentStatus,
    Reading,
)

PAYEES = {"gateway": b"\2" + b"g" * 32, "client": b"\2" + b"c" * 32}  # the nodes' keys


@dataclass
class Slot:
    """One contract in the simulated kernel."""

    grant: Grant
    expires_at: float
    used_to: int
    used_from: int
    mark: int = -1  # the limit that a packet met last

    @property
    def used(self) -> int:
        return self.used_to + self.used_from


@dataclass
class KernelAccount:
    """One account in the simulated kernel."""

    limit: AccountLimit
    credit_until: float = 0.0
    spent: int = 0
    mark: int | None = None

    def most(self, now: float) -> int:
        return self.limit.limit_units + (self.limit.credit_units if now < self.credit_until else 0)


class Kernel:
    """Gate and meter of one node."""

    def __init__(self) -> None:
        self.slots: dict[bytes, Slot] = {}
        self.accounts: dict[bytes, KernelAccount] = {}
        self.entries: dict[tuple[int, Role], dict[Prefix, Slot]] = {}
        self.neighbours: dict[int, KernelNeighbour] = {}
        self.hints: list[Hint] = []
        self.passed: dict[bytes, int] = {}
        self.last_of: dict[bytes, Reading | AccountReading] = {}

    def limit(self, limit: AccountLimit, now: float) -> None:
        entry = self.accounts.setdefault(limit.account, KernelAccount(limit))
        entry.limit, entry.credit_until = limit, now + limit.credit_ends_in_s

    def forget(self, account: bytes) -> None:
        assert not any(slot.grant.account == account for slot in self.slots.values()), "an account with contracts"
        self.accounts.pop(account, None)

    def grant(self, grant: Grant, now: float) -> None:
        assert not grant.account or grant.account in self.accounts, "a contract without its account"
        slot = self.slots.get(grant.contract)
        if slot is None:
            slot = Slot(grant, 0.0, grant.used_to_base_bytes, grant.used_from_base_bytes)
            self.slots[grant.contract] = slot
        slot.grant, slot.expires_at = grant, now + grant.expires_in_s
        self.entries.setdefault((grant.neighbour, grant.role), {})[grant.destination] = slot

    def revoke(self, contract: bytes) -> None:
        slot = self.slots.pop(contract, None)
        if slot is not None:
            entries = self.entries[slot.grant.neighbour, slot.grant.role]
            if entries.get(slot.grant.destination) is slot:
                del entries[slot.grant.destination]

    @staticmethod
    def reading(slot: Slot) -> Reading:
        return Reading(slot.grant.contract, slot.used_to, slot.used_from, slot.mark == slot.grant.limit_bytes)

    def account_reading(self, account: bytes, now: float) -> AccountReading:
        entry = self.accounts[account]
        return AccountReading(account, entry.spent, entry.mark == entry.most(now))

    def find(self, neighbour: int, role: Role, address: str) -> Slot | None:
        where = ip_address(address)
        found = [
            (prefix.prefixlen, slot)
            for prefix, slot in self.entries.get((neighbour, role), {}).items()
            if where in prefix
        ]
        return max(found, key=lambda item: item[0])[1] if found else None

    def carry(self, neighbour: int, role: Role, address: str, size: int, towards: bool, now: float) -> bool | None:
        """Let a packet through (True), refuse it (False), or say that nothing covers it (None).

        A buyer's meter counts by the same rule, and what it doesn't count it lets through all the same.
        """
        slot = self.find(neighbour, role, address)
        if slot is None:
            return None
        return self._charge(slot, size, towards, now) or role is Role.CLIENT

    def _charge(self, slot: Slot, size: int, towards: bool, now: float) -> bool:
        grant, used = slot.grant, slot.used
        if grant.blocked or now >= slot.expires_at:
            return False
        if used + size > grant.limit_bytes:
            if slot.mark != grant.limit_bytes:
                slot.mark = grant.limit_bytes
                self.hints.append(Hint(HintKind.EXHAUSTED, grant.contract))
            return False
        if grant.account and not self._spend(self.accounts[grant.account], size * grant.price_msat_per_gib, now):
            return False
        if towards:
            slot.used_to += size
        else:
            slot.used_from += size
        self.passed[grant.contract] = self.passed.get(grant.contract, 0) + size
        if grant.low_water_bytes is not None and used < grant.low_water_bytes <= used + size:
            self.hints.append(Hint(HintKind.LOW, grant.contract))
        return True

    def _spend(self, entry: KernelAccount, cost: int, now: float) -> bool:
        if cost and entry.spent + cost > entry.most(now):
            if entry.mark != entry.most(now):
                entry.mark = entry.most(now)
                self.hints.append(Hint(HintKind.ACCOUNT_EXHAUSTED, entry.limit.account))
            return False
        before, low = entry.spent, entry.limit.low_water_units
        entry.spent += cost
        if low is not None and before < low <= entry.spent:
            self.hints.append(Hint(HintKind.ACCOUNT_LOW, entry.limit.account))
        return True

    def changed(self) -> tuple[Reading, ...]:
        """Read the contracts that changed since the last call."""
        return tuple(
            reading for contract, slot in self.slots.items() if self._is_news(contract, reading := self.reading(slot))
        )

    def changed_accounts(self, now: float) -> tuple[AccountReading, ...]:
        """Read the accounts that changed since the last call."""
        found = (self.account_reading(account, now) for account in self.accounts)
        return tuple(reading for reading in found if self._is_news(reading.account, reading))

    def _is_news(self, key: bytes, reading: Reading | AccountReading) -> bool:
        is_news = self.last_of.get(key) != reading
        self.last_of[key] = reading
        return is_news


class Ledger:
    """Upserts by key."""

    def __init__(self) -> None:
        self.neighbours: dict[object, NeighbourRecord] = {}
        self.blocked: set[bytes] = set()
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
            case BlockRecord():
                (self.blocked.add if record.blocked else self.blocked.discard)(record.identity)
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
        waiting = (PaymentState.OPEN, PaymentState.PENDING)
        over = [one for one in self.payments.values() if one.state not in waiting and one.settled_at_s <= now_s - 86400]
        by_neighbour: dict[bytes, int] = {}
        for payment in spent:
            cost = payment.amount_msat + payment.fee_msat
            by_neighbour[payment.identity] = by_neighbour.get(payment.identity, 0) + cost
        return Snapshot(
            neighbours=tuple(self.neighbours.values()),
            accounts=tuple(self.accounts.values()),
            contracts=tuple(c for c in self.contracts.values() if not c.closed_at_s or c.closed_at_s > now_s - 3600),
            payments=tuple(one for one in self.payments.values() if one not in over),
            cursor=self.cursor,
            spent_total_msat=sum(by_neighbour.values()),
            spent_by_neighbour_msat=tuple(by_neighbour.items()),
            forgotten_s=max((one.settled_at_s for one in over if one.direction is Direction.OUT), default=0),
            blocked=tuple(self.blocked),
        )


class PaymentNetwork:
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
        self.invoices_network = "sandbox"
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
        return DecodedInvoice(payment_hash, amount, 600, payee, self.invoices_network, "")

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
            self.unknown.setdefault(payment_hash, self._chance.choice((PaymentStatus.SUCCEEDED, PaymentStatus.FAILED)))
        return PaymentOutcome(payment_hash, status, reason="" if status is PaymentStatus.PENDING else "no route")

    def track(self, payer: str, payment_hash: bytes) -> PaymentOutcome:
        if payment_hash in self.paid or self.unknown.get(payment_hash) is PaymentStatus.SUCCEEDED:
            return self.settle(payer, payment_hash)
        self.unknown.pop(payment_hash, None)
        return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)
