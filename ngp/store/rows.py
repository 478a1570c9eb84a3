"""Rows: turns records into rows and back, in the SQL that SQLite and PostgreSQL share.

Upserts write absolute values, so a record written twice changes nothing. A value's place is `?`, bytes are `x''`;
PostgreSQL's adapter has its own spelling for both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

from ngp.core.messages import Role
from ngp.core.records import (
    AccountRecord,
    BilledRecord,
    ContractRecord,
    Direction,
    JournalRecord,
    NeighbourRecord,
    PaymentKind,
    PaymentRecord,
    PaymentState,
)
from ngp.core.rental.records import RentalRecord, ServiceRecord
from ngp.store import payments
from ngp.store.batch import Batch
from ngp.store.sql import Connection

_Row = Sequence[Any]


def _columns(record: type) -> tuple[str, ...]:
    return tuple(record.__annotations__)


def _upsert(table: str, record: type, key: tuple[str, ...]) -> str:
    columns = _columns(record)
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
    marks = ", ".join("?" * len(columns))
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
    )


NEIGHBOUR_COLUMNS = ", ".join(_columns(NeighbourRecord))
ACCOUNT_COLUMNS = ", ".join(_columns(AccountRecord))
CONTRACT_COLUMNS = ", ".join(_columns(ContractRecord))
PAYMENT_COLUMNS = ", ".join(_columns(PaymentRecord))
JOURNAL_COLUMNS = ", ".join(_columns(JournalRecord))
RENTAL_COLUMNS = ", ".join(_columns(RentalRecord))

PUT_STATE = "INSERT INTO state VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
SERVICE = ("service_boot", "service_before_ms", "service_since_ms")
"""Names of a `ServiceRecord`'s fields in the table `state`, in the record's order."""

_PUT_NEIGHBOUR = _upsert("neighbours", NeighbourRecord, ("identity", "interface", "link_address"))
_PUT_ACCOUNT = _upsert("accounts", AccountRecord, ("identity", "role"))
_PUT_CONTRACT = _upsert("contracts", ContractRecord, ("contract",))
_PUT_RENTAL = _upsert("rentals", RentalRecord, ("rental",))
_PUT_BILLED = """UPDATE contracts SET billed_bytes = ? WHERE contract = ? AND role = ? AND identity = ?
    AND closed_at_s > 0 AND billed_bytes < ?"""
UNACKNOWLEDGED = "role = 'server' AND closed_at_s > 0 AND billed_bytes < used_to_bytes + used_from_bytes"
_PUT_JOURNAL = f"INSERT INTO journal ({JOURNAL_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
_PAYMENT = f"SELECT {PAYMENT_COLUMNS} FROM payments WHERE direction = ? AND payment_hash = ?"
_PUT_PAYMENT = f"INSERT INTO payments ({PAYMENT_COLUMNS}, touched_s) VALUES ({', '.join('?' * 13)})"
_MOVE_PAYMENT = """UPDATE payments SET amount_msat = ?, fee_msat = ?, state = ?, bolt11 = ?, preimage = ?,
    settled_at_s = ?, reason = ?, touched_s = ?, compact = 0
    WHERE direction = ? AND payment_hash = ?"""

ADD_TO_SUMMARY = """ON CONFLICT (identity, role, day_s) DO UPDATE SET contracts = summaries.contracts + 1,
    used_to_bytes = summaries.used_to_bytes + excluded.used_to_bytes,
    used_from_bytes = summaries.used_from_bytes + excluded.used_from_bytes,
    charged_msat = summaries.charged_msat + excluded.charged_msat"""
_FOLD_DISPLACED = f"""INSERT INTO summaries SELECT identity, role, closed_at_s - closed_at_s % 86400, 1, used_to_bytes,
    used_from_bytes, charged_msat FROM contracts WHERE contract = ? AND closed_at_s > 0 {ADD_TO_SUMMARY}"""

_FORGOTTEN_AT_ONCE = 500
_FORGET_LINES = "DELETE FROM journal WHERE payment_hash = x'' AND contract IN (SELECT contract FROM contracts"

_neighbour_row = attrgetter(*_columns(NeighbourRecord))
_account_row = attrgetter(*_columns(AccountRecord))
_journal_row = attrgetter(*_columns(JournalRecord))
_rental_row = attrgetter(*_columns(RentalRecord))
_payment_row = attrgetter(*_columns(PaymentRecord))
_service_row = attrgetter(*_columns(ServiceRecord))
_ROLE, _PRICES = map(_columns(ContractRecord).index, ("role", "prices"))
_ROLES = {role.value: role for role in Role}


def state(connection: Connection, name: str) -> int | None:
    """Return a number of the table `state`; None if it isn't there yet."""
    found = connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else None


def put_blocks(connection: Connection, blocks: Mapping[bytes, bool]) -> None:
    """Write which identities are blocked, and which no longer are."""
    connection.executemany("DELETE FROM blocks WHERE identity = ?", ((one,) for one in blocks))
    connection.executemany("INSERT INTO blocks VALUES (?)", ((one,) for one, blocked in blocks.items() if blocked))


def put_billed(connection: Connection, records: Iterable[BilledRecord]) -> None:
    """Raise the acknowledged bytes of closed contracts' bills; ignore contracts that are unknown or another's."""
    every = ((one.billed_bytes, one.contract, one.role, one.identity, one.billed_bytes) for one in records)
    connection.executemany(_PUT_BILLED, every)


def put_contracts(connection: Connection, batch: Batch) -> None:
    """Write contracts; closed ones whose id a new one takes go into the sums first, since their charges still count."""
    if batch.displaced:
        connection.executemany(_PUT_CONTRACT, map(_contract_values, batch.displaced))
    begun = ((one.contract,) for one in batch.contracts.values() if not one.closed_at_s)
    connection.executemany(_FOLD_DISPLACED, begun)
    connection.executemany(_PUT_CONTRACT, map(_contract_values, batch.contracts.values()))


