"""`ngp lightning`: shows our Lightning node, its channels and watchtowers; opens channels and adds watchtowers."""

from __future__ import annotations

import getpass
import sys
from typing import Any

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import Column, Progress, Row, clean, field, key, money, print_json, print_result, print_table
from ngp.cli.streams import say
from ngp.cli.verbs import verb_command
from ngp.cli.whole import Whole
from ngp.daemon.state import running_pid
from ngp.errors import ConfigError, PaymentError, UsageError

_OPEN_S = 120.0
_KNOWN = "status, open NEIGHBOUR, tower add PUBKEY@HOST:PORT, tower list, tower remove PUBKEY and connect"


def _state(row: Row) -> str:
    """Write a channel's state, and how many blocks are left in it."""
    if row["state"] == "open":
        return "open" if row["active"] else "open, not active"
    return f"{clean(row['state'])}, {row['blocks_left'] or '?'} blocks left"


_CHANNELS = (
    Column("neighbour", field("neighbour", key)),
    Column("peer", field("peer", key)),
    Column("state", _state),
    Column("capacity", field("capacity_sat"), right=True),
    Column("can send", field("can_send_sat"), right=True),
    Column("can receive", field("can_receive_sat"), right=True),
    Column("least payment", field("least_payment_msat", money), right=True),
    Column("we wait", field("our_csv_delay_blocks"), right=True),
    Column("peer waits", field("their_csv_delay_blocks"), right=True),
    Column("suits", lambda row: f"no: {clean(row['why_not'])}" if row["suits"] is False else clean(row["suits"])),
)
_TOWERS = (
    Column("watchtower", field("tower", key)),
    Column("address", field("addresses")),
    Column("used", field("used")),
    Column("sessions", field("sessions"), right=True),
    Column("backups", field("backups"), right=True),
    Column("pending", field("pending_backups"), right=True),
)


@verb_command(
    "lightning",
    click.Argument(["words"], metavar="COMMAND", nargs=-1, required=True),
    click.Option(["--amount"], type=Whole(1), metavar="SAT", help="open: size of the channel"),
    click.Option(["--push"], type=Whole(0), default=0, metavar="SAT", help="open: given to the peer"),
    click.Option(["--csv-delay"], type=Whole(1, 10_000, "the number of blocks", 1008), metavar="BLOCKS",
                 help="open: how long the peer waits for its coins if it alone closes the channel; else CSV_DELAY of "
                      "net.conf"),
    click.Option(["--host"], metavar="HOST:PORT",
                 help="open: where the neighbour's node listens; else an address that it announced, port 9735"),
    click.Option(["--untried"], is_flag=True, help="connect: keep the URI, whether its node answers or not"),
)  # fmt: skip
def command(
    place: Place, words: tuple[str, ...], amount: int | None, push: int, csv_delay: int | None, host: str | None,
    untried: bool, as_json: bool,
) -> int:  # fmt: skip
    """Look at the node, open a channel, change its watchtowers, or paste an lndconnect URI."""
    match words:
        case ("status",):
            return _status(place, as_json)
        case ("open", neighbour):
            if amount is None:
                raise click.UsageError("open needs --amount SAT, the size of the channel.")
            terms = {"amount_sat": amount, "push_sat": push, "csv_delay": csv_delay, "host": host}
            return _ask(place, "channel", "lightning open", neighbour=neighbour, **terms)
        case ("tower", "add", tower):
            return _ask(place, "watchtower", "lightning tower add", tower=tower)
        case ("tower", "list"):
            return _towers(place, as_json)
        case ("tower", "remove", tower):
            return _ask(place, "watchtower", "lightning tower remove", tower=tower)
        case ("connect",):
            return _connect(place, untried)
        case _:
            raise click.UsageError(_unknown(words))


def _unknown(words: tuple[str, ...]) -> str:
    """Say which word an existing command lacks, or which commands exist."""
    match words:
        case ("open",):
            return "open needs a NEIGHBOUR: ngp lightning open NEIGHBOUR --amount SAT; `ngp neighbours` lists them."
        case ("open", *_):
            return f"open takes one NEIGHBOUR, not {' '.join(words[1:])!r}."
        case ("tower", ("add" | "remove") as deed) | ("tower", ("add" | "remove") as deed, _, *_):
            return f"tower {deed} takes one {'PUBKEY@HOST:PORT' if deed == 'add' else 'PUBKEY'}."
        case ("tower", *_):
            return "tower needs another word: tower add PUBKEY@HOST:PORT, tower list, or tower remove PUBKEY."
        case (("status" | "connect") as deed, *_):
            return f"{deed} takes no more words, not {' '.join(words[1:])!r}."
        case _:
            return f"known are {_KNOWN}, not {' '.join(words)!r}."


