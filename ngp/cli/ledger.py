"""`ngp ledger`: the journal of money and contracts, with or without a daemon."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import Column, Row, clean, field, key, money, print_rows, print_unless_real
from ngp.cli.verbs import verb_command
from ngp.errors import ConfigError, RunningError

_KEYS = ("time", "kind", "neighbour", "contract", "amount_msat", "payment_hash", "state", "real_money")
_COLUMNS = (
    Column("time", field("time")),
    Column("kind", field("kind")),
    Column("neighbour", field("neighbour", key)),
    Column("contract", field("contract", key)),
    Column("amount", field("amount_msat", money), right=True),
    Column("payment", field("payment_hash", key)),
    Column("state", field("state")),
)


@verb_command(
    "ledger",
    click.Option(["--csv", "as_csv"], is_flag=True, help="print CSV, for spreadsheets"),
    click.Option(["--since"], metavar="TIME", help="only entries younger than an age, or than a date and time in UTC"),
)
def command(place: Place, as_csv: bool, since: str | None, as_json: bool) -> int:
    """List the journal."""
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.")
    since_s = None if since is None else parse_since(since, time.time())
    rows = _find(place, since_s)
    if as_csv:
        _print_csv(rows)
        return 0
    empty = "nothing in the ledger" if since is None else f"nothing since {since}"
    print_rows(rows, _COLUMNS, empty, as_json, print_unless_real)
    return 0


def parse_since(text: str, now_s: float) -> int:
    """Parse an age (`2 h`) or a time (ISO 8601, UTC unless it has an offset) into UTC seconds.

    Raises:
        click.UsageError: it is neither.
    """
    from ngp.config import units  # late: it imports all of net.conf's rules

    try:
        return max(0, int(now_s) - units.time_s(text))
    except ConfigError:
        pass
    try:
        moment = datetime.fromisoformat(text)
        return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError):
        raise click.UsageError(
            f"--since {text!r} is neither an age (90 min, 2 days) nor a time (2030-01-31, 2030-01-31T08:00)."
        ) from None


def _find(place: Place, since_s: int | None) -> Iterable[Row]:
    """Return the ledger's rows: from the daemon, or from the ledger itself if no daemon runs.

    If that can't be done, the error comes before the first row is printed.
    """
    try:
        return Daemon(place.state_dir).rows("ledger", since=since_s)
    except RunningError as absent:
        rows = _read(place, since_s, absent)
        first = list(islice(rows, 1))
        return chain(first, rows)


def _read(place: Place, since_s: int | None, absent: RunningError) -> Iterator[Row]:
    from ngp.cli import books
    from ngp.daemon.api import books as api
    from ngp.daemon.api.plain import plain

    with books.opened(place, absent) as ledger:
        yield from map(plain, api.journal(ledger, since_s, books.money_is_real(place)))


def _print_csv(rows: Iterable[Row]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_KEYS)
    for row in rows:
        writer.writerow("" if row.get(name) is None else clean(row[name]) for name in _KEYS)
