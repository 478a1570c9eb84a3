"""What the published client relies on, rule by rule (`core_tests.staticwire` has its requests and its books)."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from let import FEE, MONTH_S, RENT, SAT, offer
from shop import ENDPOINTS, Shop, terms_of_shop

from core_tests.staticwire import Books, HeldToTheRules, LandlordRefuses, Tenant, new_key, tls_context, wg_text
from ngp.core import events as ev
from ngp.core.records import PaymentKind
from ngp.core.rental.events import SwitchRental
from ngp.core.rental.tunnel import tunnel_address
from ngp.errors import LedgerError, RentalError
from ngp.modules.face.door import Limits
from ngp.modules.face.staticwire import PATHS, read_form


@pytest.fixture
def tenant(shop: Shop) -> Iterator[Tenant]:
    made = shop.tenant()
    yield made
    made.session.close()


def pay(shop: Shop, books: Books, reply: dict[str, Any]) -> dict[str, Any]:
    """Pay an invoice as AutoPay does, and hold the landlord's next status to the books."""
    amount = shop.landlord.node.amounts[bytes.fromhex(reply["Invoice"])] // SAT
    assert shop.pay(reply["Invoice"])
    books.paid(reply, amount)
    return reply


def agree(shop: Shop, books: Books, status: dict[str, Any]) -> None:
    assert books.differences(status, shop.landlord.utc_s) == []


def rent(shop: Shop, tenant: Tenant, sat: int = 1100) -> Books:
    books = Books()
    pay(shop, books, tenant.add_credit(sat))
    agree(shop, books, tenant.status())
    return books


def change_offer(shop: Shop, **changes: Any) -> None:
    shop.do(lambda: shop.landlord.reload(replace(shop.terms, offers=(offer(**changes),))))


# --- terms ------------------------------------------------------------------------------------------------------------


def test_the_terms_have_the_clients_keys_in_whole_sat(tenant: Tenant) -> None:
    terms = tenant.terms()
    assert terms["Rate"] == 24_000 / MONTH_S and isinstance(terms["Rate"], float)
    rest = {key: value for key, value in terms.items() if key != "Rate"}
    assert rest == {
        "ActivationFee": 48_000, "MinimumInitialCredit": 1000, "MinRegularPaymentSize": 500, "MaximumCredit": 72_000
    }  # fmt: skip
    assert all(isinstance(one, int) for one in rest.values())


def test_a_part_of_a_sat_is_rounded_so_that_what_is_offered_is_accepted(tmp_path: Path) -> None:
    odd = offer(initial_credit_min_msat=1_000_001, payment_min_msat=500_999, credit_max_msat=72_000_999)
    with closing(Shop(tmp_path, terms_of_shop(odd))) as shop, closing(shop.session()) as session:
        tenant = HeldToTheRules(session)
        terms = tenant.terms()
        assert (terms["MinimumInitialCredit"], terms["MinRegularPaymentSize"]) == (1001, 501)
        assert terms["MaximumCredit"] == 72_000
        assert shop.pay(tenant.add_credit(1001)["Invoice"]) and tenant.add_credit(501)


# --- the first payment ------------------------------------------------------------------------------------------------


def test_the_first_invoice_is_for_fee_and_credit_and_the_reply_has_terms_and_status(shop: Shop, tenant: Tenant) -> None:
    reply = tenant.add_credit(1100)
    assert reply["InitialInvoice"] is True and reply["AddedCredit"] == 1100
    assert shop.landlord.node.amounts[bytes.fromhex(reply["Invoice"])] == FEE + 1100 * SAT
    assert reply["SellOfferTerms"] == tenant.terms()


