"""Books: answers from the ledger alone, for a node that doesn't run; the rows are the same as from a running node."""

from __future__ import annotations

from collections.abc import Iterator

from ngp.daemon.api.rows import (
    AccountRow,
    ContractRow,
    JournalRow,
    account_row,
    contract_row,
    journal_row,
    on_their_way,
)
from ngp.ports import Ledger


def contracts(ledger: Ledger, include_closed: bool, real_money: bool) -> Iterator[ContractRow]:
    """List contracts, running ones first. Raises LedgerError."""
    return (contract_row(record, real_money) for record in ledger.contracts(include_closed))


def accounts(ledger: Ledger, now_utc_s: int, real_money: bool) -> list[AccountRow]:
    """List accounts. Raises LedgerError."""
    found = ledger.load(now_utc_s)
    under_way = on_their_way(found.payments)
    return [account_row(each, real_money, under_way.get((each.identity, each.role), ())) for each in found.accounts]


def journal(ledger: Ledger, since_s: int | None, real_money: bool) -> Iterator[JournalRow]:
    """List the journal, oldest first. Raises LedgerError."""
    return (journal_row(record, real_money) for record in ledger.journal(since_s))
