"""Stand-ins for what surrounds the core of a simulated node: its kernel, its ledger, and the payment network of both.

The kernel follows the real one's rules (a packet passes if its contract has bytes left and its account has money left,
the buyer's meter never refuses, each hint comes once for a limit). The ledger keeps the last record of each key. The
payment network moves money once for an invoice.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from ngp import store
from ngp.core.kernel import (
    AccountLimit,
    AccountReading,
    Adopted,
    AdoptedAccount,
    AdoptedContract,
    Grant,
    Hint,
    HintKind,
    KernelNeighbour,
    Reading,
)
from ngp.core.messages import Prefix, Role, StatementLine
from ngp.core.payment_node import UNKNOWN_PAYMENT, DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.core.prefixes import covers, host_prefix
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
from ngp.errors import KernelError

PAYEES = {"gateway": b"\2" + b"g" * 32, "client": b"\2" + b"c" * 32}  # the nodes' keys


@dataclass
class Slot:
    """One contract in the simulated kernel."""

    grant: Grant
    expires_at: float
    used_to: int
    used_from: int
    mark: int | None = None  # the limit at which a packet was last refused

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


UNSEEN = (0, 0, None)
"""Stands for the last reading of a contract or an account that was never read."""


class Kernel:
    """The simulated gate and meter of one node. It passes the real kernel's test suite (`tests/network_suite.py`)."""

    def __init__(self) -> None:
        self.slots: dict[bytes, Slot] = {}
        self.accounts: dict[bytes, KernelAccount] = {}
        self.entries: dict[tuple[bytes, Role], dict[Prefix, Slot]] = {}
        self.neighbours: dict[int, KernelNeighbour] = {}
        self.hints: list[Hint] = []
        self.passed: dict[bytes, int] = {}
        self._seen: dict[bytes, tuple[int, int, int | None]] = {}
        self._used: dict[bytes, None] = {}  # contracts in which something was counted or refused since the last call
        self._drawn_on: dict[bytes, None] = {}  # accounts, likewise
        self._whose: dict[int, bytes] = {}

    def limit(self, limit: AccountLimit, now: float) -> None:
        entry = self.accounts.setdefault(limit.account, KernelAccount(limit))
        entry.limit, entry.credit_until = limit, now + limit.credit_ends_in_s

    def forget(self, account: bytes) -> None:
        assert not any(slot.grant.account == account for slot in self.slots.values()), "an account with contracts"
        self.accounts.pop(account, None)
        self._seen.pop(account, None)
        self._drawn_on.pop(account, None)

    def grant(self, grants: Sequence[Grant], now: float) -> None:
        for grant in grants:
            if grant.account and grant.account not in self.accounts:
                raise KernelError(f"the account {grant.account.hex()} isn't in the kernel")
        for grant in grants:
            slot = self.slots.get(grant.contract)
            if slot is None:
                slot = Slot(grant, 0.0, grant.used_to_base_bytes, grant.used_from_base_bytes)
                self.slots[grant.contract] = slot
                self._seen[grant.contract] = (slot.used_to, slot.used_from, None)
            slot.grant, slot.expires_at = grant, now + grant.expires_in_s
            self.entries.setdefault((self._who(grant.neighbour), grant.role), {})[grant.destination.prefix] = slot

    def revoke(self, contract: bytes) -> None:
        slot = self.slots.pop(contract, None)
        self._seen.pop(contract, None)
        self._used.pop(contract, None)
        if slot is not None:
            entries = self.entries[self._who(slot.grant.neighbour), slot.grant.role]
            if entries.get(slot.grant.destination.prefix) is slot:
                del entries[slot.grant.destination.prefix]

    def read(self, contracts: Iterable[bytes]) -> tuple[Reading, ...]:
        slots = [slot for contract in contracts if (slot := self.slots.get(contract)) is not None]
        return tuple(
            Reading(slot.grant.contract, slot.used_to, slot.used_from, slot.mark == slot.grant.limit_bytes)
            for slot in slots
        )

    def read_accounts(self, accounts: Iterable[bytes], now: float) -> tuple[AccountReading, ...]:
        return tuple(
            AccountReading(account, entry.spent, entry.mark == entry.most(now))
            for account in accounts
            if (entry := self.accounts.get(account)) is not None
        )

    def changed(self) -> tuple[Reading, ...]:
        """Read the contracts in which something was counted or refused since the last call."""
        news = []
        for contract in self._used:  # runs every second, through days of simulated time
            slot = self.slots[contract]
            counted = (slot.used_to, slot.used_from, slot.mark)
            if self._seen.get(contract, UNSEEN) != counted:
                self._seen[contract] = counted
                news.append(contract)
        self._used.clear()
        return self.read(news) if news else ()

    def changed_accounts(self, now: float) -> tuple[AccountReading, ...]:
        """Read the accounts in which something was spent or refused since the last call."""
        news = []
        for account in self._drawn_on:
            entry = self.accounts[account]
            counted = (entry.spent, 0, entry.mark)
            if self._seen.get(account, UNSEEN) != counted:
                self._seen[account] = counted
                news.append(account)
        self._drawn_on.clear()
        return self.read_accounts(news, now) if news else ()

    def adopted(self, now: float) -> Adopted:
        """Return what a daemon finds in the kernel when it starts after another one died."""
        accounts = [
            AdoptedAccount(
                replace(
                    entry.limit,
                    credit_ends_in_s=entry.credit_until - now,
                    low_water_units=low if (low := entry.limit.low_water_units) and entry.spent < low else None,
                ),
                *self.read_accounts([account], now),
            )
            for account, entry in self.accounts.items()
        ]
        contracts = [
            AdoptedContract(slot.grant._replace(expires_in_s=slot.expires_at - now), *self.read([contract]))
            for contract, slot in self.slots.items()
        ]
        self.changed(), self.changed_accounts(now)  # all of it is read now
        return Adopted(tuple(accounts), tuple(contracts), now)

    def find(self, neighbour: int, role: Role, address: str) -> Slot | None:
        return self.find_host(neighbour, role, host_prefix(ip_address(address)))

    def find_host(self, neighbour: int, role: Role, host: Prefix) -> Slot | None:
        """Find the contract that covers an address: the longest prefix, and none is longer than the host's own."""
        entries = self.entries.get((self._who(neighbour), role))
        if not entries:
            return None
        if (slot := entries.get(host)) is not None:
            return slot
        found = [(prefix.prefixlen, slot) for prefix, slot in entries.items() if covers(prefix, host)]
        return max(found, key=lambda item: item[0])[1] if found else None

    def _who(self, neighbour: int) -> bytes:
        """Return what all links of a neighbour have in common: a packet of any of them counts in the same contract."""
        who = self._whose.get(neighbour)
        if who is None:
            known = self.neighbours.get(neighbour)
            who = known.identity if known is not None and known.identity else str(neighbour).encode()
            self._whose[neighbour] = who
        return who

    def carry(self, neighbour: int, role: Role, address: str, size: int, towards: bool, now: float) -> bool | None:
        """Let a packet through (True), refuse it (False), or say that no contract covers it (None).

        A buyer's meter counts by the same rule, but also lets through what it doesn't count.
        """
        return self.meter(self.find(neighbour, role, address), size, towards, now)

    def meter(self, slot: Slot | None, size: int, towards: bool, now: float) -> bool | None:
        """Let a packet of a contract through, or refuse it, as `carry` does."""
        if slot is None:
            return None
        return self._charge(slot, size, towards, now) or slot.grant.role is Role.CLIENT

    def _charge(self, slot: Slot, size: int, towards: bool, now: float) -> bool:
        grant, used = slot.grant, slot.used
        self._used[grant.contract] = None
        if grant.blocked or now >= slot.expires_at:
            return False
        if used + size > grant.limit_bytes:
            if slot.mark != grant.limit_bytes:
                slot.mark = grant.limit_bytes
                self.hints.append(Hint(HintKind.EXHAUSTED, grant.contract))
            return False
        cost = size * grant.price_msat_per_gib if grant.role is Role.SERVER else 0
        if cost and not self._spend(grant.account, cost, now):
            return False
        if towards:
            slot.used_to += size
        else:
            slot.used_from += size
        self.passed[grant.contract] = self.passed.get(grant.contract, 0) + size
        if grant.low_water_bytes is not None and used < grant.low_water_bytes <= used + size:
            self.hints.append(Hint(HintKind.LOW, grant.contract))
        return True

    def _spend(self, account: bytes, cost: int, now: float) -> bool:
        entry = self.accounts[account]
        self._drawn_on[account] = None
        if entry.spent + cost > entry.most(now):
            if entry.mark != entry.most(now):
                entry.mark = entry.most(now)
                self.hints.append(Hint(HintKind.ACCOUNT_EXHAUSTED, account))
            return False
        before, low = entry.spent, entry.limit.low_water_units
        entry.spent += cost
        if low is not None and before < low <= entry.spent:
            self.hints.append(Hint(HintKind.ACCOUNT_LOW, account))
        return True


