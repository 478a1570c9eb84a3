"""`ngp lightning`: the node behind the payments, its channels with neighbours, and how to open one."""

from __future__ import annotations

import getpass
import sys
from typing import Any

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import Column, Progress, clean, field, key, money, print_json, print_result, print_table
from ngp.cli.verbs import verb_command
from ngp.errors import UsageError

_OPEN_S = 120.0
_COLUMNS = (
    Column("neighbour", field("neighbour", key)),
    Column("peer", field("peer", key)),
    Column("active", field("active")),
    Column("capacity", field("capacity_sat"), right=True),
    Column("can send", field("can_send_sat"), right=True),
    Column("can receive", field("can_receive_sat"), right=True),
    Column("least payment", field("least_payment_msat", money), right=True),
    Column("CSV delay", field("csv_delay_blocks"), right=True),
)


@verb_command(
    "lightning",
    click.Argument(["words"], metavar="COMMAND", nargs=-1, required=True),
    click.Option(["--amount"], type=click.IntRange(min=1), metavar="SAT", help="open: size of the channel"),
    click.Option(["--push"], type=click.IntRange(min=0), default=0, metavar="SAT", help="open: given to the peer"),
    click.Option(["--csv-delay"], type=click.IntRange(1, 10_000), metavar="BLOCKS",
                 help="open: how long the peer waits for its coins after closing alone"),
    click.Option(["--host"], metavar="HOST:PORT", help="open: where the neighbour's node listens"),
)  # fmt: skip
def command(
    place: Place, words: tuple[str, ...], amount: int | None, push: int, csv_delay: int | None, host: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Look at the node, open a channel, or paste an lndconnect URI."""
    match words:
        case ("status",):
            return _status(place, as_json)
        case ("open", neighbour):
            if amount is None:
                raise click.UsageError("open needs --amount SAT, the size of the channel.")
            return _open(place, neighbour, amount_sat=amount, push_sat=push, csv_delay=csv_delay, host=host)
        case ("connect",):
            return _connect(place)
        case _:
            raise click.UsageError(f"known are status, open NEIGHBOUR and connect, not {' '.join(words)!r}.")


def _status(place: Place, as_json: bool) -> int:
    found: dict[str, Any] = Daemon(place.state_dir).ask("lightning")
    if as_json:
        print_json(found)
        return 0
    ready = "ready" if found["ready"] else f"not ready: {clean(found['why_not'])}"
    print(f"{clean(found['module'])} node {clean(found['node'])} on {clean(found['network'])}, {ready}")
    print(f"balance in channels: {money(found['balance_msat'])}")
    print_table(found["channels"], _COLUMNS, "no channel")
    for line in found["advice"]:
        print(clean(line))
    return 0


def _open(place: Place, neighbour: str, **terms: object) -> int:
    progress = Progress("opening the channel")
    try:
        result = Daemon(place.state_dir, _OPEN_S, progress).ask("lightning open", neighbour=neighbour, **terms)
    finally:
        progress.end()
    print_result(result, "opened")
    return 0


def _connect(place: Place) -> int:
    """Take an lndconnect URI from the terminal, unseen, or from a pipe; it never stands in a command line."""
    from ngp.daemon import offline  # late: it imports every module

    uri = getpass.getpass("lndconnect URI (not shown): ") if sys.stdin.isatty() else sys.stdin.readline()
    if not uri.strip():
        raise UsageError("no URI was given: paste it, or pipe it in")
    if not place.state_dir.is_dir():
        raise UsageError(f"{place.state_dir} doesn't exist: make it (mode 0700), or name another by --state-dir")
    where = offline.keep_lnd_uri(uri, place.state_dir)
    print(f"kept for LND at {where}; restart ngp to use it: sudo ngp stop; sudo ngp start -v")
    return 0
