"""The ledger gives back what was written, lists it, and counts what was spent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger_records import (
    ALICE,
    BOB,
    DAY,
    NOW,
    account,
    contract,
    contract_id,
    journal,
    neighbour,
    payment,
    rental,
)

from ngp.core.messages import Role
from ngp.core.records import (
    BlockRecord,
    CursorRecord,
    Direction,
    ForgetNeighbours,
    PaymentKind,
    PaymentState,
    Record,
)
from ngp.errors import LedgerError
from ngp.ports import Store

OUT, IN = Direction.OUT, Direction.IN


def test_every_record_comes_back_after_reopening(store: Store) -> None:
    written: list[Record] = [
        neighbour(), account(), account(role=Role.CLIENT, paid_msat=7), contract(1), payment(1), CursorRecord(9),
    ]  # fmt: skip
    ledger = store.open()
    ledger.commit(written)
    ledger.commit(written, durable=True)
    ledger.close()
    snapshot = store.open().load(NOW)
    assert snapshot.neighbours == (neighbour(),)
    assert set(snapshot.accounts) == {account(), account(role=Role.CLIENT, paid_msat=7)}
    assert snapshot.contracts == (contract(1),)
    assert snapshot.payments == (payment(1),)
    assert snapshot.cursor == 9


def test_the_last_of_several_records_with_one_key_counts(store: Store) -> None:
    ledger = store.open()
    ledger.commit([contract(1), contract(2), contract(2, state="renewing")])
    assert ledger.contracts() == [contract(1), contract(2, state="renewing")]


def test_a_forgotten_neighbour_leaves_nothing_and_may_begin_again(store: Store) -> None:
    ledger = store.open()
    other = [neighbour(BOB), account(BOB, charged_msat=7), contract(9, BOB, charged_msat=7)]
    before = [neighbour(), account(charged_msat=5), contract(1, charged_msat=5, closed_at_s=NOW - 100 * DAY)]
    lines = [journal(contract=contract_id(1)), journal("charge", contract=contract_id(2)), journal(identity=BOB)]
    ledger.commit([*other, *before, contract(2), *lines])
    ledger.prune(NOW)  # folds one of them into a sum
    ledger.commit([BlockRecord(ALICE, blocked=True), BlockRecord(BOB, blocked=False)])
    ledger.commit([contract(3), journal(contract=contract_id(3)), ForgetNeighbours((ALICE,)), contract(4)])
    assert ledger.contracts(include_closed=True) == [contract(9, BOB, charged_msat=7), contract(4)]
    assert [line.identity for line in ledger.journal()] == [BOB]
    assert ledger.load(NOW).neighbours == (neighbour(BOB),)
    assert ledger.load(NOW).blocked == (ALICE,)
    ledger.commit([BlockRecord(ALICE, blocked=False)])
    assert ledger.load(NOW).blocked == ()
    assert store.audit(60.0) == ([], "")


def test_rentals_are_listed_with_their_accounts_the_oldest_first_also_released_ones(store: Store) -> None:
    ledger = store.open()
    young = rental(ALICE, started_at_s=NOW)
    old = rental(BOB, started_at_s=NOW - 1, state="released", period=b"")
    ledger.commit([young, old, account(ALICE, paid_msat=7), account(BOB), account(BOB, role=Role.CLIENT, paid_msat=9)])
    assert ledger.rentals() == [(old, account(BOB)), (young, account(ALICE, paid_msat=7))]
    assert ledger.load(NOW).rentals == (young,)
    assert sorted(store.rentals(), key=lambda one: one.rental) == sorted((old, young), key=lambda one: one.rental)


def test_a_start_knows_a_rental_that_is_over_as_long_as_it_may_be_paid_or_its_books_are_open(store: Store) -> None:
    ledger = store.open()
    ours, theirs = rental(ALICE, state="released", period=b""), rental(BOB, state="released")
    ledger.commit([ours, account(ALICE), payment(1, identity=ALICE, kind=PaymentKind.RENT), theirs, account(BOB)])
    assert set(ledger.load(NOW).rentals) == {ours, theirs}
    ledger.commit([replace(ours, state="released"), payment(1, IN, PaymentState.CANCELLED, kind=PaymentKind.RENT)])
    ledger.commit([replace(theirs, period=b"")])
    assert ledger.load(NOW).rentals == ()


def test_boots_are_counted(store: Store) -> None:
    for expected in (1, 2, 3):
        ledger = store.open()
        assert ledger.next_boot() == expected
        ledger.close()


def test_contracts_closed_more_than_an_hour_ago_are_not_loaded(store: Store) -> None:
    ledger = store.open()
    old, late = contract(1, closed_at_s=NOW - 3601), contract(2, closed_at_s=NOW - 3599)
    ledger.commit([old, late, contract(3)])
    assert set(ledger.load(NOW).contracts) == {late, contract(3)}
    assert ledger.contracts() == [contract(3)]
    assert ledger.contracts(include_closed=True) == [contract(3), late, old]


def test_waiting_payments_are_loaded_however_old_and_others_for_a_day(store: Store) -> None:
    ledger = store.open()
    long_ago = NOW - 400 * DAY
    waiting = [payment(1, created_at_s=long_ago), payment(2, OUT, PaymentState.PENDING, created_at_s=long_ago)]
    recent = payment(3, OUT, PaymentState.FAILED, created_at_s=long_ago, settled_at_s=NOW - DAY + 1)
    newest = payment(5, OUT, PaymentState.FAILED, created_at_s=NOW)
    old = payment(4, OUT, PaymentState.FAILED, created_at_s=NOW - DAY)
    ledger.commit([*waiting, recent, newest, old])
    assert set(ledger.load(NOW).payments) == {*waiting, recent, newest}
    assert set(ledger.load(NOW + 2 * DAY).payments) == {*waiting, recent, newest}, "the clock may be ahead"


def test_spent_sums_count_fees_pending_payments_and_refunds_but_no_failures(store: Store) -> None:
    ledger = store.open()
    ledger.commit(
        [
            payment(1, OUT, PaymentState.PENDING, amount_msat=1, fee_msat=2),
            payment(2, OUT, PaymentState.SUCCEEDED, amount_msat=10, fee_msat=20, created_at_s=NOW - 3601),
            payment(3, OUT, PaymentState.SUCCEEDED, amount_msat=100, identity=BOB, created_at_s=NOW - 2 * DAY,
                    kind=PaymentKind.REFUND),
            payment(4, OUT, PaymentState.FAILED, amount_msat=1000),
            payment(5, IN, PaymentState.SETTLED, amount_msat=10000),
        ]
    )  # fmt: skip
    snapshot = ledger.load(NOW)
    assert snapshot.spent_total_msat == 133
    assert dict(snapshot.spent_by_neighbour_msat) == {ALICE: 33, BOB: 100}


def test_the_journal_is_paged_and_survives_writes_in_between(store: Store) -> None:
    ledger = store.open()
    lines = [journal(time_s=NOW + i, amount_msat=i) for i in range(1203)]
    ledger.commit(lines)
    assert list(ledger.journal()) == lines
    assert list(ledger.journal(since_s=NOW + 700)) == lines[700:]
    reading = ledger.journal()
    assert next(reading) == lines[0]
    ledger.commit([journal(state="late")])
    assert len(list(reading)) == 1203


def test_amounts_that_no_ledger_can_hold_are_refused_whole(store: Store) -> None:
    ledger = store.open()
    for wrong in (account(paid_msat=1 << 63), account(paid_msat=-1), account(paid_msat=0.5)):
        with pytest.raises(LedgerError):
            ledger.commit([neighbour(), wrong])
    assert ledger.load(NOW).neighbours == ()


def test_a_closed_ledger_says_so(store: Store) -> None:
    ledger = store.open()
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.commit([neighbour()])