def test_before_the_payment_the_status_names_the_invoice_and_has_all_numbers(shop: Shop, tenant: Tenant) -> None:
    reply = tenant.add_credit(1100)
    status = tenant.status()
    assert status["unpaid_invoice"] == reply["Invoice"]
    assert status["CurrentRate"] > 0 and status["total_paid"] == status["NumberOfPayments"] == 0
    assert status["Credit"] == status["TimeRemaining"] == 0
    with pytest.raises(LandlordRefuses, match="isn't paid yet"):
        tenant.configuration()
    assert shop.pay(reply["Invoice"])
    assert tenant.status()["unpaid_invoice"] is None


def test_the_start_is_the_time_of_the_reply_with_the_invoice(shop: Shop, tenant: Tenant) -> None:
    """The node takes a while for the invoice, and the tenant for the payment: neither moves the start."""
    books = Books()
    tenant.add_credit(2000)
    shop.pass_time(30)
    reply = tenant.add_credit(1100)
    shop.pass_time(200)
    pay(shop, books, reply)
    status = tenant.status(reply["Invoice"])
    assert status["start_time"] == reply["Status"]["current_time"] and status["current_time"] > status["start_time"]
    agree(shop, books, status)


def test_a_node_that_is_slow_with_the_invoice_does_not_move_the_start(shop: Shop, tenant: Tenant) -> None:
    shop.landlord.node.slow = True
    replies: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: replies.append(tenant.add_credit(1100)))
    asking.start()
    while not shop.do(lambda: bool(shop.landlord.world.letting.asking)):
        time.sleep(0.01)
    shop.pass_time(7)
    (rental,) = shop.landlord.world.letting.rentals.values()
    invoice = (b"\7" * 32).hex()
    shop.landlord.node.amounts[b"\7" * 32] = FEE + 1100 * SAT
    made = ev.InvoiceMade(rental.id, PaymentKind.RENT, invoice, b"\7" * 32, FEE + 1100 * SAT, 600)
    shop.do(lambda: shop.landlord.happen(made))
    asking.join(30)
    books = Books()
    pay(shop, books, replies[0])
    agree(shop, books, tenant.status())


def test_a_payment_delivers_networks_and_configuration(shop: Shop, tenant: Tenant) -> None:
    rent(shop, tenant)
    assert tenant.status()["Networks"] == ["203.0.113.0/32", "2001:db8::/64"]
    found = tenant.configuration()
    assert found == {
        "addresses": ["203.0.113.0/32", "2001:db8::1/128"],
        "mtu": 1420,
        "peers": [
            {
                "public_key": wg_text(shop.landlord.public_key),
                "endpoint_host": "192.0.2.9",
                "endpoint_port": 51820,
                "allowed_ips": ["0.0.0.0/0", "::/0"],
                "persistent_keepalive": 25,
            }
        ],
    }


def test_name_servers_are_told_only_if_net_conf_has_some(tmp_path: Path) -> None:
    terms = terms_of_shop(offer(ipv6_bits=None), dns=("192.0.2.53",), keepalive_s=0)
    with closing(Shop(tmp_path, terms)) as shop, closing(shop.session()) as session:
        tenant = HeldToTheRules(session)
        rent(shop, tenant)
        found = tenant.configuration()
        assert found["dns"] == ["192.0.2.53"] and "persistent_keepalive" not in found["peers"][0]
        assert found["peers"][0]["allowed_ips"] == ["0.0.0.0/0"]


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("203.0.113.8/29", "203.0.113.8/32"),
        ("203.0.113.8/32", "203.0.113.8/32"),
        ("2001:db8:1::/48", "2001:db8:1::1/128"),
        ("2001:db8::5/128", "2001:db8::5/128"),
    ],
)
def test_the_tunnels_own_address_leaves_the_rest_for_others(network: str, address: str) -> None:
    assert tunnel_address(ip_network(network)) == address


def test_an_ipv4_endpoint_is_preferred_since_the_client_writes_ipv6_without_brackets() -> None:
    assert ENDPOINTS[0].startswith("["), "else the test of the configuration shows nothing"