def forget_links(connection: Connection, keys: Iterable[tuple[bytes, str, bytes]]) -> None:
    """Remove links by (identity, interface, link_address)."""
    connection.executemany("DELETE FROM neighbours WHERE identity = ? AND interface = ? AND link_address = ?", keys)


def forget_neighbours(connection: Connection, identities: Iterable[bytes]) -> None:
    """Remove neighbours, accounts, contracts with their journal lines, and sums; payments are deleted by age only."""
    every = sorted(identities)
    for start in range(0, len(every), _FORGOTTEN_AT_ONCE):
        some = every[start : start + _FORGOTTEN_AT_ONCE]
        among = f"WHERE identity IN ({', '.join('?' * len(some))})"
        connection.execute(f"{_FORGET_LINES} {among})", some)
        for table in ("neighbours", "accounts", "summaries", "contracts"):
            connection.execute(f"DELETE FROM {table} {among}", some)
        connection.execute(f"DELETE FROM rentals WHERE rental IN ({', '.join('?' * len(some))})", some)


def put_payment(connection: Connection, record: PaymentRecord) -> None:
    """Add a payment or move it forward, by the rules of `ngp.store.payments.moved`. Raises LedgerError."""
    found = connection.execute(_PAYMENT, (record.direction, record.payment_hash)).fetchone()
    changed = payments.moved(payment(found) if found else None, record)
    if changed is None:
        return
    if found is None:
        touched_s = max(record.created_at_s, record.settled_at_s)
        connection.execute(_PUT_PAYMENT, (*_payment_row(record), touched_s))
        return
    connection.execute(
        _MOVE_PAYMENT,
        (changed.amount_msat, changed.fee_msat, changed.state, changed.bolt11, changed.preimage,
         changed.settled_at_s, changed.reason, max(changed.created_at_s, changed.settled_at_s), changed.direction,
         changed.payment_hash),
    )  # fmt: skip


def write(connection: Connection, batch: Batch) -> None:
    """Write the records of one transaction. Raises LedgerError for a change of a payment that isn't allowed.

    A statement without rows takes as long as one with a row. So only the kinds that have records get a statement: in
    most transactions one or two.
    """
    forget_neighbours(connection, batch.forgotten)
    if batch.neighbours:
        forget_links(connection, (key for key, one in batch.neighbours.items() if one is None))
        connection.executemany(_PUT_NEIGHBOUR, map(_neighbour_row, filter(None, batch.neighbours.values())))
    if batch.blocks:
        put_blocks(connection, batch.blocks)
    if batch.accounts:
        connection.executemany(_PUT_ACCOUNT, map(_account_row, batch.accounts.values()))
    if batch.contracts:
        put_contracts(connection, batch)
    if batch.billed:
        put_billed(connection, batch.billed)
    for record in batch.payments:
        put_payment(connection, record)
    if batch.journal:
        connection.executemany(_PUT_JOURNAL, map(_journal_row, batch.journal))
    if batch.rentals:
        connection.executemany(_PUT_RENTAL, map(_rental_row, batch.rentals.values()))
    if batch.service is not None:
        connection.executemany(PUT_STATE, zip(SERVICE, _service_row(batch.service), strict=True))
    if batch.cursor is not None:
        connection.execute(PUT_STATE, ("cursor", batch.cursor))


def _contract_values(record: ContractRecord) -> list[Any]:
    values = list(record)
    values[_PRICES] = json.dumps(values[_PRICES], separators=(",", ":"))
    return values


@lru_cache(maxsize=1024)
def _prices(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(offset), int(price)) for offset, price in json.loads(text))


def neighbour(row: _Row) -> NeighbourRecord:
    """Turn a row of NEIGHBOUR_COLUMNS into a record."""
    identity, interface, link_address, boot, sells, buys, first_seen_s, last_seen_s = row
    return NeighbourRecord(identity, interface, link_address, boot, bool(sells), bool(buys), first_seen_s, last_seen_s)


def account(row: _Row) -> AccountRecord:
    """Turn a row of ACCOUNT_COLUMNS into a record."""
    identity, role, paid, charged, refunded, until, billed, disputed, *rest = row
    return AccountRecord(identity, Role(role), paid, charged, refunded, until, billed, bool(disputed), *rest)


def contract(row: _Row) -> ContractRecord:
    """Turn a row of CONTRACT_COLUMNS into a record."""
    values = list(row)
    values[_ROLE] = _ROLES[row[_ROLE]]
    values[_PRICES] = _prices(row[_PRICES])
    return ContractRecord._make(values)


def payment(row: _Row) -> PaymentRecord:
    """Turn a row of PAYMENT_COLUMNS into a record, with the preimage."""
    direction, payment_hash, kind, identity, amount_msat, fee_msat, state, *rest = row
    return PaymentRecord(
        Direction(direction), payment_hash, PaymentKind(kind), identity, amount_msat, fee_msat, PaymentState(state),
        *rest,
    )  # fmt: skip


def rental(row: _Row) -> RentalRecord:
    """Turn a row of RENTAL_COLUMNS into a record."""
    return RentalRecord(*row)


def service(rows: Iterable[tuple[str, int]]) -> ServiceRecord | None:
    """Turn rows of the table `state` into a record; None if nothing was ever let."""
    numbers = dict(rows)
    return ServiceRecord(*(numbers[name] for name in SERVICE)) if numbers else None


def journal(row: _Row) -> JournalRecord:
    """Turn a row of JOURNAL_COLUMNS into a record."""
    return JournalRecord(*row)
