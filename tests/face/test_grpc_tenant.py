"""A landlord that is asked over gRPC: only the trusted one is believed, and nobody in between learns anything."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from let import offer
from shop import GENEROUS, Shop, WireGuardKeys, terms_by_grpc

import ngp.calls.landlord_pb2 as pb
from ngp import identity, node_key
from ngp.calls.signature import SIGNATURE, signed_bytes
from ngp.core.payment_node import DecodedInvoice
from ngp.core.rental.calls import Call
from ngp.core.tenant.account import faults_of_invoice
from ngp.errors import ConfigError, LandlordError
from ngp.modules.face.certificate import _make
from ngp.tenant import calls as tenant_calls
from ngp.tenant import grpc as tenant_grpc
from ngp.tenant import keys
from ngp.tenant.calls import CallingLandlord
from ngp.tenant.grpc import GrpcPlace, grpc_landlord, read_grpc_place
from ngp.tenant.https import read_place
from ngp.tenant.landlord import FingerprintError, RefusedError


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    large = offer(name="large", ipv4_bits=31, ipv6_bits=None, rent_msat=48_000_000)
    with closing(Shop(tmp_path, terms_by_grpc(offer(), large))) as made:
        yield made


@pytest.fixture
def landlord(shop: Shop) -> CallingLandlord:
    host, port = shop.terms.grpc[0]
    return grpc_landlord(GrpcPlace(host, port, shop.identity.hex()))


# --- renting ----------------------------------------------------------------------------------------------------------


def test_a_tenant_rents_an_offer_of_its_choice(shop: Shop, landlord: CallingLandlord) -> None:
    tenant = WireGuardKeys()
    assert [one.name for one in landlord.offers()] == ["default", "large"]
    assert landlord.terms("large").rent_msat == 48_000_000
    asked = landlord.ask(tenant, 24_000, "large")
    assert asked.is_first and shop.pay(asked.bolt11)
    status = landlord.status(tenant, asked.bolt11)
    assert status.payments == 1 and status.offer == "large" and status.state == "active"
    found = landlord.configuration(tenant)
    assert [str(one) for one in found.addresses] == ["203.0.113.0/32"]


def test_a_tenant_that_does_not_want_its_rental_gives_the_addresses_back(tmp_path: Path) -> None:
    """One sender may have only one rental that waits here: one that was cancelled doesn't count."""
    with closing(Shop(tmp_path, terms_by_grpc(), replace(GENEROUS, first_invoices_of_one=1))) as shop:
        landlord = grpc_landlord(GrpcPlace(*shop.terms.grpc[0], shop.identity.hex()))
        for _ in range(3):
            tenant = WireGuardKeys()
            landlord.ask(tenant, 24_000)
            landlord.cancel(tenant)
            assert shop.do(lambda: not shop.landlord.world.letting.rentals and not shop.landlord.world.clients)
        with pytest.raises(RefusedError, match="no rental has this WireGuard key"):
            landlord.cancel(tenant)
        paid = WireGuardKeys()
        assert shop.pay(landlord.ask(paid, 24_000).bolt11)
        with pytest.raises(RefusedError, match="waits for its first payment"):
            landlord.cancel(paid)


def test_a_refusal_is_the_landlords(landlord: CallingLandlord) -> None:
    with pytest.raises(RefusedError, match="no rental has this WireGuard key"):
        landlord.status(WireGuardKeys())
    with pytest.raises(RefusedError, match="at least 1000 sat"):
        landlord.ask(WireGuardKeys(), 5)
    with pytest.raises(LandlordError, match="no offer 'x'"):
        landlord.terms("x")


def test_a_landlord_that_was_restarted_is_asked_again(shop: Shop, landlord: CallingLandlord) -> None:
    tenant = WireGuardKeys()
    shop.pay(landlord.ask(tenant, 24_000).bolt11)
    shop.restart()
    assert landlord.status(tenant).payments == 1


