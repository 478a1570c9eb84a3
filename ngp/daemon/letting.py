"""Letting: what every face of the landlord asks for, answered from the one world that the daemon has.

A face (HTTPS, gRPC, the mesh link) turns its requests into these calls and the answers into its own words. It has no
rules of its own. Calls are for the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ngp.calls.proof import Proofs
from ngp.core.events import Event
from ngp.core.messages import Paid
from ngp.core.payment_node import DecodedInvoice
from ngp.core.records import PaymentKind, PaymentState
from ngp.core.rental.asking import NOT_LETTING
from ngp.core.rental.calls import Call, Payee, Session
from ngp.core.rental.effects import AnswerTenant
from ngp.core.rental.events import CancelAsked, CreditAsked, MoneyBackAsked, RekeyAsked, RentProven
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.rental.status import Asked, Configuration, RentalStatus, room, status
from ngp.core.rental.terms import LettingSettings, Offer
from ngp.core.world import World
from ngp.errors import LedgerError, PeerError, RentalError
from ngp.ports import Clock

INVOICE_WAIT_S = 30.0


class Letting:
    """The service behind the faces.

    Args:
        obey: processes an event at once and durably; raises LedgerError if nothing can be written.
        identity: ours.
        private_key: of the tunnel.
        endpoints: returns where tenants reach the tunnel now.
        decode: reads a BOLT11 invoice of a tenant; raises PeerError.
        payee_signature: returns the payment node's signature of our identity; "" as long as there is none.
    """

    def __init__(
        self,
        world: World,
        clock: Clock,
        obey: Callable[[Event], None],
        identity: bytes,
        private_key: X25519PrivateKey,
        endpoints: Callable[[], tuple[str, ...]],
        decode: Callable[[str], DecodedInvoice],
        payee_signature: Callable[[], str],
    ) -> None:
        self._world = world
        self._clock = clock
        self._obey = obey
        self._landlord_key = private_key.public_key().public_bytes_raw()
        self._proofs = Proofs(identity, private_key, clock.now().monotonic_s)
        self._endpoints = endpoints
        self._decode = decode
        self._payee_signature = payee_signature
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[AnswerTenant]] = {}
        self._changed = asyncio.Event()
        self._unwritten: set[bytes] = set()
        """New keys of rentals that aren't in the ledger yet. No tenant may hear that such a key holds: it would drop
        its old key, and a crash would bring the old key back."""

    # --- what faces ask -----------------------------------------------------------------------------------------------

    def offer(self, name: str = "") -> Offer:
        """Return an offer by its name, or the first one. Raises: RentalError."""
        settings = self._settings()
        found = settings.offer(name)
        if found is None:
            raise RentalError(settings.no_offer(name))
        return found

    def offers(self) -> list[tuple[Offer, int]]:
        """Return all offers, each with how many such rentals there is room for."""
        return [(offer, room(self._world, offer)) for offer in self._settings().offers]

    def payee(self) -> Payee:
        """Return the node that makes the invoices."""
        node = self._world.node
        return Payee(node.network, node.payee, self._payee_signature())

    def session(self) -> Session:
        """Return what tenants need to prove their keys."""
        return self._proofs.session(self._clock.now().monotonic_s)

    def check_proof(self, call: Call, nonce: int, proofs: Sequence[tuple[bytes, bytes]]) -> None:
        """Accept a call once, if the caller proves that it has these WireGuard keys. Raises: ProofError."""
        self._proofs.check(call, nonce, proofs, self._clock.now().monotonic_s)

    async def ask(self, wireguard_key: bytes, amount_msat: int, face: str, offer: str = "", peer: bytes = b"") -> Asked:
        """Return an invoice for a tenant's new or running rental.

        Args: offer: for a new rental. peer: the neighbour that asks over the mesh link.
        Raises: RentalError: refused, with the reason. LedgerError: nothing can be written now.
        """
        self._refuse_own(wireguard_key)
        try:
            answer = await self._answer_to(
                lambda request: CreditAsked(request, wireguard_key, amount_msat, face, offer, peer)
            )
        except TimeoutError:
            raise RentalError("the payment node took too long to make an invoice: ask again in a minute") from None
        rental = self._world.letting.rentals.get(answer.rental)
        if rental is None:
            raise RentalError("the rental was cancelled while its invoice was made: ask again")
        terms = self.offer(rental.offer)
        is_first = rental.state is RentalState.PENDING
        return Asked(answer.bolt11, is_first, amount_msat, terms, status(self._world, rental, self._clock.now()))

    async def cancel(self, wireguard_key: bytes) -> RentalStatus:
        """Withdraw the invoice of a rental that wasn't paid yet. Raises: RentalError: refused. LedgerError."""
        before = self.status(wireguard_key)
        await self._answer_to(lambda request: CancelAsked(request, wireguard_key))
        return replace(before, unpaid_invoice="")  # the rental itself may be forgotten by now

    def status(self, wireguard_key: bytes) -> RentalStatus:
        """Return a tenant's newest rental. Raises: RentalError: there is none."""
        return status(self._world, self._rental(wireguard_key), self._clock.now())

    async def paid(self, wireguard_key: bytes, bolt11: str, most_s: float) -> RentalStatus:
        """Wait until an invoice of a tenant is paid, or some seconds have passed. Returns the status then.

        Raises: RentalError: the tenant has no rental.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + most_s
        while self._is_open(self._rental(wireguard_key), bolt11) and loop.time() < until:
            try:
                await asyncio.wait_for(self._changed.wait(), until - loop.time())
            except TimeoutError:
                break
        return self.status(wireguard_key)

    def prove(self, preimage: bytes) -> None:
        """Take the preimage of an invoice as proof of its payment: service begins before our own node reports it.

        Anybody may send one, so what fits no open invoice of a rental has no effect. Raises: LedgerError.
        """
        payment_hash = sha256(preimage).digest()
        invoice = self._world.money.invoices.get(payment_hash)
        if invoice is not None and invoice.kind is PaymentKind.RENT and invoice.state is not PaymentState.SETTLED:
            self._obey(RentProven(Paid(payment_hash, preimage)))

    def configuration(self, wireguard_key: bytes) -> Configuration:
        """Return what a tenant's tunnel needs. Raises: RentalError: the rental isn't paid, or is over."""
        rental, settings = self._rental(wireguard_key), self._settings()
        if rental.state is RentalState.PENDING:
            raise RentalError("the rental isn't paid yet: pay its invoice, or ask for a new one")
        if rental.state is RentalState.RELEASED:
            raise RentalError(f"the rental is over ({rental.reason}): rent anew")
        tunnel = settings.tunnel
        assert tunnel is not None
        return Configuration(
            rental.networks, self._landlord_key, self._endpoints(), tunnel.mtu, settings.dns, settings.keepalive_s
        )

    async def rekey(self, wireguard_key: bytes, new_key: bytes) -> RentalStatus:
        """Give a rental another key; the tunnel knows it when this returns. Raises: RentalError. LedgerError."""
        self._refuse_own(new_key)
        try:
            await self._answer_to(lambda request: RekeyAsked(request, wireguard_key, new_key))
        except LedgerError:
            if new_key in self._world.letting.by_key:
                self._unwritten.add(new_key)
            raise
        return self.status(new_key)

    async def refund(self, wireguard_key: bytes, bolt11: str) -> RentalStatus:
        """Pay a tenant's invoice for what is left of a rental that is over; returns when the payment is ordered.

        Raises: RentalError: refused, with the reason. LedgerError: nothing can be written now.
        """
        try:
            decoded = self._decode(bolt11)
        except PeerError as error:
            raise RentalError(f"the invoice can't be read ({error}): make a new one") from error
        await self._answer_to(lambda request: MoneyBackAsked(request, wireguard_key, bolt11, decoded))
        return self.status(wireguard_key)

    # --- what the daemon says -----------------------------------------------------------------------------------------

    def answer(self, effect: AnswerTenant) -> None:
        """Hand the core's answer to the face that waits for it, if it still waits."""
        waiting = self._waiting.get(effect.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    def changed(self) -> None:
        """Wake those that wait for a payment: a rental changed, and the change is in the ledger."""
        self._unwritten.clear()
        self._changed.set()
        self._changed = asyncio.Event()

    # --- parts --------------------------------------------------------------------------------------------------------

    async def _answer_to(self, event: Callable[[int], Event]) -> AnswerTenant:
        """Process a tenant's request, and return the core's answer. Args: event: makes the event from a request number.

        Raises: RentalError: refused. TimeoutError: no answer in time. LedgerError.
        """
        request = next(self._requests)
        answered = self._waiting[request] = asyncio.get_running_loop().create_future()
        try:
            self._obey(event(request))
            answer: AnswerTenant = await asyncio.wait_for(answered, INVOICE_WAIT_S)
        finally:
            del self._waiting[request]
        if answer.why_not:
            raise RentalError(answer.why_not)
        return answer

    def _settings(self) -> LettingSettings:
        settings = self._world.settings.letting
        if settings is None:
            raise RentalError(NOT_LETTING)
        return settings

    def _rental(self, wireguard_key: bytes) -> Rental:
        if wireguard_key in self._unwritten:
            raise LedgerError("the rental's new key isn't in the ledger yet")
        rental = self._world.letting.by_key.get(wireguard_key)
        if rental is None:
            raise RentalError("no rental has this WireGuard key: rent first")
        return rental

    def _refuse_own(self, key: bytes) -> None:
        if key == self._landlord_key:
            raise RentalError("this is the landlord's own WireGuard key: make one with `wg genkey`")

    def _is_open(self, rental: Rental, bolt11: str) -> bool:
        invoices = self._world.money.invoices
        open_ones = (invoices.get(one) for one in rental.payable)
        return any(one and one.bolt11 == bolt11 and one.state is PaymentState.OPEN for one in open_ones)