def _metered(record: AccountRecord) -> int:
    """Return what an account's contracts were charged by our own meters, msat."""
    return record.charged_msat if record.role is Role.SERVER else record.metered_msat


class Books:
    """The last record of each key, to look at."""

    def __init__(self) -> None:
        self.neighbours: dict[object, NeighbourRecord] = {}
        self.blocked: set[bytes] = set()
        self.accounts: dict[tuple[bytes, Role], AccountRecord] = {}
        self.contracts: dict[bytes, ContractRecord] = {}
        self.payments: dict[tuple[Direction, bytes], PaymentRecord] = {}
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
            case BilledRecord():
                known = self.contracts.get(record.contract)
                theirs = known is not None and (known.role, known.identity) == (record.role, record.identity)
                if known and theirs and known.closed_at_s and known.billed_bytes < record.billed_bytes:
                    self.contracts[record.contract] = known._replace(billed_bytes=record.billed_bytes)
            case ForgetLink():
                self.neighbours.pop((record.identity, record.interface, record.link_address), None)
            case ForgetNeighbours():
                self._forget(record.identities)

    def put_all(self, records: Iterable[Record]) -> None:
        """Put the records of one step: if the process dies after it, an account and its contracts must agree."""
        grown = defaultdict[tuple[bytes, Role], int](int)
        for record in records:
            if isinstance(record, ContractRecord):
                contract = self.contracts.get(record.contract)
                grown[record.identity, record.role] += record.charged_msat - (contract.charged_msat if contract else 0)
            elif isinstance(record, AccountRecord):
                account = self.accounts.get((record.identity, record.role))
                grown[record.identity, record.role] -= _metered(record) - (_metered(account) if account else 0)
            self.put(record)
        assert not any(grown.values()), f"what accounts and their contracts were charged differs, msat: {dict(grown)}"

    def _forget(self, identities: tuple[bytes, ...]) -> None:
        self.neighbours = {key: one for key, one in self.neighbours.items() if one.identity not in identities}
        self.accounts = {key: one for key, one in self.accounts.items() if one.identity not in identities}
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


