"""Landlord: the rules of a rental's life. A tenant asks for credit and pays; rent uses it up; the operator may step in.

Whatever is paid counts at once and once (`ngp.core.settlements`), also if the invoice was withdrawn. A payment that
can't be served stays on the rental's account, and is the tenant's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from ngp.core.effects import AnswerTenant, HoldNetworks, MakeInvoice, Persist, RemoveTunnelPeer, SetTunnelPeer
from ngp.core.events import CreditAsked, InvoiceFailed, InvoiceMade, NetworksHeld, ReleaseRental, SwitchRental
from ngp.core.invoices import withdraw
from ngp.core.messages import Prefix, Role
from ngp.core.pricing import show_money
from ngp.core.records import (
    ContractRecord,
    ForgetNeighbours,
    PaymentKind,
    PaymentState,
    RentalRecord,
    ServiceRecord,
)
from ngp.core.rental.pools import networks_text
from ngp.core.rental.rental import ACCRUES, PAID_LATE, Period, Rental, RentalState
from ngp.core.rental.terms import LettingSettings, Offer, lasts_s
from ngp.core.selling.account import ClientAccount
from ngp.core.timers import Due
from ngp.core.values import Now, TunnelPeer
from ngp.core.world import World

SERVICE_SAVED_S = 60.0
_SERVICE = b"service"
NOT_LETTING = "this router lets no addresses"
_ALL_LET = "all addresses of this offer are let: ask again later"
GIVE_BACK_FIRST = "put it back, or give these rentals back first: ngp rentals release RENTAL"
_NAMED = 3


def credit_msat(world: World, rental: Rental, now: Now) -> int:
    """Return what a tenant has left; negative while back rent is owed."""
    return world.client(rental.id).balance_msat - rental.owed_at_msat(world.letting.clock.at_s(now))


# --- a tenant asks ----------------------------------------------------------------------------------------------------


def credit_asked(world: World, event: CreditAsked) -> None:
    """Have an invoice made for a tenant's new or running rental, or refuse with the reason."""
    rental = world.letting.by_key.get(event.wireguard_key)
    settings = world.settings.letting
    if settings is None:
        why_not = NOT_LETTING
    elif rental is None or rental.state is RentalState.RELEASED:
        why_not = _ask_for_new(world, settings, event)
    else:
        why_not = _ask_for_more(world, settings, event, rental)
    if why_not:
        world.do(AnswerTenant(event.request, why_not=why_not))


def _ask_for_new(world: World, settings: LettingSettings, event: CreditAsked) -> str:
    letting = world.letting
    offer = _offer(settings, event.offer)
    if offer is None:
        return f"there is no offer {event.offer!r}; there are {', '.join(one.name for one in settings.offers)}"
    if why_not := offer.refuse_first(event.amount_msat):
        return why_not
    if letting.pending >= settings.invoices_max:
        return "too many invoices wait for their payment: ask again in some minutes"
    networks = letting.allocate(offer)
    if networks is None and letting.others:
        letting.others = ()  # they may have given something back: the ledger knows
        settings_changed(world)
        networks = letting.allocate(offer)
    if networks is None:
        return _ALL_LET
    rental = Rental(
        id=world.new_id() + world.new_id(),
        wireguard_key=event.wireguard_key,
        face=event.face,
        offer=offer.name,
        networks=networks,
        state=RentalState.PENDING,
        rent_msat=offer.rent_msat,
        activation_fee_msat=offer.activation_fee_msat,
        started_at_s=world.now.utc_s,
        started_s=letting.clock.at_s(world.now),
    )
    letting.add(rental)
    _note_asked(world, event, rental, offer)
    world.do(HoldNetworks(rental.id, networks))
    return ""


def networks_held(world: World, event: NetworksHeld) -> None:
    """Go on with a rental whose networks the ledger holds now; if another landlord has them, try others."""
    rental = world.letting.rentals.get(event.rental)
    if rental is None:  # released meanwhile
        world.do(Persist(ForgetNeighbours((event.rental,))))
    elif rental.state is RentalState.RELEASED:
        _begin_late(world, rental, event.taken)
    elif event.taken:
        _try_others(world, rental, event.taken)
    else:
        _make_invoice(world, rental)


