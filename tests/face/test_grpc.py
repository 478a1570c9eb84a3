"""The gRPC face, asked by gRPC's own client: who proves its key is answered, and every answer is the landlord's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from let import offer
from shop import Shop, terms_by_grpc

import ngp.calls.landlord_pb2 as pb
from ngp.calls.proof import prove
from ngp.calls.signature import PROOF, SIGNATURE, signed_bytes
from ngp.core.rental.calls import Call, Session
from ngp.core.rental.events import ReleaseRental

REQUESTS = {
    "GetOffers": pb.GetOffersRequest, "AddCredit": pb.AddCreditRequest, "GetStatus": pb.GetStatusRequest,
    "GetConfiguration": pb.GetConfigurationRequest, "Rekey": pb.RekeyRequest, "GetRefund": pb.GetRefundRequest,
    "Cancel": pb.CancelRequest,
}  # fmt: skip


@dataclass
class Caller:
    """A tenant's key, and gRPC's own client with the landlord's certificate."""

    channel: grpc.Channel
    certificate: bytes
    identity: bytes
    key: X25519PrivateKey
    session: Session = Session(b"", b"", b"", 0)
    nonce: int = 0

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def raw(self, method: str, request: bytes, proof: bytes | None) -> bytes:
        """Send bytes; returns the reply's, whose signature was checked."""
        send = self.channel.unary_unary(f"/ngp.Landlord/{method}", lambda one: one, lambda one: one)
        reply, call = send.with_call(request, timeout=30, metadata=[] if proof is None else [(PROOF, proof)])
        signature = dict(call.trailing_metadata())[SIGNATURE]
        signed = signed_bytes(Call(method, request), reply, sha256(self.certificate).digest())
        Ed25519PublicKey.from_public_bytes(self.identity).verify(signature, signed)
        return bytes(reply)

    def meet(self) -> pb.Offers:
        """Ask for the offers, and go on with their session."""
        request = pb.GetOffersRequest(ctx=pb.Ctx(nonce=5)).SerializeToString()
        reply = pb.Reply.FromString(self.raw("GetOffers", request, None))
        assert reply.ctx.nonce == 5 and reply.ctx.key == self.identity
        self.session = Session(self.identity, reply.offers.tunnel_key, reply.offers.session, reply.offers.clock_us)
        self.nonce = max(self.nonce, self.session.clock_us)
        return reply.offers

    def ask(self, method: str, *more_keys: X25519PrivateKey, **fields: Any) -> pb.Reply:
        """Make a call, proven by the key, and perhaps others."""
        if not self.session.id:
            self.meet()
        self.nonce += 1
        request = REQUESTS[method](ctx=pb.Ctx(nonce=self.nonce, key=self.public), **fields).SerializeToString()
        call = Call(method, request)
        proof = b"".join(prove(key, self.session, call) for key in (self.key, *more_keys))
        reply = pb.Reply.FromString(self.raw(method, request, proof))
        assert reply.ctx.nonce == self.nonce and reply.ctx.key == self.identity
        return reply

    def refused(self, method: str, *more_keys: X25519PrivateKey, **fields: Any) -> str:
        reply = self.ask(method, *more_keys, **fields)
        assert reply.WhichOneof("result") == "failure", reply
        return str(reply.failure.text)


def caller(shop: Shop, key: X25519PrivateKey | None = None) -> Caller:
    host, port = shop.terms.grpc[0]
    pem = ssl.get_server_certificate((host, port))
    credentials = grpc.ssl_channel_credentials(pem.encode())
    options = [("grpc.ssl_target_name_override", "ngp landlord"), ("grpc.enable_http_proxy", 0)]
    return Caller(
        grpc.secure_channel(f"{host}:{port}", credentials, options),
        ssl.PEM_cert_to_DER_cert(pem),
        shop.identity,
        key or X25519PrivateKey.generate(),
    )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    large = offer(name="large", ipv4_bits=31, ipv6_bits=None, rent_msat=48_000_000)
    with closing(Shop(tmp_path, terms_by_grpc(offer(), large))) as made:
        yield made


