"""StaticWire: the questions and answers of the form and JSON API that the published client speaks.

The client compares much of what it is told with what it has worked out itself, number by number, and stops for good at
the first difference. So each number has one expression here, whichever reply it is in. The client knows no status but
200: whatever is refused is told as {"Error": text}.

This API shows only rentals that were made by it. It asks for no proof that a key is the tenant's own. So it must not
show rentals that were made over gRPC or the mesh, where such a proof is asked for.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Hashable, Mapping
from urllib.parse import parse_qsl

from ngp.calls.first_invoices import FirstInvoices
from ngp.core.host_port import split_host_port
from ngp.core.pricing import SAT_MSAT, ceil_to_sat_msat
from ngp.core.rental.rental import RentalState
from ngp.core.rental.status import RentalStatus
from ngp.core.rental.terms import MONTH_S, Offer
from ngp.core.rental.tunnel import tunnel_address
from ngp.errors import RentalError
from ngp.ports import LettingService

FACE = "https"
TERMS, ADD_CREDIT = "/api/GetSellOfferTerms/", "/api/AddCredit/"
STATUS, CONFIGURATION = "/api/getstatus/", "/api/getconf/"
PATHS = (TERMS, ADD_CREDIT, STATUS, CONFIGURATION)

_MOST_FIELDS = 8
_MOST_DIGITS = 12  # of an amount in sat: any amount that an offer permits has fewer, and all sat that exist have 16
_KEY_BYTES = 32

Reply = dict[str, object]


def rate_sat_s(month_msat: int) -> float:
    """Return a rent in sat per second. The only place that calculates it: the client compares the results."""
    return month_msat / SAT_MSAT / MONTH_S


def read_form(body: bytes) -> dict[str, str]:
    """Read a urlencoded form. Raises RentalError."""
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise RentalError("the request isn't a urlencoded form: see docs/rental-protocol.md") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise RentalError("the request has a field twice: send each once")
    return form


class StaticWireApi:
    """Answers requests by asking the landlord.

    Args: first_invoices: how many new rentals one address may have waiting for their first payment.
    """

    def __init__(self, letting: LettingService, first_invoices: int) -> None:
        self._letting = letting
        self._first_invoices = FirstInvoices(first_invoices, letting)

    async def answer(self, path: str, form: Mapping[str, str], who: Hashable, hold_s: float) -> Reply:
        """Answer one request.

        Args:
            path: one of `PATHS`.
            who: what tells senders apart.
            hold_s: how long the reply may wait for the payment of an invoice.
        Raises: RentalError: refused; the text is for the tenant. LedgerError: nothing can be written now.
        """
        if path == TERMS:
            return terms(self._letting.offer())
        key = _wireguard_key(form)
        self._refuse_other_face(key, path)
        if path == ADD_CREDIT:
            amount_msat = _amount_msat(form)
            with self._first_invoices.asking(who, key):
                return await self._add_credit(key, amount_msat)
        if path == STATUS:
            if proof := form.get("Preimage"):
                self._letting.prove(_preimage(proof))
            bolt11 = form.get("InvoiceToWaitFor", "")
            return status(await self._letting.paid(key, bolt11, hold_s) if bolt11 else self._letting.status(key))
        return self._configuration(key)

    def _refuse_other_face(self, key: bytes, path: str) -> None:
        """Refuse to show a rental that was made another way; when it is over, its key may rent anew here."""
        try:
            found = self._letting.status(key)
        except RentalError:
            return
        rents_anew = path == ADD_CREDIT and found.state is RentalState.RELEASED
        if found.face != FACE and not rents_anew:
            raise RentalError(f"the rental of this WireGuard key was made another way ({found.face}): ask there")

    async def _add_credit(self, key: bytes, amount_msat: int) -> Reply:
        asked = await self._letting.ask(key, amount_msat, FACE)
        offered, now = terms(asked.offer), status(asked.status)
        if asked.is_first:
            now["current_time"] = asked.status.started_at_s  # the client expects it as start_time from now on
        else:
            del offered["ActivationFee"]
        return {
            "Invoice": asked.bolt11,
            "InitialInvoice": asked.is_first,
            "AddedCredit": asked.added_msat // SAT_MSAT,
            "SellOfferTerms": offered,
            "Status": now,
        }

    def _configuration(self, key: bytes) -> Reply:
        found = self._letting.configuration(key)
        host, port = split_host_port(_endpoint(found.endpoints))
        versions = sorted({one.version for one in found.networks})
        peer: Reply = {
            "public_key": b64encode(found.landlord_key).decode(),
            "endpoint_host": host,
            "endpoint_port": int(port),
            "allowed_ips": ["0.0.0.0/0" if one == 4 else "::/0" for one in versions],
        }
        if found.keepalive_s:
            peer["persistent_keepalive"] = found.keepalive_s
        reply: Reply = {"addresses": [tunnel_address(one) for one in found.networks], "mtu": found.mtu, "peers": [peer]}
        if found.dns:
            reply["dns"] = list(found.dns)
        return reply


def terms(offer: Offer) -> Reply:
    """Return an offer as the client knows it, whole sat."""
    return {
        "Rate": rate_sat_s(offer.rent_msat),
        "ActivationFee": offer.activation_fee_msat // SAT_MSAT,
        "MinimumInitialCredit": ceil_to_sat_msat(offer.initial_credit_min_msat) // SAT_MSAT,
        "MinRegularPaymentSize": ceil_to_sat_msat(offer.payment_min_msat) // SAT_MSAT,
        "MaximumCredit": offer.credit_max_msat // SAT_MSAT,
    }


def status(found: RentalStatus) -> Reply:
    """Return a rental's status as the client knows it.

    The credit isn't rounded to whole sat: the client stops if more than 20 s of rent are missing.
    """
    return {
        "Networks": [str(one) for one in found.networks],
        "start_time": found.started_at_s,
        "current_time": found.now_at_s,
        "TimeRemaining": found.left_s or 0,
        "Credit": found.credit_msat / SAT_MSAT,
        "CurrentRate": rate_sat_s(found.rent_msat),
        "total_paid": found.paid_msat // SAT_MSAT,
        "NumberOfPayments": found.payments,
        "ActivationFee": found.activation_fee_msat // SAT_MSAT,
        "unpaid_invoice": found.unpaid_invoice or None,
    }


def _endpoint(endpoints: tuple[str, ...]) -> str:
    """Choose an endpoint: an IPv4 address or a name, if there is one. The client writes IPv6 without its brackets."""
    if not endpoints:
        raise RentalError("the landlord's tunnel has no address now: ask again in a minute")
    return next((one for one in endpoints if not one.startswith("[")), endpoints[0])


def _wireguard_key(form: Mapping[str, str]) -> bytes:
    text = form.get("WireGuardPubKey", "")
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES or b64encode(key).decode() != text:
        raise RentalError(
            f"WireGuardPubKey {text[:60]!r} is no WireGuard key: send the 44 characters that `wg pubkey` prints"
        )
    return key


def _preimage(text: str) -> bytes:
    """Read the proof of a payment: a field of ours, which the published client doesn't send."""
    try:
        preimage = bytes.fromhex(text) if len(text) == 2 * _KEY_BYTES else b""
    except ValueError:
        preimage = b""
    if len(preimage) != _KEY_BYTES:
        raise RentalError(f"Preimage of {len(text)} characters: send 64 hexadecimal digits")
    return preimage


def _amount_msat(form: Mapping[str, str]) -> int:
    text = form.get("amount", "")
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise RentalError(f"amount {text[:60]!r} is no whole number of sat: send for example 24000")
    return int(text) * SAT_MSAT
