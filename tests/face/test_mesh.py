"""The mesh face, asked by the tenant's own client: who proves its key is answered, and nobody else learns anything."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from let import SAT, offer
from shop import Shop, WireGuardKeys, terms_of_shop

import ngp.calls.landlord_pb2 as pb
from ngp import identity
from ngp.calls.proof import prove
from ngp.core.rental.calls import Call, Session
from ngp.core.rental.rental import Rental
from ngp.errors import LandlordError
from ngp.modules.face.door import Limits
from ngp.tenant.calls import CallingLandlord
from ngp.tenant.landlord import NeighbourPlace, RefusedError
from ngp.tenant.mesh import mesh_landlord

NEIGHBOUR = b"N" * 32
LINK, OTHER_LINK = ("mesh0", b"\2\0\0\0\0\1"), ("mesh0", b"\2\0\0\0\0\2")


@dataclass
class Caller:
    """A neighbour with a link of its own; `sent` has its calls as they went over the link."""

    shop: Shop
    link: tuple[str, bytes] = LINK
    keys: WireGuardKeys = field(default_factory=WireGuardKeys)
    sent: list[bytes] = field(default_factory=list)

    @cached_property
    def landlord(self) -> CallingLandlord:
        """One for all calls of a test: the landlord's clock stands still here, so a second one's nonces aren't new."""
        return mesh_landlord(NeighbourPlace(identity.text(self.shop.identity)), self.carry)

    def carry(self, _neighbour: str, content: bytes) -> bytes:
        self.sent.append(content)
        return self.answer(content)

    def answer(self, content: bytes) -> bytes:
        return self.shop.run(self.shop.outside.answer(content, NEIGHBOUR, self.link))

    def failure(self, content: bytes) -> tuple[int, str]:
        reply = pb.Reply.FromString(self.answer(content))
        assert reply.WhichOneof("result") == "failure", reply
        return reply.failure.kind, reply.failure.text


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    large = offer(name="large", ipv4_bits=31, ipv6_bits=None, rent_msat=48_000_000)
    with closing(Shop(tmp_path, terms_of_shop(offer(), large))) as made:
        yield made


def test_a_neighbour_rents_and_is_told_what_its_tunnel_needs(shop: Shop) -> None:
    tenant = Caller(shop)
    landlord = tenant.landlord
    first, large = landlord.offers()
    assert (first.name, first.networks, first.free) == ("default", ("IPv4 /32", "IPv6 /64"), 8)
    assert (large.name, large.networks, large.terms.rent_msat) == ("large", ("IPv4 /31",), 48_000_000)
    with pytest.raises(RefusedError, match="no rental has this WireGuard key"):
        landlord.status(tenant.keys)
    asked = landlord.ask(tenant.keys, 1100, "large")
    assert (asked.is_first, asked.added_msat, asked.terms) == (True, 1100 * SAT, large.terms)
    assert landlord.status(tenant.keys).payments == 0
    with pytest.raises(RefusedError, match="isn't paid yet"):
        landlord.configuration(tenant.keys)
    assert shop.pay(asked.bolt11)
    status = landlord.status(tenant.keys, asked.bolt11)
    assert (status.state, status.offer, status.payments, status.credit_msat) == ("active", "large", 1, 1100 * SAT)
    assert [one.prefixlen for one in status.networks] == [31]
    found = landlord.configuration(tenant.keys)
    assert [one.network for one in found.addresses] == [next(status.networks[0].subnets(new_prefix=32))]
    assert (found.mtu, found.ends[0].endpoint) == (1420, "192.0.2.9:51820")
    (rental,) = shop.landlord.world.letting.rentals.values()
    assert rental.peer == NEIGHBOUR == Rental.of(rental.record()).peer
    assert (rental.face, found.ends[0].public_key) == ("mesh", base64.b64encode(shop.landlord.public_key).decode())
    again = landlord.ask(tenant.keys, 700)
    assert not again.is_first and again.terms == replace(large.terms, activation_fee_msat=0)


def test_a_landlord_that_was_killed_is_asked_again_with_a_proof_for_its_new_session(shop: Shop) -> None:
    tenant = Caller(shop)
    landlord = tenant.landlord
    assert shop.pay(landlord.ask(tenant.keys, 1100).bolt11)
    before = landlord.status(tenant.keys)
    shop.restart()
    after = landlord.status(tenant.keys)
    assert (after.networks, after.paid_msat, after.state) == (before.networks, before.paid_msat, "active")