@pytest.fixture
def tenant(shop: Shop) -> Iterator[Caller]:
    made = caller(shop)
    yield made
    made.channel.close()


def test_all_offers_are_told_to_everybody(tenant: Caller) -> None:
    found = tenant.meet()
    assert [(one.name, one.ipv4_bits, one.ipv6_bits, one.free) for one in found.offers] == [
        ("default", 32, 64, 8), ("large", 31, 0, 4),
    ]  # fmt: skip
    assert found.network == "sandbox" and len(found.node_key) == 33


def rented(shop: Shop, tenant: Caller, sat: int = 24_000, name: str = "") -> pb.Status:
    asked = tenant.ask("AddCredit", amount_msat=sat * 1000, offer=name).asked
    assert asked.is_first and asked.added_msat == sat * 1000
    assert shop.pay(asked.bolt11)
    return tenant.ask("GetStatus", wait_for=asked.bolt11).status


def test_a_tenant_rents_and_gets_its_configuration(shop: Shop, tenant: Caller) -> None:
    assert "no rental" in tenant.refused("GetConfiguration")
    status = rented(shop, tenant, name="large")
    assert status.state == "active" and status.offer == "large" and list(status.networks) == ["203.0.113.0/31"]
    assert status.credit_msat == 24_000_000 and status.activation_fee_msat == 48_000_000
    found = tenant.ask("GetConfiguration").configuration
    assert list(found.networks) == list(status.networks)
    assert list(found.endpoints) == ["[2001:db8::9]:51820", "192.0.2.9:51820"]
    assert found.tunnel_key == tenant.session.tunnel_key and found.mtu == 1420


def test_a_preimage_proves_a_payment(shop: Shop, tenant: Caller) -> None:
    asked = tenant.ask("AddCredit", amount_msat=24_000_000).asked
    preimage = shop.landlord.node.preimages[bytes.fromhex(asked.bolt11)]
    assert tenant.ask("GetStatus", preimage=preimage).status.payments == 1
    assert "instead of 32" in tenant.refused("GetStatus", preimage=b"short")


def test_a_stranger_sees_nothing_and_replaces_nothing(shop: Shop, tenant: Caller) -> None:
    rented(shop, tenant)
    more = tenant.ask("AddCredit", amount_msat=1_000_000).asked
    stranger = caller(shop)
    stranger.meet()
    for method in ("GetStatus", "GetConfiguration", "AddCredit", "GetRefund", "Cancel"):
        stranger.nonce += 1
        request = REQUESTS[method](ctx=pb.Ctx(nonce=stranger.nonce, key=tenant.public)).SerializeToString()
        for proof in (prove(stranger.key, stranger.session, Call(method, request)), bytes(32), b"", None):
            reply = pb.Reply.FromString(stranger.raw(method, request, proof))
            assert reply.WhichOneof("result") == "failure"
            assert "203.0.113" not in str(reply)
    assert tenant.ask("GetStatus").status.unpaid_invoice == more.bolt11
    stranger.channel.close()


def test_a_key_is_changed_by_who_has_both(shop: Shop, tenant: Caller) -> None:
    before = rented(shop, tenant)
    new = X25519PrivateKey.generate()
    public = new.public_key().public_bytes_raw()
    assert "64" in tenant.refused("Rekey", new_key=public)  # the second proof is missing
    assert "doesn't fit" in tenant.refused("Rekey", tenant.key, new_key=public)
    after = tenant.ask("Rekey", new, new_key=public).status
    assert list(after.networks) == list(before.networks) and after.id == before.id
    assert set(shop.do(lambda: dict(shop.landlord.peers))) == {public}
    assert "no rental" in tenant.refused("GetStatus")
    tenant.key = new
    assert tenant.ask("GetStatus").status.state == "active"


