"""Conformance of a landlord's HTTPS API: requests as the published client sends them, replies held to the rules.

As shipped the landlord is our daemon, with sandbox money. Another one is tried, without root, with

    NGP_STATICWIRE=HOST:PORT NGP_STATICWIRE_PIN=HEX NGP_STATICWIRE_PAY=COMMAND pytest core_tests/test_staticwire_api.py

where COMMAND pays the invoice that is appended to it. That costs two rentals and some payments. Without a command only
what needs no payment is tried.
"""

from __future__ import annotations

import os
import shlex
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core_tests import renting
from core_tests.lab import Lab
from core_tests.renting import fingerprint_of, open_renting
from core_tests.staticwire import (
    Books,
    HeldToTheRules,
    LandlordRefuses,
    Session,
    new_key,
    request_bytes,
    tls_context,
    wg_text,
)
from ngp import invoice

PLACE, PIN, PAY = (os.environ.get(f"NGP_STATICWIRE{one}", "") for one in ("", "_PIN", "_PAY"))
POOLS = ["198.51.100.0/28", "2001:db8:100::/56"]
USUAL_SAT = 1100
NEEDS_MONEY = pytest.mark.skipif(bool(PLACE) and not PAY, reason="NGP_STATICWIRE_PAY says how invoices are paid")


@dataclass(frozen=True)
class LandlordUnderTest:
    """Attributes: pay: pays an invoice for a tenant, and returns when the payer's node says that it is paid."""

    host: str
    port: int
    pin: str
    pay: Callable[[HeldToTheRules, str], None]
    connect: Callable[[tuple[str, int], float], socket.socket]

    def session(self) -> Session:
        return Session(self.host, self.port, self.pin, self.connect)


@pytest.fixture(scope="module")
def landlord(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LandlordUnderTest]:
    if PLACE:
        host, _, port = PLACE.rpartition(":")
        yield LandlordUnderTest(
            host, int(port), PIN, lambda _, bolt11: _pay_by_command(bolt11), socket.create_connection
        )
        return
    with Lab() as lab:
        yield _our_landlord(lab, tmp_path_factory.mktemp("payer"))


def _pay_by_command(bolt11: str) -> None:
    subprocess.run([*shlex.split(PAY), bolt11], check=True, timeout=120)


def _our_landlord(lab: Lab, payer_dir: Path) -> LandlordUnderTest:
    """Start our daemon as a landlord without neighbours; it lets with sandbox money."""
    letting = open_renting(lab, payer_dir, LANDLORD_POOLS=POOLS)
    pin, connect = fingerprint_of(letting.daemon), letting.outside.connect

    def pay(payer: HeldToTheRules, bolt11: str) -> None:
        with closing(Session("203.0.113.1", 443, pin, connect)) as session:
            renting.pay(HeldToTheRules(session, payer.key), bolt11, payer_dir)

    return LandlordUnderTest("203.0.113.1", 443, pin, pay, connect)


@pytest.fixture
def tenant(landlord: LandlordUnderTest) -> Iterator[HeldToTheRules]:
    """A tenant with a new key."""
    with closing(landlord.session()) as session:
        yield HeldToTheRules(session)


