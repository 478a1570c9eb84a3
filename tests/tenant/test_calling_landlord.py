"""A landlord that is asked by calls may be hostile: each answer is a value within its bounds, or a LandlordError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ngp.calls.landlord_pb2 as pb
from ngp.core.rental.calls import Call
from ngp.core.tenant.answers import Asked, Status
from ngp.core.tenant.configuration import TunnelConfiguration
from ngp.core.tenant.terms import SaleTerms, TenantSettings, refusals
from ngp.errors import LandlordError
from ngp.tenant import keys
from ngp.tenant.calls import CallingLandlord
from ngp.tenant.landlord import NeighbourPlace, RefusedError

LANDLORD = b"L" * 32
TUNNEL_KEY = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")  # RFC 7748, 6.1
OFFER = pb.Offer(
    name="default", ipv4_bits=32, rent_msat=24_000_000, activation_fee_msat=48_000_000,
    initial_credit_min_msat=1_000_000, payment_min_msat=500_000, credit_max_msat=72_000_000, reserved_s=60, free=3,
)  # fmt: skip
STATUS = pb.Status(
    networks=["198.51.100.1/32"], offer="default", state="active", rent_msat=24_000_000, paid_msat=49_000_000,
    activation_fee_msat=48_000_000, credit_msat=1_000_000, payments=1, started_at_s=100, now_at_s=200, left_s=5,
)  # fmt: skip
CONFIGURATION = pb.Configuration(
    networks=["198.51.100.1/32", "2001:db8::/64"], tunnel_key=TUNNEL_KEY, endpoints=["192.0.2.1:51820"], mtu=1420,
    keepalive_s=25,
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    private_key: str = field(default_factory=keys.new_private_key)

    @property
    def public_key(self) -> str:
        return keys.public_key(self.private_key)


OURS = Pair()


class Scripted:
    """A landlord that answers as a test wants; `twist` changes each reply."""

    def __init__(self, twist: Callable[[str, Any], bytes | None] = lambda _method, _reply: None) -> None:
        self.calls: list[str] = []
        self.clock_us, self.twist = 5, twist

    def landlord(self) -> CallingLandlord:
        return CallingLandlord(NeighbourPlace(LANDLORD.hex()), lambda: LANDLORD, self.carry)

    def carry(self, call: Call, proof: bytes) -> bytes:
        self.calls.append(call.method)
        request = pb.GetStatusRequest.FromString(call.request)  # all have ctx as their first field
        reply = pb.Reply(ctx=pb.Ctx(nonce=request.ctx.nonce, key=LANDLORD))
        match call.method:
            case "GetOffers":
                reply.offers.CopyFrom(pb.Offers(offers=[OFFER], tunnel_key=TUNNEL_KEY, session=b"s" * 32, clock_us=5))
            case "AddCredit":
                asked = pb.Asked(bolt11="lnbc1", is_first=True, added_msat=1000, offer=OFFER, status=STATUS)
                reply.asked.CopyFrom(asked)
            case "GetStatus":
                reply.status.CopyFrom(STATUS)
            case "GetConfiguration":
                reply.configuration.CopyFrom(CONFIGURATION)
        assert call.method == "GetOffers" or len(proof) == 32
        raw = self.twist(call.method, reply)
        return reply.SerializeToString() if raw is None else raw


def each_method(landlord: CallingLandlord) -> list[Callable[[], Any]]:
    return [
        landlord.offers, landlord.terms, lambda: landlord.ask(OURS, 1), lambda: landlord.status(OURS),
        lambda: landlord.configuration(OURS),
    ]  # fmt: skip


def test_what_an_honest_landlord_says() -> None:
    landlord = Scripted().landlord()
    (on_sale,) = landlord.offers()
    assert (on_sale.name, on_sale.networks, on_sale.free, on_sale.reserved_s) == ("default", ("IPv4 /32",), 3, 60)
    assert on_sale.terms.rent_msat == 24_000_000
    status = landlord.status(OURS)
    assert (status.credit_msat, status.state, status.payments) == (1_000_000, "active", 1)
    found = landlord.configuration(OURS)
    assert [str(one) for one in found.addresses] == ["198.51.100.1/32", "2001:db8::1/128"]
    assert [str(one) for one in found.ends[0].allowed] == ["0.0.0.0/0", "::/0"]


def test_each_nonce_is_above_the_one_before() -> None:
    nonces: list[int] = []

    def note(method: str, reply: Any) -> None:
        if method == "GetStatus":
            nonces.append(reply.ctx.nonce)

    landlord = Scripted(note).landlord()
    for _ in range(50):
        landlord.status(OURS)
    assert nonces == sorted(set(nonces)) and nonces[0] >= 5


@pytest.mark.parametrize(
    "twist",
    [
        lambda _method, _reply: b"\xff\xff\xff",
        lambda _method, _reply: b"",
        lambda _method, reply: setattr(reply.ctx, "nonce", reply.ctx.nonce + 1),
        lambda _method, reply: setattr(reply.ctx, "key", b"O" * 32),
        lambda _method, reply: reply.ClearField(reply.WhichOneof("result")),
    ],
    ids=["junk", "nothing", "another request's", "another landlord's", "no result"],
)
def test_an_answer_that_is_none_is_refused(twist: Any) -> None:
    for ask in each_method(Scripted(twist).landlord()):
        with pytest.raises(LandlordError):
            ask()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("status", {"networks": ["0.0.0.0/0"]}),
        ("status", {"networks": ["fe80::1%;reboot/128"]}),
        ("status", {"credit_msat": 2**62}),
        ("status", {"payments": 2**63}),
        ("status", {"now_at_s": 2**63}),
        ("status", {"rent_msat": 2**63}),
        ("status", {"state": "fine"}),
        ("status", {"unpaid_invoice": "ln\n\x1b[31m"}),
        ("asked", {"bolt11": ""}),
        ("asked", {"added_msat": 2**63}),
        ("configuration", {"networks": []}),
        ("configuration", {"networks": ["127.0.0.1/32"]}),
        ("configuration", {"endpoints": []}),
        ("configuration", {"endpoints": ["evil\nPostUp = reboot:1"]}),
        ("configuration", {"endpoints": ["192.0.2.1:" + "9" * 5000]}),
        ("configuration", {"tunnel_key": b"short"}),
        ("configuration", {"mtu": 1}),
        ("configuration", {"dns": ["192.0.2.1\nPostUp = reboot"]}),
        ("configuration", {"keepalive_s": 70_000}),
    ],
)
def test_a_value_out_of_its_bounds_is_refused_and_named(kind: str, changes: dict[str, Any]) -> None:
    def twist(_method: str, reply: Any) -> None:
        if reply.WhichOneof("result") == kind:
            part = getattr(reply, kind)
            for name in changes:
                part.ClearField(name)
            part.MergeFrom(type(part)(**changes))

    landlord = Scripted(twist).landlord()
    ask = {"status": lambda: landlord.status(OURS), "asked": lambda: landlord.ask(OURS, 1)}
    with pytest.raises(LandlordError, match="the landlord's"):
        ask.get(kind, lambda: landlord.configuration(OURS))()


def _terms_with(**changes: int) -> SaleTerms:
    """Return the terms of an offer with changes."""

    def twist(method: str, reply: Any) -> None:
        if method == "GetOffers":
            for name, value in changes.items():
                setattr(reply.offers.offers[0], name, value)

    return Scripted(twist).landlord().terms()


def test_a_price_for_traffic_is_told_and_paid_automatically_up_to_its_limit() -> None:
    terms = _terms_with(price_msat_per_gib=5 << 20)
    assert terms.asked.endswith("a month and 5 msat/kB for traffic")
    (why_not,) = refusals(terms, TenantSettings().limits, is_first=True)
    assert why_not == "the landlord asks 5 msat/kB for traffic, above TENANT_PRICE_MAX (0 msat/kB)"
    for most, refused in ((5 << 20, False), ((5 << 20) - 1, True)):
        assert bool(refusals(terms, TenantSettings(price_max_msat_per_gib=most).limits, is_first=True)) == refused
    assert refusals(_terms_with(), TenantSettings().limits, is_first=True) == []
    with pytest.raises(LandlordError, match="has price_msat_per_gib"):
        _terms_with(price_msat_per_gib=1 << 41)


def test_an_offer_for_nothing_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(LandlordError, match="neither a rent nor a price"):
        _terms_with(rent_msat=0)


def test_a_refusal_is_told_without_control_characters() -> None:
    def twist(method: str, reply: Any) -> None:
        if method == "GetStatus":
            reply.failure.CopyFrom(pb.Failure(kind=pb.Failure.REFUSED, text="no\x1b[31m\nway" + "!" * 999))

    with pytest.raises(RefusedError) as refused:
        Scripted(twist).landlord().status(OURS)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400


def test_a_busy_landlord_has_not_said_that_there_is_no_rental() -> None:
    def twist(method: str, reply: Any) -> None:
        if method == "GetStatus":
            reply.failure.CopyFrom(pb.Failure(kind=pb.Failure.BUSY, text="later"))

    with pytest.raises(LandlordError) as refused:
        Scripted(twist).landlord().status(OURS)
    assert not isinstance(refused.value, RefusedError)


def test_a_proof_that_is_never_accepted_is_tried_twice() -> None:
    def twist(method: str, reply: Any) -> None:
        if method == "GetStatus":
            reply.failure.CopyFrom(pb.Failure(kind=pb.Failure.VERIFICATION_FAILED, text="no"))

    scripted = Scripted(twist)
    with pytest.raises(LandlordError):
        scripted.landlord().status(OURS)
    assert scripted.calls == ["GetOffers", "GetStatus"] * 2


def test_a_landlord_whose_wireguard_key_is_none_gets_no_proof() -> None:
    def twist(method: str, reply: Any) -> None:
        if method == "GetOffers":
            reply.offers.tunnel_key = bytes(32)  # the product with it is 0 for every key

    with pytest.raises(LandlordError, match="WireGuard key can't be used"):
        Scripted(twist).landlord().status(OURS)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_a_landlord_error(junk: bytes) -> None:
    def twist(_method: str, reply: Any) -> bytes:
        return bytes(reply.ctx.SerializeToString()) and pb.Reply(ctx=reply.ctx).SerializeToString() + junk

    for ask in each_method(Scripted(twist).landlord()):
        try:
            found = ask()
        except LandlordError:
            continue
        assert isinstance(found, Asked | Status | TunnelConfiguration | tuple)
