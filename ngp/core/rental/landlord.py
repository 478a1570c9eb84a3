"""Landlord: the rules of a rental's life. A tenant pays; rent uses the credit up; the operator may step in.

Whatever is paid counts at once and once (`ngp.core.settlements`), also if the invoice was withdrawn. A payment that
can't be served stays on the rental's account, and is the tenant's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from ngp.core.effects import HoldNetworks, Persist, RemoveTunnelPeer, SetTunnelPeer, WatchInvoice
from ngp.core.events import ReleaseRental, SwitchRental
from ngp.core.invoices import withdraw
from ngp.core.listing import listed
from ngp.core.messages import Prefix
from ngp.core.pricing import show_money
from ngp.core.records import PaymentKind, PaymentState, RentalRecord, ServiceRecord
from ngp.core.rental.periods import charge, charge_rent, close_period, open_period, open_record
from ngp.core.rental.pools import networks_text
from ngp.core.rental.rental import ACCRUES, PAID_LATE, Rental, RentalState
from ngp.core.rental.status import ends_s, offer_of
from ngp.core.rental.terms import MONTH_S, LettingSettings
from ngp.core.selling.account import ClientAccount
from ngp.core.timers import Due
from ngp.core.values import TunnelPeer
from ngp.core.world import World

SERVICE_SAVED_S = 60.0
_SERVICE = b"service"
GIVE_BACK_FIRST = "put it back, or give these rentals back first: ngp rentals release RENTAL"
IN_TUNNEL = frozenset({RentalState.ACTIVE, RentalState.RESERVED, RentalState.OFF})
"""Rentals whose tenants are peers of the tunnel, some of them without networks."""
MOST_RESERVED_S = 2 * MONTH_S
"""How long addresses are kept whose offer is no longer in net.conf."""


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
    save(world, rental, durable=True)


def begin_late(world: World, rental: Rental, taken: tuple[Prefix, ...]) -> None:
    """Begin a rental that was released just before its first payment, unless another landlord let its networks."""
    if rental.reason != PAID_LATE:
        return
    if not taken and _has_no_other(world, rental):
        _credited(world, rental, begins=True)
        return
    rental.reason, world.letting.others = "paid too late", taken or world.letting.others
    settings_changed(world)
    _log_kept(world, rental, world.client(rental.id).balance_msat)
    save(world, rental, durable=True)


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
    close_period(world, rental, "paid")
    rental.rent_msat, rental.rate_since_s = rental.asked_rent_msat, service_s
    open_period(world, rental)
    if begins:
        charge(world, rental, rental.activation_fee_msat, "activation")
        rental.started_s = min(rental.started_s, service_s)
    charge_rent(world, rental)
    if rental.state is not RentalState.OFF:
        if account.balance_msat > rental.owed_msat:
            _serve(world, rental)
        elif begins:  # only if a node was paid less than its invoice's sum
            rental.move(RentalState.ACTIVE)
            _reserve(world, rental, service_s)
    save(world, rental, durable=True)
    _watch(world, rental)


def _serve(world: World, rental: Rental) -> None:
    if rental.state is not RentalState.ACTIVE:
        rental.move(RentalState.ACTIVE)
        world.log(f"rental {_name(rental)} is active")
    rental.reserved_since_s = 0
    world.do(SetTunnelPeer(tunnel_peer(world, rental)))


def tunnel_peer(world: World, rental: Rental) -> TunnelPeer:
    """Return what the tunnel should have for a rental: without credit, a peer that has no networks.

    Nothing passes for such a peer, but its WireGuard session goes on. A peer that came back without one would be
    reached only after the tenant's next handshake, for which an idle tenant takes two minutes.
    """
    if rental.state in (RentalState.RESERVED, RentalState.OFF):
        return TunnelPeer(rental.wireguard_key, ())
    offer = offer_of(world, rental)
    return TunnelPeer(rental.wireguard_key, rental.networks, offer.rate_bytes_s if offer is not None else None)


def served(world: World) -> list[TunnelPeer]:
    """Return all tenants that the tunnel should have."""
    rentals = world.letting.rentals.values()
    return [tunnel_peer(world, rental) for rental in rentals if rental.state in IN_TUNNEL]


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
        save(world, rental)
    if rental.state is RentalState.RESERVED and service_s >= rental.reserved_since_s + _reserved_s(world, rental):
        end(world, rental, "not paid in time")
    _watch(world, rental)


def _reserve(world: World, rental: Rental, since_s: int) -> None:
    """Stop the service for want of credit. Args: since_s: when the credit ended, perhaps while no daemon ran."""
    service_s = world.letting.clock.at_s(world.now)
    rental.owed_msat, rental.rate_since_s = rental.owed_at_msat(service_s), service_s
    charge_rent(world, rental)
    rental.move(RentalState.RESERVED, "no credit")
    rental.reserved_since_s = since_s
    world.do(SetTunnelPeer(tunnel_peer(world, rental)))
    kept_d = _reserved_s(world, rental) / 86_400
    world.log(f"rental {_name(rental)} has no credit left: off; its addresses are kept for {kept_d:.0f} days")


def _reserved_s(world: World, rental: Rental) -> int:
    offer = offer_of(world, rental)
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
        charge_rent(world, rental)
        close_period(world, rental, "off")
        rental.move(RentalState.OFF, "switched off by the operator")
        world.do(SetTunnelPeer(tunnel_peer(world, rental)))
    elif event.on and rental.state is RentalState.OFF:
        rental.rate_since_s = service_s
        open_period(world, rental)
        charge_rent(world, rental)
        if world.client(rental.id).balance_msat > rental.owed_msat:
            _serve(world, rental)
        else:
            _reserve(world, rental, service_s)
    else:
        return
    save(world, rental)
    _watch(world, rental)


def release(world: World, event: ReleaseRental) -> None:
    """Give a rental's networks back, by the operator's order; credit that is left stays the tenant's."""
    rental = world.letting.rentals.get(event.rental)
    if rental is not None and rental.state is not RentalState.RELEASED:
        end(world, rental, "released by the operator")