class Ledger(Books):
    """Books that also keep the journal and all that a restart reads: it reads the real ledger, which holds the same."""

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[JournalRecord] = []
        self._records: list[Record] = []
        self._committed = 0
        self._folder = TemporaryDirectory(prefix="ngp-simulated-")

    def put(self, record: Record) -> None:
        self._records.append(record)
        if isinstance(record, JournalRecord):
            self.journal.append(record)
        else:
            super().put(record)

    def _forget(self, identities: tuple[bytes, ...]) -> None:
        super()._forget(identities)
        self.journal = [line for line in self.journal if line.identity not in identities or line.payment_hash]

    def written(self) -> int:
        """Return how much is written now, for `lose`."""
        return len(self._records)

    def lose(self, written: int) -> None:
        """Cut the power: records put after `written` records are lost. No restart may have read them."""
        assert self._committed <= written
        left, self._records, self.journal = self._records[:written], [], []
        super().__init__()
        for record in left:
            self.put(record)

    def load(self, now_s: int) -> Snapshot:
        """Write all records to the real ledger, and return what a node that starts reads there."""
        real = store.at(Path(self._folder.name)).open()
        try:
            real.commit(self._records[self._committed :])
            self._committed = len(self._records)
            return real.load(now_s)
        finally:
            real.close()


class PaymentNetwork:
    """The simulated payment network that both nodes are on."""

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
        """Cancel an invoice. Returns False if it is too late, or if the payee's node is away."""
        if self.away or payment_hash in self.paid or payment_hash in self.unknown:
            return False
        self.cancelled.add(payment_hash)
        return True

    def pay(self, payer: str, payment_hash: bytes, fee_limit_msat: int) -> PaymentOutcome:
        refused = payment_hash in self.cancelled or self.fee_msat > fee_limit_msat
        if payment_hash not in self.invoices or refused:
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason="no route")  # an invented hash
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
