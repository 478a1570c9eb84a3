"""Calls: a landlord that is asked by calls (`ngp.calls`), which prove that the WireGuard key is the tenant's own.

`ngp.tenant.grpc` and `ngp.tenant.mesh` carry the calls. A landlord may be hostile, or broken: whatever it answers
becomes a value within fixed bounds, or a LandlordError.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

import ngp.calls.landlord_pb2 as pb
from ngp.calls.answering import ADD_CREDIT, CANCEL, GET_CONFIGURATION, GET_OFFERS, GET_REFUND, GET_STATUS, REKEY
from ngp.calls.proof import prove
from ngp.core.host_port import split_host_port
from ngp.core.pricing import SAT_MSAT
from ngp.core.rental.calls import Call, Session
from ngp.core.rental.rental import RentalState
from ngp.core.rental.terms import MONTH_S
from ngp.core.rental.tunnel import tunnel_address
from ngp.core.tenant.answers import MOST_SAT, MOST_TIME_S, AnswerError, Asked, Status, read_networks, read_text
from ngp.core.tenant.configuration import TunnelConfiguration, read_configuration
from ngp.core.tenant.terms import OnSale, SaleTerms
from ngp.errors import LandlordError
from ngp.tenant.landlord import Keys, Place, RefusedError, printable

MOST_OFFERS = 256
_MOST_MSAT = MOST_SAT * SAT_MSAT
_MOST_RENT_MSAT = 10**15
_MOST_PRICE_MSAT_PER_GIB = 1 << 40  # a landlord's kernel can't charge more
_MOST_BYTES = 1 << 62
_ATTEMPTS = 2
SESSION_S = 60.0
"""How long we count a landlord's clock on by our own. The two drift apart, and nonces that are ahead of the landlord's
clock would shut out another process that uses the same WireGuard key."""

T = TypeVar("T")
Carry = Callable[[Call, bytes], bytes]
"""Carries a call with its proof to the landlord. Returns the answer; raises LandlordError."""


class CallingLandlord:
    """A landlord that is asked by calls.

    Args:
        identity: returns the landlord's identity, which its answers must name.
        carry: brings a call there, and its answer back.
        payee: the Lightning node whose invoices are accepted, hexadecimal; "": any.
    """

    def __init__(self, place: Place, identity: Callable[[], bytes], carry: Carry, payee: str = "") -> None:
        self.place = place
        self._identity = identity
        self._carry = carry
        self._payee = payee
        self._session: _OpenSession | None = None

    def offers(self) -> tuple[OnSale, ...]:
        """Return what tenants may rent."""
        return self._read(lambda: tuple(_on_sale(one) for one in self._offers()))

    def terms(self, offer: str = "") -> SaleTerms:
        """Return the terms of an offer. Args: offer: "": the first one."""
        return self._read(lambda: _terms(self._offer(offer)))

    def ask(self, keys: Keys, amount_sat: int, offer: str = "") -> Asked:
        """Return an invoice for credit; for a new rental if this key has none. Args: offer: used for a new rental."""
        asked = self._proven(
            ADD_CREDIT, keys, lambda ctx: pb.AddCreditRequest(ctx=ctx, offer=offer, amount_msat=amount_sat * SAT_MSAT)
        )
        return self._read(lambda: replace(_asked(asked.asked), payee=self._payee))

    def cancel(self, keys: Keys) -> None:
        """Say that a rental that isn't paid yet isn't wanted."""
        self._proven(CANCEL, keys, lambda ctx: pb.CancelRequest(ctx=ctx))

    def status(self, keys: Keys, wait_for: str = "", preimage: bytes = b"") -> Status:
        """Return a rental's status. Args: wait_for: an invoice. preimage: proves that one was paid."""
        found = self._proven(
            GET_STATUS, keys, lambda ctx: pb.GetStatusRequest(ctx=ctx, wait_for=wait_for, preimage=preimage)
        )
        return self._read(lambda: _status(found.status))

    def configuration(self, keys: Keys) -> TunnelConfiguration:
        """Return what the tunnel needs."""
        found = self._proven(GET_CONFIGURATION, keys, lambda ctx: pb.GetConfigurationRequest(ctx=ctx))
        return self._read(lambda: _configuration(found.configuration))

    def refund(self, keys: Keys, bolt11: str) -> Status:
        """Have an invoice of ours paid from what is left of a rental that is over."""
        found = self._proven(GET_REFUND, keys, lambda ctx: pb.GetRefundRequest(ctx=ctx, bolt11=bolt11))
        return self._read(lambda: _status(found.status))

    def rekey(self, keys: Keys, new: Keys) -> None:
        """Give a rental another key."""
        public = base64.b64decode(new.public_key)
        self._proven(REKEY, keys, lambda ctx: pb.RekeyRequest(ctx=ctx, new_key=public), new)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _offers(self) -> Sequence[Any]:
        """Ask for the offers, which also name the session. Returns at least one."""
        request = pb.GetOffersRequest(ctx=pb.Ctx(nonce=secrets.randbits(63) + 1))
        reply = self._call(GET_OFFERS, request, b"")
        found = self._result(reply, "offers").offers
        self._session = _OpenSession(self._identity(), found)
        if not 0 < len(found.offers) <= MOST_OFFERS:
            raise LandlordError(f"landlord {self.place} has {len(found.offers)} offers: ask the landlord")
        return list(found.offers)

    def _offer(self, name: str) -> Any:
        offers = self._offers()
        for one in offers:
            if not name or one.name == name:
                return one
        known = ", ".join(printable(one.name) for one in offers)
        raise LandlordError(f"landlord {self.place} has no offer {name!r}; there are {known}")

    def _proven(self, method: str, keys: Keys, request: Callable[[Any], Any], *more: Keys) -> Any:
        """Call a method with a proof of each key; once more if the landlord began another session meanwhile."""
        private_keys = [X25519PrivateKey.from_private_bytes(base64.b64decode(one.private_key)) for one in (keys, *more)]
        reply = None
        for _ in range(_ATTEMPTS):
            if self._session is None or self._session.age_s > SESSION_S:
                self._offers()
            assert self._session is not None
            ctx = pb.Ctx(nonce=self._session.next_nonce(), key=base64.b64decode(keys.public_key))
            reply = self._call(method, request(ctx), self._session.proof(private_keys))
            if reply.failure.kind != pb.Failure.VERIFICATION_FAILED:
                break
            self._session = None
        return self._result(reply, _RESULTS[method])

    def _call(self, method: str, request: Any, proof: bytes | Callable[[Call], bytes]) -> Any:
        call = Call(method, request.SerializeToString())
        reply = read_reply(self._carry(call, proof if isinstance(proof, bytes) else proof(call)), self.place)
        if reply.ctx.key != self._identity() or reply.ctx.nonce != request.ctx.nonce:
            raise LandlordError(f"landlord {self.place} answers another request: nothing was done; try again")
        return reply

    def _result(self, reply: Any, kind: str) -> Any:
        found = reply.WhichOneof("result")
        if found == "failure":
            refuses = reply.failure.kind == pb.Failure.REFUSED
            raise (RefusedError if refuses else LandlordError)(
                f"landlord {self.place} refuses: {printable(reply.failure.text)}"
            )
        if found != kind:
            raise LandlordError(f"landlord {self.place} sent an answer without {kind}: tell the landlord")
        return reply

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (AnswerError, OverflowError) as error:
            raise LandlordError(str(error)) from error


