"""World: the core's whole state, and the few helpers that the rules of trade and money share.

The rules are functions in the modules beside this one and in `selling` and `buying`. `World.effects` collects what the
present step wants done; `Gatekeeper.step` returns it. A contract is in several tables, counts and timers at a time.
All functions that add a contract to these or remove it are in this one class, so the file is long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ngp.core.account import Account
from ngp.core.buying.account import ServerAccount
from ngp.core.buying.memory import BuyingMemory
from ngp.core.buying.purchase import Purchase
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
from ngp.core.kernel import Grant, LastingTerms
from ngp.core.lines import LineLimits
from ngp.core.messages import Message, Prefix, Role
from ngp.core.money import Money
from ngp.core.newest import Newest
from ngp.core.openings import Openings, Pools, pools_of, share_of
from ngp.core.payment_node import PaymentNode
from ngp.core.peers import Link, Neighbour, Peers
from ngp.core.policy import Occasion
from ngp.core.pricing import about_price, amount_due_msat, ceil_to_sat_msat
from ngp.core.records import BilledRecord, ForgetNeighbours, JournalRecord
from ngp.core.rental.letting import Letting
from ngp.core.resold import Resold
from ngp.core.selling.account import ClientAccount, CreditLine
from ngp.core.selling.sale import Sale
from ngp.core.settings import Settings
from ngp.core.streams import Streams
from ngp.core.timers import CONTRACT_TIMERS, Due, Timers
from ngp.core.values import Now

END_LINGER_S = 3.0  # how much longer than a contract's lifetime its client keeps the meter
LOW_LASTS_S = 4  # an account is topped up when its balance lasts for less than this at the present rate
TOP_UP_LASTS_S = 10  # how long a top-up should last at the present rate
UNUSED_S = 3600.0  # a contract that never carried anything is closed after this time
LOG_AGAIN_S = 3600.0
MOST_LOGGED = 4096


@dataclass(slots=True, eq=False)
class World:
    """The whole state of a node.

    Attributes:
        clients: accounts of neighbours that buy from us; servers: our accounts with neighbours that sell to us.
        contracts: all sales and purchases that aren't closed; sales, purchases: find the one that covers an address.
        credit: outstanding grace, by link and interface.
        streams: what purchases bring that no client pays for.
        letting: what is let to tenants, whose accounts are among `clients`.
        resold: default routes that we buy to resell them.
        acknowledged: bills of closed sales that clients acknowledged lately, with the time.
        logged: when `log_seldom` last wrote a line about something.
        lines: how many lines of the log neighbours may cause.
        strangers: how many of `contracts` are with neighbours that no money passed to or from. Quotes and refusals are
            among them.
        room: slots of the kernel's contract table.
        identity: our public key.
        resting: by purchase, the sales that rest on it or on the quote for it.
        awaited: by server and destination, the sales that wait for its answer: for a quote, or for a renewal.
        unflushed: contracts whose latest totals the ledger doesn't have yet, in the order in which they changed.
        load_ppm: load of the upstream interface, in millionths of what it carries; 0 if prices don't depend on it.
    """

    settings: Settings
    node: PaymentNode
    new_id: Callable[[], bytes]
    now: Now
    peers: Peers = field(default_factory=Peers)
    clients: dict[bytes, ClientAccount] = field(default_factory=dict)
    servers: dict[bytes, ServerAccount] = field(default_factory=dict)
    contracts: dict[bytes, Sale | Purchase] = field(default_factory=dict)
    sales: Coverage[Sale] = field(default_factory=Coverage)
    purchases: Coverage[Purchase] = field(default_factory=Coverage)
    money: Money = field(default_factory=Money)
    buying: BuyingMemory = field(default_factory=BuyingMemory)
    credit: CreditLine = field(default_factory=CreditLine)
    streams: Streams = field(default_factory=Streams)
    letting: Letting = field(default_factory=Letting)
    resold: Resold = field(default_factory=Resold)
    openings: Openings = field(default_factory=Openings)
    timers: Timers = field(default_factory=Timers)
    strangers: int = 0
    load_ppm: int = 0
    room: int = 1 << 31
    identity: bytes = bytes(32)
    resting: dict[bytes, dict[bytes, Sale]] = field(default_factory=dict)
    awaited: dict[tuple[bytes, Prefix], dict[bytes, Sale]] = field(default_factory=dict)
    unflushed: dict[bytes, None] = field(default_factory=dict)
    acknowledged: dict[bytes, tuple[float, BilledRecord]] = field(default_factory=dict)
    logged: Newest[tuple[str, bytes], float] = field(default_factory=lambda: Newest(MOST_LOGGED))
    lines: LineLimits = field(default_factory=LineLimits)
    counters: dict[str, int] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)

    # --- effects ------------------------------------------------------------------------------------------------------

    def do(self, effect: Effect) -> None:
        """Add an effect to those of the present step."""
        self.effects.append(effect)

    def log(self, text: str, level: int = logging.INFO) -> None:
        """Write a line to the log."""
        self.effects.append(Log(level, text))

    def log_seldom(self, about: tuple[str, bytes], text: str, level: int = logging.WARNING) -> None:
        """Write a line to the log, but about one thing only once an hour: what neighbours do must not fill the log.

        Args: about: the reason, and the neighbour or interface.
        """
        now = self.now.monotonic_s
        if now < self.logged.get(about, float("-inf")) + LOG_AGAIN_S:
            return
        self.logged.note(about, now)
        self.log(text, level)

    def count(self, name: str) -> None:
        """Count an occurrence, for `ngp status`."""
        self.counters[name] = self.counters.get(name, 0) + 1

    def send(self, neighbour: Neighbour, message: Message, reply_to: int = 0) -> None:
        """Send a message to a neighbour, if the neighbour is up; else the message would only be sent again in vain."""
        if neighbour.up:
            self.do(Send(neighbour.identity, neighbour.link, message, reply_to))

    def journal(
        self, kind: str, identity: bytes, state: str, amount_msat: int = 0, contract: bytes = b"", paid: bytes = b""
    ) -> None:
        """Write one line of `ngp ledger`."""
        self.do(Persist(JournalRecord(self.now.utc_s, kind, identity, contract, amount_msat, paid, state)))

    def occasion(self, other: Neighbour | Contract) -> Occasion:
        """Return with whom, where and when we agree on a price: with a neighbour, or about one of its contracts."""
        return Occasion(other.identity, other.link[0], self.now.local_s, self.load_ppm)

    # --- accounts -----------------------------------------------------------------------------------------------------

    @property
    def accounts(self) -> list[ClientAccount | ServerAccount]:
        """All accounts, in either role."""
        return [*self.clients.values(), *self.servers.values()]

    def client(self, identity: bytes) -> ClientAccount:
        """Return a client's account, opening it at first use."""
        account = self.clients.get(identity)
        if account is None:
            account = self.clients[identity] = ClientAccount(identity)
        return account

    def server(self, identity: bytes) -> ServerAccount:
        """Return our account with a server, opening it at first use."""
        account = self.servers.get(identity)
        if account is None:
            account = self.servers[identity] = ServerAccount(identity)
        return account

    def account_of(self, contract: Contract) -> ClientAccount | ServerAccount:
        """Return the account that a contract draws on."""
        of_role = self.client if contract.role is Role.SERVER else self.server
        return of_role(contract.identity)

    def accounts_of(self, identity: bytes) -> list[ClientAccount | ServerAccount]:
        """Return a neighbour's accounts, in either role."""
        return [one for one in (self.clients.get(identity), self.servers.get(identity)) if one is not None]

    def limit(self, account: ClientAccount) -> None:
        """Bring the kernel's limit of a client's account up to date, while the account has contracts."""
        kernel = account.kernel
        if not account.running:
            if kernel.told is not None and not kernel.counting:
                kernel.told = None
                self.do(ForgetAccount(account.identity))
            return
        if kernel.told is None:  # the account is new to the kernel: its counter starts at 0
            account.count_from(0, self.sold_to(account.identity))
        limit = account.limit(self.now.monotonic_s, self.low_msat(account))
        until = account.credit.until_mono_s if account.credit is not None and limit.credit_units else 0.0
        if kernel.told != (limit.limit_units, limit.credit_units, until):
            kernel.told = (limit.limit_units, limit.credit_units, until)
            self.do(LimitAccount(limit))

    def low_msat(self, account: Account) -> int:
        """Return the balance below which an account is topped up: half of what may be prepaid, if that is less.

        Once there is credit, it is no more than what leaves room for the smallest payment: asked earlier, a buyer that
        trusts its seller with little more than that would decline.
        """
        trust, least = self.trust_msat(account), ceil_to_sat_msat(self.node.least_amount_msat)
        low = min(self.ample_msat(account), trust // 2)
        has_credit = isinstance(account, ClientAccount) and account.open_credit(self.now.monotonic_s) is not None
        return min(low, max(trust - least, least // 8)) if has_credit and account.balance_msat <= low else low

    def ample_msat(self, account: Account) -> int:
        """Return the balance that is enough until a top-up arrives; after a large top-up it is higher for a while."""
        low = max(self.settings.payment_amount_msat // 2, int(account.rate.a_second * LOW_LASTS_S))
        lately = self.now.monotonic_s - account.top_up.at_mono_s < 2 * TOP_UP_LASTS_S
        return max(low, account.top_up.amount_msat // 2) if lately else low

    def trust_msat(self, account: Account) -> int:
        """Return how much a buyer lets its seller have for nothing: as much as the seller has shown to have carried."""
        return max(self.first_trust_msat(account), account.served_msat)

    def first_trust_msat(self, account: Account) -> int:
        """Return how much a buyer lets a stranger have for nothing.

        It is TRUST_AMOUNT, usually what we would give as credit: GRACE_DATA at our own price.
        """
        settings, first_msat = self.settings, self.settings.trust_amount_msat
        if first_msat is None:
            ours = settings.sell_msat_per_gib if account.role is Role.SERVER else settings.buy_msat_per_gib
            first_msat = amount_due_msat(settings.grace_data_bytes, ((0, ours),))
        return max(first_msat, self.node.least_amount_msat)

    def save_account(self, account: ClientAccount | ServerAccount, durable: bool = False) -> None:
        """Write an account to the ledger."""
        if isinstance(account, ClientAccount) and account.credit is not None:
            until_s = self.now.utc_s + int(account.credit.until_mono_s - self.now.monotonic_s)
            self.do(Persist(account.record(until_s), durable))
        else:
            self.do(Persist(account.record(), durable))

    # --- neighbours ---------------------------------------------------------------------------------------------------

    def tell_kernel(self, neighbour: Neighbour) -> None:
        """Bring a neighbour's entry in the kernel up to date."""
        who = neighbour.identity
        # A payment counts from its order on, so that our kernel knows no later than the neighbour's.
        was_paid = self.has_traded(Role.CLIENT, who) or bool(self.money.payments_to(who))
        has_paid = self.has_traded(Role.SERVER, who)
        self.do(SetNeighbour(neighbour.for_kernel(who in self.peers.blocked, has_paid, was_paid)))

    def tell_kernel_of(self, identity: bytes) -> None:
        """Bring the entries of all links of an identity in the kernel up to date."""
        for neighbour in self.peers.links_of(identity):
            self.tell_kernel(neighbour)

    def keep(self, neighbour: Neighbour | None) -> None:
        """Write a neighbour to the ledger, if it isn't there yet."""
        if neighbour is not None and not neighbour.kept:
            neighbour.kept = True
            self.do(Persist(neighbour.record()))

    def forget_if_gone(self, identity: bytes, kept: bool = True) -> None:
        """Forget an identity that is on no link and whose accounts are empty: keys cost nothing to make."""
        if identity in self.peers.by_identity or identity in self.peers.blocked:
            return
        accounts = self.accounts_of(identity)
        if (kept or accounts) and all(account.empty for account in accounts):
            self.forget([identity])

    def forget(self, identities: Sequence[bytes]) -> None:
        """Forget identities, their accounts and their records in the ledger."""
        for identity in identities:
            client = self.clients.pop(identity, None)
            if client is not None and client.kernel.told is not None:  # the account waited for a count
                self.do(ForgetAccount(identity))
            self.servers.pop(identity, None)
        self.do(Persist(ForgetNeighbours(tuple(identities))))

    # --- contracts ----------------------------------------------------------------------------------------------------

    def sale(self, contract_id: bytes) -> Sale | None:
        """Return a contract that we sell."""
        found = self.contracts.get(contract_id)
        return found if isinstance(found, Sale) else None

    def purchase(self, contract_id: bytes) -> Purchase | None:
        """Return a contract that we buy."""
        found = self.contracts.get(contract_id)
        return found if isinstance(found, Purchase) else None

    def running_purchase(self, contract_id: bytes) -> Purchase | None:
        """Return a contract that we buy, if it is running."""
        found = self.purchase(contract_id)
        return found if found is not None and found.running else None

    def rest(self, sale: Sale, contract_id: bytes) -> None:
        """Rest a sale on a purchase, or on the quote for one, and no longer on another one."""
        if sale.rests_on != contract_id:
            before = self.running_purchase(sale.rests_on) if sale.running else None
            if before is not None:
                before.leave(sale.identity, self.now.monotonic_s)
            self._rests_no_more(sale)
        sale.rests_on = contract_id
        self.resting.setdefault(contract_id, {})[sale.id] = sale

    def with_sales(self, purchases: Iterable[bytes]) -> list[bytes]:
        """List purchases, each with the sales that rest on it.

        They are read together: with an old reading of the sales, a purchase seems to carry more than was sold.
        """
        return [one for purchase in purchases for one in (purchase, *self.resting.get(purchase, {}))]

    def bought(self, contract_id: bytes) -> Purchase | None:
        """Return a contract that we buy, or one that we bought and that ended lately."""
        return self.purchase(contract_id) or self.buying.ended.get(contract_id)

    def sold_to(self, identity: bytes) -> list[Sale]:
        """Return the open contracts that a client has with us."""
        links = self.peers.links_of(identity)
        found = [one for link in links for one in link.contracts.values() if isinstance(one, Sale) and one.open]
        account = self.clients.get(identity)
        if account is not None and len(found) < account.running:  # some are halting after their link was dropped
            sales = (one for one in self.contracts.values() if isinstance(one, Sale))
            found = [one for one in sales if one.identity == identity and one.open]
        return found

    def add_contract(self, contract: Sale | Purchase) -> None:
        """Enter a contract in our tables: by id, by its neighbour's link, and by destination.

        If no money has passed to or from its neighbour, count it in the room that strangers share (`is_full`).
        """
        self.contracts[contract.id] = contract
        contract.of_stranger = not self.has_traded(contract.role, contract.identity)
        self.strangers += contract.of_stranger
        if isinstance(contract, Sale):
            self.sales.add(contract)
            if contract.rests_on:
                self.rest(contract, contract.rests_on)
        else:
            self.purchases.add(contract)
            if contract.destination.is_default:
                self.resold.purchases[contract.id] = contract
        neighbour = self.peers.of(contract)
        if neighbour is not None:
            neighbour.contracts[contract.id] = contract

    def remove_contract(self, contract: Sale | Purchase) -> None:
        """Take a contract out of our tables and the kernel's, with its timers."""
        for due in CONTRACT_TIMERS:
            self.timers.clear(due, contract.id)
        self.contracts.pop(contract.id, None)
        self._is_no_strangers(contract)
        if isinstance(contract, Sale):
            self.sales.remove(contract)
            self._rests_no_more(contract)
            self.stop_waiting(contract)
        else:
            self.purchases.remove(contract)
            if self.resold.purchases.pop(contract.id, None) is not None:
                self.resold.parts.pop(contract.destination.version, None)
        neighbour = self.peers.of(contract)
        if neighbour is not None:
            neighbour.contracts.pop(contract.id, None)
        self.do(RevokeContract(contract.id))

    def _rests_no_more(self, sale: Sale) -> None:
        sales = self.resting.get(sale.rests_on, {})
        sales.pop(sale.id, None)
        if not sales:
            self.resting.pop(sale.rests_on, None)

    def wait_for(self, sale: Sale, server: bytes, destination: Prefix) -> None:
        """Let a sale wait for what a server answers about a destination."""
        sale.waits_for = server, destination
        self.awaited.setdefault(sale.waits_for, {})[sale.id] = sale

    def stop_waiting(self, sale: Sale) -> None:
        """Let a sale wait for an answer no longer. If no sale waits for it now, the next one asks the server again."""
        if sale.waits_for is None:
            return
        sales = self.awaited.get(sale.waits_for, {})
        sales.pop(sale.id, None)
        if not sales:
            self.awaited.pop(sale.waits_for, None)
        sale.waits_for = None

    def open(self, contract: Contract) -> None:
        """Count a contract that was agreed now."""
        contract.opened_at_s = self.now.utc_s
        contract.rate.at_mono_s = self.now.monotonic_s
        self.account_of(contract).running += 1
        self.count_opening(contract)

    def begin_lifetime(self, contract: Contract) -> None:
        """Start a contract's lifetime, at its accept or at a renewal; it ends no later than what it rests on."""
        lasts_s, purchase = contract.lifetime_s, self.running_purchase(contract.rests_on)
        if purchase is not None:
            lasts_s = min(lasts_s, int(purchase.expires_mono_s - self.now.monotonic_s))
        contract.expires_at_s = self.now.utc_s + lasts_s
        contract.begun_mono_s = self.now.monotonic_s
        contract.expires_mono_s = self.now.monotonic_s + lasts_s
        self.watch_end(contract)

    def watch_end(self, contract: Contract) -> None:
        """Set the timer for a contract's end: the end of its lifetime, or after an hour if it isn't used at all.

        The server's lifetime begins when the accept arrives, so a client keeps its meter a little longer.
        """
        at = contract.expires_mono_s + (END_LINGER_S if contract.role is Role.CLIENT else 0.0)
        if not contract.used_bytes:
            at = min(at, contract.rate.at_mono_s + UNUSED_S)
        self.timers.set(Due.EXPIRY, contract.id, at)

    def grant(self, contract: Sale | Purchase) -> None:
        """Bring a contract in the kernel up to date."""
        self.do(GrantContract(self.kernel_grant(contract)))

    def kernel_grant(self, contract: Sale | Purchase) -> Grant:
        """Return the grant that describes a contract to the kernel, which ends a sale no later than what it rests on.

        A server may have renewed that for a shorter time than before.
        """
        expires_mono_s, purchase = contract.expires_mono_s, self.running_purchase(contract.rests_on)
        if purchase is not None:
            expires_mono_s = min(expires_mono_s, purchase.expires_mono_s)
        return Grant(
            **self.lasting_terms(contract)._asdict(),
            contract=contract.id,
            expires_in_s=expires_mono_s - self.now.monotonic_s,
            used_to_base_bytes=contract.used_to_bytes,
            used_from_base_bytes=contract.used_from_bytes,
        )

    def lasting_terms(self, contract: Sale | Purchase) -> LastingTerms:
        """Return the part of a contract's grant that stays as long as the contract doesn't change.

        A contract that was refused has no account there: it only makes the kernel drop packets. So does one as long as
        what it rests on isn't bought.
        """
        account, price, low_water, blocked = b"", 0, None, not contract.running
        if isinstance(contract, Sale):
            blocked = blocked or contract.unbought
            if contract.open:
                account, price = contract.identity, contract.highest_msat_per_gib
        else:
            low_water = max(0, contract.data_limit_bytes - contract.renewal_bytes(self.settings))
        limit_bytes = contract.data_limit_bytes
        resold = contract.destination.is_default and bool(contract.rests_on)
        where = contract.link_number, contract.role, contract.destination
        return LastingTerms(*where, limit_bytes, account, price, low_water, blocked, resold)

    def save(self, contract: Sale | Purchase) -> None:
        """Write a contract and its account to the ledger."""
        self.keep(self.peers.of(contract))
        self.save_contract(contract)
        self.save_account(self.account_of(contract))

    def save_later(self, contract_id: bytes) -> None:
        """Have the next flush write a contract's totals.

        In the order of the changes, contracts that are side by side in the ledger's file are mostly written together: a
        start has all of them to write, and in any other order each would take a page of its own.
        """
        self.unflushed[contract_id] = None

    def save_contract(self, contract: Contract) -> None:
        """Write a contract; the caller writes its account in the same step, so that their sums agree after a crash.

        A contract that was accepted without money and is being renewed is written as accepted. A restart gives up the
        renewal, and the contract must still end if nobody pays for it. So is one that waits for more money: only
        accepted ones may have waited.
        """
        account, record = self.account_of(contract), contract.record()
        waits = isinstance(contract, Sale) and contract.unbought and contract.running
        if waits or (contract.state is State.RENEWING and contract.id in account.unpaid):
            record = record._replace(state=State.ACCEPTED.value)
        self.unflushed.pop(contract.id, None)
        account.unsaved_msat -= contract.unsaved_msat
        contract.unsaved_msat = 0
        self.do(Persist(record))

    def move(self, contract: Contract, state: State, reason: str = "") -> None:
        """Change a contract's state and write one line to the log."""
        contract.move(state)
        contract.reason = reason
        self.tell_state(contract)

    def tell_state(self, contract: Contract) -> None:
        """Write a contract's state to the log, in one line."""
        self.log(f"{_named(contract)} {contract.state}{f' ({contract.reason})' if contract.reason else ''}")

    def tell_price(self, contract: Contract, before_msat_per_gib: int) -> None:
        """Write a price that changed by a renewal to the log: so the log says who pays what, and since when."""
        if contract.price_msat_per_gib != before_msat_per_gib:
            now, before = about_price(contract.price_msat_per_gib), about_price(before_msat_per_gib)
            self.log(f"{_named(contract)} renewed at {now}, before at {before}")

    def halt(self, contract: Sale | Purchase, reason: CloseReason) -> None:
        """Begin to close a running contract: the kernel stops it first, then its last reading closes the books.

        With a purchase the sales that rest on it end: nothing would carry their traffic on, or nobody pay for it.
        """
        if contract.running:
            contract.move(State.HALTING)
            contract.reason = reason.value
            self.save(contract)  # else it would live again if we are killed before the kernel's last reading
            self.do(HaltContract(self.kernel_grant(contract)))
            for sale in list(self.resting.get(contract.id, {}).values()):
                self.halt(sale, CloseReason.UPSTREAM)

    def close(self, contract: Sale | Purchase) -> None:
        """Record the end of a contract that was halted and read for the last time, and take it out of all tables."""
        account = self.account_of(contract)
        account.running -= 1
        account.unpaid.pop(contract.id, None)
        self.move(contract, State.CLOSED, contract.reason)
        contract.closed_at_s = self.now.utc_s
        # `ngp ledger` shows a charge that reduces a neighbour's balance with us as negative.
        charged_msat = -contract.charged_msat if isinstance(contract, Sale) else contract.charged_msat
        self.journal("charge", contract.identity, contract.reason, charged_msat, contract.id)
        self.save(contract)
        self.remove_contract(contract)

    # --- room ---------------------------------------------------------------------------------------------------------

    def has_traded(self, role: Role, identity: bytes) -> bool:
        """Say whether money has passed between us and a neighbour. Args: role: the role in which we dealt with it."""
        accounts = self.clients if role is Role.SERVER else self.servers
        account = accounts.get(identity)
        return account is not None and account.paid_msat > 0

    def has_traded_at_all(self, identity: bytes) -> bool:
        """Say whether money has passed between us and a neighbour, in either role."""
        return any(account.paid_msat > 0 for account in self.accounts_of(identity))

    @property
    def slots(self) -> int:
        """How many contracts the kernel may have at a time: its table may be older, and smaller than CONTRACTS_MAX."""
        return min(self.settings.contracts_max, self.room)

    @property
    def free_slots(self) -> int:
        """How many more contracts there is room for: neighbours' and tenants' contracts share the table."""
        return self.slots - len(self.contracts) - len(self.letting.metered)

    def is_full(self, role: Role, identity: bytes) -> bool:
        """Say whether there is no room for one more contract with a neighbour. Args: role: ours.

        Quotes and unused contracts cost a neighbour nothing. So all strangers together take at most half of the room:
        the rest is for neighbours that money passed to or from.
        """
        if self.free_slots <= 0:
            return True
        return self.strangers >= max(16, self.slots // 2) and not self.has_traded(role, identity)

    def first_paid(self, account: Account) -> None:
        """Note that the first money has passed: neither we nor the kernel treat the neighbour as a newcomer now."""
        for neighbour in self.peers.links_of(account.identity):
            for contract in neighbour.contracts.values():
                if contract.role is account.role:
                    self._is_no_strangers(contract)
        if account.role is Role.SERVER:  # of our payment to a server, the kernel knows since its order
            self.tell_kernel_of(account.identity)

    def _is_no_strangers(self, contract: Contract) -> None:
        self.strangers -= contract.of_stranger
        contract.of_stranger = False

    # --- openings -----------------------------------------------------------------------------------------------------

    def _pools(self, role: Role, identity: bytes, link: Link, client: bytes) -> Pools:
        pools = pools_of(role, identity, link, self.has_traded(role, identity))
        if not client:
            return pools
        return (*pools, share_of(pools[0], client if self.has_traded(Role.SERVER, client) else b""))

    def may_open(self, role: Role, neighbour: Neighbour, client: bytes = b"", sellers: int = 1) -> bool:
        """Say whether a neighbour may open one more contract; if it may not, the log says so.

        Args:
            client: the client for which we would buy it; b"": for ourselves.
            sellers: see `Openings.full`.
        """
        pools = self._pools(role, neighbour.identity, neighbour.link, client)
        full = self.openings.full(pools, self.now.monotonic_s, max(1, sellers))
        if full is None:
            return True
        self.count("openings_refused")
        about, why = "openings", "too many of its contracts were never used; it gets no new ones"
        if full.client is not None:
            whom = f"client {client.hex()[:8]}" if full.client else "clients that never paid"
            about = "openings for a client" if full.client else "openings for strangers"
            why = f"too many of its contracts for {whom} were never used; none is bought there for {whom}"
        who = f"neighbour {neighbour.identity.hex()[:8]} on {neighbour.link[0]}"
        text = f"{who}: {why} until some are used, or some time passes"
        self.log_seldom((about, neighbour.link[0].encode()), text)
        return False

    def count_opening(self, contract: Contract) -> None:
        """Count a contract as unused, until it proves useful."""
        if not contract.pools:
            contract.pools = self._pools(contract.role, contract.identity, contract.link, contract.opened_for)
            self.openings.count(contract.pools, self.now.monotonic_s)

    def uncount_opening(self, contract: Contract) -> bool:
        """Take a contract that proved useful off the count. Returns whether it was still counted."""
        if not contract.pools:
            return False
        self.openings.count(contract.pools, self.now.monotonic_s, -1)
        contract.pools = ()
        return True

    def count_idle(self, contract: Contract, by: int = 1) -> None:
        """Count an idle renewal of a contract like an opening; a negative number takes other openings off the count."""
        pools = self._pools(contract.role, contract.identity, contract.link, contract.opened_for)
        self.openings.count(pools, self.now.monotonic_s, by)


def _named(contract: Contract) -> str:
    who, number = contract.identity.hex()[:8], contract.id.hex()[:8]
    return f"contract {number} {contract.role} {who} {contract.destination}"
