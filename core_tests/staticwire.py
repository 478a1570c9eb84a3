"""A tenant of the StaticWire API: requests as the published client sends them, and the books that its AutoPay keeps.

The bytes are those of the `requests` library: order and case of the headers, the form's encoding, one connection for
all requests, no time-out. `HeldToTheRules` fails at a reply that the client would stumble over. The books say what
AutoPay accepts. All are written from the rules, not from the client.
"""

from __future__ import annotations

import hashlib
import json
import math
import socket
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

PATIENCE_S = 60.0
TOLERATED_S = 20
CLOCK_AHEAD_S = 10

Connect = Callable[[tuple[str, int], float], socket.socket]


def new_key() -> bytes:
    """Return the public key of a new WireGuard tunnel."""
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def request_bytes(host: str, path: str, fields: Mapping[str, object] | None) -> bytes:
    """Return a request as `requests` sends it. Args: host: as in the URL. fields: None: a request without a body."""
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: python-requests/2.32.3",
        "Accept-Encoding: gzip, deflate",
        "Accept: */*",
        "Connection: keep-alive",
    ]
    body = b"" if fields is None else urlencode(fields).encode()
    head.append(f"Content-Length: {len(body)}")
    if fields is not None:
        head.append("Content-Type: application/x-www-form-urlencoded")
    return "\r\n".join((*head, "", "")).encode() + body


def tls_context() -> ssl.SSLContext:
    """Return TLS settings that ask no authority: the fingerprint alone counts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Session:
    """One connection to a landlord, opened with the first request and used for all.

    Args:
        pin: SHA-256 of the leaf certificate, hex; "" in tests that look at something else.
        connect: returns a connection to (host, port), within so many seconds.
    """

    def __init__(self, host: str, port: int, pin: str = "", connect: Connect = socket.create_connection) -> None:
        self._place = host, port
        self._connect = connect
        self._named = f"{host}:{port}" if port != 443 else host
        self._pin = pin
        self._socket: ssl.SSLSocket | None = None

    def post(self, path: str, fields: Mapping[str, object] | None = None) -> tuple[int, Any]:
        """Send a request. Returns status and what the JSON says. Raises: OSError, ValueError."""
        if self._socket is None:
            plain = self._connect(self._place, PATIENCE_S)
            self._socket = tls_context().wrap_socket(plain)
            found = hashlib.sha256(self._socket.getpeercert(binary_form=True) or b"").hexdigest()
            assert not self._pin or found == self._pin.replace(":", "").lower(), f"the fingerprint is {found}"
        self._socket.sendall(request_bytes(self._named, path, fields))
        response = HTTPResponse(self._socket, method="POST")
        response.begin()
        content = json.loads(response.read())
        if response.will_close:
            self.close()
        return response.status, content

    @property
    def is_open(self) -> bool:
        """True if the landlord has left the connection open."""
        return self._socket is not None

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class LandlordRefuses(Exception):
    """The landlord's reply is an error."""


@dataclass
class Tenant:
    """The calls of the published client."""

    session: Session
    key: bytes = field(default_factory=new_key)

    def terms(self) -> dict[str, Any]:
        return self._ask("/api/GetSellOfferTerms/", None)

    def add_credit(self, sat: int | str) -> dict[str, Any]:
        return self._ask("/api/AddCredit/", {"WireGuardPubKey": wg_text(self.key), "amount": sat})

    def status(self, invoice: str | None = None, **fields: str) -> dict[str, Any]:
        """Ask for the status. Args: fields: more of them, which the published client doesn't send."""
        waits = {"InvoiceToWaitFor": invoice} if invoice else {}
        return self._ask("/api/getstatus/", {"WireGuardPubKey": wg_text(self.key)} | waits | fields)

    def configuration(self) -> dict[str, Any]:
        return self._ask("/api/getconf/", {"WireGuardPubKey": wg_text(self.key)})

    def _ask(self, path: str, fields: Mapping[str, object] | None) -> dict[str, Any]:
        status, content = self.session.post(path, fields)
        assert status == 200 and isinstance(content, dict), f"the client knows only 200: {status} {content}"
        if "Error" in content:
            assert list(content) == ["Error"] and isinstance(content["Error"], str)
            raise LandlordRefuses(content["Error"])
        return content


class HeldToTheRules(Tenant):
    """A tenant that checks each reply."""

    def terms(self) -> dict[str, Any]:
        found = super().terms()
        check_terms(found)
        return found

    def add_credit(self, sat: int | str) -> dict[str, Any]:
        found = super().add_credit(sat)
        assert set(found) == {"Invoice", "InitialInvoice", "AddedCredit", "SellOfferTerms", "Status"}
        assert isinstance(found["Invoice"], str) and isinstance(found["InitialInvoice"], bool)
        assert found["AddedCredit"] == sat
        check_terms(found["SellOfferTerms"], found["InitialInvoice"])
        check_status(found["Status"])
        return found

    def status(self, invoice: str | None = None, **fields: str) -> dict[str, Any]:
        found = super().status(invoice, **fields)
        check_status(found)
        return found

    def configuration(self) -> dict[str, Any]:
        found = super().configuration()
        check_configuration(found)
        return found


