"""Books: answers from the ledger alone, for a node that doesn't run; the rows are the same as from a running node."""

from __future__ import annotations

from collections.abc import Iterator

from ngp.core.rental.pools import networks_of
from ngp.core.rental.rental import RentalState
from ngp.daemon.api.rentals import RentalRow, record_row
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
    rented = {each.rental: networks_of(each.networks) for each in found.rentals}
    return [
        account_row(
            each, real_money, under_way.get((each.identity, each.role), ()), networks=rented.get(each.identity, ())
        )
        for each in found.accounts
    ]


def rentals(ledger: Ledger, include_released: bool, real_money: bool) -> Iterator[RentalRow]:
    """List rentals, the oldest first. Raises LedgerError."""
    for record, account in ledger.rentals():
        if include_released or record.state != RentalState.RELEASED:
            yield record_row(record, account, real_money)


def journal(ledger: Ledger, since_s: int | None, real_money: bool) -> Iterator[JournalRow]:
    """List the journal, oldest first. Raises LedgerError."""
    return (journal_row(record, real_money) for record in ledger.journal(since_s))
