"""World: all that the core knows, and the few helpers that the rules of trade and money share.

Rules are functions of the modules beside this one; this holds state. `effects` collects what the present step wants
done; `Gatekeeper.step` takes it away.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ngp.core.account import Account, CreditLine, Patience
from ngp.core.budget import Spending
from ngp.core.contract import CloseReason, Contract, State
from ngp.core.coverage import Coverage
from ngp.core.effects import (
    Effect,
    ForgetAccount,
    GrantContract,
    HaltContract,
    LimitAccount,
    Log,
    Persist,
    RevokeContract,
    Send,
    SetNeighbour,
)
from ngp.core.events import PacketHeld
from ngp.core.messages import Address, Message, Prefix, Role
from ngp.core.openings import Openings, Pools, pools_of
from ngp.core.reach import Reach
from ngp.core.records import (
    BilledRecord,
    ForgetLink,
    ForgetNeighbours,
    JournalRecord,
    NeighbourRecord,
    PaymentRecord,
)
from ngp.core.settings import Settings
from ngp.core.timers import Due, Timers
from ngp.core.values import FULL_PACKET_BYTES, Grant, KernelNeighbour, Now

Link = tuple[str, bytes]

END_LINGER_S = 3.0
LOW_LASTS_S = 4
TOP_UP_LASTS_S = 10
UNUSED_S = 3600.0


@dataclass(slots=True, eq=False)
class Neighbour:
    """One identity on one link.

    Attributes:
        quotes: contracts that are not running yet or were refused: what it costs us without paying for it.
        kept: stands in the ledger; a stranger that only says hello doesn't get there.
        network_told_mono_s: when the operator was told last that its payments are on another network than ours.
        payee: public key of its payment node, as it says (and proves, where its node can sign).
        contracts: all that stand on this link, whatever their state.
    """

    identity: bytes
    link: Link
    number: int
    network: str = ""
    sells: bool = False
    buys: bool = False
    addresses: tuple[Address, ...] = ()
    payee: bytes = b""
    boot: int = 0
    blocked: bool = False
    up: bool = False
    first_seen_s: int = 0
    last_seen_s: int = 0
    heard_mono_s: float = 0.0
    met_mono_s: float = 0.0
    quotes: int = 0
    kept: bool = False
    network_told_mono_s: float = float("-inf")
    contracts: dict[bytes, Contract] = field(default_factory=dict)

    def record(self) -> NeighbourRecord:
        """Return what the ledger keeps of it."""
        return NeighbourRecord(
            identity=self.identity,
            interface=self.link[0],
            link_address=self.link[1],
            boot=self.boot,
            sells=self.sells,
            buys=self.buys,
            first_seen_s=self.first_seen_s,
            last_seen_s=self.last_seen_s,
        )

    def for_kernel(self, has_paid: bool, was_paid: bool) -> KernelNeighbour:
        """Return what the kernel is told of it; a blocked neighbour neither buys nor sells."""
        return KernelNeighbour(
            neighbour=self.number,
            interface=self.link[0],
            link_address=self.link[1],
            local_addresses=self.addresses,
            buys_from_us=self.buys and not self.blocked,
            sells_to_us=self.sells and not self.blocked,
            blocked=self.blocked,
            has_paid=has_paid,
            was_paid=was_paid,
        )


@dataclass(frozen=True, slots=True)
class Means:
    """What the payment module behind us is, as the core needs to know it; `payee` is its node's public key."""

    network: str
    real_money: bool
    settles_by_proof: bool
    least_amount_msat: int
    payee: bytes = b""


