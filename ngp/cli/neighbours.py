"""`ngp neighbours`: lists the neighbours that were heard, and where."""

from __future__ import annotations

from collections.abc import Sequence

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import Column, Row, clean, data, field, key, price, print_rows
from ngp.cli.verbs import verb_command

MOST_OFFERS = 4  # written for each neighbour


def _network(row: Row) -> str:
    """Write a neighbour's payment network, and whether it differs from ours, which prevents trade."""
    foreign = row.get("network") and row.get("same_network") is False
    return f"{clean(row.get('network'))}, not ours" if foreign else clean(row.get("network"))


def _blocked(row: Row) -> str:
    """Write whether a neighbour is blocked, and whether a change waits for the ledger."""
    waits = ", until the ledger can be written" if row.get("block_waits") is True else ""
    return f"{field('blocked')(row)}{waits}"


def _reputation(row: Row) -> str:
    """Write a neighbour's reputation, 0 to 1."""
    found = row.get("reputation")
    return f"{found:.2f}" if isinstance(found, int | float) else ""


_COLUMNS = (
    Column("neighbour", field("neighbour", key)),
    Column("interface", field("interface")),
    Column("link address", field("link_address")),
    Column("address", field("address")),
    Column("network", _network),
    Column("up", field("up")),
    Column("sells", field("sells")),
    Column("buys", field("buys")),
    Column("blocked", _blocked),
    Column("reputation", _reputation, right=True),
    Column("lane", field("lane_bytes", data), right=True),
    Column("heard", field("last_seen")),
)


@verb_command("neighbours")
def command(place: Place, as_json: bool) -> int:
    """List neighbours."""
    rows = Daemon(place.state_dir).rows("neighbours")
    print_rows(rows, _COLUMNS, "no neighbour was heard", as_json, _print_more)
    return 0


def _print_more(rows: Sequence[Row]) -> None:
    """Write offers and whom our routes lead through (CHOOSE_ROUTES), and why some are paid nothing or sell nothing."""
    for row in rows:
        if offers := row.get("offers"):
            shown = [
                f"{clean(one['destination'])} for {price(one['price_msat_per_gib'])}" for one in offers[:MOST_OFFERS]
            ]
            more = f" and {len(offers) - MOST_OFFERS} more (--json)" if len(offers) > MOST_OFFERS else ""
            print(f"{key(row['neighbour'])} offers {', '.join(shown)}{more}")
        if row.get("chosen_for"):
            where = ", ".join(map(clean, row["chosen_for"]))
            print(f"packets to {where} go through {key(row['neighbour'])}, whose quality is {row['quality']:.2f}")
        if row.get("why_unpaid"):
            print(f"nothing more is paid to {key(row['neighbour'])}: {clean(row['why_unpaid'])}")
        if row.get("why_not_bought"):
            print(f"nothing new is bought from {key(row['neighbour'])}: {clean(row['why_not_bought'])}")