def test_a_request_is_served_once(shop: Shop, tenant: Caller) -> None:
    rented(shop, tenant)
    tenant.nonce += 1
    request = pb.GetStatusRequest(ctx=pb.Ctx(nonce=tenant.nonce, key=tenant.public)).SerializeToString()
    proof = prove(tenant.key, tenant.session, Call("GetStatus", request))
    assert pb.Reply.FromString(tenant.raw("GetStatus", request, proof)).HasField("status")
    again = pb.Reply.FromString(tenant.raw("GetStatus", request, proof))
    assert again.failure.kind == pb.Failure.VERIFICATION_FAILED and "isn't above" in again.failure.text
    other = pb.Reply.FromString(tenant.raw("GetConfiguration", request, proof))
    assert other.failure.kind == pb.Failure.VERIFICATION_FAILED


def test_a_request_from_before_a_restart_is_refused(shop: Shop, tenant: Caller) -> None:
    rented(shop, tenant)
    tenant.nonce += 1
    request = pb.GetStatusRequest(ctx=pb.Ctx(nonce=tenant.nonce, key=tenant.public)).SerializeToString()
    proof = prove(tenant.key, tenant.session, Call("GetStatus", request))
    shop.restart()
    again = pb.Reply.FromString(tenant.raw("GetStatus", request, proof))
    assert again.failure.kind == pb.Failure.VERIFICATION_FAILED
    tenant.meet()
    assert tenant.ask("GetStatus").status.state == "active"


def test_refusals_are_signed_and_name_their_request(shop: Shop, tenant: Caller) -> None:
    """`ask` checks the signature and the request's number of every reply."""
    assert "1000 sat" in tenant.refused("AddCredit", amount_msat=1000)
    assert "there is no offer 'x'" in tenant.refused("AddCredit", amount_msat=24_000_000, offer="x")
    assert "no rental" in tenant.refused("GetStatus")
    assert "whole number" in tenant.refused("AddCredit", amount_msat=24_000_001)


@pytest.mark.parametrize(
    ("ctx", "says"),
    [
        ({"key": bytes(32)}, "nonce is missing"),
        ({"nonce": 1}, "has 0 bytes"),
        ({"nonce": 1, "key": b"x"}, "has 1 bytes"),
    ],
)
def test_what_is_missing_is_named(tenant: Caller, ctx: dict[str, Any], says: str) -> None:
    request = pb.GetStatusRequest(ctx=pb.Ctx(**ctx)).SerializeToString()
    reply = pb.Reply.FromString(tenant.raw("GetStatus", request, bytes(32)))
    assert reply.failure.kind == pb.Failure.MALFORMED and says in reply.failure.text


@pytest.mark.parametrize("request_", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x01" * 100, b"\x12\x02\xff\xff"])
def test_what_is_no_message_is_refused(tenant: Caller, request_: bytes) -> None:
    reply = pb.Reply.FromString(tenant.raw("AddCredit", request_, bytes(32)))
    assert reply.failure.kind == pb.Failure.MALFORMED


@pytest.mark.parametrize("path", ["/ngp.Landlord/No", "/other.Service/GetOffers", "/", "/ngp.Landlord/GetOffers/x"])
def test_an_unknown_method_is_refused(tenant: Caller, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        tenant.channel.unary_unary(path, lambda one: one, lambda one: one)(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_compression_is_refused(shop: Shop, tenant: Caller) -> None:
    send = tenant.channel.unary_unary("/ngp.Landlord/GetOffers", lambda one: one, lambda one: one)
    with pytest.raises(grpc.RpcError) as caught:
        send(b"\x0a\x02\x08\x01" * 200, timeout=10, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_operator_is_told_the_pin(shop: Shop, tenant: Caller) -> None:
    (line,) = shop.grpc.check(shop.terms)
    assert line.ok and tenant.identity.hex() in line.found
    assert (shop.folder / "grpc.pem").stat().st_mode & 0o777 == 0o600


def test_money_of_a_rental_that_is_over_is_asked_for(shop: Shop, tenant: Caller) -> None:
    rented(shop, tenant)
    rental = shop.do(lambda: shop.landlord.world.letting.by_key[tenant.public].id)
    shop.do(lambda: shop.landlord.happen(ReleaseRental(rental)))
    status = tenant.ask("GetStatus").status
    assert status.state == "released" and status.fetchable_msat == 24_000_000
    assert "can't be read" in tenant.refused("GetRefund", bolt11="nonsense")
