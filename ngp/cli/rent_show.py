"""What `ngp rent` prints: landlords, offers, invoices and rentals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ngp.cli import streams
from ngp.cli.show import Column, Row, field, lines_of, money, price, print_json, print_not_real, print_table
from ngp.core.pricing import show_money

if TYPE_CHECKING:
    from ngp.core.tenant.answers import Status
    from ngp.core.tenant.terms import OnSale
    from ngp.tenant.home import Tunnel
    from ngp.tenant.landlord import Landlord
    from ngp.tenant.renting import Quote

IS_OPEN = "The address is open to the whole internet: everybody can reach every port of this machine at it."
FIREWALL = "set a firewall that drops what comes in, for example: sudo ufw default deny incoming; sudo ufw enable"
OPEN = f"{IS_OPEN} {FIREWALL.capitalize()}"
KEEP = "sudo ngp rent autopay {name} keeps the credit"
NEXT = f"{OPEN}. Then: sudo ngp rent up {{name}}; and {KEEP}"
_NONE_TRUSTED = "no landlord is trusted: ngp rent trust NAME HOST[:PORT] PIN, or for a neighbour NAME KEY"

_LANDLORDS = (Column("name", field("name")), Column("host", field("host")), Column("face", field("face")),
              Column("pin", field("pin")))  # fmt: skip
_OFFERS = (
    Column("landlord", field("landlord")),
    Column("offer", field("name")),
    Column("networks", field("networks")),
    Column("rent a month", field("rent_msat_per_month", money), right=True),
    Column("price", field("price_msat_per_gib", price), right=True),
    Column("activation fee", field("activation_fee_msat", money), right=True),
    Column("least credit", field("initial_credit_min_msat", money), right=True),
    Column("least payment", field("payment_min_msat", money), right=True),
    Column("most credit", field("credit_max_msat", money), right=True),
    Column("refused by", field("refused_by")),
)
_RENTALS = (
    Column("rental", field("id")),
    Column("name", field("name")),
    Column("landlord", field("peer")),
    Column("state", field("state")),
    Column("networks", field("networks")),
    Column("credit", field("credit_msat", money), right=True),
    Column("paid until", field("paid_until")),
    Column("works", lambda row: "yes" if row.get("proven") else str(row.get("why_not") or "-")),
)


def traffic(carrier: Tunnel | None, unasked: Sequence[str]) -> list[str]:
    """Return what to say about a tunnel that all traffic uses; nothing if none does.

    Args: unasked: name servers that can't be asked any more.
    """
    if carrier is None:
        return []
    name = carrier.shown_name
    return [
        f"all traffic of this machine uses {name}; until `ngp rent down {name}` nothing else leaves beside it",
        *(
            f"the name server {one} (/etc/resolv.conf) is in the LAN and can't be asked: name one behind the tunnel, "
            f"or write TENANT_BESIDE: [{one} udp 53]"
            for one in unasked
        ),
    ]


def landlords(rows: Sequence[Row], as_json: bool) -> None:
    """Print the trusted landlords."""
    _print(rows, _LANDLORDS, _NONE_TRUSTED, as_json)


def offer_row(landlord: str, offer: OnSale, refused_by: Sequence[str], real_money: bool | None) -> Row:
    """Return a landlord's offer. Over HTTPS it has no name, and says neither networks nor how many are free.

    Args: real_money: whether our node pays with it; None: not known.
    """
    terms = offer.terms
    return {
        "landlord": landlord,
        "name": offer.name,
        "networks": offer.networks,
        "free": offer.free,
        "rent_msat_per_month": terms.rent_msat,
        "price_msat_per_gib": terms.price_msat_per_gib,
        "activation_fee_msat": terms.activation_fee_msat,
        "initial_credit_min_msat": terms.initial_credit_min_msat,
        "payment_min_msat": terms.payment_min_msat,
        "credit_max_msat": terms.credit_max_msat,
        "reserved_s": offer.reserved_s,
        "refused_by": list(refused_by),
        "real_money": real_money,
    }


def offers(rows: Sequence[Row], asked: int, as_json: bool) -> None:
    """Print offers. Args: asked: how many landlords were asked; 0: none is trusted."""
    _print(rows, _OFFERS, "" if asked else _NONE_TRUSTED, as_json)


def row(tunnel: Tunnel, landlord: Landlord, status: Status, answered_at_s: float, real_money: bool | None) -> Row:
    """Return a rental as a row. Args: as in `rental_row`."""
    from ngp.tenant.rows import rental_row

    name = tunnel.landlord or str(landlord.place)
    return rental_row(tunnel, name, landlord.place.face, status, answered_at_s, real_money) | {"name": tunnel.name}


def why_not_served(row: Row, name: str) -> str:
    """Return why the landlord doesn't serve a rental; "" if it does."""
    from ngp.tenant import rows

    return rows.why_not_served(row, name)


def after_payment(tunnel: Tunnel, is_up: bool) -> str:
    """Return what is left to do for a rental that was paid. Args: is_up: whether its tunnel is up."""
    return (KEEP if is_up else NEXT).format(name=tunnel.shown_name)


def rentals(rows: Sequence[Row], asked: int, as_json: bool) -> None:
    """Print rentals, and the money that can be fetched. Args: asked: about how many rentals landlords were asked."""
    _print(rows, _RENTALS, "" if asked else "nothing is rented: ngp rent new LANDLORD", as_json)
    for one in () if as_json else rows:
        if one["fetchable_msat"]:
            name = one["name"] or one["id"]
            streams.say(f"{name}: {show_money(one['fetchable_msat'])} can be fetched: ngp rent refund {name}")


def _print(rows: Sequence[Row], columns: Sequence[Column], empty: str, as_json: bool) -> None:
    """Print a listing. Args: empty: printed if there are no rows; "": nothing, as the reason was printed before."""
    if as_json:
        print_json(list(rows))
    elif rows or empty:
        print_table(rows, columns, empty)
        if any(each.get("real_money") is False for each in rows):
            print_not_real()


def invoice(tunnel: Tunnel, quote: Quote, as_json: bool, with_code: bool) -> None:
    """Print what an invoice is for; with its text and its QR code if another wallet pays it."""
    from ngp.tenant.qr import lines as qr_lines
    from ngp.tenant.renting import describe_invoice
    from ngp.tenant.rows import iso

    if as_json:
        shown: dict[str, Any] = {"amount_msat": quote.amount_msat, "added_msat": quote.asked.added_msat}
        shown |= {"invoice": quote.asked.bolt11 if with_code else None, "expires_at": iso(quote.expires_at_s)}
        shown |= {"real_money": quote.real_money}
        print(json.dumps(shown), flush=True)
        return
    what = "a new rental" if quote.asked.is_first else "more credit"
    streams.say(f"{what} ({tunnel.shown_name})", *lines_of(describe_invoice(quote)))
    if with_code:
        streams.say("", qr_lines(quote.asked.bolt11.upper()), quote.asked.bolt11, "", "waiting until it is paid")