def check_terms(terms: Mapping[str, Any], initial: bool = True) -> None:
    """Fail at terms that the client doesn't understand. Args: initial: they are for a new rental."""
    amounts = [
        "MinimumInitialCredit",
        "MinRegularPaymentSize",
        "MaximumCredit",
        *(["ActivationFee"] if initial else []),
    ]
    assert set(terms) == {"Rate", *amounts}
    assert is_number(terms["Rate"]) and terms["Rate"] > 0
    assert all(is_whole(terms[key]) and terms[key] >= 0 for key in amounts)
    assert terms["MaximumCredit"] >= max(terms["MinimumInitialCredit"], 2 * terms["MinRegularPaymentSize"])


def check_status(status: Mapping[str, Any]) -> None:
    """Fail at a status that the client doesn't understand, or that doesn't agree with itself."""
    whole = "start_time", "current_time", "total_paid", "NumberOfPayments", "ActivationFee"
    numbers = "TimeRemaining", "Credit", "CurrentRate"
    assert set(status) == {"Networks", "unpaid_invoice", *whole, *numbers}
    assert all(is_whole(status[key]) and status[key] >= 0 for key in whole), status
    assert all(is_number(status[key]) for key in numbers), status
    assert status["CurrentRate"] > 0 and status["current_time"] >= status["start_time"]
    assert status["unpaid_invoice"] is None or isinstance(status["unpaid_invoice"], str)
    assert all(str(ip_network(one)) == one for one in status["Networks"])
    assert abs(status["Credit"] / status["CurrentRate"] - status["TimeRemaining"]) <= 2


def check_configuration(found: Mapping[str, Any]) -> None:
    """Fail at a configuration with which the client ends, or that says more than it should."""
    assert set(found) <= {"private_key", "fwmark", "listen_port", "peers", "addresses", "dns", "mtu"}, (
        "only what it knows"
    )
    assert found["addresses"] and all(ip_interface(one) for one in found["addresses"])
    assert found.get("private_key") is None and "mtu" not in found or 1280 <= found["mtu"] <= 9000
    assert all(ip_address(one) for one in found.get("dns") or [])
    for peer in found["peers"]:
        assert set(peer) <= {
            *("public_key", "preshared_key", "endpoint", "endpoint_host", "endpoint_port", "persistent_keepalive"),
            "allowed_ips",
        }
        assert len(b64decode(peer["public_key"], validate=True)) == 32
        host, port = (peer.get("endpoint") or f"{peer['endpoint_host']}:{peer['endpoint_port']}").rsplit(":", 1)
        assert ":" not in host and 0 < int(port) < 65536, "the client writes IPv6 without its brackets"
        assert peer["allowed_ips"] and all(ip_network(one) for one in peer["allowed_ips"])


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def wg_text(key: bytes) -> str:
    """Return a key as WireGuard writes it."""
    return b64encode(key).decode()


@dataclass
class Books:
    """What AutoPay knows of its rental, and holds the landlord to. Money sat, times Unix seconds."""

    activation_fee: int = 0
    start_time: int = 0
    rate: float = 0.0
    rate_since: int = 0
    paid_at_rate: int = 0
    credit_before: float = 0.0
    total_paid: int = 0
    payments: int = 0

    def credit(self, at: int) -> float:
        """Return the credit at an instant of the landlord's clock."""
        return self.paid_at_rate + self.credit_before - (at - self.rate_since) * self.rate

    def paid(self, reply: Mapping[str, Any], invoice_sat: int) -> None:
        """Book the payment of an invoice. Args: reply: the landlord's, with the invoice."""
        now, terms = reply["Status"]["current_time"], reply["SellOfferTerms"]
        if not self.payments:
            self.activation_fee, self.start_time = terms["ActivationFee"], now
            self.credit_before = -self.activation_fee
        else:
            self.credit_before = self.credit(now)
        self.rate_since, self.paid_at_rate, self.rate = now, invoice_sat, terms["Rate"]
        self.total_paid += invoice_sat
        self.payments += 1

    def differences(self, status: Mapping[str, Any], clock: float | None = None) -> list[str]:
        """Return why AutoPay would stop at this status. Args: clock: the tenant's; None: this machine's."""
        exact = {
            "start_time": self.start_time,
            "ActivationFee": self.activation_fee,
            "CurrentRate": self.rate,
            "total_paid": self.total_paid,
            "NumberOfPayments": self.payments,
        }
        found = [f"{name} is {status[name]}, not {one}" for name, one in exact.items() if status[name] != one]
        if status["current_time"] - (time.time() if clock is None else clock) > CLOCK_AHEAD_S:
            found.append(f"current_time {status['current_time']} is in the future")
        credit = self.credit(status["current_time"])
        if credit - status["Credit"] > TOLERATED_S * self.rate:
            found.append(f"Credit is {status['Credit']}, less than {credit}")
        if credit / self.rate - status["TimeRemaining"] > TOLERATED_S:
            found.append(f"TimeRemaining is {status['TimeRemaining']}, less than {credit / self.rate}")
        return found