# --- renewals ---------------------------------------------------------------------------------------------------------


def test_autopay_agrees_over_months_of_renewals_and_changes_of_the_rent(shop: Shop, tenant: Tenant) -> None:
    books = rent(shop, tenant)
    for month_sat, wait_s in ((24_000, 1), (24_000, 40_000), (48_000, 60_000), (12_000, 80_000), (24_000, 200_000)):
        change_offer(shop, rent_msat=month_sat * SAT, activation_fee_msat=7 * SAT)
        for amount in (2898, 605):
            offered, reply = tenant.terms(), tenant.add_credit(amount)
            del offered["ActivationFee"]
            assert reply["SellOfferTerms"] == offered and reply["InitialInvoice"] is False
            assert reply["AddedCredit"] == amount
            assert shop.landlord.node.amounts[bytes.fromhex(reply["Invoice"])] == amount * SAT
            agree(shop, books, reply["Status"])
            shop.pass_time(4)
            pay(shop, books, reply)
            status = tenant.status(reply["Invoice"])
            agree(shop, books, status)
            assert status["CurrentRate"] == offered["Rate"] and status["ActivationFee"] == 48_000
            assert status["unpaid_invoice"] is None
        shop.pass_time(wait_s)
        agree(shop, books, tenant.status())


def test_the_rate_changes_only_with_a_payment(shop: Shop, tenant: Tenant) -> None:
    books = rent(shop, tenant)
    change_offer(shop, rent_msat=2 * RENT)
    tenant.add_credit(600)
    agree(shop, books, tenant.status())


def test_back_rent_comes_as_one_payment_and_the_networks_come_back(shop: Shop, tenant: Tenant) -> None:
    books = rent(shop, tenant)
    networks = tenant.status()["Networks"]
    shop.pass_time(MONTH_S)
    status = tenant.status()
    assert status["Credit"] < 0 and status["TimeRemaining"] < 0 and status["unpaid_invoice"] is None
    agree(shop, books, status)
    pay(shop, books, tenant.add_credit(6000 - int(status["Credit"])))
    after = tenant.status()
    agree(shop, books, after)
    assert after["Networks"] == networks and 5990 < after["Credit"] <= 6001


def test_each_add_credit_brings_a_new_invoice_and_takes_back_the_one_before(shop: Shop, tenant: Tenant) -> None:
    rent(shop, tenant)
    first, second = tenant.add_credit(600)["Invoice"], tenant.add_credit(600)["Invoice"]
    assert first != second and tenant.status()["unpaid_invoice"] == second
    assert not shop.pay(first) and shop.pay(second)


def test_a_rental_that_is_over_begins_anew(shop: Shop, tenant: Tenant) -> None:
    rent(shop, tenant)
    shop.pass_time(4 * MONTH_S)
    reply = tenant.add_credit(1100)
    assert reply["InitialInvoice"] is True
    books = Books()
    pay(shop, books, reply)
    agree(shop, books, tenant.status())


# --- waiting for a payment --------------------------------------------------------------------------------------------


def test_a_status_with_an_invoice_waits_for_its_payment_and_no_longer(shop: Shop, tenant: Tenant) -> None:
    reply = tenant.add_credit(1100)
    books, found = Books(), list[dict[str, Any]]()
    waiting = threading.Thread(target=lambda: found.append(tenant.status(reply["Invoice"])))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    pay(shop, books, reply)
    paid_at = time.monotonic()
    waiting.join(15)
    assert time.monotonic() - paid_at < 14, "well before the 20 s are over"
    assert found[0]["unpaid_invoice"] is None
    agree(shop, books, found[0])
    began = time.monotonic()
    assert tenant.status(reply["Invoice"])["NumberOfPayments"] == 1
    assert tenant.status("lnbc1unknown")["NumberOfPayments"] == 1
    assert time.monotonic() - began < 15


