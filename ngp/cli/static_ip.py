"""`staticIP`: the tenant's command, with the verbs, options, files and places of the published StaticWire client.

It needs neither root nor a daemon nor net.conf. Exit codes are those of `ngp`; errors begin with `staticIP:`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from ngp import __version__
from ngp.cli import run_command, streams
from ngp.cli.rent_show import FIREWALL, IS_OPEN
from ngp.cli.show import clean, duration, lines_of, money, print_json
from ngp.cli.whole import Whole
from ngp.core.pricing import show_money
from ngp.core.tenant.answers import Status
from ngp.core.tenant.terms import rent_of_month_msat
from ngp.errors import NgpError, UsageError
from ngp.tenant import autopay, renting
from ngp.tenant.home import FOLDER, Home, Tunnel
from ngp.tenant.https import HttpsLandlord, LandlordPlace
from ngp.tenant.qr import lines as qr_lines
from ngp.tenant.renting import KeptConfiguration, Quote
from ngp.tenant.rows import iso, rental_row


@dataclass(frozen=True, slots=True)
class _Call:
    """The words of the command line."""

    host: str | None
    pin: str | None
    amount: int | None
    tunnel: str | None
    as_json: bool

    def say(self, *lines: str) -> None:
        """Print lines for people; nothing with --json."""
        if not self.as_json:
            streams.say(*lines)


# --- verbs ------------------------------------------------------------------------------------------------------------


def _add_credit(call: _Call, wants_new: bool | None = None) -> int:
    """Show an invoice for a new or running rental, wait until it is paid, and keep the configuration of a new one."""
    home = Home(Path.home() / FOLDER)
    tunnel = home.tunnel(call.tunnel)
    amount_sat = home.amount_sat if call.amount is None else call.amount
    landlord = _landlord(call, home, tunnel)
    if wants_new is not None:
        renting.refuse_wrong_start(landlord, tunnel, wants_new)
    is_made, tunnel = tunnel is None, tunnel or _new_tunnel(call, home, landlord)
    try:
        quote = renting.ask(landlord, tunnel, amount_sat, None, wants_new)
    except BaseException:
        if is_made:
            home.take_back(tunnel)  # nobody has seen an invoice for its key
        raise
    _show_invoice(call, tunnel, quote)
    status = renting.wait_until_paid(landlord, tunnel, quote, streams.note)
    call.say("", "the invoice is paid")
    _show_status(call, tunnel, landlord, status, quote.real_money)
    if quote.asked.is_first:
        _show_configuration(call, renting.keep_configuration(home, landlord, tunnel, status), in_json=False)
    autopay.take_over(home, tunnel, quote, status)
    return 0


def _rent_new(call: _Call) -> int:
    return _add_credit(call, wants_new=True)


def _renew(call: _Call) -> int:
    return _add_credit(call, wants_new=False)


def _status(call: _Call) -> int:
    """Show a rental's networks, credit and rent."""
    _, tunnel, landlord = _existing(call)
    _show_status(call, tunnel, landlord, landlord.status(tunnel), None)
    return 0


def _conf(call: _Call) -> int:
    """Get the configuration again."""
    home, tunnel, landlord = _existing(call)
    _show_configuration(call, renting.keep_configuration(home, landlord, tunnel, None), in_json=True)
    return 0


def _autopay(call: _Call) -> int:
    """Keep the credit of a rental, or of a new one, until told to stop; never ends with 0."""
    from ngp.cli import tenant_service  # late: it loads the payment modules

    home = Home(Path.home() / FOLDER)
    tunnel = home.tunnel(call.tunnel)
    landlord = _landlord(call, home, tunnel)
    with tenant_service.only_autopay(home.folder):
        is_made, tunnel = tunnel is None, tunnel or _new_tunnel(call, home, landlord)
        try:
            return tenant_service.keep_by_hand_of(home, tunnel, landlord)
        except NgpError:
            if is_made and not home.state_path(tunnel).exists():
                home.take_back(tunnel)  # nothing was paid for its key
            raise


_VERBS: dict[str, Callable[[_Call], int]] = {
    "AddCredit": _add_credit,
    "RentNewIP": _rent_new,
    "Renew": _renew,
    "GetRentalStatus": _status,
    "GetConf": _conf,
    "AutoPay": _autopay,
}


def _new_tunnel(call: _Call, home: Home, landlord: HttpsLandlord) -> Tunnel:
    landlord.terms()  # no key is made for a landlord that doesn't answer
    return home.add_tunnel(call.tunnel, landlord.place)


def _existing(call: _Call) -> tuple[Home, Tunnel, HttpsLandlord]:
    home = Home(Path.home() / FOLDER)
    tunnel = home.tunnel(call.tunnel)
    if tunnel is None:
        what = "there is no tunnel yet" if call.tunnel is None else f"there is no tunnel {call.tunnel!r}"
        known = ", ".join(one.shown_name for one in home.tunnels())
        raise UsageError(f"{what}{known and f'; there are {known}'}: `staticIP AddCredit` rents one")
    return home, tunnel, _landlord(call, home, tunnel)


