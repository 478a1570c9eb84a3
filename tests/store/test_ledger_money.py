"""Money is conserved: under any interleaving of payments, charges, replays, refusals, restarts and pruning."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from adapters import ADAPTERS, Adapter
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from ledger_records import (
    ALICE,
    BOB,
    DAY,
    NOW,
    account,
    contract,
    contract_id,
    journal,
    payment,
)

from ngp.core.messages import Role
from ngp.core.records import (
    AccountRecord,
    ContractRecord,
    CursorRecord,
    Direction,
    PaymentKind,
    PaymentRecord,
    PaymentState,
    Record,
)
from ngp.errors import LedgerError
from ngp.ports import Ledger, Store
from ngp.store import keeping

KEYS = [(ALICE, Role.SERVER), (ALICE, Role.CLIENT), (BOB, Role.SERVER), (BOB, Role.CLIENT)]
keys = st.sampled_from(KEYS)
amounts = st.integers(0, 10**12)
END = {Direction.IN: PaymentState.SETTLED, Direction.OUT: PaymentState.SUCCEEDED}
BEGIN = {Direction.IN: PaymentState.OPEN, Direction.OUT: PaymentState.PENDING}


class Bookkeeping(RuleBasedStateMachine):
    """A daemon that keeps its accounts in memory and writes all changes, as the core would."""

    adapter: ClassVar[type[Adapter]]

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.adapter(Path(self.folder.name)).store
        self.ledger = self.store.open()
        self.now = NOW
        self.count = 0
        self.accounts: dict[tuple[bytes, Role], AccountRecord] = {key: account(*key) for key in KEYS}
        self.running: dict[bytes, ContractRecord] = {}
        self.waiting: dict[bytes, PaymentRecord] = {}
        self.settled: list[list[Record]] = []
        self.spent_msat = 0

    @rule(key=keys, amount=amounts, fee=st.integers(0, 1000), refund=st.booleans())
    def start_payment(self, key: tuple[bytes, Role], amount: int, fee: int, refund: bool) -> None:
        self.count += 1
        direction = Direction.IN if (key[1] is Role.SERVER) is not refund else Direction.OUT
        kind = PaymentKind.REFUND if refund else PaymentKind.TOP_UP
        started = payment(
            self.count, direction, BEGIN[direction], identity=key[0], amount_msat=amount, kind=kind,
            fee_msat=fee if direction is Direction.OUT else 0, created_at_s=self.now,
        )  # fmt: skip
        self.waiting[started.payment_hash] = started
        self.ledger.commit([started], durable=True)

    @rule(data=st.data(), paid=st.booleans(), replay=st.booleans())
    def end_payment(self, data: st.DataObject, paid: bool, replay: bool) -> None:
        if not self.waiting:
            return
        ended = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))
        if not paid:
            state = PaymentState.CANCELLED if ended.direction is Direction.IN else PaymentState.FAILED
            self.ledger.commit([replace(ended, state=state, settled_at_s=self.now)], durable=True)
            return
        ended = replace(ended, state=END[ended.direction], settled_at_s=self.now)
        refund = ended.kind is PaymentKind.REFUND
        key = (ended.identity, Role.SERVER if (ended.direction is Direction.IN) is not refund else Role.CLIENT)
        total = "refunded_msat" if refund else "paid_msat"
        self.accounts[key] = replace(
            self.accounts[key], **{total: getattr(self.accounts[key], total) + ended.amount_msat}
        )
        line = journal(
            "refund" if refund else "payment", time_s=self.now, identity=ended.identity, state=ended.state,
            amount_msat=ended.amount_msat, payment_hash=ended.payment_hash,
        )  # fmt: skip
        if ended.direction is Direction.OUT:
            self.spent_msat += ended.amount_msat + ended.fee_msat
        self.settled.append([ended])
        self.ledger.commit([ended, self.accounts[key], CursorRecord(len(self.settled)), line], durable=True)
        if replay:
            self.ledger.commit([ended, self.accounts[key]], durable=True)

    @rule(data=st.data(), wrong=st.integers(1, 5))
    def refuse_a_settled_payment_that_changes(self, data: st.DataObject, wrong: int) -> None:
        if not self.settled:
            return
        (ended,) = data.draw(st.sampled_from(self.settled))
        assert isinstance(ended, PaymentRecord)
        less = ended.direction is Direction.IN and ended.amount_msat >= wrong
        if ended.direction is Direction.IN and not less:
            return
        spoilt = replace(ended, amount_msat=ended.amount_msat + (-wrong if less else wrong))
        with pytest.raises(LedgerError):
            self.ledger.commit([account(ALICE, Role.SERVER, paid_msat=10**15), spoilt], durable=True)

    @rule(key=keys)
    def open_contract(self, key: tuple[bytes, Role]) -> None:
        self.count += 1
        opened = contract(self.count, *key, opened_at_s=self.now)
        self.running[opened.contract] = opened
        self.ledger.commit([opened, journal(time_s=self.now, identity=key[0], contract=opened.contract)])

    @rule(data=st.data(), amount=amounts, close=st.booleans())
    def charge(self, data: st.DataObject, amount: int, close: bool) -> None:
        if not self.running:
            return
        before = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        after = before._replace(
            charged_msat=before.charged_msat + amount,
            used_to_bytes=before.used_to_bytes + 1,
            closed_at_s=self.now if close else 0,
        )
        key = (after.identity, after.role)
        total = "metered_msat" if key[1] is Role.CLIENT else "charged_msat"  # a client's account is charged by the bill
        self.accounts[key] = replace(self.accounts[key], **{total: getattr(self.accounts[key], total) + amount})
        if not close:
            self.running[after.contract] = after
        line = journal("charge", time_s=self.now, identity=after.identity, contract=after.contract, amount_msat=amount)
        self.ledger.commit([after, self.accounts[key], line])

    @rule(days=st.integers(0, 60))
    def prune(self, days: int) -> None:
        self.now += days * DAY
        while self.ledger.prune(self.now):
            pass

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = self.store.open()

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.store.audit(60.0) == ([], "")
        snapshot = self.ledger.load(self.now)
        stored = {(item.identity, item.role): item for item in snapshot.accounts}
        assert all(stored.get(key, account(*key)) == wanted for key, wanted in self.accounts.items())
        assert set(self.running) <= {item.contract for item in snapshot.contracts}
        assert set(self.waiting) <= {item.payment_hash for item in snapshot.payments}
        pending = [item for item in self.waiting.values() if item.direction is Direction.OUT]
        assert snapshot.spent_total_msat == self.spent_msat + sum(p.amount_msat + p.fee_msat for p in pending)
        lines = list(self.ledger.journal())
        charged = sum(line.amount_msat for line in lines if line.kind in ("charge", "summary"))
        assert charged == sum(item.charged_msat + item.metered_msat for item in self.accounts.values())
        paid = sum(line.amount_msat for line in lines if line.kind == "payment")
        assert paid == sum(item.paid_msat for item in self.accounts.values())
        refunded = sum(line.amount_msat for line in lines if line.kind == "refund")
        assert refunded == sum(item.refunded_msat for item in self.accounts.values())

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()


@pytest.mark.parametrize("name", ADAPTERS)
def test_money_is_conserved_under_any_interleaving(name: str) -> None:
    machine = type(name, (Bookkeeping,), {"adapter": ADAPTERS[name]})
    effort = settings(max_examples=settings.default.max_examples // 2 // ADAPTERS[name].share, stateful_step_count=30)
    run_state_machine_as_test(machine, settings=effort)  # type: ignore[no-untyped-call]


def books(store: Store) -> Ledger:
    ledger = store.open()
    paid = payment(1, state=PaymentState.SETTLED, amount_msat=500, settled_at_s=NOW)
    ledger.commit(
        [
            account(paid_msat=500, charged_msat=30), paid, contract(1, charged_msat=30),
            journal("payment", amount_msat=500, payment_hash=paid.payment_hash, state="settled"),
        ]
    )  # fmt: skip
    assert store.audit(60.0) == ([], "")
    return ledger


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("closed", [0, NOW + 60])
@pytest.mark.parametrize("role", list(Role))
def test_a_contract_that_takes_the_id_of_a_closed_one_takes_nothing_from_the_books(
    store: Store, role: Role, closed: int, at_once: bool
) -> None:
    """The server chooses the id of a contract. It may be a client of ours that knows the ids of our sales."""
    ledger = books(store)
    records = [contract(1, charged_msat=30, closed_at_s=NOW), contract(1, role=role)]
    for some in [records] if at_once else [[one] for one in records]:
        ledger.commit(some)
    ledger.commit([contract(1, role=role, closed_at_s=closed)])
    assert store.audit(60.0) == ([], "")


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("UPDATE accounts SET paid_msat = 501", "paid 501 msat, its settled payments add up to 500 msat"),
        ("UPDATE accounts SET charged_msat = 29", "charged 29 msat, its contracts add up to 30 msat"),
        ("UPDATE accounts SET refunded_msat = 1", "refunded 1 msat"),
        ("UPDATE accounts SET role = 'client', charged_msat = 9", "charged 9 msat, its server billed 0 msat"),
        ("DELETE FROM accounts", "paid 0 msat"),
        ("DELETE FROM contracts", "its contracts add up to 0 msat"),
        ("DELETE FROM payments", "the payment is None msat"),
        ("UPDATE journal SET amount_msat = 499", "line(s) of 499 msat"),
        (("INSERT INTO journal SELECT 99, time_s, kind, identity, contract, amount_msat, payment_hash, state "
         "FROM journal"), "2 line(s)"),
    ],
)  # fmt: skip
def test_the_audit_names_what_does_not_add_up(adapter: Adapter, tampering: str, found: str) -> None:
    books(adapter.store).close()
    adapter.execute(tampering)
    wrong, unknown = adapter.store.audit(60.0)
    assert any(found in line for line in wrong)
    assert not unknown


def test_books_are_added_up_beside_a_daemon_that_writes(store: Store) -> None:
    daemons = books(store)
    assert store.audit(60.0) == ([], "")
    daemons.commit([account(paid_msat=501, charged_msat=30)])
    (wrong,), unknown = store.audit(60.0)
    assert "paid 501 msat, its settled payments add up to 500 msat" in wrong
    assert not unknown
    daemons.commit([account(paid_msat=500, charged_msat=30)])
    daemons.close()
    assert store.audit(60.0) == ([], "")


def test_books_that_take_too_long_say_so(store: Store) -> None:
    ledger = store.open()
    ledger.commit([contract(number) for number in range(5000)])
    assert store.audit(-1.0) == ([], "the audit takes more than -1 s")


def test_a_refund_on_its_way_may_be_booked_already(store: Store) -> None:
    ledger = books(store)
    refund = payment(2, Direction.OUT, PaymentState.PENDING, kind=PaymentKind.REFUND, amount_msat=100)
    ledger.commit([account(paid_msat=500, charged_msat=30, refunded_msat=100), refund])
    assert store.audit(60.0) == ([], "")


# --- pruning ----------------------------------------------------------------------------------------------------------


def test_old_contracts_are_folded_per_neighbour_role_and_day(store: Store) -> None:
    ledger = store.open()
    day = NOW - NOW % DAY
    closed = [contract(i, charged_msat=i, closed_at_s=day + i) for i in range(1, 1201)]
    lines = [journal("charge", contract=contract_id(i), amount_msat=i) for i in range(1, 1201)]
    total = sum(range(1, 1201))
    ledger.commit([account(charged_msat=total + 5), *closed, contract(9999, charged_msat=5), *lines])
    ledger.prune(day + 90 * DAY)
    assert len(ledger.contracts(include_closed=True)) == 1201  # not old enough
    calls = 1
    while ledger.prune(day + 92 * DAY):
        calls += 1
    assert calls == 3  # each call does a limited amount of work
    assert ledger.contracts(include_closed=True) == [contract(9999, charged_msat=5)]
    (summary,) = ledger.journal()
    assert (summary.kind, summary.time_s, summary.amount_msat, summary.state) == ("summary", day, total, "server")
    assert list(ledger.journal(since_s=day + 1)) == []
    assert store.audit(60.0) == ([], "")


def test_settled_payments_stay_for_ever_in_short_and_unpaid_ones_go(adapter: Adapter) -> None:
    ledger = adapter.store.open()
    settled = payment(1, state=PaymentState.SETTLED, settled_at_s=NOW)
    ledger.commit(
        [settled, payment(2, state=PaymentState.CANCELLED), payment(3, Direction.OUT, PaymentState.FAILED),
         payment(4), payment(5, Direction.OUT, PaymentState.PENDING)]
    )  # fmt: skip
    ledger.prune(NOW + 8 * DAY)
    ledger.commit([settled], durable=True)  # a replay is still recognized
    ledger.close()
    rows = adapter.execute("SELECT payment_hash, length(bolt11), preimage FROM payments ORDER BY created_at_s")
    assert {tuple(row) for row in rows} == {
        (settled.payment_hash, 0, settled.preimage),  # the proof of payment is kept
        *((one.payment_hash, len(one.bolt11), one.preimage) for one in (payment(4), payment(5))),
    }


def test_contracts_that_came_to_nothing_go_after_an_hour(store: Store) -> None:
    ledger = store.open()
    empty = [contract(i, closed_at_s=NOW + i) for i in range(1, 1001)]
    kept = [
        contract(2001, closed_at_s=NOW, used_to_bytes=1), contract(2002, closed_at_s=NOW, used_from_bytes=1),
        contract(2003, closed_at_s=NOW, billed_bytes=1), contract(2004),
    ]  # fmt: skip
    lines = [journal(contract=each.contract) for each in (*empty, *kept)]
    ledger.commit([*empty, *kept, *lines])
    while ledger.prune(NOW + 3600):
        pass
    assert len(ledger.contracts(include_closed=True)) == 1004  # a start may need the last hour
    while ledger.prune(NOW + 3601 + 500):
        pass
    assert len(ledger.contracts(include_closed=True)) == len(list(ledger.journal())) == 504
    while ledger.prune(NOW + 3601 + 1000):
        pass
    assert {each.contract for each in ledger.contracts(include_closed=True)} == {each.contract for each in kept}
    assert not [line for line in ledger.journal() if line.kind == "summary"]


def test_more_closed_contracts_than_there_is_room_for_are_folded_early(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MOST_CLOSED", 1000)
    ledger = store.open()
    closed = [contract(i, charged_msat=1, closed_at_s=NOW + i) for i in range(3000)]
    ledger.commit([account(charged_msat=3000), *closed])
    while ledger.prune(NOW + 3600 + 500):
        pass
    assert len(ledger.contracts(include_closed=True)) == 2500  # but not those that a start may need
    while ledger.prune(NOW + DAY):
        pass
    left = ledger.contracts(include_closed=True)
    assert (len(left), min(each.closed_at_s for each in left)) == (1000, NOW + 2000)
    assert sum(line.amount_msat for line in ledger.journal()) == 2000
    assert store.audit(60.0) == ([], "")


def test_journal_lines_without_money_or_contract_are_thinned_and_the_rest_stays(store: Store) -> None:
    ledger = store.open()
    kept = [journal("payment", amount_msat=1, payment_hash=b"h" * 32), journal(contract=contract_id(1))]
    ledger.commit([contract(1), *(journal("statement") for _ in range(2500)), *kept])
    assert ledger.prune(NOW + 91 * DAY)
    assert not ledger.prune(NOW + 91 * DAY)
    assert list(ledger.journal()) == kept
    ledger.commit([journal("statement", time_s=NOW + 1)])
    ledger.prune(NOW + 91 * DAY)
    assert list(ledger.journal()) == kept
