"""`ngp rent`: rents addresses from landlords, and pays for them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ngp.cli import rent_show, streams
from ngp.cli.place import Place
from ngp.cli.show import print_json
from ngp.cli.verbs import verb_command
from ngp.cli.whole import Whole
from ngp.core.pricing import SAT_MSAT, ceil_to_sat_msat, show_money
from ngp.errors import LandlordError, NgpError, UsageError

if TYPE_CHECKING:
    from ngp.core.tenant.terms import SaleTerms
    from ngp.tenant.books import BooksFile
    from ngp.tenant.home import AnyPlace, Home, Tunnel
    from ngp.tenant.landlord import Landlord
    from ngp.tenant.renting import Quote


@dataclass(frozen=True, slots=True)
class _Call:
    """The command's options."""

    place: Place
    amount: int | None
    name: str | None
    offer: str | None
    face: str | None
    invoice: str | None
    no_pay: bool
    up: bool
    once: bool
    yes: bool
    as_json: bool
    words: tuple[str, ...]


@verb_command(
    "rent",
    click.Argument(["words"], metavar="COMMAND", nargs=-1, required=True),
    click.Option(["--amount"], type=Whole(1, example=24_000), metavar="SAT", help="new, add: credit; refund: how much"),
    click.Option(["--name"], metavar="NAME", help="new: what the rental is called"),
    click.Option(["--offer"], metavar="NAME", help="new: which of the landlord's offers [the first]"),
    click.Option(["--face"], type=click.Choice(["https", "grpc"]), help="trust: how the landlord is asked [https]"),
    click.Option(["--invoice"], metavar="BOLT11", help="refund: another wallet's invoice"),
    click.Option(["--no-pay"], is_flag=True, help="new, add: show the invoice; another wallet pays"),
    click.Option(["--up"], is_flag=True, help="new: bring the tunnel up as well"),
    click.Option(["--once"], is_flag=True, help="autopay: pay what is due, and end"),
    click.Option(["--yes"], is_flag=True, help="new, add, forget: don't ask"),
)
def command(
    place: Place, words: tuple[str, ...], amount: int | None, name: str | None, offer: str | None, face: str | None,
    invoice: str | None, no_pay: bool, up: bool, once: bool, yes: bool, as_json: bool,
) -> int:  # fmt: skip
    """Choose what to do by the words."""
    call = _Call(place, amount, name, offer, face, invoice, no_pay, up, once, yes, as_json, words)
    deeds: dict[str, tuple[Callable[[_Call], int], int, int, str]] = {
        "landlords": (_landlords, 0, 0, ""),
        "trust": (_trust, 2, 3, "NAME HOST[:PORT] PIN, or NAME KEY of a neighbour"),
        "distrust": (_distrust, 1, 1, "NAME"),
        "offers": (_offers, 0, 1, "[LANDLORD]"),
        "new": (_new, 1, 1, "LANDLORD"),
        "add": (_add, 1, 1, "RENTAL"),
        "status": (_status, 0, 1, "[RENTAL]"),
        "conf": (_conf, 1, 1, "RENTAL"),
        "up": (_up, 1, 1, "RENTAL"),
        "down": (_down, 1, 1, "RENTAL"),
        "rekey": (_rekey, 1, 1, "RENTAL"),
        "refund": (_refund, 1, 1, "RENTAL"),
        "forget": (_forget, 1, 1, "RENTAL"),
        "autopay": (_autopay, 0, 256, "[RENTAL...]"),
    }
    if words[0] not in deeds:
        *others, last = deeds
        raise click.UsageError(f"known are {', '.join(others)} and {last}, not {words[0]!r}.")
    deed, least, most, takes = deeds[words[0]]
    if not least <= len(words) - 1 <= most:
        raise click.UsageError(f"{words[0]} takes {takes or 'no words'}, not {' '.join(words[1:])!r}.")
    return deed(call)


# --- landlords --------------------------------------------------------------------------------------------------------


def _landlords(call: _Call) -> int:
    home = _home(call)
    known = home.landlords().items()
    rows = [{"name": name, "host": str(one), "pin": one.pin, "face": one.face} for name, one in known]
    rent_show.landlords(rows, call.as_json)
    return 0