def _try_others(world: World, rental: Rental, taken: tuple[Prefix, ...]) -> None:
    settings, rental.networks = world.settings.letting, ()
    world.letting.others = taken
    settings_changed(world)
    offer = _offer(settings, rental.offer) if settings is not None else None
    networks = world.letting.allocate(offer) if offer is not None else None
    if networks is None:
        _refuse_new(world, rental, _ALL_LET)
    else:
        rental.networks = networks
        world.do(HoldNetworks(rental.id, networks))


def _refuse_new(world: World, rental: Rental, why_not: str) -> None:
    world.client(rental.id).invoice.asked = False
    request = world.letting.asking.pop(rental.id, None)
    if request is not None:
        world.do(AnswerTenant(request, why_not=why_not))
    _release(world, rental, "no invoice")


def _ask_for_more(world: World, settings: LettingSettings, event: CreditAsked, rental: Rental) -> str:
    offer = _offer(settings, rental.offer)
    if offer is None:
        return f"the offer {rental.offer!r} of this rental has ended: no more credit can be added to it"
    if rental.state is RentalState.PENDING:
        why_not = offer.refuse_first(event.amount_msat)
    else:
        why_not = offer.refuse_later(event.amount_msat, credit_msat(world, rental, world.now))
    if why_not:
        return why_not
    if world.client(rental.id).invoice.asked:
        return "an invoice for this rental is being made: ask again in a moment"
    if rental.state is RentalState.PENDING:
        rental.rent_msat, rental.activation_fee_msat = offer.rent_msat, offer.activation_fee_msat
        rental.started_at_s, rental.started_s = world.now.utc_s, world.letting.clock.at_s(world.now)
    _note_asked(world, event, rental, offer)
    _make_invoice(world, rental)
    return ""


def _note_asked(world: World, event: CreditAsked, rental: Rental, offer: Offer) -> None:
    rental.asked_msat, rental.asked_rent_msat = event.amount_msat, offer.rent_msat
    world.client(rental.id).invoice.asked = True
    world.letting.asking[rental.id] = event.request


def _make_invoice(world: World, rental: Rental) -> None:
    """Ask our node for an invoice, which will replace the one before."""
    settings = world.settings.letting
    if settings is None:  # since a moment ago
        _refuse_new(world, rental, NOT_LETTING)
        return
    fee_msat = rental.activation_fee_msat if rental.state is RentalState.PENDING else 0
    memo = f"rent of {networks_text(rental.networks)}"
    world.do(MakeInvoice(rental.id, PaymentKind.RENT, rental.asked_msat + fee_msat, memo, settings.invoice_s))


def _offer(settings: LettingSettings, name: str) -> Offer | None:
    """Find an offer by its name; the first one if no name is given."""
    return next((one for one in settings.offers if not name or one.name == name), None)


def invoice_made(world: World, event: InvoiceMade) -> None:
    """Keep the rental with its invoice, and answer the tenant. The invoice itself is in the same transaction.

    The invoice before is withdrawn only now, as a tenant's client takes it for paid if it is told of none. Should it be
    paid too, it counts as credit.
    """
    rental = world.letting.rentals.get(event.identity)
    request = world.letting.asking.pop(event.identity, None)
    if rental is None:
        return
    payable = world.letting.payable.setdefault(rental.id, set())
    for before in filter(None, map(world.money.invoices.get, payable)):
        if before.state is PaymentState.OPEN:
            withdraw(world, before, "replaced")
    payable.add(event.payment_hash)
    _save(world, rental, durable=True)
    if request is not None:
        world.do(AnswerTenant(request, rental=rental.id, bolt11=event.bolt11))


