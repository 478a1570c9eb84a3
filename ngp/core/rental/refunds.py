"""Refunds of rentals: money that is left when a rental is over belongs to the tenant, who fetches it with an invoice.

Money is left if a payment came too late to be served, or if the operator ended the rental. Anybody who can prove the
rental's key may fetch it, once; a face checks that proof. The invoice is paid like any other: stored first, within the
budgets, tracked to its end. The fees of routing come out of the landlord's pocket, up to FEE_LIMIT.
"""

from __future__ import annotations

from ngp.core.messages import DeclineReason
from ngp.core.money import Order
from ngp.core.orders import affordable_msat, broken_budget, flaw_of, pay
from ngp.core.payment_node import DecodedInvoice
from ngp.core.pricing import floor_to_sat_msat, show_money
from ngp.core.records import PaymentKind
from ngp.core.rental.effects import AnswerTenant
from ngp.core.rental.events import MoneyBackAsked
from ngp.core.rental.rental import Rental
from ngp.core.world import World

LEAST_PART_MSAT = 100_000
"""A tenant fetches at least this, or all that is left. Routing may cost 1 sat however small a payment is: a tenant that
fetched its money sat by sat could make the landlord pay as much again."""


def free_msat(world: World, rental: Rental) -> int:
    """Return what a tenant may fetch, in whole sat: nothing before the rental is over and its books are closed."""
    if rental.holds_networks or rental.period.contract:
        return 0
    return floor_to_sat_msat(world.client(rental.id).funds_msat)


def fetchable_msat(world: World, wireguard_key: bytes) -> int:
    """Return the largest invoice that a tenant may be paid for now: the money of one rental that is over, if any."""
    rentals = world.letting.all_by_key.get(wireguard_key, ())
    return next(filter(None, (free_msat(world, one) for one in rentals)), 0)


def asked(world: World, event: MoneyBackAsked) -> None:
    """Pay a tenant's invoice for what is left of its money, or answer why not."""
    rentals = world.letting.all_by_key.get(event.wireguard_key, ())
    rental = next((one for one in rentals if free_msat(world, one)), None)
    why_not = "there is no money left of a rental with this key" if rental is None else ""
    if rental is not None:
        why_not = _why_not(world, rental, event.decoded)
    if rental is None or why_not:
        world.do(AnswerTenant(event.request, why_not=why_not))
        return
    amount_msat = event.decoded.amount_msat or 0
    world.client(rental.id).refund.promised_msat += amount_msat
    fee_limit_msat = world.settings.fee_limit.of_msat(amount_msat)
    order = Order(event.bolt11, event.decoded.payment_hash, amount_msat, fee_limit_msat)
    pay(world, rental.id, PaymentKind.REFUND, order)
    world.do(AnswerTenant(event.request, rental=rental.id, bolt11=event.bolt11))


def _why_not(world: World, rental: Rental, decoded: DecodedInvoice) -> str:
    """Return why an invoice can't be paid, in words for the tenant; "" if it can."""
    amount_msat, most_msat = decoded.amount_msat, free_msat(world, rental)
    match flaw_of(world, decoded):
        case DeclineReason.NETWORK:
            return f"the invoice is for {decoded.network}; this landlord is on {world.node.network}"
        case DeclineReason.LAPSED:
            return "the invoice must be valid for at most 12 hours from now: make another one, and check both clocks"
        case DeclineReason.TERMS:
            return "this invoice was sent before: make a new one"
    if not amount_msat or amount_msat > most_msat:
        return f"the invoice must be for {show_money(most_msat)} or less"
    if amount_msat < world.node.least_amount_msat:
        return f"a payment must be at least {show_money(world.node.least_amount_msat)}"
    if amount_msat < min(LEAST_PART_MSAT, most_msat):
        least, most = show_money(LEAST_PART_MSAT), show_money(most_msat)
        return f"a part is at least {least}: make an invoice for that, or for all that is left, {most}"
    broken = broken_budget(world, rental.id, amount_msat)
    if broken is None:
        return ""
    world.log_seldom(("rental refund", rental.id), f"rental {rental.id.hex()[:8]} isn't paid its money back: {broken}")
    room = floor_to_sat_msat(affordable_msat(world, rental.id))
    return f"the landlord pays at most {show_money(room)} now: make an invoice for that, or ask again in some hours"