def _trust(call: _Call) -> int:
    from ngp.cli import tenant_service
    from ngp.tenant.grpc import read_grpc_place
    from ngp.tenant.https import read_place

    _, name, where, *pin = call.words
    place: AnyPlace
    if not pin:
        place = tenant_service.neighbour_named(call.place, where)
    else:
        place = (read_grpc_place if call.face == "grpc" else read_place)(where, pin[0])
    terms = tenant_service.landlord_at(call.place, place).terms()  # tried before it is kept
    _home(call).trust(name, place)
    streams.say(f"{name} at {place} is trusted; it asks {terms.asked}: ngp rent offers {name}")
    return 0


def _distrust(call: _Call) -> int:
    _home(call).distrust(call.words[1])
    streams.say(f"{call.words[1]} is no longer trusted")
    return 0


def _offers(call: _Call) -> int:
    """List offers, and which of our limits refuse them. Landlords that don't answer are named on stderr instead."""
    from ngp.cli import tenant_service
    from ngp.core.tenant.terms import refusals

    home = _home(call)
    names = call.words[1:] or tuple(home.landlords())
    rows, code, limits = [], 0, tenant_service.limits_of(call.place)
    real = tenant_service.real_money(call.place)
    for name in names:
        try:
            found = tenant_service.landlord_at(call.place, home.trusted(name)).offers()
        except LandlordError as error:
            streams.note(f"ngp: {name}: {error}")
            code = int(error.exit_code)
            continue
        rows += [rent_show.offer_row(name, one, refusals(one.terms, limits, is_first=True), real) for one in found]
    rent_show.offers(rows, len(names), call.as_json)
    return code


# --- rentals ----------------------------------------------------------------------------------------------------------


def _new(call: _Call) -> int:
    from ngp.cli import tenant_service

    home = _home(call)
    place, offer = home.trusted(call.words[1]), call.offer or ""
    landlord = tenant_service.landlord_at(call.place, place)
    terms = landlord.terms(offer)
    amount_sat = ceil_to_sat_msat(terms.initial_credit_min_msat) // SAT_MSAT if call.amount is None else call.amount
    tunnel = home.add_tunnel(call.name, place, call.words[1], offer)
    try:
        quote = _asked(call, home, tunnel, landlord, amount_sat, terms)
    except BaseException:
        home.take_back(tunnel)  # nobody has seen an invoice for its key
        raise
    _pay(call, home, tunnel, landlord, quote)
    if not call.up:
        return 0
    with tenant_service.closed_on_error(call.place):
        return _up_tunnel(call, home, tunnel)


def _add(call: _Call) -> int:
    home, (tunnel,) = _rentals(call)
    landlord, amount_sat = _landlord(call, home, tunnel), call.amount
    if amount_sat is None:
        terms = landlord.terms(tunnel.offer)
        amount_sat = (terms.rent_msat or ceil_to_sat_msat(terms.initial_credit_min_msat)) // SAT_MSAT
    _pay(call, home, tunnel, landlord, _asked(call, home, tunnel, landlord, amount_sat, None))
    return 0


def _asked(
    call: _Call, home: Home, tunnel: Tunnel, landlord: Landlord, amount_sat: int, offered: SaleTerms | None
) -> Quote:
    """Ask for an invoice; if our node is to pay it, show the sum and ask the user.

    What our node can't pay isn't asked for: the landlord would keep addresses for it.

    Args: offered: the terms of a new rental.
    """
    from ngp.cli import tenant_service
    from ngp.tenant import renting
    from ngp.tenant.books import BooksFile

    was_paid = BooksFile(home.state_path(tunnel)).read().account.started
    is_first = False if was_paid else True if offered is not None else None
    if not call.no_pay:
        fee_msat = offered.activation_fee_msat if offered is not None else 0
        tenant_service.refuse_unpayable(call.place, home, tunnel, amount_sat * SAT_MSAT + fee_msat)
    quote = renting.ask(landlord, tunnel, amount_sat, offered, is_first)
    if not call.no_pay:
        rent_show.invoice(tunnel, quote, call.as_json, with_code=False)
        try:
            _agreed(call, f"pay {show_money(quote.amount_msat)}?")
        except BaseException:
            if offered is not None:
                with suppress(NgpError):  # if it can't be reached any more, the invoice expires
                    landlord.cancel(tunnel)
            raise
    return quote


