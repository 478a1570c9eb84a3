"""A payment only moves forward and keeps its amount once settled; a refused one undoes its whole transaction."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from ledger_records import ALICE, BOB, NOW, account, neighbour, payment

from ngp.core.records import CursorRecord, Direction, PaymentKind, PaymentState
from ngp.errors import LedgerError
from ngp.ports import Store

IN, OUT = Direction.IN, Direction.OUT
OPEN, SETTLED, CANCELLED = PaymentState.OPEN, PaymentState.SETTLED, PaymentState.CANCELLED
PENDING, SUCCEEDED, FAILED = PaymentState.PENDING, PaymentState.SUCCEEDED, PaymentState.FAILED

ALLOWED = {
    (IN, OPEN, SETTLED), (IN, OPEN, CANCELLED), (IN, CANCELLED, SETTLED), (OUT, PENDING, SUCCEEDED),
    (OUT, PENDING, FAILED),
}  # fmt: skip
STATES = {IN: (OPEN, SETTLED, CANCELLED), OUT: (PENDING, SUCCEEDED, FAILED)}
MOVES = [(direction, *pair) for direction in Direction for pair in product(STATES[direction], repeat=2)]


@pytest.mark.parametrize(("direction", "before", "after"), MOVES)
def test_states_only_move_forward(
    store: Store, direction: Direction, before: PaymentState, after: PaymentState
) -> None:
    ledger = store.open()
    first = payment(1, direction, before)
    second = payment(1, direction, after, settled_at_s=NOW, reason="second")
    ledger.commit([first])
    if before is after:
        ledger.commit([second], durable=True)
        assert ledger.load(NOW).payments == (first,)
    elif (direction, before, after) in ALLOWED:
        ledger.commit([second], durable=True)
        unpaid = after in (PaymentState.CANCELLED, PaymentState.FAILED)  # its text is no longer needed
        assert ledger.load(NOW).payments == (replace(second, bolt11="") if unpaid else second,)
    else:
        with pytest.raises(LedgerError, match=f"{before.value} and can't become {after.value}"):
            ledger.commit([account(paid_msat=1), CursorRecord(5), neighbour(), second], durable=True)
        snapshot = ledger.load(NOW)
        assert snapshot.payments == (first,)
        assert (snapshot.accounts, snapshot.neighbours, snapshot.cursor) == ((), (), 0)


@pytest.mark.parametrize(("direction", "state"), [(IN, PENDING), (IN, SUCCEEDED), (OUT, OPEN), (OUT, SETTLED)])
def test_a_state_of_the_other_direction_is_refused(store: Store, direction: Direction, state: PaymentState) -> None:
    ledger = store.open()
    with pytest.raises(LedgerError):
        ledger.commit([payment(1, direction, state)])
    assert ledger.load(NOW).payments == ()


def test_the_amount_counts_from_the_settlement_and_never_shrinks_after(store: Store) -> None:
    ledger = store.open()
    ledger.commit([payment(1, amount_msat=1000), payment(1, state=SETTLED, amount_msat=1100, settled_at_s=NOW)])
    with pytest.raises(LedgerError, match="1100 msat and can't become 1099 msat"):
        ledger.commit([payment(1, state=SETTLED, amount_msat=1099)])
    assert ledger.load(NOW).payments[0].amount_msat == 1100
    ledger.commit([payment(1, state=SETTLED, amount_msat=1200, settled_at_s=NOW)])
    assert ledger.load(NOW).payments[0].amount_msat == 1200


def test_what_was_sent_never_changes(store: Store) -> None:
    ledger = store.open()
    ledger.commit([payment(1, OUT, PENDING), payment(1, OUT, SUCCEEDED, amount_msat=1100, settled_at_s=NOW)])
    for wrong in (1099, 1101):
        with pytest.raises(LedgerError, match=f"1100 msat and can't become {wrong} msat"):
            ledger.commit([payment(1, OUT, SUCCEEDED, amount_msat=wrong)])


def test_a_hash_belongs_to_one_neighbour_and_purpose(store: Store) -> None:
    ledger = store.open()
    ledger.commit([payment(1, identity=ALICE)])
    for foreign in (payment(1, state=SETTLED, identity=BOB), payment(1, state=SETTLED, kind=PaymentKind.REFUND)):
        with pytest.raises(LedgerError, match="another neighbour"):
            ledger.commit([foreign])
    ledger.commit([payment(1, OUT, PENDING, identity=BOB)])  # the other direction has its own payment
    assert len(ledger.load(NOW).payments) == 2


def test_a_settlement_without_preimage_or_invoice_keeps_what_was_known(store: Store) -> None:
    ledger = store.open()
    ledger.commit([payment(1), payment(1, state=SETTLED, bolt11="", preimage=b"", settled_at_s=NOW)])
    assert ledger.load(NOW).payments == (payment(1, state=SETTLED, settled_at_s=NOW),)


def test_the_ledger_knows_each_payment_that_we_ordered_however_old_it_is(store: Store) -> None:
    ledger = store.open()
    ledger.commit([payment(1, IN, SETTLED, settled_at_s=NOW)])
    ledger.commit([payment(2, OUT, PENDING)])
    for state in (PENDING, SUCCEEDED):
        ledger.commit([payment(3, OUT, state, created_at_s=NOW - 400 * 86_400, settled_at_s=NOW - 400 * 86_400)])
    while ledger.prune(NOW):
        pass
    known = [number for number in range(1, 5) if ledger.was_ordered(payment(number).payment_hash)]
    assert known == [2, 3]
