"""A landlord for tests: a real TLS server that answers as the published interface says, and misbehaves on request."""

from __future__ import annotations

import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ngp import invoice

MONTH_S = 2_629_800
NETWORKS = ["192.0.2.7/32", "2001:db8:7::/64"]
TUNNEL_KEY = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
Answer = dict[str, Any]


@dataclass
class Rental:
    """A rental as a landlord keeps it, in sat."""

    started_at: int = 0
    since: float = 0.0
    credit: float = 0.0
    rate: float = 0.0
    paid: int = 0
    payments: int = 0
    bolt11: str = ""
    payment_hash: bytes = b""
    due: int = 0
    asked_at: int = 0
    asked_rate: float = 0.0

    def credit_now(self, now: float) -> float:
        return self.credit - (now - self.since) * self.rate if self.payments else 0.0


@dataclass
class StandIn:
    """A landlord. `twists` change the answer of a verb; `raw` replaces it with bytes; `silent` never answers.

    Attributes:
        lags_s: how far its status lags behind the clock, as it counts the seconds that its machine has run.
        is_paid: says whether an invoice was paid, by its payment hash.
        make_invoice: returns a BOLT11 invoice and its payment hash.
    """

    rent: int = 24_000
    fee: int = 48_000
    initial_min: int = 1_000
    payment_min: int = 500
    credit_max: int = 72_000
    expiry_s: int = 600
    is_paid: Callable[[bytes], bool] = lambda _hash: False
    make_invoice: Callable[[int, int], tuple[str, bytes]] | None = None
    twists: dict[str, Callable[[Answer], Answer]] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    ahead_s: int = 0
    lags_s: int = 0
    port: int = 0
    pin: str = ""
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    rentals: dict[str, Rental] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def rate(self) -> float:
        return self.rent / MONTH_S

    def now(self) -> int:
        return int(time.time()) + self.ahead_s - self.lags_s

    def answer(self, verb: str, form: dict[str, str]) -> Answer:
        with self._lock:
            self.calls.append((verb, form))
            plain = {
                "GetSellOfferTerms": lambda _: self.terms(True),
                "AddCredit": self.add_credit,
                "getstatus": self.get_status,
                "getconf": self.get_conf,
            }[verb](form)
        return self.twists.get(verb, lambda same: same)(plain)

    def terms(self, with_fee: bool) -> Answer:
        shown: Answer = {"Rate": self.rate, "MinimumInitialCredit": self.initial_min}
        shown |= {"MinRegularPaymentSize": self.payment_min, "MaximumCredit": self.credit_max}
        return shown | ({"ActivationFee": self.fee} if with_fee else {})

    def add_credit(self, form: dict[str, str]) -> Answer:
        amount, rental = int(form["amount"]), self.rentals.setdefault(form["WireGuardPubKey"], Rental())
        self.look(rental)
        first = rental.payments == 0
        least = self.initial_min if first else self.payment_min
        if not least <= amount <= self.credit_max - max(0, rental.credit_now(self.now())):
            return {"Error": f"amount {amount} is out of range"}
        rental.due = amount + (self.fee if first else 0)
        rental.asked_at, rental.asked_rate = self.now(), self.rate
        make = self.make_invoice or self.plain_invoice
        rental.bolt11, rental.payment_hash = make(rental.due * 1000, self.expiry_s)
        if first:
            rental.started_at = rental.asked_at
        return {
            "Invoice": rental.bolt11,
            "InitialInvoice": first,
            "AddedCredit": amount,
            "SellOfferTerms": self.terms(first),
            "Status": self.status(rental),
        }

    def plain_invoice(self, amount_msat: int, expiry_s: int) -> tuple[str, bytes]:
        payment_hash = secrets.token_bytes(32)
        text = invoice.write(
            key=self._key, prefix="bcrt", amount_msat=amount_msat, timestamp_s=self.now() + self.lags_s,
            expiry_s=expiry_s, payment_hash=payment_hash, payment_secret=secrets.token_bytes(32), memo="rent",
            metadata=b"",
        )  # fmt: skip
        return text, payment_hash

    def look(self, rental: Rental) -> None:
        """Count the open invoice if it was paid."""
        if not rental.payment_hash or not self.is_paid(rental.payment_hash):
            return
        carried = rental.credit_now(rental.asked_at) if rental.payments else -self.fee
        rental.credit, rental.since, rental.rate = carried + rental.due, rental.asked_at, rental.asked_rate
        rental.paid, rental.payments = rental.paid + rental.due, rental.payments + 1
        rental.payment_hash, rental.bolt11 = b"", ""

    def get_status(self, form: dict[str, str]) -> Answer:
        rental = self.rentals.get(form["WireGuardPubKey"])
        if rental is None:
            return {"Error": "there is no rental for this key"}
        self.look(rental)
        return self.status(rental)

    def status(self, rental: Rental) -> Answer:
        now, rate = self.now(), rental.rate or self.rate
        credit = rental.credit_now(now)
        return {
            "Networks": NETWORKS if rental.payments else [],
            "start_time": rental.started_at,
            "current_time": now,
            "TimeRemaining": credit / rate,
            "Credit": credit,
            "CurrentRate": rate,
            "total_paid": rental.paid,
            "NumberOfPayments": rental.payments,
            "ActivationFee": self.fee,
            "unpaid_invoice": rental.bolt11 or None,
        }

    def get_conf(self, form: dict[str, str]) -> Answer:
        rental = self.rentals.get(form["WireGuardPubKey"])
        if rental is None or not rental.payments:
            return {"Error": "there is no rental for this key"}
        peer = {"public_key": TUNNEL_KEY, "preshared_key": None, "persistent_keepalive": 25}
        peer |= {"endpoint_host": "198.51.100.1", "endpoint_port": 51820, "allowed_ips": ["0.0.0.0/0", "::/0"]}
        addresses = ["192.0.2.7/32", "2001:db8:7::1/64"]
        return {"private_key": None, "fwmark": None, "listen_port": None, "peers": [peer], "addresses": addresses,
                "dns": [], "mtu": 1420}  # fmt: skip


@contextmanager
def serving(landlord: StandIn, folder: Path) -> Iterator[StandIn]:
    """Serve a landlord on loopback, with a certificate of its own."""
    certificate = make_certificate(folder)
    landlord.pin = sha256(certificate).hexdigest()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def do_POST(self) -> None:  # noqa: N802 - the name that the library gives it
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            verb = self.path.removeprefix("/api/").removesuffix("/")
            form = {key: values[0] for key, values in parse_qs(body).items()}
            if verb in landlord.silent:
                landlord.closing.wait(60)
                return
            if verb in landlord.raw:
                self.wfile.write(landlord.raw[verb])
                self.close_connection = True
                return
            content = json.dumps(landlord.answer(verb, form)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_about: object) -> None:
            """Ignore clients that break off: a wrong fingerprint does."""

    server = Server(("127.0.0.1", 0), Handler)
    landlord.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield landlord
    finally:
        landlord.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def make_certificate(folder: Path) -> bytes:
    """Write cert.pem and key.pem; returns the certificate's DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "landlord")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=9))
    signed = certificate.sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(pem)
    return signed.public_bytes(serialization.Encoding.DER)