_RESULTS = {
    ADD_CREDIT: "asked",
    GET_STATUS: "status",
    GET_CONFIGURATION: "configuration",
    REKEY: "status",
    GET_REFUND: "status",
    CANCEL: "status",
}


class _OpenSession:
    """A landlord's session, and its clock as far as we know it."""

    def __init__(self, landlord: bytes, offers: Any) -> None:
        self._session = Session(landlord, offers.tunnel_key, offers.session, offers.clock_us)
        self._began_s = time.monotonic()
        self._last = 0

    @property
    def age_s(self) -> float:
        """How long ago the landlord told its clock."""
        return time.monotonic() - self._began_s

    def next_nonce(self) -> int:
        """Return a number above those before, and not ahead of the landlord's clock."""
        self._last = max(self._last + 1, self._session.clock_us + int(self.age_s * 1e6))
        return self._last

    def proof(self, private_keys: Sequence[X25519PrivateKey]) -> Callable[[Call], bytes]:
        """Return what proves keys for a call."""

        def of(call: Call) -> bytes:
            try:
                return b"".join(prove(one, self._session, call) for one in private_keys)
            except ValueError:
                raise LandlordError("the landlord's WireGuard key can't be used: ask the landlord") from None

        return of


# --- answers ----------------------------------------------------------------------------------------------------------


def read_reply(content: bytes, place: Place) -> Any:
    """Read an answer's bytes. Raises LandlordError."""
    try:
        return pb.Reply.FromString(content)
    except DecodeError:
        raise LandlordError(f"landlord {place} sent an answer that can't be read: tell the landlord") from None


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise AnswerError(f"the landlord's answer has {name}: {value}, which isn't in {least}..{most}")
    return value


def _rate_sat_s(rent_msat: int) -> float:
    """Convert a rent of a month to sat a second. Only this function does, so that equal rents give equal rates."""
    return _within("rent_msat", rent_msat, 0, _MOST_RENT_MSAT) / SAT_MSAT / MONTH_S


