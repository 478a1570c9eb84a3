"""Landlord: the rules of a rental's life. A tenant pays; rent uses the credit up; the operator may step in.

Each payment counts immediately, and only once (`ngp.core.settlements`), even if its invoice was withdrawn. If a payment
comes too late for the service, it stays on the rental's account, and belongs to the tenant.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from ngp.core.effects import Persist
from ngp.core.events import AccountCounted
from ngp.core.invoices import withdraw
from ngp.core.kernel import AdoptedAccount, AdoptedContract, Reading
from ngp.core.listing import listed
from ngp.core.messages import Prefix
from ngp.core.pricing import show_money
from ngp.core.records import PaymentKind, PaymentState
from ngp.core.rental import metering
from ngp.core.rental.effects import HoldNetworks, RemoveTunnelPeer, SetTunnelPeer, WatchInvoice
from ngp.core.rental.events import ReleaseRental, SwitchRental, TunnelPeerUnmetered
from ngp.core.rental.letting import Letting, are_within
from ngp.core.rental.periods import charge, charge_owed, close_period, open_period, open_record
from ngp.core.rental.pools import networks_text
from ngp.core.rental.records import RentalRecord, ServiceRecord
from ngp.core.rental.rental import ACCRUES, PAID_LATE, Rental, RentalState
from ngp.core.rental.status import credit_msat, ends_s, offer_of
from ngp.core.rental.terms import MONTH_S, LettingSettings
from ngp.core.rental.tunnel import TunnelPeer
from ngp.core.selling.account import ClientAccount
from ngp.core.timers import Due
from ngp.core.world import World

SERVICE_SAVED_S = 60.0
CLOSES_AFTER_S = 2
"""For this time after the kernel cut a metered tenant's traffic, the tunnel keeps the tenant's networks.

Without networks, wireguard-go would drop the packets that wait in its queue for the tenant, and those are charged
already.
"""
NOT_LET = "net.conf no longer lets its networks"
_SERVICE = b"service"
MOST_UNCHARGED_UNITS = 1 << 60
"""Traffic for more than this (a million sat) is charged at once: the ledger's numbers end at 2^63."""
GIVE_BACK_FIRST = "put it back, or give these rentals back first: ngp rentals release RENTAL"
IN_TUNNEL = frozenset({RentalState.ACTIVE, RentalState.RESERVED, RentalState.OFF})
"""Rentals in these states have a peer in the tunnel; without credit, or switched off, the peer has no networks."""
MOST_RESERVED_S = 2 * MONTH_S
"""How long a rental without credit keeps its addresses if its offer is no longer in net.conf."""


# --- money ------------------------------------------------------------------------------------------------------------


def paid(world: World, account: ClientAccount, payment_hash: bytes, amount_msat: int) -> None:
    """Count a payment that is on the account already."""
    rental = world.letting.rentals.get(account.identity)
    if rental is None:
        world.log(f"{show_money(amount_msat)} paid for a rental that isn't known any more", logging.WARNING)
        world.save_account(account, durable=True)
        return
    if (quote := rental.payable.pop(payment_hash, None)) is not None:
        rental.agree(quote)
        rental.lower_rent(quote, world.letting.clock.at_s(world.now))
    rental.payments += 1
    if rental.state is RentalState.PENDING and not may_let(world, rental):
        end(world, rental, NOT_LET)
    if rental.state is not RentalState.RELEASED:
        _credited(world, rental, rental.state is RentalState.PENDING)
        return
    if _may_begin_late(world, rental) and world.letting.take_again(rental.networks):
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


def may_let(world: World, rental: Rental) -> bool:
    """Say whether net.conf still lets a rental's networks."""
    settings = world.settings.letting
    return settings is not None and are_within(settings.pools, rental.networks)


def _may_begin_late(world: World, rental: Rental) -> bool:
    """Say whether a rental that is over may begin with its first payment.

    It may not while the kernel still has its former contracts, since their end would end the new ones.
    """
    return rental.payments == 1 and not rental.meter.is_in_kernel and _has_no_other(world, rental)


def _has_no_other(world: World, rental: Rental) -> bool:
    """Say whether the tenant hasn't rented anew meanwhile: in the tunnel its key can have only one rental."""
    newest = world.letting.by_key.get(rental.wireguard_key)
    return newest is None or newest is rental or newest.state is RentalState.RELEASED


def _log_kept(world: World, rental: Rental, amount_msat: int) -> None:
    world.log(
        f"rental {_name(rental)}: {show_money(amount_msat)} came after its networks were released "
        f"({rental.reason}); the money is kept for the tenant: ngp rentals shows it",
        logging.WARNING,
    )