def end(world: World, rental: Rental, reason: str) -> None:
    """End a rental. Rent that no credit covers is waived."""
    began = rental.state is not RentalState.PENDING
    if began:
        rental.owed_msat = rental.owed_at_msat(world.letting.clock.at_s(world.now))
        if not rental.period.contract and rental.owed_msat:
            open_period(world, rental)
        charge_rent(world, rental)
        rental.owed_msat = 0
        close_period(world, rental, "released")
    world.do(RemoveTunnelPeer(rental.wireguard_key))  # one that waits for its first payment may be there already
    withdraw_invoices(world, rental, "released")
    rental.move(RentalState.RELEASED, reason)
    world.timers.clear(Due.RENTAL, rental.id)
    world.letting.give_back(rental.networks)
    if began:
        world.log(f"rental {_name(rental)} is released: {reason}")
    if began or world.letting.payable.get(rental.id):
        save(world, rental)
    else:
        forget(world, rental)


def withdraw_invoices(world: World, rental: Rental, why: str) -> None:
    """Withdraw the open invoices of a rental: after a kill there may be two, of which one replaced the other."""
    for invoice in filter(None, map(world.money.invoices.get, world.letting.payable.get(rental.id, ()))):
        if invoice.state is PaymentState.OPEN:
            withdraw(world, invoice, why)


def forget(world: World, rental: Rental) -> None:
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
    return listed(map(_name, rentals))


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
            if payment.preimage:
                world.do(WatchInvoice(payment.payment_hash))
    settings_changed(world)
    if letting.rentals:
        _save_service(world)
    for rental in list(letting.rentals.values()):
        if rental.state in IN_TUNNEL:
            world.do(SetTunnelPeer(tunnel_peer(world, rental)))
        if rental.state is RentalState.PENDING and not world.letting.payable.get(rental.id):
            end(world, rental, "not paid")
        elif rental.state is RentalState.RELEASED and rental.reason == PAID_LATE:
            world.do(HoldNetworks(rental.id, rental.networks))
        else:
            _watch(world, rental)


def save(world: World, rental: Rental, durable: bool = False) -> None:
    """Write a rental, its period, its account and the service time in one transaction."""
    world.do(Persist(rental.record(), durable))
    world.do(Persist(world.letting.clock.record(world.now)))
    if rental.state in ACCRUES:
        world.timers.set_if_unset(Due.RENTAL, _SERVICE, world.now.monotonic_s + SERVICE_SAVED_S)
    if (period := open_record(rental)) is not None:
        world.do(Persist(period))
    world.save_account(world.client(rental.id), durable)


def _name(rental: Rental) -> str:
    return f"{rental.id.hex()[:8]} ({networks_text(rental.networks)})"
