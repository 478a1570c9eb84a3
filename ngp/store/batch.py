"""Batch: the records of one transaction, one row per key, so that steps written together wear flash little.

Shared by all ledgers, since it decides which of several records with one key counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from ngp.core.messages import Role
from ngp.core.records import (
    AccountRecord,
    BilledRecord,
    BlockRecord,
    ContractRecord,
    CursorRecord,
    ForgetLink,
    ForgetNeighbours,
    JournalRecord,
    NeighbourRecord,
    PaymentRecord,
    Record,
)
from ngp.core.rental.records import RentalRecord, ServiceRecord


class Batch:
    """The writes of a transaction, in this order: forgotten identities, then each table.

    Attributes:
        forgotten: identities of which nothing earlier is kept.
        neighbours: by link; None if the link is forgotten.
        displaced: closed contracts whose id a new contract takes: the server chooses ids, and may use one again.
        service, cursor: None if it doesn't change.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.neighbours: dict[tuple[bytes, str, bytes], NeighbourRecord | None] = {}
        self.blocks: dict[bytes, bool] = {}
        self.accounts: dict[tuple[bytes, Role], AccountRecord] = {}
        self.contracts: dict[bytes, ContractRecord] = {}
        self.displaced: list[ContractRecord] = []
        self.billed: list[BilledRecord] = []
        self.payments: list[PaymentRecord] = []
        self.journal: list[JournalRecord] = []
        self.rentals: dict[bytes, RentalRecord] = {}
        self.service: ServiceRecord | None = None
        self.cursor: int | None = None
        self.forgotten: set[bytes] = set()
        for record in records:
            self._add(record)

    def _add(self, record: Record) -> None:
        match record:
            case ContractRecord():
                before = self.contracts.get(record.contract)
                if before is not None and before.closed_at_s and not record.closed_at_s:
                    self.displaced.append(before)
                self.contracts[record.contract] = record
            case BilledRecord():
                self.billed.append(record)
            case AccountRecord():
                self.accounts[record.identity, record.role] = record
            case JournalRecord():
                self.journal.append(record)
            case PaymentRecord():
                self.payments.append(record)
            case NeighbourRecord():
                self.neighbours[record.identity, record.interface, record.link_address] = record
            case RentalRecord():
                self.rentals[record.rental] = record
            case ServiceRecord():
                self.service = record
            case BlockRecord():
                self.blocks[record.identity] = record.blocked
            case CursorRecord():
                self.cursor = record.cursor
            case ForgetLink():
                self.neighbours[record.identity, record.interface, record.link_address] = None
            case ForgetNeighbours():
                self._forget(frozenset(record.identities))

    def _forget(self, identities: frozenset[bytes]) -> None:
        """Drop what the transaction has about these identities so far; later records are about new neighbours."""
        self.forgotten |= identities
        self.neighbours = {key: one for key, one in self.neighbours.items() if key[0] not in identities}
        self.accounts = {key: one for key, one in self.accounts.items() if one.identity not in identities}
        self.contracts = {key: one for key, one in self.contracts.items() if one.identity not in identities}
        self.displaced = [one for one in self.displaced if one.identity not in identities]
        self.rentals = {key: one for key, one in self.rentals.items() if key not in identities}
        self.journal = [one for one in self.journal if one.identity not in identities]