@dataclass(slots=True, eq=False)
class World:
    """The whole state of a node.

    Attributes:
        reach: the channels of our payment node; None where it has none that we know of, and nothing bounds a payment.
    """

    settings: Settings
    means: Means
    new_id: Callable[[], bytes]
    now: Now
    first_number: int = 1
    neighbours: dict[tuple[bytes, Link], Neighbour] = field(default_factory=dict)
    by_link: dict[Link, Neighbour] = field(default_factory=dict)
    by_identity: dict[bytes, dict[Link, Neighbour]] = field(default_factory=dict)
    blocked: set[bytes] = field(default_factory=set)
    accounts: dict[tuple[bytes, Role], Account] = field(default_factory=dict)
    contracts: dict[bytes, Contract] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)
    invoices: dict[bytes, PaymentRecord] = field(default_factory=dict)
    payments: dict[bytes, PaymentRecord] = field(default_factory=dict)
    credit: CreditLine = field(default_factory=CreditLine)
    spending: Spending = field(default_factory=Spending)
    openings: Openings = field(default_factory=Openings)
    patience: Patience = field(default_factory=Patience)
    timers: Timers = field(default_factory=Timers)
    strangers: deque[tuple[float, PacketHeld]] = field(default_factory=deque)
    silence_due: dict[str, float] = field(default_factory=dict)
    other_versions: dict[tuple[str, bytes], float] = field(default_factory=dict)
    greeted: dict[str, float] = field(default_factory=dict)
    bought: dict[tuple[bytes, str], float] = field(default_factory=dict)
    declined: dict[tuple[bytes, Link, Prefix], float] = field(default_factory=dict)
    ended: dict[bytes, Contract] = field(default_factory=dict)
    unflushed: set[bytes] = field(default_factory=set)
    uncancelled: set[bytes] = field(default_factory=set)
    """Invoices that we withdrew and our payment node may still take money for."""
    unheard_of: set[bytes] = field(default_factory=set)
    """Payments of ours that the node, asked once, knew nothing of."""
    forgotten_s: int = 0
    """When the last payment of ours that `payments` has no more was touched, by our clock of then; UTC seconds."""
    acknowledged: dict[bytes, tuple[float, BilledRecord]] = field(default_factory=dict)
    reach: Reach | None = None
    looked_for_idle_mono_s: float = float("-inf")
    cursor: int = 0
    numbers: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)

    def do(self, effect: Effect) -> None:
        """Have something done."""
        self.effects.append(effect)

    def log(self, text: str, level: int = logging.INFO) -> None:
        """Tell the operator."""
        self.effects.append(Log(level, text))

    def count(self, name: str) -> None:
        """Count something for `ngp status`."""
        self.counters[name] = self.counters.get(name, 0) + 1

    def next_number(self) -> int:
        """Return a kernel number that no neighbour has, of this boot or an earlier one."""
        self.numbers += 1
        return self.first_number + self.numbers

    def account(self, identity: bytes, role: Role) -> Account:
        """Return the neighbour's account in a role, opening it at first use."""
        account = self.accounts.get((identity, role))
        if account is None:
            account = self.accounts[identity, role] = Account(identity, role)
        return account

    def neighbour_of(self, contract: Contract) -> Neighbour | None:
        """Return the neighbour on the other side, if it is known."""
        return self.neighbours.get((contract.identity, contract.link))

    def add_neighbour(self, neighbour: Neighbour) -> None:
        """Enter a neighbour; a blocked identity stays blocked wherever it shows up."""
        neighbour.blocked = neighbour.blocked or neighbour.identity in self.blocked
        self.neighbours[neighbour.identity, neighbour.link] = neighbour
        self.by_identity.setdefault(neighbour.identity, {})[neighbour.link] = neighbour

    def tell_kernel(self, neighbour: Neighbour) -> None:
        """Have the kernel know a neighbour as it is now."""
        who = neighbour.identity
        has_paid, was_paid = (
            account is not None and account.paid_msat > 0
            for account in (self.accounts.get((who, role)) for role in (Role.SERVER, Role.CLIENT))
        )
        was_paid = was_paid or any(one.identity == who for one in self.payments.values())  # before it can know
        self.do(SetNeighbour(neighbour.for_kernel(has_paid, was_paid)))

    def tell_kernel_of(self, identity: bytes) -> None:
        """Have the kernel know an identity's links as they are now."""
        for neighbour in self.by_identity.get(identity, {}).values():
            self.tell_kernel(neighbour)

    def remove_neighbour(self, neighbour: Neighbour) -> None:
        """Take a neighbour out, with its account if there is nothing on it."""
        self.neighbours.pop((neighbour.identity, neighbour.link), None)
        if self.by_link.get(neighbour.link) is neighbour:
            del self.by_link[neighbour.link]
        links = self.by_identity.get(neighbour.identity, {})
        links.pop(neighbour.link, None)
        if not links:
            self.by_identity.pop(neighbour.identity, None)
            self.forget_if_gone(neighbour.identity, neighbour.kept)
        elif neighbour.kept:
            self.do(Persist(ForgetLink(neighbour.identity, *neighbour.link)))

    def accounts_of(self, identity: bytes) -> list[Account]:
        """Return a neighbour's accounts, in either role."""
        return [account for role in Role if (account := self.accounts.get((identity, role))) is not None]

    def forget_if_gone(self, identity: bytes, kept: bool = True) -> None:
        """Forget an identity that is on no link, where nothing is lost by it: keys cost nothing to make."""
        if identity in self.by_identity or identity in self.blocked:
            return
        accounts = self.accounts_of(identity)
        if (kept or accounts) and all(account.empty for account in accounts):
            self.forget([identity])

    def forget(self, identities: Sequence[bytes]) -> None:
        """Forget identities, their accounts and all that the ledger has of them."""
        for identity in identities:
            for role in Role:
                self.accounts.pop((identity, role), None)
        self.do(Persist(ForgetNeighbours(tuple(identities))))

    def add_contract(self, contract: Contract) -> None:
        """Enter a contract."""
        self.contracts[contract.contract] = contract
        self.coverage.add(contract)
        neighbour = self.neighbour_of(contract)
        if neighbour is not None:
            neighbour.contracts[contract.contract] = contract

    def remove_contract(self, contract: Contract) -> None:
        """Take a contract out of our tables and the kernel's."""
        self.contracts.pop(contract.contract, None)
        self.coverage.remove(contract)
        neighbour = self.neighbour_of(contract)
        if neighbour is not None:
            neighbour.contracts.pop(contract.contract, None)
        self.do(RevokeContract(contract.contract))

    def _pools(self, role: Role, identity: bytes, link: Link) -> Pools:
        account = self.accounts.get((identity, role))
        return pools_of(role, identity, link, account is not None and account.paid_msat > 0)

    def may_open(self, role: Role, neighbour: Neighbour) -> bool:
        """Say whether a neighbour may open one more contract, and tell the operator of one that may not."""
        pools = self._pools(role, neighbour.identity, neighbour.link)
        if self.openings.has_room(pools, self.now.monotonic_s):
            return True
        self.count("openings_refused")
        if self.openings.should_tell(self.now.monotonic_s):
            self.log(
                f"neighbour {neighbour.identity.hex()[:8]} on {neighbour.link[0]}: too many contracts that came to "
                f"nothing; it gets no new ones until some are used, or in a while",
                logging.WARNING,
            )
        return False

    def count_opening(self, contract: Contract) -> None:
        """Count a contract as one that came to nothing, until it shows its worth."""
        if not contract.pools:
            contract.pools = self._pools(contract.role, contract.identity, contract.link)
            self.openings.count(contract.pools, self.now.monotonic_s)

    def uncount_opening(self, contract: Contract) -> bool:
        """Give an opening back that showed its worth. Returns whether it was still counted."""
        if not contract.pools:
            return False
        self.openings.count(contract.pools, self.now.monotonic_s, -1)
        contract.pools = ()
        return True

    def count_idle(self, contract: Contract, by: int = 1) -> None:
        """Count what a contract cost beside its opening: an idle renewal; or (negative) forgive another's opening."""
        pools = self._pools(contract.role, contract.identity, contract.link)
        self.openings.count(pools, self.now.monotonic_s, by)

    def watch_end(self, contract: Contract) -> None:
        """Look at a contract when its lifetime ends, and before that when it was not used for an hour from the start.

        The server counts the lifetime from when the accept arrives, so a client's meter stays a little longer.
        """
        at = contract.expires_mono_s + (END_LINGER_S if contract.role is Role.CLIENT else 0.0)
        if not contract.used_bytes:
            at = min(at, contract.carried_mono_s + UNUSED_S)
        self.timers.set(Due.EXPIRY, contract.contract, at)

    def any_link(self, identity: bytes) -> Neighbour | None:
        """Return the link on which an identity was heard last; its account is one, whatever the link."""
        known = [neighbour for neighbour in self.by_identity.get(identity, {}).values() if neighbour.up]
        return max(known, key=lambda neighbour: neighbour.heard_mono_s, default=None)

    def send(self, neighbour: Neighbour, message: Message, reply_to: int = 0) -> None:
        """Send to a neighbour that is up; to another it would only be retransmitted into the void."""
        if neighbour.up:
            self.do(Send(neighbour.identity, neighbour.link, message, reply_to))

    def sold_to(self, identity: bytes) -> list[Contract]:
        """Return the contracts that a client has with us and that aren't over."""
        links = self.by_identity.get(identity, {}).values()
        found = [one for link in links for one in link.contracts.values() if one.role is Role.SERVER and one.running]
        account = self.accounts.get((identity, Role.SERVER))
        if account is not None and len(found) < account.running:  # some are being closed after their link was dropped
            ours = (one for one in self.contracts.values() if (one.identity, one.role) == (identity, Role.SERVER))
            found = [one for one in ours if one.running]
        return found

    def limit(self, account: Account) -> None:
        """Have the kernel match a client's account, while it has contracts that cost something."""
        if account.role is not Role.SERVER:
            return
        if not account.running:
            if account.told is not None and not account.counting:
                account.told = None
                self.do(ForgetAccount(account.identity))
            return
        if account.told is None:  # its counter begins anew
            account.count_from(0, self.sold_to(account.identity))
        limit = account.limit(self.now.monotonic_s, self.low_msat(account))
        until = account.credit.until_mono_s if account.credit is not None and limit.credit_units else 0.0
        if account.told != (limit.limit_units, limit.credit_units, until):
            account.told = (limit.limit_units, limit.credit_units, until)
            self.do(LimitAccount(limit))

    def low_msat(self, account: Account) -> int:
        """Return below what a balance is topped up; a large top-up counts while such use may go on."""
        low = max(self.settings.payment_amount_msat // 2, int(account.rate_msat_s * LOW_LASTS_S))
        lately = self.now.monotonic_s - account.topped_up_mono_s < 2 * TOP_UP_LASTS_S
        return max(low, account.top_up_msat // 2) if lately else low

    def grant(self, contract: Contract) -> None:
        """Have the kernel match a contract."""
        self.do(GrantContract(self.kernel_grant(contract)))

    def kernel_grant(self, contract: Contract, blocked: bool = False) -> Grant:
        """Express a contract as the kernel's share of it."""
        server = contract.role is Role.SERVER
        low_water_bytes = None  # renewing is the client's part
        if not server:
            low_water_bytes = max(0, contract.data_limit_bytes - renewal_bytes(self.settings, contract))
        return Grant(
            contract=contract.contract,
            neighbour=contract.neighbour,
            role=contract.role,
            destination=contract.destination,
            account=contract.identity if server else b"",
            price_msat_per_gib=contract.dearest_msat_per_gib if server else 0,
            limit_bytes=contract.data_limit_bytes,
            low_water_bytes=low_water_bytes,
            expires_in_s=contract.expires_mono_s - self.now.monotonic_s,
            blocked=blocked,
            used_to_base_bytes=contract.used_to_bytes,
            used_from_base_bytes=contract.used_from_bytes,
        )

    def save(self, contract: Contract, durable: bool = False) -> None:
        """Write a contract and its account to the ledger."""
        account = self.account(contract.identity, contract.role)
        self.keep(contract)
        self.save_contract(contract)
        self.save_account(account, durable)

    def keep(self, contract: Contract) -> None:
        """Let the ledger know the neighbour of a contract."""
        neighbour = self.neighbour_of(contract)
        if neighbour is not None and not neighbour.kept:
            neighbour.kept = True
            self.do(Persist(neighbour.record()))

    def save_contract(self, contract: Contract) -> None:
        """Write a contract; its account goes into the same step, so that their sums agree after a crash."""
        self.unflushed.discard(contract.contract)
        self.account(contract.identity, contract.role).unsaved_msat -= contract.unsaved_msat
        contract.unsaved_msat = 0
        self.do(Persist(contract.record()))

    def save_account(self, account: Account, durable: bool = False) -> None:
        """Write an account to the ledger."""
        until_s = 0
        if account.credit is not None and account.debt_msat:
            until_s = self.now.utc_s + int(account.credit.until_mono_s - self.now.monotonic_s)
        self.do(Persist(account.record(until_s), durable))

    def journal(
        self, kind: str, identity: bytes, state: str, amount_msat: int = 0, contract: bytes = b"", paid: bytes = b""
    ) -> None:
        """Write one line of `ngp ledger`."""
        self.do(Persist(JournalRecord(self.now.utc_s, kind, identity, contract, amount_msat, paid, state)))

    def move(self, contract: Contract, state: State, reason: str = "") -> None:
        """Change a contract's state and say so in one line."""
        contract.move(state)
        contract.reason = reason
        self.log(
            f"contract {contract.contract.hex()[:8]} {contract.role} {contract.identity.hex()[:8]} "
            f"{contract.destination} {state}{f' ({reason})' if reason else ''}"
        )

    def halt(self, contract: Contract, reason: CloseReason) -> None:
        """Begin to close: the kernel stops first, its last reading closes the books."""
        if contract.halting is None:
            contract.halting = reason
            self.do(HaltContract(self.kernel_grant(contract, blocked=True)))

    def close(self, contract: Contract, charged_msat: int) -> None:
        """Book the end of a contract that was halted and read for the last time, and take it out of all tables.

        Args:
            charged_msat: as `ngp ledger` tells it: negative where it is taken off a neighbour's money.
        """
        self.move(contract, State.CLOSED, (contract.halting or CloseReason.CANCELLED).value)
        contract.closed_at_s = self.now.utc_s
        self.journal("charge", contract.identity, contract.reason, charged_msat, contract.contract)
        self.save(contract)
        for due in (Due.EXPIRY, Due.EXHAUSTED, Due.QUOTE, Due.RENEWAL):
            self.timers.clear(due, contract.contract)
        self.remove_contract(contract)


def renewal_bytes(settings: Settings, contract: Contract) -> int:
    """Return how many bytes before the limit the client renews.

    `auto`: a quarter of a contract's data, ours or, where it sells less, the server's; or what three seconds at the
    present rate need, but at most four contracts' worth, so that a burst can't make it buy without end. Never less than
    a full packet: what is left would be too little for the next one, and too much to renew.
    """
    if settings.data_renewal_bytes is not None:
        return settings.data_renewal_bytes
    fast = int(contract.rate_bytes_s * 3)
    bought = min(settings.contract_data_bytes, contract.data_limit_bytes - contract.renewed_at_bytes)
    return max(FULL_PACKET_BYTES, min(max(bought // 4, fast), 4 * settings.contract_data_bytes))


def renewal_time_s(settings: Settings, contract: Contract) -> float:
    """Return how many seconds before its end the client renews; `auto`: a tenth of the lifetime, 1 to 60 s.

    At most half of the lifetime, which is the server's to choose: else each renewal would call for the next one.
    """
    wanted = settings.time_renewal_s
    wanted_s = min(60.0, max(1.0, contract.lifetime_s / 10)) if wanted is None else float(wanted)
    return wanted_s if wanted_s < contract.lifetime_s else contract.lifetime_s / 2
