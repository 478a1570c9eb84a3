"""`ngp accounts`: one line for each neighbour and role; the two roles are never netted.

Where we sell, a line shows the grace that we give. Where we buy, it shows the server's bill beside our own meter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import NOT_REAL, Column, Row, clean, data, field, key, money, print_rows
from ngp.cli.verbs import verb_command
from ngp.errors import RunningError


def _real(row: Row) -> str:
    return "real" if row.get("real_money") is True else NOT_REAL


def _of(role: str, key: str, form: Callable[[object], str]) -> Callable[[Row], str]:
    """Return a column that shows a key for one role, and a dash for the other."""
    return lambda row: form(row.get(key) if row.get("role") == role else None)


def _on_its_way(row: Row) -> str:
    """Show payments whose outcome isn't known, and since when."""
    amount = row.get("on_its_way_msat")
    return f"{money(amount)} since {clean(row.get('on_its_way_since'))}" if amount else "-"


def _neighbour(row: Row) -> str:
    """Show a neighbour's key; for a tenant's account, the rental's id and its networks."""
    rents = f" rents {clean(row['networks'])}" if row.get("networks") else ""
    return f"{key(row.get('neighbour'))}{rents}"


def _grace_left(row: Row) -> str:
    """Show the rest of a client's grace; a dash for tenants and servers, which have no grace."""
    return data(row.get("grace_left_bytes") if row.get("role") == "server" and not row.get("networks") else None)


COLUMNS = (
    Column("role", field("role")),
    Column("neighbour", _neighbour),
    Column("balance", field("balance_msat", money), right=True),
    Column("reserved", field("reserved_msat", money), right=True),
    Column("grace left", _grace_left, right=True),
    Column("paid", field("paid_msat", money), right=True),
    Column("charged", field("charged_msat", money), right=True),
    Column("refunded", field("refunded_msat", money), right=True),
    Column("on its way", _on_its_way, right=True),
    Column("billed", _of("client", "billed_msat", money), right=True),
    Column("our meter", _of("client", "metered_msat", money), right=True),
    Column("disputed", _of("client", "disputed", clean)),
    Column("money", _real),
)


@verb_command("accounts")
def command(place: Place, as_json: bool) -> int:
    """List accounts."""
    print_rows(_find(place), COLUMNS, "no accounts", as_json, _print_not_topped_up)
    return 0


def _print_not_topped_up(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.get("why_not"):
            print(f"{key(row['neighbour'])} ({clean(row['role'])}) is not topped up: {clean(row['why_not'])}")


def _find(place: Place) -> list[Row]:
    try:
        return list(Daemon(place.state_dir).rows("accounts"))
    except RunningError as absent:
        from ngp.cli import books
        from ngp.daemon.api import books as api
        from ngp.daemon.api.plain import plain

        with books.opened(place, absent) as ledger:
            return [plain(row) for row in api.accounts(ledger, int(time.time()), books.money_is_real(place))]
