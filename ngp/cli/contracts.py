"""`ngp contracts`: lists running contracts, closed ones, and sums for each destination."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import Column, Row, data, field, key, money, price, print_rows, print_unless_real, state
from ngp.cli.verbs import verb_command
from ngp.daemon.state import was_killed
from ngp.errors import RunningError

COLUMNS = (
    Column("id", field("id", key)),
    Column("role", field("role")),
    Column("neighbour", field("neighbour", key)),
    Column("interface", field("interface")),
    Column("destination", field("destination")),
    Column("state", state),
    Column("price", field("price_msat_per_gib", price), right=True),
    Column("limit", field("data_limit_bytes", data), right=True),
    Column("to", field("used_to_bytes", data), right=True),
    Column("from", field("used_from_bytes", data), right=True),
    Column("billed", field("billed_bytes", data), right=True),
    Column("charged", field("charged_msat", money), right=True),
    Column("expires", field("expires_at")),
)
_SUM_COLUMNS = (
    Column("role", field("role")),
    Column("destination", field("destination")),
    Column("contracts", field("contracts"), right=True),
    Column("to", field("used_to_bytes", data), right=True),
    Column("from", field("used_from_bytes", data), right=True),
    Column("charged", field("charged_msat", money), right=True),
)


@verb_command(
    "contracts",
    click.Option(["--all", "include_closed"], is_flag=True, help="also closed contracts"),
    click.Option(["--by-destination", "sums"], is_flag=True, help="sums for each destination"),
)
def command(place: Place, include_closed: bool, sums: bool, as_json: bool) -> int:
    """List contracts."""
    rows, columns = _find(place, include_closed, sums), _SUM_COLUMNS if sums else COLUMNS
    if sums and not as_json:
        rows = _with_hosts(rows)
    print_rows(rows, columns, "no contracts" if include_closed else "none runs", as_json, print_unless_real)
    return 0


def _with_hosts(rows: Iterable[Row]) -> Iterator[Row]:
    """Put below each destination the addresses in it that were used most."""
    for row in rows:
        yield row
        for host in row.get("top") or ():
            yield {**host, "destination": f"  {host.get('address')}", "real_money": row.get("real_money")}


def _find(place: Place, include_closed: bool, sums: bool) -> Iterable[Row]:
    """Ask the daemon. If none runs, read the ledger, but only for --all or if a killed daemon's contracts go on."""
    try:
        return Daemon(place.state_dir).rows("contracts", all=include_closed, by_destination=sums)
    except RunningError as absent:
        if not (include_closed or was_killed(place.state_dir)):
            raise
        from ngp.cli import books
        from ngp.daemon.api import books as api
        from ngp.daemon.api.plain import plain
        from ngp.daemon.api.rows import by_destination

        with books.opened(place, absent) as ledger:
            found = api.contracts(ledger, include_closed, books.money_is_real(place))
            return [plain(row) for row in (by_destination(found) if sums else found)]
