"""HTTPS: asks a landlord over the published StaticWire interface.

No certificate authority is asked. The landlord is known by the SHA-256 of its certificate, and nothing is sent before
that is checked. A landlord may answer garbage, drip by drip, or never: each request is bounded in size and time.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from ngp import __version__
from ngp.core.host_port import join_host_port
from ngp.core.tenant.answers import AnswerError, Asked, Status, read_asked, read_status, read_terms
from ngp.core.tenant.configuration import TunnelConfiguration, read_configuration
from ngp.core.tenant.terms import OnSale, SaleTerms
from ngp.errors import ConfigError, LandlordError
from ngp.tenant.landlord import Keys, RefusedError, printable

USUAL_PORT = 443
ANSWER_BYTES_MAX = 1 << 16
ANSWER_S = 15.0
"""How long an answer may take, from the first packet to the last."""
WAIT_FOR_PAYMENT_S = 45.0
"""Longer than the 20 s for which a landlord holds its answer until an invoice is paid."""
_PLACE = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[0-9A-Za-z_.-]{1,253})(:(?P<port>[0-9]{1,5}))?")

T = TypeVar("T")


class FingerprintError(ConfigError):
    """Another certificate answers than the one that is trusted."""


@dataclass(frozen=True, slots=True)
class LandlordPlace:
    """Where a landlord is. Attributes: pin: SHA-256 of its certificate, 64 small hex digits."""

    face: ClassVar[str] = "https"
    host: str
    port: int
    pin: str

    def __str__(self) -> str:
        return self.host if self.port == USUAL_PORT else join_host_port(self.host, self.port)

    def entry(self) -> dict[str, str]:
        """Return how Config.yaml has it."""
        return {"Host": str(self), "TrustedFingerprint": self.pin}


def read_place(written: str, pin: str) -> LandlordPlace:
    """Read HOST[:PORT], also with https:// before it, and a fingerprint. Raises ConfigError."""
    found = _PLACE.fullmatch(written.strip().removeprefix("https://").rstrip("/"))
    port = int(found["port"] or USUAL_PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise ConfigError(f"the landlord {written!r} is not HOST:PORT: write 192.0.2.1 or landlord.example:443")
    digits = re.sub(r"[:\s]", "", pin).lower()
    if re.fullmatch(r"[0-9a-f]{64}", digits) is None:
        raise ConfigError(
            f"the fingerprint {pin[:80]!r} is not a SHA-256: it has 64 hexadecimal digits; ask the landlord"
        )
    return LandlordPlace(found["host"].strip("[]"), port, digits)


class HttpsLandlord:
    """A landlord behind the HTTPS interface. Every method raises LandlordError or ConfigError; none stays connected."""

    def __init__(self, place: LandlordPlace) -> None:
        self.place = place

    def offers(self) -> tuple[OnSale, ...]:
        """Return what is for let: this interface has one offer, without a name."""
        return (OnSale(self.terms()),)

    def terms(self, offer: str = "") -> SaleTerms:
        """Return the terms of sale. Args: offer: must be ""."""
        if offer:
            raise LandlordError(f"landlord {self.place} has one offer over HTTPS, without a name: leave --offer out")
        return _read(read_terms, self._post("GetSellOfferTerms", {}))

    def ask(self, keys: Keys, amount_sat: int, offer: str = "") -> Asked:
        """Return an invoice for credit, of a new rental if there is none for this key. Args: offer: ignored."""
        form = {"WireGuardPubKey": keys.public_key, "amount": str(amount_sat)}
        return _read(read_asked, self._post("AddCredit", form))

    def status(self, keys: Keys, wait_for: str = "", preimage: bytes = b"") -> Status:
        """Return a rental's status.

        Args:
            wait_for: an invoice: answered once it is paid, or when the landlord waits no longer.
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

    def _post(self, verb: str, form: Mapping[str, str], most_s: float | None = None) -> dict[str, Any]:
        body = urlencode(form)
        most_s = ANSWER_S if most_s is None else most_s
        try:
            status, content = self._exchange(f"/api/{verb}/", body, most_s)
        except TimeoutError as error:
            raise LandlordError(f"landlord {self.place} doesn't answer within {most_s:g} s: try again later") from error
        except ssl.SSLError as error:
            why = error.reason or "no TLS"
            raise LandlordError(f"landlord {self.place} speaks no usable TLS ({why}): check host and port") from error
        except http.client.HTTPException as error:
            raise LandlordError(
                f"landlord {self.place} doesn't answer as HTTP requires ({type(error).__name__}): check host and port"
            ) from error
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise LandlordError(f"landlord {self.place} can't be reached: {why}: check host, port and route") from error
        if status != http.client.OK:
            raise LandlordError(f"landlord {self.place} answers {verb} with HTTP status {status}: ask the landlord")
        answer = _json(content, f"landlord {self.place}")
        if "Error" in answer:
            raise RefusedError(f"landlord {self.place} refuses: {printable(answer['Error'])}")
        return answer

    def _exchange(self, path: str, body: str, most_s: float) -> tuple[int, bytes]:
        with _deadline(most_s) as watched:
            plain = socket.create_connection((self.place.host, self.place.port), timeout=most_s)
            with plain, _context().wrap_socket(
                plain, server_hostname=self.place.host, do_handshake_on_connect=False
            ) as secured:
                watched(secured)
                secured.do_handshake()
                self._check_pin(secured.getpeercert(binary_form=True) or b"")
                connection = http.client.HTTPConnection(self.place.host, self.place.port)
                connection.sock = secured
                headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": f"ngp/{__version__}"}
                connection.request("POST", path, body, {**headers, "Connection": "close"})
                response = connection.getresponse()
                content = response.read(ANSWER_BYTES_MAX + 1)
        if len(content) > ANSWER_BYTES_MAX:
            raise LandlordError(f"landlord {self.place} answers more than {ANSWER_BYTES_MAX} bytes: ask the landlord")
        if response.length:
            raise http.client.IncompleteRead(content, response.length)
        return response.status, content

    def _check_pin(self, certificate: bytes) -> None:
        found = sha256(certificate).hexdigest()
        if found != self.place.pin:
            raise FingerprintError(
                f"landlord {self.place} has the certificate {found}, but {self.place.pin} is trusted: nothing was "
                "sent; ask the landlord over another way whether its certificate changed"
            )


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the fingerprint is checked instead
    return context


@contextlib.contextmanager
def _deadline(most_s: float) -> Iterator[Callable[[socket.socket], None]]:
    """Shut a socket down when the time is over: a time-out of its own begins anew with each byte."""
    watched: list[socket.socket] = []
    over = threading.Event()

    def end() -> None:
        over.set()
        for one in watched:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def watch(one: socket.socket) -> None:
        watched[:] = [one]
        if over.is_set():
            raise TimeoutError

    timer = threading.Timer(most_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    except (OSError, http.client.HTTPException) as error:
        if over.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError


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
