"""HTTPS: asks a landlord over the published StaticWire interface.

No certificate authority is asked. The landlord is known by the SHA-256 of its certificate, and nothing is sent before
that is checked. A landlord may answer garbage, drip by drip, or never: each request is bounded in size and time.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

from ngp import __version__
from ngp.core.tenant.answers import AnswerError, Asked, Status, read_asked, read_status, read_terms
from ngp.core.tenant.configuration import TunnelConfiguration, read_configuration
from ngp.core.tenant.terms import OnSale, SaleTerms
from ngp.errors import ConfigError, LandlordError
from ngp.tenant import tls
from ngp.tenant.landlord import (
    FingerprintError,
    HostPlace,
    Keys,
    RefusedError,
    no_refunds,
    printable,
    read_host_port,
)

USUAL_PORT = 443
ANSWER_BYTES_MAX = 1 << 16
ANSWER_S = 15.0
"""How long an answer may take, from the first packet to the last."""
WAIT_FOR_PAYMENT_S = 45.0
"""Longer than the 20 s for which a landlord holds its answer until an invoice is paid."""

T = TypeVar("T")


class LandlordPlace(HostPlace):
    """Where a landlord is. Attributes: pin: SHA-256 of its certificate, 64 small hex digits."""

    __slots__ = ()
    face, usual_port, pin_key = "https", USUAL_PORT, "TrustedFingerprint"


def read_place(written: str, pin: str) -> LandlordPlace:
    """Read HOST[:PORT], also with https:// before it, and a fingerprint. Raises ConfigError."""
    host, port = read_host_port(written.strip().removeprefix("https://").rstrip("/"), USUAL_PORT)
    digits = re.sub(r"[:\s]", "", pin).lower()
    if re.fullmatch(r"[0-9a-f]{64}", digits) is None:
        raise ConfigError(
            f"the fingerprint {pin[:80]!r} is not a SHA-256: it has 64 hexadecimal digits; ask the landlord"
        )
    return LandlordPlace(host, port, digits)


class HttpsLandlord:
    """A landlord behind the HTTPS interface. Every method raises LandlordError or ConfigError; none stays connected."""

    def __init__(self, place: LandlordPlace) -> None:
        self.place = place

    def offers(self) -> tuple[OnSale, ...]:
        """Return what tenants may rent: this interface has one offer, without a name."""
        return (OnSale(self.terms()),)

    def terms(self, offer: str = "") -> SaleTerms:
        """Return the terms of sale. Args: offer: must be ""."""
        if offer:
            raise LandlordError(f"landlord {self.place} has one offer over HTTPS, without a name: leave --offer out")
        return _read(read_terms, self._post("GetSellOfferTerms", {}))

    def ask(self, keys: Keys, amount_sat: int, offer: str = "") -> Asked:
        """Return an invoice for credit; for a new rental if this key has none. Args: offer: ignored."""
        form = {"WireGuardPubKey": keys.public_key, "amount": str(amount_sat)}
        return _read(read_asked, self._post("AddCredit", form))

    def status(self, keys: Keys, wait_for: str = "", preimage: bytes = b"") -> Status:
        """Return a rental's status.

        Args:
            wait_for: an invoice: the answer comes when it is paid, or when the landlord waits no longer.
            preimage: proves that an invoice was paid; a landlord that doesn't know this field ignores it.
        """
        form = {"WireGuardPubKey": keys.public_key}
        form |= {"InvoiceToWaitFor": wait_for} if wait_for else {}
        form |= {"Preimage": preimage.hex()} if preimage else {}
        most_s = WAIT_FOR_PAYMENT_S if wait_for else None
        return _read(read_status, self._post("getstatus", form, most_s))

    def configuration(self, keys: Keys) -> TunnelConfiguration:
        """Return what the tunnel needs."""
        return _read(read_configuration, self._post("getconf", {"WireGuardPubKey": keys.public_key}))

    def refund(self, keys: Keys, bolt11: str) -> Status:  # noqa: ARG002  the interface's
        """Raise LandlordError: this interface has no refunds."""
        raise no_refunds(self.place)

    def cancel(self, keys: Keys) -> None:  # noqa: ARG002  the interface's
        """Do nothing: this interface has no such request, and the invoice expires."""

    def rekey(self, keys: Keys, new: Keys) -> None:
        """Refuse: over HTTPS nobody can prove that a key is its own."""
        raise RefusedError(
            f"landlord {self.place} can't change a rental's key over HTTPS: if it serves gRPC, trust it there under "
            "the same name (ngp rent trust NAME HOST KEY --face grpc)"
        )

    def _post(self, verb: str, form: Mapping[str, str], most_s: float | None = None) -> dict[str, Any]:
        body = urlencode(form)
        with tls.connected(self.place, ANSWER_S if most_s is None else most_s) as connection:
            self._check_pin(connection.certificate.hex())
            try:
                status, content = self._exchange(connection, f"/api/{verb}/", body)
            except http.client.HTTPException as error:
                raise LandlordError(
                    f"landlord {self.place} doesn't answer as HTTP requires ({type(error).__name__}): check host and "
                    "port"
                ) from error
        if status != http.client.OK:
            raise LandlordError(f"landlord {self.place} answers {verb} with HTTP status {status}: ask the landlord")
        answer = _json(content, f"landlord {self.place}")
        if "Error" in answer:
            raise RefusedError(f"landlord {self.place} refuses: {printable(answer['Error'])}")
        return answer

    def _exchange(self, to: tls.Connection, path: str, body: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.place.host, self.place.port)
        connection.sock = to.socket
        headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": f"ngp/{__version__}"}
        connection.request("POST", path, body, {**headers, "Connection": "close"})
        response = connection.getresponse()
        content = response.read(ANSWER_BYTES_MAX + 1)
        if len(content) > ANSWER_BYTES_MAX:
            raise LandlordError(f"landlord {self.place} answers more than {ANSWER_BYTES_MAX} bytes: ask the landlord")
        if response.length:
            raise http.client.IncompleteRead(content, response.length)
        return response.status, content

    def _check_pin(self, found: str) -> None:
        if found != self.place.pin:
            raise FingerprintError(
                f"landlord {self.place} has the certificate {found}, but {self.place.pin} is trusted: nothing was "
                "sent; for the port and identity of gRPC, say --face grpc to `ngp rent trust`; else ask the landlord "
                "over another way whether its certificate changed"
            )


def _json(content: bytes, whose: str) -> dict[str, Any]:
    try:
        answer = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise LandlordError(f"{whose} doesn't answer with a JSON object: it isn't a StaticWire landlord, or is broken")
    return answer


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _read(read: Callable[[dict[str, Any]], T], answer: dict[str, Any]) -> T:
    try:
        return read(answer)
    except (AnswerError, OverflowError) as error:
        raise LandlordError(str(error)) from error