def invoice_failed(world: World, event: InvoiceFailed) -> None:
    """Tell the tenant that there is no invoice, and free the networks of a new rental."""
    rental = world.letting.rentals.get(event.identity)
    request = world.letting.asking.pop(event.identity, None)
    if request is not None:
        # why is for the operator, whose log has it: it names our node, its address and its files
        world.do(AnswerTenant(request, why_not="the landlord's payment node makes no invoice now: ask again later"))
    if rental is not None and rental.state is RentalState.PENDING and not world.letting.payable.get(rental.id):
        _release(world, rental, "no invoice")


def invoice_cancelled(world: World, payment_hash: bytes) -> None:
    """Release a rental whose first invoice nobody can pay any more."""
    record = world.money.invoices.get(payment_hash)
    rental = world.letting.rentals.get(record.identity) if record is not None else None
    if record is None or rental is None or record.state is not PaymentState.CANCELLED:
        return
    payable = world.letting.payable.get(rental.id, set())
    payable.discard(payment_hash)
    if payable or rental.payments or world.client(rental.id).invoice.asked:
        return
    if rental.state is RentalState.PENDING:
        _release(world, rental, "not paid")
    else:
        _forget(world, rental)


# --- money ------------------------------------------------------------------------------------------------------------


def paid(world: World, account: ClientAccount, payment_hash: bytes, amount_msat: int) -> None:
    """Count a payment that is on the account already."""
    world.letting.payable.get(account.identity, set()).discard(payment_hash)
    rental = world.letting.rentals.get(account.identity)
    if rental is None:
        world.log(f"{show_money(amount_msat)} paid for a rental that isn't known any more", logging.WARNING)
        return
    rental.payments += 1
    if rental.state is not RentalState.RELEASED:
        _credited(world, rental, rental.state is RentalState.PENDING)
        return
    if rental.payments == 1 and _has_no_other(world, rental) and world.letting.take_again(rental.networks):
        rental.reason = PAID_LATE
        world.do(HoldNetworks(rental.id, rental.networks))
    elif rental.reason != PAID_LATE:
        _log_kept(world, rental, amount_msat)
    _save(world, rental, durable=True)


def _begin_late(world: World, rental: Rental, taken: tuple[Prefix, ...]) -> None:
    """Begin a rental that was released just before its first payment, unless another landlord let its networks."""
    if rental.reason != PAID_LATE:
        return
    if not taken and _has_no_other(world, rental):
        _credited(world, rental, begins=True)
        return
    rental.reason, world.letting.others = "paid too late", taken or world.letting.others
    settings_changed(world)
    _log_kept(world, rental, world.client(rental.id).balance_msat)
    _save(world, rental, durable=True)


def _has_no_other(world: World, rental: Rental) -> bool:
    """Say whether the tenant hasn't rented anew meanwhile: its key has one place in the tunnel."""
    newest = world.letting.by_key.get(rental.wireguard_key)
    return newest is None or newest is rental or newest.state is RentalState.RELEASED


def _log_kept(world: World, rental: Rental, amount_msat: int) -> None:
    world.log(
        f"rental {_name(rental)}: {show_money(amount_msat)} came after its networks were released; the money is kept "
        "for the tenant: ngp rentals shows it",
        logging.WARNING,
    )


def _credited(world: World, rental: Rental, begins: bool) -> None:
    """Begin a period at the rent that the paid invoice promised, with the credit that is on the account."""
    letting, account = world.letting, world.client(rental.id)
    service_s = letting.clock.at_s(world.now)
    if begins:
        letting.by_key[rental.wireguard_key] = rental
    rental.owed_msat = rental.owed_at_msat(service_s)
    _close_period(world, rental, "paid")
    rental.rent_msat, rental.rate_since_s = rental.asked_rent_msat, service_s
    _open_period(world, rental)
    if begins:
        _charge(world, rental, rental.activation_fee_msat, "activation")
        rental.started_s = min(rental.started_s, service_s)
    _charge_rent(world, rental)
    if rental.state is not RentalState.OFF:
        if account.balance_msat > rental.owed_msat:
            _serve(world, rental)
        elif begins:  # only if a node was paid less than its invoice's sum
            rental.move(RentalState.ACTIVE)
            _reserve(world, rental, service_s)
    _save(world, rental, durable=True)
    _watch(world, rental)


