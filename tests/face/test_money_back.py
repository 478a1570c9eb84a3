"""A tenant fetches what is left of its rental: the service that all faces share, and `ngp rent refund`."""

from __future__ import annotations

import io
import json
import subprocess
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from coincurve import PrivateKey
from let import SAT, key
from shop import Shop

from ngp import cli, invoice
from ngp.calls.answering import Answering, Asking
from ngp.core.rental.calls import Call
from ngp.core.rental.events import CreditAsked, ReleaseRental
from ngp.errors import ExitCode, RentalError
from ngp.ports.payment import InvoiceState, NewInvoice, PaymentCapabilities
from ngp.tenant.calls import CallingLandlord
from ngp.tenant.home import Home
from ngp.tenant.https import HttpsLandlord, LandlordPlace
from ngp.tenant.landlord import Landlord, NeighbourPlace

PAYEE = PrivateKey(bytes([7]) * 32)


def bolt11(shop: Shop, sat: int, number: int = 1) -> str:
    """Return a tenant's invoice."""
    payment_hash, made_s = sha256(bytes([number])).digest(), int(shop.landlord.utc_s)
    return invoice.write(PAYEE.secret, "bcrt", sat * SAT, made_s, 600, payment_hash, bytes(32), "money back", b"")


def over(shop: Shop) -> None:
    """Let tenant 1 rent, and the operator end it at once."""
    shop.do(lambda: shop.landlord.rent(1, 10_000))
    shop.do(lambda: shop.landlord.happen(ReleaseRental(shop.landlord.rental(1).id)))


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


# --- ngp rent refund --------------------------------------------------------------------------------------------------


