"""`ngp server COMMAND`: the commands of the original Network Gatekeeper daemon, as one string, and `fault`."""

from __future__ import annotations

import shlex

import click

from ngp.cli import stop
from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import print_result
from ngp.cli.streams import say
from ngp.cli.verbs import verb_command
from ngp.errors import ConfigError

_PAYMENT_S = 120.0


@verb_command("server", click.Argument(["words"], metavar="COMMAND", nargs=-1, required=True))
def command(place: Place, words: tuple[str, ...]) -> int:
    """Give the daemon a command."""
    try:
        verb, *rest = shlex.split(" ".join(words)) or [""]
    except ValueError as error:
        raise click.UsageError(f"the command can't be read ({error}).") from error
    if verb == "test" and not rest:
        Daemon(place.state_dir).ask("test")
        say("Test OK")
        return 0
    if verb == "stop" and not rest:
        return stop.stop(place)
    if verb == "payment" and len(rest) >= 2:
        return _pay(place, rest[0], " ".join(rest[1:]))
    if verb == "fault" and len(rest) >= 2:
        return _fault(place, " ".join(rest[:-1]), rest[-1])
    known = "test, stop, payment ACCOUNT AMOUNT and fault NAME VALUE"
    raise click.UsageError(f"the daemon takes {known}, not {' '.join(words)!r}.")


def _pay(place: Place, account: str, amount: str) -> int:
    from ngp.config import units  # late: it imports all of net.conf's rules

    try:
        amount_msat = units.money_msat(amount)
    except ConfigError as error:
        raise click.UsageError(f"amount {amount!r} {error}.") from error
    if amount_msat <= 0:
        raise click.UsageError(f"amount {amount!r} is zero: write for example 1000 (msat) or '5 sat'.")
    print_result(Daemon(place.state_dir, _PAYMENT_S).ask("payment", neighbour=account, amount_msat=amount_msat), "paid")
    return 0


def _fault(place: Place, name: str, value: str) -> int:
    print_result(Daemon(place.state_dir).ask("fault", name=name, value=value), "done")
    return 0