def _serve(world: World, rental: Rental) -> None:
    if rental.state is not RentalState.ACTIVE:
        rental.move(RentalState.ACTIVE)
        world.log(f"rental {_name(rental)} is active")
    rental.reserved_since_s = 0
    world.do(SetTunnelPeer(tunnel_peer(world, rental)))


def tunnel_peer(world: World, rental: Rental) -> TunnelPeer:
    """Return what the tunnel should have for a rental."""
    settings = world.settings.letting
    offer = _offer(settings, rental.offer) if settings is not None else None
    return TunnelPeer(rental.wireguard_key, rental.networks, offer.rate_bytes_s if offer is not None else None)


def served(world: World) -> list[TunnelPeer]:
    """Return all tenants that the tunnel should have."""
    rentals = world.letting.rentals.values()
    return [tunnel_peer(world, rental) for rental in rentals if rental.state is RentalState.ACTIVE]


def _charge_rent(world: World, rental: Rental) -> None:
    """Charge the rent that is owed, as far as the balance covers it."""
    amount_msat = max(0, min(rental.owed_msat, world.client(rental.id).balance_msat))
    rental.owed_msat -= amount_msat
    _charge(world, rental, amount_msat, "rent")


def _charge(world: World, rental: Rental, amount_msat: int, kind: str) -> None:
    if amount_msat:
        world.client(rental.id).charged_msat += amount_msat
        rental.period.charged_msat += amount_msat
        world.journal(kind, rental.id, networks_text(rental.networks), -amount_msat, rental.period.contract)


# --- periods: contracts of kind `subnet` ------------------------------------------------------------------------------


def _open_period(world: World, rental: Rental) -> None:
    rental.period = Period(world.new_id(), world.now.utc_s)
    world.client(rental.id).running += 1
    world.do(Persist(_period_record(rental, "active", "", 0)))


def _close_period(world: World, rental: Rental, reason: str) -> None:
    """End the present period, if there is one: what it charged is final."""
    if rental.period.contract:
        world.do(Persist(_period_record(rental, "closed", reason, world.now.utc_s)))
        world.client(rental.id).running -= 1
        rental.period = Period()


def _period_record(rental: Rental, state: str, reason: str, closed_at_s: int) -> ContractRecord:
    return ContractRecord(
        contract=rental.period.contract,
        role=Role.SERVER,
        identity=rental.id,
        interface="",
        link_address=rental.wireguard_key,
        destination=str(rental.networks[0]),
        state=state,
        reason=reason,
        prices=(),
        data_limit_bytes=0,
        lifetime_s=0,
        used_to_bytes=0,
        used_from_bytes=0,
        charged_msat=rental.period.charged_msat,
        billed_bytes=0,
        opened_at_s=rental.period.opened_at_s,
        expires_at_s=0,
        closed_at_s=closed_at_s,
        kind="subnet",
    )


# --- time -------------------------------------------------------------------------------------------------------------


def due(world: World, rental_id: bytes) -> None:
    """Do what time brings: end the service when the credit is used up, release networks after the reserved time."""
    rental = world.letting.rentals.get(rental_id)
    if rental_id == _SERVICE:
        _save_service(world)
    if rental is None:
        return
    service_s, end_s = world.letting.clock.at_s(world.now), ends_s(world, rental)
    if rental.state is RentalState.ACTIVE and end_s is not None and service_s >= end_s:
        _reserve(world, rental, end_s)
        _save(world, rental)
    if rental.state is RentalState.RESERVED and service_s >= rental.reserved_since_s + _reserved_s(world, rental):
        _release(world, rental, "not paid in time")
    _watch(world, rental)