@dataclass
class Wallet:
    """A tenant's payment node, which is paid by the landlord's. Attributes: hears: it is told of payments."""

    shop: Shop
    hears: bool = True
    made: int = 0
    cancelled: list[bytes] = field(default_factory=list)

    async def create_invoice(self, amount_msat: int, _memo: str, expiry_s: int) -> NewInvoice:
        self.made += 1
        text = bolt11(self.shop, amount_msat // SAT, self.made)
        return NewInvoice(text, invoice.read(text).payment_hash, amount_msat, expiry_s)

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState:
        return InvoiceState.SETTLED if payment_hash in self.shop.landlord.node.sent else InvoiceState.OPEN

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        self.cancelled.append(payment_hash)

    def capabilities(self) -> PaymentCapabilities:
        return PaymentCapabilities(False, not self.hears, 1)


@dataclass
class Tenant:
    """A tenant whose rental, called shop, the operator has ended."""

    shop: Shop
    folder: Path
    landlord: Landlord
    wallet: Wallet

    def rent(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type `ngp rent`; nobody is there to answer questions."""

        @asynccontextmanager
        async def node_of(*_: object) -> AsyncIterator[Wallet]:
            yield self.wallet

        said, complaint = io.StringIO(), io.StringIO()
        service = "ngp.cli.tenant_service"
        with (
            mock.patch(f"{service}.landlord_at", lambda *_: self.landlord),
            mock.patch(f"{service}._node_of", node_of),
            mock.patch("sys.stdin", io.StringIO()),
            redirect_stdout(said),
            redirect_stderr(complaint),
        ):
            place = ["--config", str(self.folder / "net.conf"), "--state-dir", str(self.folder)]
            code = cli.run(["rent", *words, *place])
        return subprocess.CompletedProcess(words, code, said.getvalue(), complaint.getvalue())

    @property
    def sent_sat(self) -> int:
        return sum(self.shop.landlord.node.sent.values()) // SAT


@pytest.fixture
def tenant(shop: Shop, tmp_path: Path) -> Iterator[Tenant]:
    ours = shop.identity
    answering = Answering(shop.landlord.letting, ours, "mesh", 5)

    def carry(call: Call, proof: bytes) -> bytes:
        reply = shop.run(answering.answer(call, proof, Asking("tenant", 0)))
        content: bytes = reply.SerializeToString()
        return content

    place, folder = NeighbourPlace(ours.hex()), tmp_path / "tenants"
    folder.mkdir(0o700)
    (folder / "net.conf").write_text("MESH_INTERFACES: mesh0\n")
    home = Home(folder / "tenant")
    home.trust("landlord", place)
    for name in ("shop", "other"):
        home.add_tunnel(name, place, "landlord")
    yield Tenant(shop, folder, CallingLandlord(place, lambda: ours, carry), Wallet(shop))


def end_rental_of(tenant: Tenant) -> None:
    tunnel = Home(tenant.folder / "tenant").tunnel("shop")
    assert tunnel is not None
    wireguard_key = b64decode(tunnel.public_key)

    def rent_and_end() -> None:
        landlord = tenant.shop.landlord
        landlord.happen(CreditAsked(1000, wireguard_key, 10_000 * SAT, "mesh"))
        assert landlord.pay(landlord.answers[1000].bolt11)
        landlord.happen(ReleaseRental(landlord.world.letting.by_key[wireguard_key].id))

    tenant.shop.do(rent_and_end)


def test_all_that_is_left_is_fetched_by_one_command_and_once(tenant: Tenant) -> None:
    end_rental_of(tenant)
    assert "shop: 10000 sat can be fetched: ngp rent refund shop" in tenant.rent("status", "shop").stdout
    done = tenant.rent("refund", "shop")
    assert done.returncode == 0 and "10000 sat have arrived" in done.stdout, done.stderr
    assert "can be fetched" not in tenant.rent("status", "shop").stdout
    done = tenant.rent("refund", "shop")
    assert done.returncode == ExitCode.USAGE and "nothing of shop can be fetched" in done.stderr
    assert tenant.sent_sat == 10_000 and tenant.wallet.made == 1


def test_a_part_is_fetched_and_too_much_is_refused_with_the_most_and_leaves_no_invoice(tenant: Tenant) -> None:
    end_rental_of(tenant)
    done = tenant.rent("refund", "shop", "--amount", "10001")
    assert done.returncode == ExitCode.OTHER and "must be for 10000 sat or less" in done.stderr
    assert len(tenant.wallet.cancelled) == 1 and not tenant.sent_sat
    assert json.loads(tenant.rent("refund", "shop", "--amount", "4000", "--json").stdout) == {"arrived": True}
    assert tenant.sent_sat == 4000


def test_another_wallets_invoice_is_paid(tenant: Tenant) -> None:
    end_rental_of(tenant)
    done = tenant.rent("refund", "shop", "--invoice", bolt11(tenant.shop, 10_000, 77))
    assert done.returncode == 0 and "the landlord pays the invoice" in done.stdout
    assert tenant.sent_sat == 10_000 and not tenant.wallet.made


def test_a_node_that_hears_of_no_payment_is_not_waited_for(tenant: Tenant) -> None:
    end_rental_of(tenant)
    tenant.wallet.hears = False
    done = tenant.rent("refund", "shop")
    assert done.returncode == 0 and "the landlord pays 10000 sat" in done.stdout and tenant.sent_sat == 10_000
    again = tenant.rent("refund", "shop")
    assert again.returncode == ExitCode.USAGE and "0 sat are left, and only whole sat are paid" in again.stderr


def test_a_key_without_a_rental_gets_nothing_of_others(tenant: Tenant) -> None:
    end_rental_of(tenant)
    done = tenant.rent("refund", "other", "--invoice", bolt11(tenant.shop, 1))
    assert done.returncode == ExitCode.OTHER and "no money left of a rental with this key" in done.stderr
    assert not tenant.sent_sat


def test_over_https_nothing_is_given_back_and_the_text_says_why(tenant: Tenant) -> None:
    end_rental_of(tenant)
    shown: Any = mock.Mock(spec=HttpsLandlord)
    shown.status = lambda _keys: mock.Mock(fetchable_msat=None)
    shown.place = LandlordPlace("192.0.2.1", 443, "00" * 32)
    shown.refund = lambda keys, bolt11: HttpsLandlord(shown.place).refund(keys, bolt11)
    tenant.landlord = shown
    for words in ((), ("--invoice", bolt11(tenant.shop, 1))):
        done = tenant.rent("refund", "shop", *words)
        assert done.returncode == ExitCode.OTHER and "can't give money back over HTTPS" in done.stderr
    assert not tenant.sent_sat and not tenant.wallet.made


def test_before_keys_are_dropped_it_is_said_what_is_lost_with_them(tenant: Tenant) -> None:
    end_rental_of(tenant)
    done = tenant.rent("forget", "shop")
    assert done.returncode == ExitCode.USAGE
    assert "10000 sat are lost, unless ngp rent refund fetches them before" in done.stderr
    assert "isn't known" in tenant.rent("forget", "other").stderr
    assert tenant.rent("forget", "shop", "--yes").returncode == 0