def test_a_payment_for_a_rental_that_is_off_wakes_as_well(shop: Shop, tenant: Tenant) -> None:
    rent(shop, tenant)
    (rental,) = shop.landlord.world.letting.rentals.values()
    shop.do(lambda: shop.landlord.happen(SwitchRental(rental.id, on=False)))
    reply = tenant.add_credit(600)
    waiting = threading.Thread(target=lambda: tenant.status(reply["Invoice"]))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and shop.pay(reply["Invoice"])
    waiting.join(10)
    assert not waiting.is_alive()


def test_the_proof_of_a_payment_is_believed_before_our_own_node_reports_it(shop: Shop, tenant: Tenant) -> None:
    invoice = tenant.add_credit(1100)["Invoice"]
    preimage = shop.landlord.node.preimages[bytes.fromhex(invoice)].hex()
    for wrong in ("", "00" * 32):
        assert tenant.status(invoice="", Preimage=wrong)["unpaid_invoice"] == invoice
    for broken in ("x", "0" * 63, "0" * 65, "é" * 64, preimage + " "):
        with pytest.raises(LandlordRefuses, match="64 hexadecimal digits"):
            tenant.status(invoice, Preimage=broken)
    status = tenant.status(invoice, Preimage=preimage)
    assert status["unpaid_invoice"] is None and status["NumberOfPayments"] == 1 and tenant.configuration()


def test_an_unpaid_invoice_is_answered_when_the_time_is_over(tmp_path: Path) -> None:
    with closing(Shop(tmp_path, limits=Limits(hold_s=0.3))) as shop, closing(shop.session()) as session:
        tenant = HeldToTheRules(session)
        invoice = tenant.add_credit(1100)["Invoice"]
        began = time.monotonic()
        assert tenant.status(invoice)["unpaid_invoice"] == invoice
        assert time.monotonic() - began >= 0.3


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "says"),
    [
        (999, "at least 1000 sat"), (72_001, "at most 72000 sat"), (0, "at least"), ("-5", "whole number"),
        ("1000.5", "whole number"), ("1e4", "whole number"), ("", "whole number"), ("9" * 13, "whole number"),
        ("1_000", "whole number"), ("１０００", "whole number"), ("0x400", "whole number"),
    ],
)  # fmt: skip
def test_an_amount_that_is_not_offered_is_refused_with_the_limit(
    shop: Shop, tenant: Tenant, amount: object, says: str
) -> None:
    with pytest.raises(LandlordRefuses, match=says):
        tenant.add_credit(amount)  # type: ignore[arg-type]
    assert not shop.landlord.world.letting.rentals and not shop.landlord.node.amounts


@pytest.mark.parametrize(
    "key",
    ["", "x", wg_text(b"\1" * 31), wg_text(b"\1" * 33), wg_text(b"\1" * 32)[:-1], wg_text(b"\1" * 32) + "\n",
     "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQF="],
)  # fmt: skip
@pytest.mark.parametrize("path", PATHS[1:])
def test_what_is_no_wireguard_key_is_refused(tenant: Tenant, path: str, key: str) -> None:
    status, content = tenant.session.post(path, {"WireGuardPubKey": key, "amount": 1100})
    assert status == 200 and list(content) == ["Error"] and "wg pubkey" in content["Error"]


def test_a_field_that_is_sent_twice_is_refused() -> None:
    """Which of two amounts would count?"""
    with pytest.raises(RentalError, match="twice"):
        read_form(urlencode([("WireGuardPubKey", "x"), ("amount", 1100), ("amount", 2000)]).encode())


def test_an_unknown_key_is_an_error_and_not_a_traceback(shop: Shop, tenant: Tenant) -> None:
    for ask in (tenant.status, tenant.configuration):
        with pytest.raises(LandlordRefuses, match="rent first"):
            ask()
    tenant.key = shop.landlord.public_key
    with pytest.raises(LandlordRefuses, match="landlord's own"):
        tenant.add_credit(1100)