def _credited(world: World, rental: Rental, begins: bool) -> None:
    """Begin a period at the rent that the paid invoice promised, with the credit that is on the account."""
    letting = world.letting
    service_s = letting.clock.at_s(world.now)
    if begins:
        letting.by_key[rental.wireguard_key] = rental
    rental.accrue(service_s)
    close_period(world, rental, "paid")
    is_repriced = rental.price_msat_per_gib != rental.asked_price_msat_per_gib
    rental.rent_msat, rental.price_msat_per_gib = rental.asked_rent_msat, rental.asked_price_msat_per_gib
    open_period(world, rental)
    if begins:
        balance_msat = world.client(rental.id).balance_msat  # less than the fee if a node was paid less than asked
        rental.activation_fee_msat = min(rental.activation_fee_msat, balance_msat)
        charge(world, rental, rental.activation_fee_msat, "activation")
        rental.started_s = min(rental.started_s, service_s)
    charge_owed(world, rental)
    if rental.state is not RentalState.OFF:
        if _is_covered(world, rental):
            _serve(world, rental)
        elif begins:  # only if a node was paid less than its invoice's sum
            rental.move(RentalState.ACTIVE)
            _reserve(world, rental, service_s)
    if is_repriced:
        metering.grant(world, rental)
        metering.count_again(world, rental)
    save(world, rental, durable=True)
    _watch(world, rental)


def _is_covered(world: World, rental: Rental) -> bool:
    """Say whether there is credit for the service to go on."""
    has_credit = credit_msat(world, rental, world.now) > 0
    return has_credit and metering.pays_a_packet(world, rental)


def _serve(world: World, rental: Rental) -> None:
    if rental.state is not RentalState.ACTIVE:
        rental.move(RentalState.ACTIVE)
        world.log(f"rental {_name(rental)} is active")
    rental.reserved_since_s = 0
    rental.meter.is_closing = False
    metering.grant(world, rental)
    world.do(SetTunnelPeer(tunnel_peer(world, rental)))


def tunnel_peer(world: World, rental: Rental) -> TunnelPeer:
    """Return what the tunnel should have for a rental: without credit, or switched off, a peer that has no networks.

    Nothing passes for such a peer, but its WireGuard session goes on. A peer that came back without one would be
    reached only after the tenant's next handshake, for which an idle tenant takes two minutes.
    """
    if rental.state in (RentalState.RESERVED, RentalState.OFF) and not rental.meter.is_closing:
        return TunnelPeer(rental.wireguard_key, ())
    offer = offer_of(world, rental)
    rate_bytes_s = offer.rate_bytes_s if offer is not None else None
    return TunnelPeer(rental.wireguard_key, rental.networks, rate_bytes_s, metering.needed(rental))


def unmetered(world: World, event: TunnelPeerUnmetered) -> None:
    """Plan to try again, within a minute, to meter a tenant: the kernel lacks one of its contracts."""
    rental = world.letting.by_key.get(event.wireguard_key)
    if rental is not None and rental.state is RentalState.ACTIVE and not rental.meter.is_refused:
        rental.meter.is_refused = True
        why = "the kernel refused to meter it (the error logged before this one says why)"
        world.log(f"rental {_name(rental)} gets no traffic: {why}; ngp tries again each minute", logging.ERROR)
        _watch(world, rental)


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
    service_s = world.letting.clock.at_s(world.now)
    _catch_up(world, rental)
    _reserve_if_used_up(world, rental)
    if rental.state is RentalState.RESERVED and service_s >= rental.reserved_since_s + _reserved_s(world, rental):
        end(world, rental, "not paid in time")
    metering.limit(world, rental)
    _watch(world, rental)


def _catch_up(world: World, rental: Rental) -> None:
    """Take a tenant's networks out of the tunnel some time after the kernel's cut, or try again to meter the tenant."""
    meter = rental.meter
    if meter.is_closing or meter.is_refused:
        meter.is_closing = meter.is_refused = False
        if rental.state is RentalState.ACTIVE:
            metering.grant(world, rental)
        world.do(SetTunnelPeer(tunnel_peer(world, rental)))


def _reserve_if_used_up(world: World, rental: Rental) -> None:
    if rental.state is not RentalState.ACTIVE or _is_covered(world, rental):
        return
    service_s, end_s = world.letting.clock.at_s(world.now), ends_s(world, rental)
    _reserve(world, rental, service_s if end_s is None else min(service_s, end_s))
    save(world, rental)
    _watch(world, rental)