def pay(landlord: LandlordUnderTest, tenant: HeldToTheRules, books: Books, reply: dict[str, Any]) -> dict[str, Any]:
    """Pay as AutoPay does, and wait for the landlord's acknowledgement. Returns that status."""
    asked = invoice.read(reply["Invoice"])
    assert asked.amount_msat is not None and asked.amount_msat % 1000 == 0
    landlord.pay(tenant, reply["Invoice"])
    status = tenant.status(reply["Invoice"])
    books.paid(reply, asked.amount_msat // 1000)
    assert status["unpaid_invoice"] is None
    assert books.differences(status) == []
    return status


# --- without money ----------------------------------------------------------------------------------------------------


def test_the_clients_bytes_are_answered_with_json_on_one_connection(landlord: LandlordUnderTest) -> None:
    key = wg_text(new_key())
    requests = [
        ("/api/GetSellOfferTerms/", None),
        ("/api/AddCredit/", {"WireGuardPubKey": key, "amount": 1}),
        ("/api/getstatus/", {"WireGuardPubKey": key}),
        ("/api/getconf/", {"WireGuardPubKey": key}),
    ]
    with closing(landlord.session()) as session:
        for path, fields in requests:
            status, content = session.post(path, fields)
            assert status == 200 and isinstance(content, dict) and session.is_open, (path, status, content)


def test_the_requests_are_byte_for_byte_the_clients() -> None:
    """As the client sent them with requests 2.32 and 2.34, but for the version."""
    key = "Et+NuvYiVmJNgPDT1QTT0FmTXywBpYOgT1Rsuyt2Mmg="
    head = (
        b"Host: 192.0.2.1:8443\r\nUser-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\n"
        b"Accept: */*\r\nConnection: keep-alive\r\nContent-Length: "
    )
    form = b"\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"
    assert request_bytes("192.0.2.1:8443", "/api/GetSellOfferTerms/", None) == (
        b"POST /api/GetSellOfferTerms/ HTTP/1.1\r\n" + head + b"0\r\n\r\n"
    )
    assert request_bytes("192.0.2.1:8443", "/api/AddCredit/", {"WireGuardPubKey": key, "amount": 6000}) == (
        b"POST /api/AddCredit/ HTTP/1.1\r\n" + head + b"76" + form
        + b"WireGuardPubKey=Et%2BNuvYiVmJNgPDT1QTT0FmTXywBpYOgT1Rsuyt2Mmg%3D&amount=6000"
    )  # fmt: skip


def test_old_tls_is_refused(landlord: LandlordUnderTest) -> None:
    context = tls_context()
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    plain = landlord.connect((landlord.host, landlord.port), 30)
    with plain, pytest.raises(OSError), context.wrap_socket(plain):
        pass


def test_the_terms_are_the_same_each_time(tenant: HeldToTheRules) -> None:
    assert tenant.terms() == tenant.terms()


@pytest.mark.parametrize("amount", ["least", "most", "0", "-1", "1.5", "x"])
def test_an_amount_beyond_the_terms_is_an_error_that_is_told(tenant: HeldToTheRules, amount: str) -> None:
    terms = tenant.terms()
    beyond = {"least": terms["MinimumInitialCredit"] - 1, "most": terms["MaximumCredit"] + 1}
    with pytest.raises(LandlordRefuses):
        tenant.add_credit(beyond.get(amount, amount))
    with pytest.raises(LandlordRefuses):
        tenant.status()


def test_a_key_that_is_none_or_unknown_is_an_error_that_is_told(tenant: HeldToTheRules) -> None:
    for ask in (tenant.status, tenant.configuration):
        with pytest.raises(LandlordRefuses):
            ask()
    for path in ("/api/AddCredit/", "/api/getstatus/", "/api/getconf/"):
        for fields in ({}, {"WireGuardPubKey": "x"}, {"WireGuardPubKey": wg_text(b"\1" * 31), "amount": "1100"}):
            status, content = tenant.session.post(path, fields)
            assert status == 200 and list(content) == ["Error"] and isinstance(content["Error"], str)


def test_an_unpaid_rental_has_an_invoice_for_fee_and_credit(tenant: HeldToTheRules) -> None:
    terms, reply = tenant.terms(), tenant.add_credit(USUAL_SAT)
    assert reply["InitialInvoice"] and reply["SellOfferTerms"] == terms
    asked = invoice.read(reply["Invoice"])
    assert asked.amount_msat == (terms["ActivationFee"] + USUAL_SAT) * 1000
    assert abs(asked.timestamp_s - reply["Status"]["current_time"]) <= 10
    began = time.monotonic()
    status = tenant.status()
    assert time.monotonic() - began < 15, "without an invoice to wait for the answer comes at once"
    assert status["unpaid_invoice"] == reply["Invoice"]
    assert status["total_paid"] == status["NumberOfPayments"] == status["Credit"] == 0
    with pytest.raises(LandlordRefuses):
        tenant.configuration()
    again = tenant.add_credit(USUAL_SAT)
    assert again["Invoice"] != reply["Invoice"] and tenant.status()["unpaid_invoice"] == again["Invoice"]


def test_a_status_that_waits_for_an_invoice_comes_after_some_20_seconds(tenant: HeldToTheRules) -> None:
    bolt11 = tenant.add_credit(USUAL_SAT)["Invoice"]
    began = time.monotonic()
    assert tenant.status(bolt11)["unpaid_invoice"] == bolt11
    assert 10 <= time.monotonic() - began <= 40


# --- with money -------------------------------------------------------------------------------------------------------


@NEEDS_MONEY
def test_autopay_agrees_from_the_first_payment_on(landlord: LandlordUnderTest, tenant: HeldToTheRules) -> None:
    """Its order: terms, invoice, payment, status, configuration, and within seconds the next payment."""
    books, terms = Books(), tenant.terms()
    reply = tenant.add_credit(terms["MinimumInitialCredit"] + 100)
    assert reply["SellOfferTerms"] == terms
    status = pay(landlord, tenant, books, reply)
    assert status["Networks"]
    found = tenant.configuration()
    offered = {key: value for key, value in terms.items() if key != "ActivationFee"}
    for sat in (2898, 605, 605):
        time.sleep(1.2)
        assert tenant.terms() == terms
        reply = tenant.add_credit(sat)
        assert not reply["InitialInvoice"] and reply["SellOfferTerms"] == offered
        assert invoice.read(reply["Invoice"]).amount_msat == sat * 1000
        assert books.differences(reply["Status"]) == []
        assert pay(landlord, tenant, books, reply)["Networks"] == status["Networks"]
    assert tenant.configuration() == found
    assert books.differences(tenant.status()) == []
    with pytest.raises(LandlordRefuses):
        tenant.add_credit(terms["MaximumCredit"])


@NEEDS_MONEY
def test_a_payment_ends_the_wait_for_it_at_once(landlord: LandlordUnderTest, tenant: HeldToTheRules) -> None:
    bolt11 = tenant.add_credit(USUAL_SAT)["Invoice"]
    ended: list[float] = []

    def wait() -> None:
        assert tenant.status(bolt11)["unpaid_invoice"] is None
        ended.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.5)
    with closing(landlord.session()) as session:
        landlord.pay(HeldToTheRules(session, tenant.key), bolt11)
    paid = time.monotonic()
    waiting.join(40)
    assert ended and ended[0] - paid < 3