def _landlord(call: _Call, home: Home, tunnel: Tunnel | None) -> HttpsLandlord:
    place = home.landlord(tunnel, call.host, call.pin)
    if not isinstance(place, LandlordPlace):
        raise UsageError(f"staticIP rents over HTTPS only, not from {place}: use ngp rent")
    return HttpsLandlord(place)


# --- output -----------------------------------------------------------------------------------------------------------


def _show_invoice(call: _Call, tunnel: Tunnel, quote: Quote) -> None:
    if call.as_json:
        asked = quote.asked
        shown = {
            "invoice": asked.bolt11,
            "amount_msat": quote.amount_msat,
            "activation_fee_msat": asked.terms.activation_fee_msat,
            "added_msat": asked.added_msat,
            "rent_msat_per_month": asked.terms.rent_msat,
            "expires_at": iso(quote.expires_at_s),
            "real_money": quote.real_money,
            "wireguard_key": tunnel.public_key,
        }
        print(json.dumps(shown), flush=True)
        return
    networks = ", ".join(map(str, quote.asked.status.networks))
    what = "a new rental" if quote.asked.is_first else f"more credit for {networks}"
    call.say(f"{what} (tunnel {tunnel.shown_name})", *lines_of(renting.describe_invoice(quote)), "")
    call.say(qr_lines(quote.asked.bolt11.upper()), quote.asked.bolt11, "", "waiting until it is paid; Ctrl-C ends that")


def _show_status(call: _Call, tunnel: Tunnel, landlord: HttpsLandlord, status: Status, real_money: bool | None) -> None:
    row = rental_row(tunnel, str(landlord.place), landlord.place.face, status, time.time(), real_money)
    if call.as_json:
        print_json([row])
        return
    rent_msat = rent_of_month_msat(status.rate_sat_s)
    left = duration(status.left_s) if status.left_s > 0 else "none left"
    call.say(
        *lines_of(
            [
                ("tunnel", tunnel.shown_name),
                ("state", f"{row['state']}{row['reason'] and ': '}{row['reason']}"),
                ("networks", ", ".join(row["networks"]) or "none yet"),
                ("rental rate", f"{show_money(rent_msat)} a month"),
                ("start time", row["started_at"]),
                ("paid until", f"{clean(row['paid_until'])} ({left})"),
                ("total paid", f"{money(status.paid_msat)} in {status.payments} payments"),
                ("credit", money(status.credit_msat)),
            ]
        )
    )


def _show_configuration(call: _Call, kept: KeptConfiguration, in_json: bool) -> None:
    if call.as_json:
        if in_json:
            addresses = [str(one) for one in kept.configuration.addresses]
            print_json({"file": str(kept.path), "linked": kept.linked, "addresses": addresses})
        return
    name = kept.path.stem if kept.linked else str(kept.path)
    call.say("", f"configuration written to {kept.path}")
    call.say(f"linked as {kept.linked}" if kept.linked else f"not linked: {kept.why_not_linked}")
    call.say("", "for WireGuard on a phone (the code has the private key: show it to nobody):", qr_lines(kept.text))
    call.say(f"{IS_OPEN} Before you bring the tunnel up, {FIREWALL}", "", f"then: sudo wg-quick up {name}")


# --- the command ------------------------------------------------------------------------------------------------------


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rent dedicated public static IP subnets over WireGuard, paid over Lightning.\n\n"
    "\b\n"
    "AddCredit        an invoice for a new rental, or more credit for a running one\n"
    "RentNewIP        as AddCredit, but only for a new rental\n"
    "Renew            as AddCredit, but only for a running rental\n"
    "GetRentalStatus  networks, credit, and until when it is paid\n"
    "GetConf          the WireGuard configuration again\n"
    "AutoPay          rents, and keeps the credit by your own Lightning node, within BuyOfferTerms of Config.yaml\n",
)
@click.argument("action", type=click.Choice(list(_VERBS)))
@click.option("--rental_server_host", "host", metavar="HOST[:PORT]", help="the landlord [Config.yaml]")
@click.option("--rental_server_fingerprint", "pin", metavar="HEX", help="SHA-256 of its certificate [Config.yaml]")
@click.option("--amount", type=Whole(1, example=24_000), metavar="SAT", help="credit to add [Config.yaml, else 24000]")
@click.option("--tunnel", metavar="NAME", help="one of several tunnels: its name, or its key's first letters")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for scripts")
@click.option("--yes", is_flag=True, expose_value=False, help="don't ask before paying")
@click.version_option(__version__, prog_name="staticIP", message="%(prog)s %(version)s")
def static_ip(
    action: str, host: str | None, pin: str | None, amount: int | None, tunnel: str | None, as_json: bool
) -> int:
    """Run one action."""
    return _VERBS[action](_Call(host, pin, amount, tunnel, as_json))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command `staticIP` and exit."""
    os.umask(0o077)  # keys, and who is paid what, are nobody else's business
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run_command(static_ip, "staticIP", arguments))


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """End on SIGTERM as on Ctrl-C: what is half written is removed, and the exit code is the signal's."""
    sys.exit(128 + number)
