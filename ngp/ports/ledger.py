"""Ledger: what survives the process, and the place where it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ngp.core.messages import Prefix, StatementLine
from ngp.core.records import AccountRecord, ContractRecord, JournalRecord, Record, Snapshot
from ngp.core.rental.records import RentalRecord


class Ledger(Protocol):
    """An open ledger: the data that survives the process; for one thread. Methods raise LedgerError with a remedy."""

    def close(self) -> None:
        """Close the ledger; safe to call twice."""

    def next_boot(self, least: int = 1) -> int:
        """Count this start, durably, and return the number: one more than the last, and at least `least`.

        Neighbours refuse a number that they have seen. `least` comes from the clock, so that a ledger restored from a
        backup doesn't use numbers again that were used after the backup was made.
        """

    def commit(self, records: Sequence[Record], durable: bool = False) -> None:
        """Write records in one transaction, all or none; a record written twice changes nothing.

        A payment's state only moves forward, and a settled payment keeps its amount: for a record that contradicts
        this, the whole transaction is refused.

        Args:
            records: in the order in which they arose; of several with one key the last one counts.
            durable: return only when the records survive a power cut, as those that move money must. Others survive a
                killed process, but perhaps no power cut.

        Raises:
            LedgerError: the ledger can't be written, or a payment would move back; the ledger is unchanged.
        """

    def was_ordered(self, payment_hash: bytes) -> bool:
        """Say whether the ledger has a payment of ours with this hash, however old. Failed ones are deleted some day.

        Raises: LedgerError: the ledger can't be read.
        """

    def hold_networks(self, rental: bytes, networks: Sequence[Prefix]) -> tuple[Prefix, ...]:
        """Hold networks for a rental, durably, before anybody is told of them; other landlords may share the database.

        The hold ends when the rental's record is written as released, or is forgotten. If the daemon dies before the
        first record of the rental is written, the hold ends at the next `open`.

        Returns:
            Nothing if the networks are held now. Otherwise all networks that are held for other rentals; nothing
            changes then.
        """

    def load(self, now_utc_s: int) -> Snapshot:
        """Read what a start needs: all that is open, and what ended lately, as messages about it may still come.

        Args:
            now_utc_s: contracts closed in the hour before this time, and payments begun or ended in the day before it,
                are included. If the newest payment is older than a day, as when the clock is ahead, the payments of the
                day before the newest one are included. Money counts as spent with fees, also while a payment's outcome
                isn't known.
        """

    def journal(self, since_s: int | None = None) -> Iterator[JournalRecord]:
        """Yield the journal, oldest first; commits may happen between two lines.

        Lines of kind `summary` come first. Each is the sum of contracts that `prune` folded: those of one neighbour,
        one role (as `state`) and one day.

        Args:
            since_s: leave out older lines, UTC seconds.
        """

    def contracts(self, include_closed: bool = False) -> list[ContractRecord]:
        """List running contracts and then, if wanted, closed ones, the last closed first."""

    def rentals(self) -> list[tuple[RentalRecord, AccountRecord]]:
        """List all rentals, also released ones, each with its account, the oldest first."""

    def unacknowledged(
        self, identity: bytes, after: tuple[int, bytes], limit: int
    ) -> tuple[tuple[StatementLine, ...], tuple[int, bytes] | None]:
        """Read the bills of closed contracts that we sold and whose client hasn't acknowledged them, oldest first.

        Args:
            after: (time of closing, contract) of the last one that was read, or (0, b"").
            limit: most to read, >= 1.

        Returns:
            The lines, and the `after` for the next call, or None if these were the last.
        """

    def backup(self, target: Path) -> None:
        """Copy the ledger to a file (0600) while it is in use; the copy is checked before it gets its name.

        Raises:
            LedgerError: `target` exists and isn't an older backup, or can't be written.
        """

    def prune(self, now_utc_s: int) -> bool:
        """Fold old contracts into sums and delete old records, a bounded number; return whether more is left to do."""


class Store(Protocol):
    """The place of a node's ledger, whether a ledger exists or not; str() names the place in errors."""

    def exists(self) -> bool:
        """Say whether there is a ledger, intact or not. Raises LedgerError if its folder can't be read."""

    def open(self) -> Ledger:
        """Open the ledger, or create it if there is none, and bring an older one up to date.

        Raises:
            LedgerError: the file is damaged, empty, no ledger, of a newer version, or can't be read or written. ngp
                never replaces it.
        """

    def look(self) -> None:
        """Check that a ledger that isn't in use is intact; doesn't update an older one. Raises LedgerError."""

    def rentals(self) -> list[RentalRecord]:
        """Read all rentals of a ledger that isn't in use; writes nothing. Raises LedgerError.

        Returns: the rentals; no rentals if the ledger is of an older ngp, which the next start updates.
        """

    def audit(self, most_s: float) -> tuple[list[str], str]:
        """Compare accounts with payments, contracts and journal; writes nothing, and may run in any thread.

        Args:
            most_s: how long it may take; a router's flash is slow, and payments are kept for ever.

        Returns:
            The sums that differ, a sentence each, and why the audit is incomplete; both empty if all is well.

        Raises:
            LedgerError: the ledger can't be read.
        """

    def written_s(self) -> int:
        """Return when a daemon last wrote to the ledger, UTC seconds; 0 if that isn't known (any more)."""