def test_two_processes_of_a_tenant_ask_in_turn_also_when_a_clock_is_fast(
    shop: Shop, landlord: CallingLandlord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session is asked for anew before its nonces are so far ahead that another process is refused."""
    tenant, place = WireGuardKeys(), GrpcPlace(*shop.terms.grpc[0], shop.identity.hex())
    shop.pay(landlord.ask(tenant, 24_000).bolt11)
    monkeypatch.setattr(tenant_calls, "SESSION_S", 0.0)
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(tenant_calls, "time", mock.Mock(monotonic=lambda: began + 0.5 + 1.4 * (time.monotonic() - began)))
        landlord.status(tenant)
    assert grpc_landlord(place).status(tenant).payments == 1


def test_a_landlord_with_a_new_certificate_is_still_known(shop: Shop, landlord: CallingLandlord) -> None:
    tenant = WireGuardKeys()
    shop.pay(landlord.ask(tenant, 24_000).bolt11)
    (shop.folder / "grpc.pem").unlink()
    shop.restart()
    assert landlord.status(tenant).payments == 1


# --- who answers ------------------------------------------------------------------------------------------------------


def test_another_identity_is_refused(shop: Shop) -> None:
    host, port = shop.terms.grpc[0]
    other = grpc_landlord(GrpcPlace(host, port, "ab" * 32))
    with pytest.raises(FingerprintError, match="somebody else answers"):
        other.status(WireGuardKeys())


def test_the_lightning_node_vouches_for_the_identity(shop: Shop, tmp_path: Path) -> None:
    node = node_key.load_or_make(tmp_path / "node.key")
    host, port = shop.terms.grpc[0]
    place = read_grpc_place(f"{host}:{port}", node.public_key.format().hex())
    with pytest.raises(FingerprintError, match="no signature of the Lightning node"):
        grpc_landlord(place).offers()
    right = node_key.sign(node, identity.payee_statement(shop.identity, "sandbox"))
    shop.landlord.letting._payee_signature = lambda: right
    assert grpc_landlord(place).offers()
    other = node_key.sign(node, identity.payee_statement(bytes(32), "sandbox"))
    shop.landlord.letting._payee_signature = lambda: other
    with pytest.raises(FingerprintError, match="no signature of the Lightning node"):
        grpc_landlord(place).offers()


def test_a_landlord_that_is_busy_is_no_impostor() -> None:
    with stand_in() as server:
        busy = pb.Reply(failure=pb.Failure(kind=pb.Failure.BUSY, text="too many requests"))
        server.answers = lambda call: server.signed(call, busy)
        for pin in (server.identity.hex(), "02" + "ab" * 32):
            with pytest.raises(LandlordError, match="too many requests"):
                grpc_landlord(GrpcPlace("127.0.0.1", server.port, pin)).offers()


@pytest.mark.parametrize("written", ["192.0.2.1", "a.example:7", "[2001:db8::1]", "[2001:db8::1]:7"])
def test_a_place_is_read_as_it_is_written(written: str) -> None:
    for read in (read_grpc_place, read_place):
        place = read(written, "ab" * 32)
        assert str(place) == written and read(place.entry()["Host"], place.pin) == place


def test_an_invoice_of_another_node_than_the_trusted_one_is_refused(shop: Shop, tmp_path: Path) -> None:
    """Somebody who stole the landlord's identity, but not its node, can't have its tenants' money."""
    node = node_key.load_or_make(tmp_path / "node.key").public_key.format().hex()
    right = node_key.sign(
        node_key.load_or_make(tmp_path / "node.key"), identity.payee_statement(shop.identity, "sandbox")
    )
    shop.landlord.letting._payee_signature = lambda: right
    asked = grpc_landlord(GrpcPlace(*shop.terms.grpc[0], node)).ask(WireGuardKeys(), 1000)
    assert asked.payee == node
    invoice = DecodedInvoice(bytes(32), 49_000_000, 600, "02" + "ab" * 32, "sandbox", "")
    (fault,) = faults_of_invoice(asked, invoice, 1_000_000, None, True)
    assert node in fault and invoice.payee in fault
    assert not faults_of_invoice(asked, replace(invoice, payee=node), 1_000_000, None, True)


@pytest.mark.parametrize("pin", ["", "ab" * 31, "ab" * 33, "04" + "ab" * 32, "xy" * 32])
def test_a_pin_that_is_none_is_refused(pin: str) -> None:
    with pytest.raises(ConfigError, match="neither a landlord's identity"):
        read_grpc_place("192.0.2.1", pin)


@dataclass
class StandIn:
    """A server by gRPC's own library, which answers as a test says. `heard`: the methods and requests that came."""

    port: int
    certificate: bytes
    key: Ed25519PrivateKey
    heard: list[Call] = field(default_factory=list)
    answers: Callable[[Call], tuple[bytes, bytes]] = lambda _call: (b"", b"")

    @property
    def identity(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def landlord(self) -> CallingLandlord:
        return grpc_landlord(GrpcPlace("127.0.0.1", self.port, self.identity.hex()))

    def signed(self, call: Call, reply: pb.Reply) -> tuple[bytes, bytes]:
        reply.ctx.key = self.identity
        reply.ctx.nonce = pb.GetOffersRequest.FromString(call.request).ctx.nonce
        content = reply.SerializeToString()
        return content, self.key.sign(signed_bytes(call, content, self.certificate))

    def serve(self, call: Call, context: grpc.ServicerContext) -> bytes:
        self.heard.append(call)
        reply, signature = self.answers(call)
        context.set_trailing_metadata(((SIGNATURE, signature),))
        return reply


@contextmanager
def stand_in() -> Iterator[StandIn]:
    pem = _make()
    certificate = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    made = StandIn(0, sha256(certificate).digest(), Ed25519PrivateKey.generate())

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            method = details.method.rpartition("/")[2]
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: made.serve(Call(method, request), context), lambda one: one, lambda one: one
            )

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([Handler()])
    made.port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    yield made
    server.stop(None)


OFFERS = pb.Reply(
    offers=pb.Offers(
        offers=[pb.Offer(name="a", ipv4_bits=32, rent_msat=1000, credit_max_msat=10_000_000)],
        tunnel_key=keys.X25519PrivateKey.generate().public_key().public_bytes_raw(),
        session=bytes(32),
    )
)


def test_a_server_of_grpcs_own_library_is_understood() -> None:
    with stand_in() as server:
        server.answers = lambda call: server.signed(call, OFFERS)
        assert [one.name for one in server.landlord().offers()] == ["a"]


@pytest.mark.parametrize("what", ["nothing", "another key", "another request", "another method", "another certificate"])
def test_who_does_not_sign_hears_nothing_of_the_tenant(what: str) -> None:
    def answers(call: Call) -> tuple[bytes, bytes]:
        reply, _ = server.signed(call, OFFERS)
        key = Ed25519PrivateKey.generate() if what == "another key" else server.key
        signed = {
            "another request": signed_bytes(Call(call.method, b""), reply, server.certificate),
            "another method": signed_bytes(Call("GetStatus", call.request), reply, server.certificate),
            "another certificate": signed_bytes(call, reply, bytes(32)),
        }.get(what, signed_bytes(call, reply, server.certificate))
        return reply, b"" if what == "nothing" else key.sign(signed)

    with stand_in() as server:
        server.answers = answers
        with pytest.raises(FingerprintError):
            server.landlord().ask(WireGuardKeys(), 1000)
        assert [call.method for call in server.heard] == ["GetOffers"]


def test_a_man_in_the_middle_is_found_out_before_he_learns_anything(shop: Shop) -> None:
    """He has a certificate of his own, and passes on what the landlord signs."""
    host, port = shop.terms.grpc[0]
    place = GrpcPlace(host, port, shop.identity.hex())

    def passed_on(call: Call) -> tuple[bytes, bytes]:
        with tenant_grpc.tls.connected(place, 10, "h2") as connection:
            return tenant_grpc._Client(connection, "x").ask(call, b"")

    with stand_in() as between:
        between.answers = passed_on
        with pytest.raises(FingerprintError):
            grpc_landlord(GrpcPlace("127.0.0.1", between.port, place.pin)).status(WireGuardKeys())
        assert [call.method for call in between.heard] == ["GetOffers"]


# --- answers ----------------------------------------------------------------------------------------------------------


def _odd_answers() -> dict[str, pb.Reply]:
    status = pb.Status(networks=["203.0.113.1/32"], offer="a", state="active", rent_msat=1000)

    def changed(**values: Any) -> pb.Reply:
        made = pb.Status()
        made.CopyFrom(status)
        for key, value in values.items():
            if key == "networks":
                del made.networks[:]
                made.networks.extend(value)
            else:
                setattr(made, key, value)
        return pb.Reply(status=made)

    return {
        "another result": OFFERS,
        "no result": pb.Reply(),
        "a command in a network": changed(networks=["fe80::1%$(reboot)/128"]),
        "a network that is most of all": changed(networks=["0.0.0.0/1"]),
        "a state that is none": changed(state="\x1b[2J"),
        "too much money": changed(paid_msat=2**63),
        "a time beyond all": changed(now_at_s=2**63),
        "an invoice with control characters": changed(unpaid_invoice="lnbc\x1b"),
    }


@pytest.mark.parametrize("what", _odd_answers())
def test_odd_answers_are_refused_by_one_error(what: str) -> None:
    with stand_in() as server:
        odd = _odd_answers()[what]
        server.answers = lambda call: server.signed(call, OFFERS if call.method == "GetOffers" else odd)
        with pytest.raises(LandlordError) as caught:
            server.landlord().status(WireGuardKeys())
        assert "\x1b" not in str(caught.value)


def test_garbage_is_refused_also_while_only_the_node_is_known() -> None:
    with stand_in() as server:
        server.answers = lambda _call: (b"\xff" * 10, b"")
        with pytest.raises(LandlordError, match="can't be read"):
            grpc_landlord(GrpcPlace("127.0.0.1", server.port, "02" + "ab" * 32)).offers()


def test_garbage_and_floods_are_refused() -> None:
    with stand_in() as server:
        for reply, says in ((b"\xff" * 10, "somebody else answers"), (bytes(100_000), "answers more than 65536 bytes")):
            server.answers = lambda _call, reply=reply: (reply, b"")
            with pytest.raises((LandlordError, ConfigError), match=says):
                server.landlord().offers()


@pytest.mark.parametrize("speaks", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 2000])
def test_who_does_not_speak_grpc_is_told_apart(speaks: bytes) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            with suppress(OSError):
                one, _ = listener.accept()
                one.sendall(speaks)
                one.close()

        threading.Thread(target=serve, daemon=True).start()
        landlord = grpc_landlord(GrpcPlace("127.0.0.1", listener.getsockname()[1], "ab" * 32))
        with pytest.raises(LandlordError, match="check host"):
            landlord.offers()


def test_who_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_grpc, "ANSWER_S", 0.5)
    with stand_in() as server:
        server.answers = lambda _call: (time.sleep(3), (b"", b""))[1]
        began = time.monotonic()
        with pytest.raises(LandlordError, match="doesn't answer within 0.5 s"):
            server.landlord().offers()
        assert time.monotonic() - began < 2