def _status(place: Place, as_json: bool) -> int:
    found: dict[str, Any] = Daemon(place.state_dir).ask("lightning")
    if as_json:
        print_json(found)
        return 0
    ready = "ready" if found["ready"] else f"not ready: {clean(found['why_not'])}"
    print(f"{clean(found['module'])} node {clean(found['node'])} on {clean(found['network'])}, {ready}")
    print(f"block {clean(found['block'])}, {'synced' if found['synced'] else 'not synced'}")
    print(f"balance in channels: {money(found['balance_msat'])} (amounts below are sat, delays are blocks)")
    print_table(found["channels"], _CHANNELS, "no channel")
    _print_towers(found["watchtowers"], advised=True)
    for line in found["advice"]:
        print(clean(line))
    return 0


def _towers(place: Place, as_json: bool) -> int:
    found: dict[str, Any] = Daemon(place.state_dir).ask("lightning towers")
    if as_json:
        print_json(found)
    else:
        _print_towers(found)
    return 0


def _print_towers(found: dict[str, Any], advised: bool = False) -> None:
    """Print the towers. Without any, say how to get one, unless `advised`: then the advice says it later."""
    if found["unknown"]:
        print(f"watchtowers: not known: {clean(found['unknown'])}")
    elif not found["active"]:
        how = "" if advised else " (wtclient.active=1 in lnd.conf switches it on)"
        print(f"watchtowers: none, the node's client is off{how}")
    else:
        counts = f"{found['backups']} backups, {found['pending_backups']} pending, {found['failed_backups']} failed"
        print(f"watchtowers: the node's client is on; since its start {counts}")
        how = "" if advised else ": ngp lightning tower add PUBKEY@HOST:PORT"
        print_table(found["towers"], _TOWERS, f"no watchtower{how}")


def _ask(place: Place, what: str, verb: str, **terms: object) -> int:
    """Ask the daemon for something for which the node may need a while, and print the answer."""
    progress = Progress(what)
    try:
        result = Daemon(place.state_dir, _OPEN_S, progress).ask(verb, **terms)
    finally:
        progress.end()
    print_result(result, "done")
    return 0


def _connect(place: Place, untried: bool) -> int:
    """Read an lndconnect URI from the terminal, without echo, or from a pipe: others can see a command's arguments."""
    from ngp.daemon import offline  # late: it imports every module

    uri = getpass.getpass("lndconnect URI (not shown): ") if sys.stdin.isatty() else sys.stdin.readline()
    if not uri.strip():
        raise UsageError("no URI was given: paste it, or pipe it in")
    if not place.state_dir.is_dir():
        raise UsageError(f"{place.state_dir} doesn't exist: make it (mode 0700), or name another with --state-dir")
    answered = "not tried yet: the next start tries it"
    if not untried:
        try:
            answered = offline.try_lnd_uri(uri, place.state_dir)
        except PaymentError as error:
            raise PaymentError(f"{error}; the URI was not kept (--untried keeps it without trying)") from error
    where, former = offline.keep_lnd_uri(uri, place.state_dir)
    replaced = f"the previous URI is kept as {former}; " if former else ""
    say(f"kept for LND at {where}; {replaced}{answered}; {_not_used(place) or _to_use(place)}")
    return 0


def _to_use(place: Place) -> str:
    if running_pid(place.state_dir) is None:
        return "to use it: sudo ngp start -v"
    return "restart ngp to use it: sudo ngp stop; sudo ngp start -v"


def _not_used(place: Place) -> str:
    """Say why net.conf doesn't use the kept URI; empty if it does, or if the file can't be read."""
    try:
        settings = place.settings()
    except ConfigError:
        return ""
    if settings.payment_module != "lnd":
        found = f"{place.config_path} has PAYMENT_INTERFACE: {settings.payment_module}"
        return f"it isn't used yet: {found}; write PAYMENT_INTERFACE: lnd, then: sudo ngp stop; sudo ngp start -v"
    given = settings.of_module("ngp.payment", "lnd")
    named = next((key for key in ("LND_CONNECT", "LND_MACAROON") if key in given), "")
    return f"it isn't used: {place.config_path} sets {named}, which comes first; write {named}: none" if named else ""
