"""Bills in the ledger: how far each one has got, what must still be sent, and what an older ledger knew of both."""

from __future__ import annotations

import pytest
from ledger_records import ALICE, BOB, NOW, contract, contract_id

from ngp.core.messages import Role
from ngp.core.records import BilledRecord
from ngp.ports import Ledger, Store

FIRST = (0, b"")


def sold(number: int, closed_at_s: int = NOW, **changes: object) -> object:
    return contract(number, used_to_bytes=number, used_from_bytes=1, closed_at_s=closed_at_s, **changes)


def untold(ledger: Ledger, identity: bytes = ALICE, most: int = 2) -> list[bytes]:
    """Read page by page which bills must still be sent."""
    found: list[bytes] = []
    after: tuple[int, bytes] | None = FIRST
    while after is not None:
        lines, after = ledger.unacknowledged(identity, after, most)
        assert len(lines) <= most
        found += [line.contract for line in lines]
    return found


def test_what_is_closed_and_not_acknowledged_is_told_in_the_order_of_closing(store: Store) -> None:
    ledger = store.open()
    ledger.commit([
        *(sold(number, NOW - number) for number in range(5)), sold(10, closed_at_s=0), sold(11, identity=BOB),
        contract(12, closed_at_s=NOW), sold(13, role=Role.CLIENT),
    ])  # type: ignore[list-item] # fmt: skip
    assert untold(ledger) == [contract_id(number) for number in (4, 3, 2, 1, 0)]
    ledger.commit([BilledRecord(contract_id(number), Role.SERVER, ALICE, number + 1) for number in (1, 3)])
    assert untold(ledger) == [contract_id(number) for number in (4, 2, 0)]
    ledger.commit([BilledRecord(contract_id(2), Role.SERVER, ALICE, 2)])  # an earlier line of this bill
    assert untold(ledger, most=100) == [contract_id(number) for number in (4, 2, 0)]


@pytest.mark.parametrize(
    "record",
    [
        BilledRecord(contract_id(1), Role.CLIENT, BOB, 9),
        BilledRecord(contract_id(1), Role.SERVER, ALICE, 9),
        BilledRecord(contract_id(1), Role.CLIENT, ALICE, 4),
        BilledRecord(contract_id(2), Role.CLIENT, ALICE, 9),
        BilledRecord(contract_id(3), Role.CLIENT, ALICE, 9),
    ],
    ids=["another's", "another role", "less", "running", "unknown"],
)
def test_a_bill_changes_its_own_closed_contract_and_only_upwards(store: Store, record: BilledRecord) -> None:
    ledger = store.open()
    ledger.commit([
        contract(1, role=Role.CLIENT, billed_bytes=5, closed_at_s=NOW), contract(2, role=Role.CLIENT),
    ])  # fmt: skip
    before = ledger.contracts(include_closed=True)
    ledger.commit([record])
    assert ledger.contracts(include_closed=True) == before
    ledger.commit([BilledRecord(contract_id(1), Role.CLIENT, ALICE, 6)])
    assert [one.billed_bytes for one in ledger.contracts(include_closed=True)] == [0, 6]