def _reserve(world: World, rental: Rental, since_s: int) -> None:
    """Stop the service for want of credit. Args: since_s: when the credit ended, perhaps while no daemon ran."""
    service_s = world.letting.clock.at_s(world.now)
    rental.accrue(service_s)
    charge_owed(world, rental)
    rental.move(RentalState.RESERVED, "no credit")
    rental.reserved_since_s = since_s
    metering.limit(world, rental)
    rental.meter.is_closing = rental.meter.is_in_kernel and rental.price_msat_per_gib > 0
    if not rental.meter.is_closing:
        world.do(SetTunnelPeer(tunnel_peer(world, rental)))
    kept_d = _reserved_s(world, rental) / 86_400
    kept = f"its addresses are kept for {kept_d:.0f} days"
    world.log(f"rental {_name(rental)} has no credit left, so its traffic is stopped; {kept}")


def _reserved_s(world: World, rental: Rental) -> int:
    offer = offer_of(world, rental)
    return offer.reserved_s if offer is not None else MOST_RESERVED_S


def _watch(world: World, rental: Rental) -> None:
    """Set the timer for the next thing that time brings."""
    at_s: int | None = None
    if rental.state is RentalState.ACTIVE:
        at_s = ends_s(world, rental)
        if at_s is not None and rental.price_msat_per_gib:
            at_s = min(at_s, world.letting.clock.at_s(world.now) + metering.RENT_AHEAD_S)
    elif rental.state is RentalState.RESERVED:
        at_s = rental.reserved_since_s + _reserved_s(world, rental)
    soon_s = CLOSES_AFTER_S if rental.meter.is_closing else metering.RENT_AHEAD_S if rental.meter.is_refused else 0
    if soon_s and rental.state in ACCRUES:
        soon_at_s = world.letting.clock.at_s(world.now) + soon_s
        at_s = soon_at_s if at_s is None else min(at_s, soon_at_s)
    if at_s is None or not world.letting.clock.goes_on:
        world.timers.clear(Due.RENTAL, rental.id)
    else:
        world.timers.set(Due.RENTAL, rental.id, world.letting.clock.mono_s(at_s))


# --- traffic ----------------------------------------------------------------------------------------------------------


def usage_read(world: World, rental: Rental, reading: Reading) -> None:
    """Price what the kernel metered, and end the service when the credit is used up."""
    metering.count(world, rental, reading)
    if rental.traffic_units > MOST_UNCHARGED_UNITS:
        charge_owed(world, rental)
        save(world, rental)
    _reserve_if_used_up(world, rental)


def account_exhausted(world: World, account: bytes) -> None:
    """Check the kernel's limit after the kernel refused a packet for want of money, and the readings were counted.

    The refusal can be right although the service goes on, if the packet cost more than was left: the service ends only
    when the money left doesn't pay for a full packet of the usual size.
    """
    rental = world.letting.rentals.get(account)
    if rental is not None and rental.state is RentalState.ACTIVE:
        metering.count_again(world, rental)


def account_counted(world: World, event: AccountCounted) -> None:
    """Compute the kernel's limit anew from what was read."""
    rental = world.letting.rentals.get(event.account)
    if rental is not None:
        metering.counted(world, rental, event.spent_units, event.readings)
        _reserve_if_used_up(world, rental)


def contract_halted(world: World, rental: Rental, contract: bytes, reading: Reading | None) -> None:
    """Close the books of a rental that is over, after the kernel's last reading. A rental that never began has none."""
    if metering.halted(world, rental, contract, reading) and world.letting.rentals.get(rental.id) is rental:
        close_period(world, rental, "released")
        rental.traffic_units = 0
        save(world, rental)


def save_totals(world: World, rental: Rental) -> None:
    """Write how much of a rental's traffic was metered. This is done seldom, to spare the flash."""
    world.do(Persist(rental.record()))
    if (period := open_record(rental)) is not None:
        world.do(Persist(period))


# --- the operator -----------------------------------------------------------------------------------------------------