def _terms(offer: Any, with_fee: bool = True) -> SaleTerms:
    money = {
        name: _within(name, getattr(offer, name), 0, _MOST_MSAT)
        for name in ("activation_fee_msat", "initial_credit_min_msat", "payment_min_msat", "credit_max_msat")
    }
    if not (offer.price_msat_per_gib or offer.rent_msat):
        raise AnswerError("the landlord's offer has neither a rent nor a price for traffic: ask the landlord")
    price = _within("price_msat_per_gib", offer.price_msat_per_gib, 0, _MOST_PRICE_MSAT_PER_GIB)
    terms = SaleTerms(rate_sat_s=_rate_sat_s(offer.rent_msat), price_msat_per_gib=price, **money)
    return terms if with_fee else replace(terms, activation_fee_msat=0)


def _on_sale(offer: Any) -> OnSale:
    networks = ((4, offer.ipv4_bits), (6, offer.ipv6_bits))
    return OnSale(
        terms=_terms(offer),
        name=read_text("name", offer.name),
        networks=tuple(f"IPv{version} /{_within('bits', bits, 1, 128)}" for version, bits in networks if bits),
        free=_within("free", offer.free, 0, 1 << 62),
        reserved_s=_within("reserved_s", offer.reserved_s, 0, MOST_TIME_S),
    )


def _asked(asked: Any) -> Asked:
    return Asked(
        bolt11=read_text("bolt11", asked.bolt11),
        is_first=asked.is_first,
        added_msat=_within("added_msat", asked.added_msat, 0, _MOST_MSAT),
        terms=_terms(asked.offer, with_fee=asked.is_first),
        status=_status(asked.status),
    )


def _status(status: Any) -> Status:
    if status.state not in set(RentalState):
        raise AnswerError(f"the landlord's answer has state: {status.state[:40]!r}, which no rental can have")
    return Status(
        networks=read_networks(list(status.networks)),
        started_at_s=_within("started_at_s", status.started_at_s, 0, MOST_TIME_S),
        now_s=_within("now_at_s", status.now_at_s, 0, MOST_TIME_S),
        left_s=_within("left_s", status.left_s, -MOST_TIME_S, MOST_TIME_S),
        credit_msat=_within("credit_msat", status.credit_msat, -_MOST_MSAT, _MOST_MSAT),
        rate_sat_s=_rate_sat_s(status.rent_msat),
        paid_msat=_within("paid_msat", status.paid_msat, 0, _MOST_MSAT),
        payments=_within("payments", status.payments, 0, MOST_SAT),
        activation_fee_msat=_within("activation_fee_msat", status.activation_fee_msat, 0, _MOST_MSAT),
        unpaid_invoice=read_text("unpaid_invoice", status.unpaid_invoice) if status.unpaid_invoice else "",
        state=status.state,
        offer=read_text("offer", status.offer),
        reason=printable(status.reason) if status.reason else "",
        refunded_msat=_within("refunded_msat", status.refunded_msat, 0, _MOST_MSAT),
        reserved_until_s=_within("reserved_until_s", status.reserved_until_s, 0, MOST_TIME_S),
        fetchable_msat=_within("fetchable_msat", status.fetchable_msat, 0, _MOST_MSAT),
        price_msat_per_gib=_within("price_msat_per_gib", status.price_msat_per_gib, 0, _MOST_PRICE_MSAT_PER_GIB),
        used_to_bytes=_within("used_to_bytes", status.used_to_bytes, 0, _MOST_BYTES),
        used_from_bytes=_within("used_from_bytes", status.used_from_bytes, 0, _MOST_BYTES),
    )


def _configuration(found: Any) -> TunnelConfiguration:
    """Read a configuration by the same rules as one that came over HTTPS: wg-quick reads the file made of either."""
    networks = read_networks(list(found.networks))
    endpoints = list(found.endpoints)[:16] or [""]
    host, port = split_host_port(next((one for one in endpoints if not one.startswith("[")), endpoints[0]))
    peer = {
        "public_key": base64.b64encode(found.tunnel_key).decode(),
        "endpoint_host": host,
        "endpoint_port": int(port) if re.fullmatch(r"[0-9]{1,5}", port) else port,
        "allowed_ips": ["0.0.0.0/0" if version == 4 else "::/0" for version in sorted({n.version for n in networks})],
        "persistent_keepalive": found.keepalive_s,
    }
    addresses = [tunnel_address(one) for one in networks]
    return read_configuration({"addresses": addresses, "mtu": found.mtu, "dns": list(found.dns), "peers": [peer]})
