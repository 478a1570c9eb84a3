"""`staticIP AutoPay` with a real LND node: the published client's AutoPay calls what LND 0.21 no longer has."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from core_tests.lightning.network import LightningNetwork
from core_tests.lightning.nodes import Lnd
from ngp.errors import ExitCode
from ngp.modules.payment.lnd import LndPayment
from ngp.ports.payment import InvoiceState
from ngp.tenant.books import BooksFile
from tests.payment.lnd_nodes import chain_of, options
from tests.tenant.conftest import User
from tests.tenant.keeper import Told

pytestmark = pytest.mark.xdist_group("lnd tenant")
PAYER, PAYEE = "payer", "payee"


@pytest.fixture(scope="module")
def network() -> Iterator[LightningNetwork]:
    with chain_of(PAYER, PAYEE) as made:
        yield made


def uri_of(node: Lnd) -> str:
    """Return the node's lndconnect URI."""
    certificate = ssl.PEM_cert_to_DER_cert(node.certificate.read_text())
    cert, macaroon = (base64.urlsafe_b64encode(one).decode() for one in (certificate, node.admin_macaroon.read_bytes()))
    return f"lndconnect://{node.rpc_host}?cert={cert}&macaroon={macaroon}"


@pytest.fixture
def payee_lets(network: LightningNetwork, user: User, tmp_path: Path) -> None:
    """Let the landlord's invoices be those of the payee."""
    folder, payee = tmp_path / "payee", options(network.node(PAYEE))
    folder.mkdir()

    def make_invoice(amount_msat: int, expiry_s: int) -> tuple[str, bytes]:
        async def make() -> tuple[str, bytes]:
            node = LndPayment(folder, payee)
            made = await node.create_invoice(amount_msat, "rent", expiry_s)
            await node.close()
            return made.bolt11, made.payment_hash

        return asyncio.run(make())

    def is_paid(payment_hash: bytes) -> bool:
        async def look() -> bool:
            node = LndPayment(folder, payee)
            found = await node.lookup_invoice(payment_hash)
            await node.close()
            return found is InvoiceState.SETTLED

        return asyncio.run(look())

    user.landlord.make_invoice, user.landlord.is_paid = make_invoice, is_paid


def autopay(user: User) -> int:
    """Run AutoPay until the landlord has three payments, or for a minute. Returns the exit code."""

    def stop() -> None:
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s and sum(one.payments for one in user.landlord.rentals.values()) < 3:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    watching = threading.Thread(target=stop)
    watching.start()
    with mock.patch("ngp.cli.tenant_service.proof_of", lambda *_: Told()):
        done = user.static_ip("AutoPay")
    watching.join()
    return done.returncode


def test_it_rents_and_fills_the_credit(
    network: LightningNetwork, user: User, payee_lets: None, quiet_log: None
) -> None:
    user.folder.mkdir(parents=True)
    config = user.folder / "Config.yaml"
    config.write_text(yaml.safe_dump({"LNDhost": uri_of(network.node(PAYER))}))
    assert autopay(user) == 128 + signal.SIGTERM
    (rental,) = user.landlord.rentals.values()
    books = BooksFile(user.folder / "TunnelState.yaml").read()
    assert [one.state for one in books.sent] == ["paid"] * 3
    assert books.account.paid_msat == rental.paid * 1000 == sum(one.amount_msat for one in books.sent)
    assert all(one.preimage for one in books.sent) and books.account.payments == 3
    log = (user.folder / "debug.log").read_text()
    assert "macaroon" not in log and yaml.safe_load(config.read_text())["LNDhost"].partition("macaroon=")[2] not in log


def test_a_node_on_this_machine_is_found_by_itself(
    network: LightningNetwork, user: User, payee_lets: None, quiet_log: None
) -> None:
    node = network.node(PAYER)
    secrets = user.home / ".lnd" / "data/chain/bitcoin/regtest"
    secrets.mkdir(parents=True)
    (secrets / "admin.macaroon").symlink_to(node.admin_macaroon)
    (user.home / ".lnd" / "tls.cert").symlink_to(node.certificate)
    port = int(node.rpc_host.rpartition(":")[2])
    with mock.patch("ngp.modules.payment.lnd_connect.RPC_PORT", port):
        assert autopay(user) == 128 + signal.SIGTERM
    assert [one.state for one in BooksFile(user.folder / "TunnelState.yaml").read().sent] == ["paid"] * 3
    assert "LNDhost" not in yaml.safe_load((user.folder / "Config.yaml").read_text()), "found, so nothing is kept"


def test_on_a_terminal_a_uri_is_asked_for_tried_and_kept(
    network: LightningNetwork, user: User, payee_lets: None, quiet_log: None
) -> None:
    uri = uri_of(network.node(PAYER))
    with (
        mock.patch("sys.stdin.isatty", lambda: True),
        mock.patch("getpass.getpass", lambda _prompt: f" {uri}\n"),
        mock.patch.object(LndPayment, "find_local", staticmethod(lambda: "")),
    ):
        assert autopay(user) == 128 + signal.SIGTERM
    assert [one.state for one in BooksFile(user.folder / "TunnelState.yaml").read().sent] == ["paid"] * 3
    assert yaml.safe_load((user.folder / "Config.yaml").read_text())["LNDhost"] == uri
    assert uri.partition("macaroon=")[2] not in (user.folder / "debug.log").read_text()


def test_a_node_that_is_locked_out_is_named_and_nothing_is_rented(
    network: LightningNetwork, user: User, payee_lets: None, quiet_log: None
) -> None:
    user.folder.mkdir(parents=True)
    wrong = uri_of(network.node(PAYER)).partition("macaroon=")[0] + uri_of(network.node(PAYEE)).partition("&")[2]
    (user.folder / "Config.yaml").write_text(yaml.safe_dump({"LNDhost": wrong}))
    done = user.static_ip("AutoPay")
    assert done.returncode in (ExitCode.PAYMENT, ExitCode.CONFIGURATION), done.stderr
    assert not user.landlord.calls or all(verb != "AddCredit" for verb, _ in user.landlord.calls)