def switch(world: World, event: SwitchRental) -> None:
    """Switch a rental off, or on again. No rent is owed while it is off."""
    rental = world.letting.rentals.get(event.rental)
    if rental is None:
        return
    service_s = world.letting.clock.at_s(world.now)
    if not event.on and rental.state in (RentalState.ACTIVE, RentalState.RESERVED):
        rental.accrue(service_s)
        charge_owed(world, rental)
        rental.move(RentalState.OFF, "switched off by the operator")
        rental.meter.is_closing = False
        metering.limit(world, rental)
        world.do(SetTunnelPeer(tunnel_peer(world, rental)))
        world.log(f"rental {_name(rental)} is off: {rental.reason}")
    elif event.on and rental.state is RentalState.OFF:
        rental.accrue(service_s)
        if not rental.period.contract:  # an earlier version closed it when it switched the rental off
            open_period(world, rental)
        charge_owed(world, rental)
        if _is_covered(world, rental):
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
    """End a rental. What no credit covers is waived. If it is metered, its books are closed by `contract_halted`."""
    began = rental.state is not RentalState.PENDING
    if began:
        rental.owed_msat = rental.rent_owed_msat(world.letting.clock.at_s(world.now))
        if not rental.period.contract and rental.owed_msat:
            open_period(world, rental)
        charge_owed(world, rental)
        rental.owed_msat = 0
    world.do(RemoveTunnelPeer(rental.wireguard_key))  # a rental whose first payment is held may have a peer, too
    withdraw_invoices(world, rental, "released")
    rental.move(RentalState.RELEASED, reason)
    world.timers.clear(Due.RENTAL, rental.id)
    world.letting.give_back(rental.networks)
    if not metering.halt(world, rental):
        metering.leave(world, rental)
        close_period(world, rental, "released")
    if began:
        world.log(f"rental {_name(rental)} is released: {reason}")
    if rental.payments or rental.payable:
        save(world, rental)
    else:
        forget(world, rental)


def withdraw_invoices(world: World, rental: Rental, why: str) -> None:
    """Withdraw a rental's open invoices: there may be two if the daemon was killed while one replaced the other."""
    for invoice in filter(None, map(world.money.invoices.get, list(rental.payable))):
        if invoice.state is PaymentState.OPEN:
            withdraw(world, invoice, why)


def forget(world: World, rental: Rental) -> None:
    """Forget a rental that was never paid and can't be any more: asking costs nothing, so it must leave nothing."""
    world.letting.remove(rental)
    world.forget([rental.id])


def who_would_lose(letting: Letting, settings: LettingSettings | None) -> str:
    """Say which tenants that paid would lose their networks by other settings; "" if none would.

    The remedy is GIVE_BACK_FIRST.
    """
    lost = letting.outside(settings.pools if settings is not None else ())
    key = "LANDLORD_POOLS no longer has" if settings is not None else "LANDLORD: no would end"
    return f"{key} what is let: {_listed(lost)}" if lost else ""


def without_offer(letting: Letting, settings: LettingSettings | None) -> str:
    """Say which tenants that paid have an offer that other settings lack; "" if none has. They can add no credit."""
    offers = {one.name for one in settings.offers} if settings is not None else set()
    gone = [one for one in letting.paid_for() if one.offer not in offers]
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


def restore(
    world: World,
    records: Iterable[RentalRecord],
    service: ServiceRecord | None,
    contracts: Mapping[bytes, AdoptedContract],
    accounts: Mapping[bytes, AdoptedAccount],
) -> None:
    """Continue after a start: the pools without what is let, the meter, the tunnel's peers, and the timers.

    Args: contracts, accounts: what was found in the kernel, by id; those of rentals are among them.
    """
    letting = world.letting
    letting.clock.restore(service, world.now)
    for record in sorted(records, key=lambda one: (one.state != RentalState.RELEASED, one.started_s)):
        letting.add(Rental.of(record))  # the rental of a key that is added last is the one that its tenant asks about
    for rental in letting.rentals.values():
        world.client(rental.id).running += bool(rental.period.contract)
    for payment in world.money.invoices.values():
        if payment.kind is PaymentKind.RENT and payment.state is PaymentState.OPEN:
            if (payer := letting.rentals.get(payment.identity)) is not None:
                payer.payable[payment.payment_hash] = None
            if payment.preimage:
                world.do(WatchInvoice(payment.payment_hash))
    settings_changed(world)
    if letting.rentals:
        _save_service(world)
    for rental in list(letting.rentals.values()):
        metering.restore(world, rental, contracts, accounts.get(rental.id))
        _reserve_if_used_up(world, rental)
        rental.meter.is_closing = False  # the kernel's cut was long ago
        if rental.state is RentalState.RELEASED and rental.period.contract:  # killed before its books were closed
            metering.halt(world, rental)
        elif rental.meter.is_in_kernel:
            metering.grant(world, rental)
        if rental.state in IN_TUNNEL:
            world.do(SetTunnelPeer(tunnel_peer(world, rental)))
        if rental.state is RentalState.PENDING and not rental.payable:
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
