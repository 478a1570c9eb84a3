"""Payments: the only rule on records that every ledger enforces itself. Pure.

All other records are written as they are. A payment's state only moves forward, and a settled payment keeps its amount.
So a defect in the core, or a settlement that the node replays, never counts a payment twice: the whole transaction is
refused.
"""

from __future__ import annotations

from dataclasses import replace

from ngp.core.records import Direction, PaymentRecord, PaymentState
from ngp.errors import RecordError

_MOVES: dict[PaymentState, frozenset[PaymentState]] = {
    PaymentState.OPEN: frozenset({PaymentState.SETTLED, PaymentState.CANCELLED}),
    PaymentState.CANCELLED: frozenset({PaymentState.SETTLED}),  # paid late: the money is ours, so it counts
    PaymentState.PENDING: frozenset({PaymentState.SUCCEEDED, PaymentState.FAILED}),
    PaymentState.SETTLED: frozenset(),
    PaymentState.SUCCEEDED: frozenset(),
    PaymentState.FAILED: frozenset(),
}
_STATES = {
    Direction.IN: frozenset({PaymentState.OPEN, PaymentState.SETTLED, PaymentState.CANCELLED}),
    Direction.OUT: frozenset({PaymentState.PENDING, PaymentState.SUCCEEDED, PaymentState.FAILED}),
}
_UNPAID = frozenset({PaymentState.CANCELLED, PaymentState.FAILED})
_PAID = frozenset({PaymentState.SETTLED, PaymentState.SUCCEEDED})


def moved(before: PaymentRecord | None, record: PaymentRecord) -> PaymentRecord | None:
    """Return a payment's new record for the ledger; None if nothing changes, since it has this state already.

    A received amount may grow: the payer's proof has no amount, and our node may report later that more was paid
    (BOLT 4).

    Args: before: the ledger's record with the same direction and hash.

    Raises:
        RecordError: the state would move back, a settled amount would shrink, a sent amount would change, or the
            ledger's payment with this hash is another neighbour's or of another kind.
    """
    if record.state not in _STATES[record.direction]:
        raise _refused(record, f"its direction is {record.direction.value}, so it can't be {record.state.value}")
    if before is None:
        return record
    if (before.identity, before.kind) != (record.identity, record.kind):
        raise _refused(record, "it already exists for another neighbour or purpose")
    state, amount_msat = before.state, before.amount_msat
    more_came = state is record.state is PaymentState.SETTLED and record.amount_msat > amount_msat
    if state in _PAID and amount_msat != record.amount_msat and not more_came:
        raise _refused(record, f"it is {state} with {amount_msat} msat and can't become {record.amount_msat} msat")
    if record.state is state and not more_came:
        return None
    if record.state not in _MOVES[state] and not more_came:
        raise _refused(record, f"it is {state} and can't become {record.state.value}")
    # an unpaid invoice's text is most of the row, and no longer needed
    text = "" if record.state in _UNPAID else record.bolt11 or before.bolt11
    return replace(
        record, bolt11=text, preimage=record.preimage or before.preimage, created_at_s=before.created_at_s
    )


def _refused(record: PaymentRecord, why: str) -> RecordError:
    return RecordError(
        f"payment {record.direction.value} {record.payment_hash.hex()}: {why}. Nothing of this step was written; "
        f"this is a defect: keep the ledger and the log, and report it"
    )
