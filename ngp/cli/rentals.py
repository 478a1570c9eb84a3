"""`ngp rentals`: what this router lets, and what tenants may rent; switches a rental off and on, and gives it back."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from ngp.cli.client import Absent, Daemon
from ngp.cli.place import Place
from ngp.cli.show import (
    Column,
    Row,
    clean,
    data,
    duration,
    field,
    key,
    money,
    price,
    print_result,
    print_rows,
    print_unless_real,
    state,
)
from ngp.cli.verbs import verb_command

_DEEDS = {
    "off": "switches off, until `ngp rentals on`",
    "on": "",
    "release": "takes back for good: others may rent its addresses",
}
"""What can be done to a rental, and the words of the question before; "" if nobody loses by it: then no question."""

COLUMNS = (
    Column("id", field("id", key)),
    Column("role", field("role")),
    Column("state", state),
    Column("networks", field("networks")),
    Column("offer", field("offer")),
    Column("face", field("face")),
    Column("WireGuard key", field("wireguard_key", key)),
    Column("rent a month", field("rent_msat_per_month", money), right=True),
    Column("credit", field("credit_msat", money), right=True),
    Column("paid until", field("paid_until")),
    Column("kept until", field("reserved_until")),
    Column("to", field("used_to_bytes", data), right=True),
    Column("from", field("used_from_bytes", data), right=True),
    Column("endpoint", field("endpoint")),
    Column("heard", field("last_handshake")),
)
_OFFERS = (
    Column("offer", field("name")),
    Column("networks", field("networks")),
    Column("free", field("free"), right=True),
    Column("rent a month", field("rent_msat_per_month", money), right=True),
    Column("price", field("price_msat_per_gib", price), right=True),
    Column("activation fee", field("activation_fee_msat", money), right=True),
    Column("least first credit", field("initial_credit_min_msat", money), right=True),
    Column("least payment", field("payment_min_msat", money), right=True),
    Column("most credit", field("credit_max_msat", money), right=True),
    Column("reserved for", field("reserved_s", duration), right=True),
)


@verb_command(
    "rentals",
    click.Argument(["words"], metavar="[COMMAND]", nargs=-1),
    click.Option(["--all", "include_released"], is_flag=True, help="also released rentals"),
    click.Option(["--yes"], is_flag=True, help="off, release: don't ask"),
)
def command(place: Place, words: tuple[str, ...], include_released: bool, yes: bool, as_json: bool) -> int:
    """List rentals or offers, or change a rental."""
    match words:
        case ():
            return _list(place, include_released, as_json)
        case ("offers",):
            return _offers(place, as_json)
        case (deed, rental) if deed in _DEEDS:
            return _change(place, deed, rental, yes)
        case (deed, *_) if deed in _DEEDS:
            raise click.UsageError(f"{deed} takes one RENTAL: an id, a WireGuard key, or an address.")
    known = "offers, off RENTAL, on RENTAL and release RENTAL"
    raise click.UsageError(f"known are {known}, not {' '.join(words)!r}.")


def _list(place: Place, include_released: bool, as_json: bool) -> int:
    empty = "no rentals" if include_released else "nothing is let"
    print_rows(_find(place, include_released), COLUMNS, empty, as_json, print_unless_real)
    return 0


def _find(place: Place, include_released: bool) -> Iterable[Row]:
    """Return the rentals: from the daemon, or from the ledger if no daemon runs."""
    try:
        return Daemon(place.state_dir).rows("rentals", all=include_released)
    except Absent as absent:
        from ngp.cli import books
        from ngp.daemon.api import books as api
        from ngp.daemon.api.plain import plain

        with books.opened(place, absent) as ledger:
            return [plain(row) for row in api.rentals(ledger, include_released, books.money_is_real(place))]


def _offers(place: Place, as_json: bool) -> int:
    rows = Daemon(place.state_dir).rows("rentals offers")
    print_rows(rows, _OFFERS, "there are no offers: LANDLORD in net.conf is no", as_json)
    return 0


def _change(place: Place, deed: str, rental: str, yes: bool) -> int:
    daemon = Daemon(place.state_dir)
    if _DEEDS[deed] and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{deed} asks before it cuts a tenant off: without a terminal give --yes.")
        click.confirm(f"{deed} {clean(rental)}: this {_DEEDS[deed]}. Go on?", abort=True)
    print_result(daemon.ask(f"rentals {deed}", rental=rental), "done")
    return 0