def test_nobody_else_is_told_of_a_rental_or_replaces_its_invoice(shop: Shop) -> None:
    tenant = Caller(shop)
    asked = tenant.landlord.ask(tenant.keys, 1100)
    thief = Caller(shop, OTHER_LINK)
    thief.landlord.offers()
    own = X25519PrivateKey.generate()
    offers = pb.Reply.FromString(thief.answer(pb.Carried(method="GetOffers").SerializeToString())).offers
    session = Session(thief.landlord._identity(), offers.tunnel_key, offers.session, offers.clock_us)
    ctx = pb.Ctx(nonce=offers.clock_us + 1, key=base64.b64decode(tenant.keys.public_key))
    for method, request in (
        ("GetStatus", pb.GetStatusRequest(ctx=ctx)),
        ("AddCredit", pb.AddCreditRequest(ctx=ctx, amount_msat=2000 * SAT)),
        ("GetConfiguration", pb.GetConfigurationRequest(ctx=ctx)),
        ("Rekey", pb.RekeyRequest(ctx=ctx, new_key=own.public_key().public_bytes_raw())),
        ("GetRefund", pb.GetRefundRequest(ctx=ctx, bolt11="lnbc1")),
    ):
        call = Call(method, request.SerializeToString())
        proof = prove(own, session, call) * (2 if method == "Rekey" else 1)
        carried = pb.Carried(method=method, request=call.request, proof=proof)
        assert thief.failure(carried.SerializeToString())[0] == pb.Failure.VERIFICATION_FAILED, method
    for content in tenant.sent[1:]:  # what it overheard, the offers aside
        assert thief.failure(content)[0] == pb.Failure.VERIFICATION_FAILED
    assert tenant.landlord.status(tenant.keys).unpaid_invoice == asked.bolt11


@given(st.binary(max_size=200) | st.builds(
    lambda method, request, proof: pb.Carried(method=method, request=request, proof=proof).SerializeToString(),
    st.sampled_from(
        ("", "GetOffers", "AddCredit", "GetStatus", "GetConfiguration", "Rekey", "GetRefund", "Cancel", "__init__")
    ),
    st.binary(max_size=100), st.binary(max_size=70),
))  # fmt: skip
@effort(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_neighbour_sends_is_answered_and_makes_no_rental(shop: Shop, content: bytes) -> None:
    reply = pb.Reply.FromString(Caller(shop).answer(content))
    assert reply.WhichOneof("result") in ("failure", "offers")
    assert not shop.landlord.world.letting.rentals and not shop.landlord.world.clients


def test_an_unknown_method_is_told_which_there_are(shop: Shop) -> None:
    kind, text = Caller(shop).failure(pb.Carried(method="Buy").SerializeToString())
    assert kind == pb.Failure.MALFORMED and "AddCredit, Cancel, GetConfiguration" in text
    assert Caller(shop).failure(b"\xff" * 20)[0] == pb.Failure.MALFORMED


def test_net_conf_says_whether_neighbours_may_rent(shop: Shop) -> None:
    tenant = Caller(shop)
    landlord = tenant.landlord
    landlord.offers()
    shop.run(shop.outside.apply(replace(shop.terms, mesh=False)))
    with pytest.raises(LandlordError, match="lets nothing to this router over the mesh"):
        landlord.offers()
    shop.run(shop.outside.apply(shop.terms))
    assert landlord.offers()


def test_one_neighbour_has_few_rentals_that_wait_and_all_together_no_more_than_net_conf_says(tmp_path: Path) -> None:
    terms = terms_of_shop(offer(ipv6_bits=None))
    with closing(Shop(tmp_path, replace(terms, invoices_max=5), replace(Limits(), invoices_of_one_s=1000))) as shop:
        for _ in range(Limits().first_invoices_of_one):
            tenant = Caller(shop)
            tenant.landlord.ask(tenant.keys, 1100)
        sixth = Caller(shop)
        with pytest.raises(RefusedError, match="5 new rentals that were asked for from your address wait"):
            sixth.landlord.ask(sixth.keys, 1100)
        other = Caller(shop, OTHER_LINK)
        with pytest.raises(RefusedError, match="too many invoices wait for their payment"):
            other.landlord.ask(other.keys, 1100)
        tenant.landlord.ask(tenant.keys, 1200)  # it replaces its own
        assert len(shop.landlord.world.letting.rentals) == 5


def test_a_neighbour_that_floods_is_told_to_wait_and_others_are_answered(tmp_path: Path) -> None:
    limits = replace(Limits(), requests_of_one_s=1, burst_s=3, requests_s=1000, invoices_of_one_s=1, invoices_burst_s=1)
    with closing(Shop(tmp_path, terms_of_shop(offer()), limits)) as shop:
        flooder, other = Caller(shop), Caller(shop, OTHER_LINK)
        content = pb.Carried(method="GetOffers").SerializeToString()

        async def flood() -> list[bytes]:
            asked = (shop.outside.answer(content, NEIGHBOUR, flooder.link) for _ in range(8))
            return await asyncio.gather(*asked)

        replies = [pb.Reply.FromString(one) for one in shop.run(flood())]
        told = [one.failure.kind for one in replies if one.WhichOneof("result") == "failure"]
        assert len(told) >= 4 and set(told) == {pb.Failure.BUSY}
        assert other.landlord.offers()
