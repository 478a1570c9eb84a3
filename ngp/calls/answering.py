"""Answering: a landlord's answers to calls, whichever way they come.

Only the offers are told to everybody. Every other method is about one WireGuard key, and the caller must prove that it
has the private key. So a stranger can neither see a rental, nor replace its invoice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from google.protobuf.message import DecodeError

import ngp.calls.landlord_pb2 as pb
from ngp.calls.first_invoices import FirstInvoices
from ngp.calls.proof import KEY_BYTES
from ngp.core.rental.calls import Call
from ngp.core.rental.status import Configuration, RentalStatus
from ngp.core.rental.terms import Offer
from ngp.errors import LedgerError, ProofError, RentalError
from ngp.ports import LettingService

GET_OFFERS, ADD_CREDIT, GET_STATUS = "GetOffers", "AddCredit", "GetStatus"
GET_CONFIGURATION, REKEY, GET_REFUND, CANCEL = "GetConfiguration", "Rekey", "GetRefund", "Cancel"
MALFORMED, UNPROVEN, BUSY = pb.Failure.MALFORMED, pb.Failure.VERIFICATION_FAILED, pb.Failure.BUSY
_PREIMAGE_BYTES = 32


class MalformedError(RentalError):
    """A request doesn't have the form that docs/rental-protocol.md requires."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, as far as the transport knows.

    Attributes:
        who: the caller's address, for limits.
        hold_s: how long the reply may wait for a payment.
        peer: the caller's identity if it is a neighbour; else b"".
    """

    who: Hashable
    hold_s: float
    peer: bytes = b""


class Answering:
    """Answers calls by asking the landlord.

    Args:
        identity: the landlord's identity, which its replies name.
        face: `grpc` or `mesh`: by which of them tenants ask here; new rentals keep this name.
        first_invoices: how many new rentals one sender may have waiting for their first payment.
    """

    def __init__(self, letting: LettingService, identity: bytes, face: str, first_invoices: int) -> None:
        self._letting = letting
        self._identity = identity
        self._face = face
        self._first_invoices = FirstInvoices(first_invoices, letting)
        self._methods: Mapping[str, tuple[Any, Callable[..., Awaitable[pb.Reply]]]] = {
            GET_OFFERS: (pb.GetOffersRequest, self._offers),
            ADD_CREDIT: (pb.AddCreditRequest, self._add_credit),
            GET_STATUS: (pb.GetStatusRequest, self._status),
            GET_CONFIGURATION: (pb.GetConfigurationRequest, self._configuration),
            REKEY: (pb.RekeyRequest, self._rekey),
            GET_REFUND: (pb.GetRefundRequest, self._refund),
            CANCEL: (pb.CancelRequest, self._cancel),
        }

    @property
    def methods(self) -> frozenset[str]:
        """The names of all methods."""
        return frozenset(self._methods)

    async def answer(self, call: Call, proof: bytes, asking: Asking) -> pb.Reply:
        """Answer one call, or say why not; the input may be hostile.

        Args: proof: the proof of the request's WireGuard key; for Rekey the proof of the new key follows.
        """
        try:
            kind, method = self._methods[call.method]
            request = _parsed(kind, call.request)
            if call.method != GET_OFFERS:
                self._check_proof(call, request, proof)
            reply = await method(request, asking)
        except MalformedError as error:
            return self.refusal(call, MALFORMED, str(error))
        except ProofError as error:
            return self.refusal(call, UNPROVEN, str(error))
        except RentalError as error:
            return self.refusal(call, pb.Failure.REFUSED, str(error))
        except LedgerError:  # its text is for the operator, who has it in the log
            return self.refusal(call, BUSY, "the landlord can't write its books now: ask again in a minute")
        reply.ctx.nonce, reply.ctx.key = request.ctx.nonce, self._identity
        return reply

    def refusal(self, call: Call, kind: pb.Failure.Kind, text: str) -> pb.Reply:
        """Return a reply that refuses a call."""
        nonce = 0
        with suppress(KeyError, MalformedError):
            nonce = _parsed(self._methods[call.method][0], call.request).ctx.nonce
        return pb.Reply(
            ctx=pb.Ctx(nonce=nonce, key=self._identity), failure=pb.Failure(kind=kind, text=text)
        )

    def _check_proof(self, call: Call, request: Any, proof: bytes) -> None:
        if not request.ctx.nonce:
            raise MalformedError("ctx.nonce is missing: take it from the clock in the answer to GetOffers")
        keys = [_key(request.ctx.key, "ctx.key")]
        if call.method == REKEY:
            keys.append(_key(request.new_key, "new_key"))
        if len(proof) != len(keys) * KEY_BYTES:
            raise MalformedError(f"the proof has {len(proof)} bytes instead of {len(keys) * KEY_BYTES}")
        proofs = [(key, proof[i * KEY_BYTES : (i + 1) * KEY_BYTES]) for i, key in enumerate(keys)]
        self._letting.check_proof(call, request.ctx.nonce, proofs)

    # --- methods ------------------------------------------------------------------------------------------------------

    async def _offers(self, _request: pb.GetOffersRequest, _asking: Asking) -> pb.Reply:
        session, payee = self._letting.session(), self._letting.payee()
        return pb.Reply(
            offers=pb.Offers(
                offers=[_offer(offer, free) for offer, free in self._letting.offers()],
                tunnel_key=session.tunnel_key,
                session=session.id,
                clock_us=session.clock_us,
                network=payee.network,
                node_key=payee.key,
                node_signature=payee.signature,
            )
        )

    async def _add_credit(self, request: pb.AddCreditRequest, asking: Asking) -> pb.Reply:
        key = request.ctx.key
        with self._first_invoices.asking(asking.who, key):
            asked = await self._letting.ask(key, request.amount_msat, self._face, request.offer, asking.peer)
        return pb.Reply(
            asked=pb.Asked(
                bolt11=asked.bolt11,
                is_first=asked.is_first,
                added_msat=asked.added_msat,
                offer=_offer(asked.offer),
                status=_status(asked.status),
            )
        )

    async def _status(self, request: pb.GetStatusRequest, asking: Asking) -> pb.Reply:
        key = request.ctx.key
        if request.preimage:
            if len(request.preimage) != _PREIMAGE_BYTES:
                raise MalformedError(f"preimage has {len(request.preimage)} bytes instead of {_PREIMAGE_BYTES}")
            self._letting.prove(request.preimage)
        if request.wait_for:
            return pb.Reply(status=_status(await self._letting.paid(key, request.wait_for, asking.hold_s)))
        return pb.Reply(status=_status(self._letting.status(key)))

    async def _configuration(self, request: pb.GetConfigurationRequest, _asking: Asking) -> pb.Reply:
        return pb.Reply(configuration=_settings(self._letting.configuration(request.ctx.key)))

    async def _rekey(self, request: pb.RekeyRequest, _asking: Asking) -> pb.Reply:
        return pb.Reply(status=_status(await self._letting.rekey(request.ctx.key, request.new_key)))

    async def _refund(self, request: pb.GetRefundRequest, _asking: Asking) -> pb.Reply:
        return pb.Reply(status=_status(await self._letting.refund(request.ctx.key, request.bolt11)))

    async def _cancel(self, request: pb.CancelRequest, _asking: Asking) -> pb.Reply:
        return pb.Reply(status=_status(await self._letting.cancel(request.ctx.key)))


def _parsed(kind: Any, request: bytes) -> Any:
    """Parse a request of some kind. Raises: MalformedError."""
    try:
        return kind.FromString(request)
    except DecodeError:
        raise MalformedError("the request can't be read: see docs/rental-protocol.md") from None


def _key(key: bytes, field: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise MalformedError(f"{field} has {len(key)} bytes instead of the {KEY_BYTES} of a WireGuard key")
    return key


def _offer(offer: Offer, free: int = 0) -> pb.Offer:
    return pb.Offer(
        name=offer.name,
        ipv4_bits=offer.ipv4_bits or 0,
        ipv6_bits=offer.ipv6_bits or 0,
        rent_msat=offer.rent_msat,
        price_msat_per_gib=offer.price_msat_per_gib,
        rate_bytes_s=offer.rate_bytes_s or 0,
        activation_fee_msat=offer.activation_fee_msat,
        initial_credit_min_msat=offer.initial_credit_min_msat,
        payment_min_msat=offer.payment_min_msat,
        credit_max_msat=offer.credit_max_msat,
        reserved_s=offer.reserved_s,
        free=free,
    )


def _status(found: RentalStatus) -> pb.Status:
    same = {one.name: getattr(found, one.name) for one in fields(found) if one.name not in _OTHERWISE}
    return pb.Status(
        **same, networks=[str(one) for one in found.networks], state=found.state.value, left_s=found.left_s or 0
    )


_OTHERWISE = ("wireguard_key", "face", "networks", "state", "left_s")


def _settings(found: Configuration) -> pb.Configuration:
    return pb.Configuration(
        networks=[str(one) for one in found.networks],
        tunnel_key=found.landlord_key,
        endpoints=found.endpoints,
        mtu=found.mtu,
        dns=found.dns,
        keepalive_s=found.keepalive_s,
    )