def _reserve(world: World, rental: Rental, since_s: int) -> None:
    """Stop the service for want of credit. Args: since_s: when the credit ended, perhaps while no daemon ran."""
    service_s = world.letting.clock.at_s(world.now)
    rental.owed_msat, rental.rate_since_s = rental.owed_at_msat(service_s), service_s
    _charge_rent(world, rental)
    rental.move(RentalState.RESERVED, "no credit")
    rental.reserved_since_s = since_s
    world.do(RemoveTunnelPeer(rental.wireguard_key))
    kept_d = _reserved_s(world, rental) / 86_400
    world.log(f"rental {_name(rental)} has no credit left: off; its addresses are kept for {kept_d:.0f} days")


def ends_s(world: World, rental: Rental) -> int | None:
    """Return when an active rental's credit is used up, seconds of service; None: never, as no rent is asked."""
    if not rental.rent_msat:
        return None
    credit_msat = world.client(rental.id).balance_msat - rental.owed_msat
    return rental.rate_since_s + lasts_s(credit_msat, rental.rent_msat)


def _reserved_s(world: World, rental: Rental) -> int:
    settings = world.settings.letting
    offer = _offer(settings, rental.offer) if settings is not None else None
    return offer.reserved_s if offer is not None else MOST_RESERVED_S


def _watch(world: World, rental: Rental) -> None:
    """Set the timer for the next thing that time brings."""
    at_s: int | None = None
    if rental.state is RentalState.ACTIVE:
        at_s = ends_s(world, rental)
    elif rental.state is RentalState.RESERVED:
        at_s = rental.reserved_since_s + _reserved_s(world, rental)
    if at_s is None or not world.letting.clock.goes_on:
        world.timers.clear(Due.RENTAL, rental.id)
    else:
        world.timers.set(Due.RENTAL, rental.id, world.letting.clock.mono_s(at_s))


# --- the operator -----------------------------------------------------------------------------------------------------


def switch(world: World, event: SwitchRental) -> None:
    """Switch a rental off, or on again. No rent is owed while it is off."""
    rental = world.letting.rentals.get(event.rental)
    if rental is None:
        return
    service_s = world.letting.clock.at_s(world.now)
    if not event.on and rental.state in (RentalState.ACTIVE, RentalState.RESERVED):
        rental.owed_msat, rental.rate_since_s = rental.owed_at_msat(service_s), service_s
        _charge_rent(world, rental)
        _close_period(world, rental, "off")
        rental.move(RentalState.OFF, "switched off by the operator")
        world.do(RemoveTunnelPeer(rental.wireguard_key))
    elif event.on and rental.state is RentalState.OFF:
        rental.rate_since_s = service_s
        _open_period(world, rental)
        _charge_rent(world, rental)
        if world.client(rental.id).balance_msat > rental.owed_msat:
            _serve(world, rental)
        else:
            _reserve(world, rental, service_s)
    else:
        return
    _save(world, rental)
    _watch(world, rental)


def release(world: World, event: ReleaseRental) -> None:
    """Give a rental's networks back, by the operator's order; credit that is left stays the tenant's."""
    rental = world.letting.rentals.get(event.rental)
    if rental is not None and rental.state is not RentalState.RELEASED:
        _release(world, rental, "released by the operator")


def _release(world: World, rental: Rental, reason: str) -> None:
    """End a rental. Rent that no credit covers is waived."""
    account = world.client(rental.id)
    began = rental.state is not RentalState.PENDING
    if began:
        rental.owed_msat = rental.owed_at_msat(world.letting.clock.at_s(world.now))
        if not rental.period.contract and rental.owed_msat:
            _open_period(world, rental)
        _charge_rent(world, rental)
        rental.owed_msat = 0
        _close_period(world, rental, "released")
        world.do(RemoveTunnelPeer(rental.wireguard_key))
    invoice = world.money.invoices.get(account.invoice.payment_hash)
    if invoice is not None and invoice.state is PaymentState.OPEN:
        withdraw(world, invoice, "released")
    rental.move(RentalState.RELEASED, reason)
    world.timers.clear(Due.RENTAL, rental.id)
    world.letting.give_back(rental.networks)
    if began:
        world.log(f"rental {_name(rental)} is released: {reason}")
    if began or world.letting.payable.get(rental.id):
        _save(world, rental)
    else:
        _forget(world, rental)