def test_when_all_addresses_are_let_the_next_is_told_so(shop: Shop) -> None:
    with closing(shop.session()) as session:
        tenants = [HeldToTheRules(session, new_key()) for _ in range(9)]
        for tenant in tenants[:8]:
            rent(shop, tenant)
        with pytest.raises(LandlordRefuses, match="all addresses of this offer are let"):
            tenants[8].add_credit(1100)


def test_a_rental_of_another_face_is_not_shown(shop: Shop, tenant: Tenant) -> None:
    """Whoever rents with a proof of the key must not be shown here to those without."""
    asked = shop.run(shop.landlord.letting.ask(tenant.key, 1100 * SAT, "mesh"))
    assert shop.pay(asked.bolt11)
    for ask in (tenant.status, tenant.configuration, lambda: tenant.add_credit(600)):
        with pytest.raises(LandlordRefuses, match="another way"):
            ask()
    shop.pass_time(4 * MONTH_S)
    for ask in (tenant.status, tenant.configuration):
        with pytest.raises(LandlordRefuses, match="another way"):
            ask()
    assert tenant.add_credit(1100)["InitialInvoice"]
    assert tenant.status()["Networks"]


def test_a_tunnel_without_an_address_is_told(shop: Shop, tenant: Tenant) -> None:
    rent(shop, tenant)
    shop.landlord.letting._endpoints = lambda: ()
    with pytest.raises(LandlordRefuses, match="no address now"):
        tenant.configuration()


def test_a_ledger_that_cannot_be_written_is_told_without_its_details(shop: Shop, tenant: Tenant) -> None:
    def broken(event: object) -> None:
        raise LedgerError("/var/lib/ngp/ledger.db: disk I/O error")

    shop.landlord.letting._obey = broken
    with pytest.raises(LandlordRefuses, match="can't write its books now") as told:
        tenant.add_credit(1100)
    assert "/var" not in str(told.value)


# --- the connection ---------------------------------------------------------------------------------------------------


def test_one_connection_serves_all_requests_of_a_tenant(shop: Shop, tenant: Tenant) -> None:
    rent(shop, tenant)
    for _ in range(5):
        tenant.status()
        assert tenant.session.is_open
    assert len(shop.face._door._connections) == 1


def test_the_fingerprint_is_of_the_leafs_der_and_stays(shop: Shop, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", shop.port)) as plain, tls_context().wrap_socket(plain) as tls:
        pin = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()
        assert tls.version() == "TLSv1.3"
    (line,) = shop.do(lambda: shop.face.check(shop.terms))
    assert line.ok and pin in line.found and "whoever knows the tenant's public key" in line.found
    with closing(shop.session(pin)) as session:
        assert HeldToTheRules(session).terms()


def test_the_document_names_all_paths_keys_and_limits(shop: Shop, tenant: Tenant) -> None:
    text = (Path(__file__).resolve().parent.parent.parent / "docs" / "rental-protocol.md").read_text()
    rent(shop, tenant)
    reply, configuration, limits = tenant.add_credit(600), tenant.configuration(), Limits()
    keys = [*tenant.terms(), *reply, *reply["Status"], *configuration, *configuration["peers"][0]]
    assert not [one for one in (*PATHS, *keys) if f"`{one}`" not in text]
    said = " ".join(text.split())
    assert f"{limits.connections_of_one} connections, {limits.handshakes_of_one_s} TLS handshakes a second" in said
    assert f"{limits.requests_of_one_s} requests a second, one invoice in two seconds" in said
    assert limits.invoices_of_one_s == 0.5 and limits.hold_s == 20 and "20 s at most" in said
    assert f"and {limits.first_invoices_of_one} rentals that wait" in said
    bounds = limits.bounds
    assert (bounds.request_s, bounds.head_bytes, bounds.body_bytes, bounds.idle_s) == (10, 8192, 8192, 60)