def _pay(call: _Call, home: Home, tunnel: Tunnel, landlord: Landlord, quote: Quote) -> None:
    """Pay an invoice, or show it and wait until another wallet has paid it; then keep the configuration."""
    from ngp.cli import tenant_service
    from ngp.tenant import autopay, interface, renting

    if call.no_pay:
        rent_show.invoice(tunnel, quote, call.as_json, with_code=True)
        status = renting.wait_until_paid(landlord, tunnel, quote, streams.note)
        autopay.take_over(home, tunnel, quote, status)
    else:
        status = tenant_service.pay(call.place, home, tunnel, quote)
    if not home.conf_path(tunnel).exists():
        renting.keep_configuration(home, landlord, tunnel, status, keeps_route=True)
    rent_show.rentals([rent_show.row(tunnel, landlord, status, time.time(), quote.real_money)], 1, call.as_json)
    if not call.as_json and not call.up:
        streams.say("", rent_show.after_payment(tunnel, interface.is_up(tunnel.interface)))


def _agreed(call: _Call, question: str) -> None:
    if call.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is here to answer: --yes agrees; nothing was done")
    if not click.confirm(question, err=True):
        raise UsageError("nothing was done")


def _status(call: _Call) -> int:
    """List rentals as their landlords have them. A landlord that doesn't answer is named on stderr, and left out."""
    from ngp.cli import tenant_service
    from ngp.tenant import routing
    from ngp.tenant.books import BooksFile

    home, tunnels = _rentals(call)
    rows, code, real = [], 0, tenant_service.real_money(call.place)
    for one in tunnels:
        landlord = _landlord(call, home, one)
        try:
            status, answered_at_s = landlord.status(one), time.time()
        except NgpError as error:
            streams.note(f"ngp: {one.shown_name}: {error}")
            code = int(error.exit_code)
            continue
        shown = rent_show.row(one, landlord, status, answered_at_s, real)
        why_not = rent_show.why_not_served(shown, one.shown_name)
        why_not = why_not or asyncio.run(tenant_service.why_not(call.place, home, one))
        if BooksFile(home.state_path(one)).read().pending is not None:
            why_not = f"a payment's outcome isn't known yet; {why_not}"
        rows.append(shown | {"proven": not why_not, "why_not": why_not})
    rent_show.rentals(rows, len(tunnels), call.as_json)
    if lacks := routing.lacks(home):
        streams.note(f"ngp: {lacks}")
    return code


def _conf(call: _Call) -> int:
    """Get the configuration again."""
    from ngp.tenant import renting

    home, (tunnel,) = _rentals(call)
    landlord = _landlord(call, home, tunnel)
    kept = renting.keep_configuration(home, landlord, tunnel, landlord.status(tunnel), keeps_route=True)
    if call.as_json:
        print_json({"file": str(kept.path), "addresses": [str(one) for one in kept.configuration.addresses]})
    else:
        streams.say(f"{kept.path}", rent_show.NEXT.format(name=tunnel.shown_name))
    return 0


def _up(call: _Call) -> int:
    from ngp.cli import tenant_service

    with tenant_service.closed_on_error(call.place):
        return _bring_up(call)


def _bring_up(call: _Call) -> int:
    from ngp.tenant.books import BooksFile

    home, (tunnel,) = _rentals(call)
    name = tunnel.shown_name
    if not home.conf_path(tunnel).exists() and not BooksFile(home.state_path(tunnel)).read().account.started:
        raise UsageError(
            f"{name} isn't paid for yet: ngp rent add {name}; if another wallet paid, ngp rent conf {name}"
        )
    return _up_tunnel(call, home, tunnel)


def _up_tunnel(call: _Call, home: Home, tunnel: Tunnel) -> int:
    from ngp.cli import tenant_service

    carrier = tenant_service.bring_up(call.place, home, tunnel)
    if not call.as_json:
        unasked = tenant_service.unasked_name_servers(call.place) if carrier is not None else []
        streams.say(f"the tunnel {tunnel.interface} is up", *rent_show.traffic(carrier, unasked), rent_show.OPEN)
        if call.words[0] == "new":
            streams.say(rent_show.KEEP.format(name=tunnel.shown_name))
    return 0


def _down(call: _Call) -> int:
    from ngp.cli import tenant_service

    home, (tunnel,) = _rentals(call)
    tenant_service.bring_down(call.place, home, tunnel)
    streams.say(f"the tunnel {tunnel.interface} is down")
    return 0


def _rekey(call: _Call) -> int:
    """Give a rental another WireGuard key."""
    from ngp.tenant import autopay, rekey

    home, (tunnel,) = _rentals(call)
    with autopay.alone_with(home, tunnel):
        changed = rekey.change(home, _landlord(call, home, tunnel), tunnel)
    if call.as_json:
        print_json({"id": changed.interface, "wireguard_key": changed.public_key})
    else:
        streams.say(f"{changed.shown_name} has the key {changed.public_key}; the old key is no longer valid")
    return 0