def _forget(world: World, rental: Rental) -> None:
    """Forget a rental that was never paid and can't be any more: asking costs nothing, so it must leave nothing."""
    world.letting.remove(rental)
    world.forget([rental.id])


def who_would_lose(world: World, settings: LettingSettings | None) -> str:
    """Say which tenants that paid would lose their networks by other settings; "" if none would.

    The remedy is GIVE_BACK_FIRST.
    """
    lost = world.letting.outside(settings.pools if settings is not None else ())
    key = "LANDLORD_POOLS no longer has" if settings is not None else "LANDLORD: no would end"
    return f"{key} what is let: {_listed(lost)}" if lost else ""


def without_offer(world: World, settings: LettingSettings | None) -> str:
    """Say which tenants that paid have an offer that other settings lack; "" if none has. They can add no credit."""
    offers = {one.name for one in settings.offers} if settings is not None else set()
    gone = [one for one in world.letting.paid_for() if one.offer not in offers]
    return f"the offer {gone[0].offer} has ended, so no credit can be added to {_listed(gone)}" if gone else ""


def _listed(rentals: Sequence[Rental]) -> str:
    more = f" and {len(rentals) - _NAMED} more" if len(rentals) > _NAMED else ""
    return ", ".join(map(_name, rentals[:_NAMED])) + more


def settings_changed(world: World) -> None:
    """Let from the pools that net.conf has now; what is let stays let. No rent is owed while nothing is let."""
    settings, letting = world.settings.letting, world.letting
    letting.use_pools(settings.pools if settings is not None else ())
    if letting.clock.goes_on is not (settings is not None):
        letting.clock.turn(settings is not None, world.now)
        _save_service(world)
        for rental in letting.rentals.values():
            _watch(world, rental)


def _save_service(world: World) -> None:
    """Write the service time to the ledger, and again in a minute while somebody owes rent."""
    world.do(Persist(world.letting.clock.record(world.now)))
    if world.letting.clock.goes_on and any(one.state in ACCRUES for one in world.letting.rentals.values()):
        world.timers.set(Due.RENTAL, _SERVICE, world.now.monotonic_s + SERVICE_SAVED_S)


def restore(world: World, records: Iterable[RentalRecord], service: ServiceRecord | None) -> None:
    """Continue after a start: the pools without what is let, the tunnel's peers, and the timers."""
    letting = world.letting
    letting.clock.restore(service, world.now)
    for record in sorted(records, key=lambda one: (one.state != RentalState.RELEASED, one.started_s)):
        letting.add(Rental.of(record))  # the last one of a tenant is the one that it asks about
    for rental in letting.rentals.values():
        world.client(rental.id).running += bool(rental.period.contract)
    for payment in world.money.invoices.values():
        if payment.kind is PaymentKind.RENT and payment.state is PaymentState.OPEN:
            letting.payable.setdefault(payment.identity, set()).add(payment.payment_hash)
    settings_changed(world)
    if letting.rentals:
        _save_service(world)
    for rental in list(letting.rentals.values()):
        if rental.state is RentalState.ACTIVE:
            world.do(SetTunnelPeer(tunnel_peer(world, rental)))
        if rental.state is RentalState.PENDING and not world.letting.payable.get(rental.id):
            _release(world, rental, "not paid")
        elif rental.state is RentalState.RELEASED and rental.reason == PAID_LATE:
            world.do(HoldNetworks(rental.id, rental.networks))
        else:
            _watch(world, rental)


def _save(world: World, rental: Rental, durable: bool = False) -> None:
    world.do(Persist(rental.record(), durable))
    _save_service(world)
    if rental.period.contract:
        world.do(Persist(_period_record(rental, "active", "", 0)))
    world.save_account(world.client(rental.id), durable)


def _name(rental: Rental) -> str:
    return f"{rental.id.hex()[:8]} ({networks_text(rental.networks)})"


MOST_RESERVED_S = 2 * 2_629_800
"""How long addresses are kept whose offer is no longer in net.conf."""
