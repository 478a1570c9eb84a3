"""A tenant fetches what is left of its rental, through the service that all faces share."""

from __future__ import annotations

import time
from hashlib import sha256

import pytest
from coincurve import PrivateKey
from let import SAT, key
from shop import Shop

from ngp import invoice
from ngp.core import events as ev
from ngp.errors import RentalError

PAYEE = PrivateKey(bytes([7]) * 32)


def bolt11(shop: Shop, sat: int, number: int = 1) -> str:
    """Return a tenant's invoice."""
    payment_hash, made_s = sha256(bytes([number])).digest(), int(shop.landlord.utc_s)
    return invoice.write(PAYEE.secret, "bcrt", sat * SAT, made_s, 600, payment_hash, bytes(32), "money back", b"")


def over(shop: Shop) -> None:
    """Let tenant 1 rent, and the operator end it at once."""
    shop.do(lambda: shop.landlord.rent(1, 10_000))
    shop.do(lambda: shop.landlord.happen(ev.ReleaseRental(shop.landlord.rental(1).id)))


def test_what_is_left_is_told_and_paid_to_the_tenants_invoice_once(shop: Shop) -> None:
    over(shop)
    service = shop.landlord.letting
    assert shop.do(lambda: service.status(key(1))).fetchable_msat == 10_000 * SAT
    asked = bolt11(shop, 4000)
    after = shop.run(service.refund(key(1), asked))
    assert (after.refunded_msat, after.fetchable_msat, after.credit_msat) == (4000 * SAT, 6000 * SAT, 6000 * SAT)
    with pytest.raises(RentalError, match="was sent before"):
        shop.run(service.refund(key(1), asked))
    with pytest.raises(RentalError, match="must be for 6000 sat or less"):
        shop.run(service.refund(key(1), bolt11(shop, 6001, 2)))
    assert shop.run(service.refund(key(1), bolt11(shop, 6000, 3))).fetchable_msat == 0
    assert sum(shop.landlord.node.sent.values()) == 10_000 * SAT


def test_a_rental_that_runs_has_nothing_to_fetch_and_its_credit_stays(shop: Shop) -> None:
    shop.do(lambda: shop.landlord.rent(1, 10_000))
    assert shop.do(lambda: shop.landlord.letting.status(key(1))).fetchable_msat == 0
    with pytest.raises(RentalError, match="no money left"):
        shop.run(shop.landlord.letting.refund(key(1), bolt11(shop, 1)))
    assert not shop.landlord.node.sent


def test_money_of_an_earlier_rental_of_the_same_key_is_still_there(shop: Shop) -> None:
    over(shop)
    shop.do(lambda: shop.landlord.rent(1, 2000))
    status = shop.do(lambda: shop.landlord.letting.status(key(1)))
    assert (status.credit_msat, status.fetchable_msat) == (2000 * SAT, 10_000 * SAT)


@pytest.mark.parametrize("text", ["", "lnbcrt1", "lnbc1" + "q" * 9000, "\0é", bytes(32).hex()])
def test_what_is_no_invoice_is_refused_with_the_remedy(shop: Shop, text: str) -> None:
    over(shop)
    began_s = time.monotonic()
    with pytest.raises(RentalError, match=r"can't be read .*make a new one"):
        shop.run(shop.landlord.letting.refund(key(1), text))
    assert time.monotonic() - began_s < 1 and not shop.landlord.node.sent