def _forget(call: _Call) -> int:
    """Drop a rental's keys, when the user agrees."""
    from ngp.cli import tenant_service
    from ngp.tenant import autopay, renting
    from ngp.tenant.books import BooksFile

    home, (tunnel,) = _rentals(call)
    books = BooksFile(home.state_path(tunnel))
    _refuse_pending(books)
    if not call.yes:
        paid, lost = show_money(books.read().account.paid_msat), _what_is_lost(call, home, tunnel)
        drop = f"drop the keys of {tunnel.shown_name}, for which {paid} were paid?"
        _agreed(call, f"{drop} They can't be had again; {lost}.")
    with autopay.alone_with(home, tunnel):
        home.refuse_changed(tunnel)  # while the user was asked, it may have got another key, or AutoPay may have paid
        _refuse_pending(books)
        tenant_service.bring_down(call.place, home, tunnel)
        renting.unlink(home.conf_path(tunnel))
        home.forget_tunnel(tunnel)
    streams.say(f"the keys of {tunnel.shown_name} are gone")
    return 0


def _refuse_pending(books: BooksFile) -> None:
    if books.read().pending is not None:
        raise UsageError("a payment for this rental is on its way: ngp rent autopay --once waits for its outcome")


def _what_is_lost(call: _Call, home: Home, tunnel: Tunnel) -> str:
    """Say how much of our money the landlord still has: without the keys nobody can use or fetch it."""
    try:
        status = _landlord(call, home, tunnel).status(tunnel)
    except NgpError as error:
        return f"what is left with the landlord is lost, and how much that is isn't known ({error})"
    if status.fetchable_msat:
        return f"{show_money(status.fetchable_msat)} are lost, unless ngp rent refund fetches them before"
    return f"{show_money(max(0, status.credit_msat))} of credit are lost"


def _refund(call: _Call) -> int:
    """Fetch what is left of a rental that is over, to our payment node or with another wallet's invoice."""
    from ngp.cli import tenant_service
    from ngp.tenant.landlord import no_refunds

    home, (tunnel,) = _rentals(call)
    landlord = _landlord(call, home, tunnel)
    if call.invoice is not None:
        landlord.refund(tunnel, call.invoice)
        return _told(call, "the landlord pays the invoice", arrived=False)
    status = landlord.status(tunnel)
    most_msat = status.fetchable_msat
    if most_msat is None:
        raise no_refunds(landlord.place)
    if not most_msat and status.state == "released":
        left = show_money(max(0, status.credit_msat))
        raise UsageError(f"nothing of {tunnel.shown_name} can be fetched: {left} are left, and only whole sat are paid")
    if not most_msat:
        raise UsageError(f"nothing of {tunnel.shown_name} can be fetched: that is possible only when a rental is over")
    amount_msat = most_msat if call.amount is None else call.amount * SAT_MSAT
    if tenant_service.fetch(call.place, home, tunnel, landlord, amount_msat):
        return _told(call, f"{show_money(amount_msat)} have arrived", arrived=True)
    return _told(call, f"the landlord pays {show_money(amount_msat)}; the payment node shows its arrival", False)


def _told(call: _Call, text: str, arrived: bool) -> int:
    if call.as_json:
        print_json({"arrived": arrived})
    else:
        streams.say(text)
    return 0


def _autopay(call: _Call) -> int:
    from ngp.cli import tenant_service

    home, tunnels = _rentals(call)
    if not tunnels:
        raise UsageError("nothing is rented yet: ngp rent new LANDLORD")
    with tenant_service.only_autopay(home.folder):
        return tenant_service.autopay_rentals(call.place, home, tunnels, call.once)


def _home(call: _Call) -> Home:
    from ngp.cli import tenant_service  # late: it imports what only some verbs need

    return tenant_service.home_of(call.place)


def _rentals(call: _Call) -> tuple[Home, list[Tunnel]]:
    """Return the tenant's files, and the rentals that are named, or all if none is. Raises UsageError."""
    from ngp.cli import tenant_service

    home = _home(call)
    found = [tenant_service.rental_of(home, one) for one in call.words[1:]] or home.tunnels()
    for one in found:
        if one.next_private_key and call.words[0] != "rekey":
            name = one.shown_name
            streams.note(f"ngp: {name}: a change of its key was interrupted; ngp rent rekey {name} finishes it")
    return home, found


def _landlord(call: _Call, home: Home, tunnel: Tunnel) -> Landlord:
    from ngp.cli import tenant_service

    return tenant_service.landlord_at(call.place, home.landlord(tunnel))
