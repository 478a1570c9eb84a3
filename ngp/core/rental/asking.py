"""Asking: a tenant asks for credit and gets an invoice, or a reason. Nothing is let before its payment arrives."""

from __future__ import annotations

from ngp.core.effects import MakeInvoice, Persist
from ngp.core.events import InvoiceFailed, InvoiceMade
from ngp.core.messages import Prefix
from ngp.core.records import ForgetNeighbours, PaymentKind, PaymentState
from ngp.core.rental import holding, landlord, metering
from ngp.core.rental.effects import AnswerTenant, HoldNetworks, RemoveTunnelPeer, WatchInvoice
from ngp.core.rental.events import CancelAsked, CreditAsked, NetworksHeld
from ngp.core.rental.pools import networks_text
from ngp.core.rental.rental import Quote, Rental, RentalState
from ngp.core.rental.status import credit_msat, offer_of
from ngp.core.rental.terms import LettingSettings, Offer
from ngp.core.world import World

NOT_LETTING = "this router lets no addresses"
_ALL_LET = "all addresses of this offer are let: ask again later"
_BEING_MADE = "an invoice for this rental is being made: ask again in a moment"


def credit_asked(world: World, event: CreditAsked) -> None:
    """Have an invoice made for a tenant's new or running rental, or refuse with the reason."""
    rental = world.letting.by_key.get(event.wireguard_key)
    settings = world.settings.letting
    if settings is None:
        why_not = NOT_LETTING
    elif rental is None or rental.state is RentalState.RELEASED:
        why_not = _ask_for_new(world, settings, event)
    elif _is_another(settings, event, rental):
        why_not = _ask_for_another(world, settings, event, rental)
    else:
        why_not = _ask_for_more(world, settings, event, rental)
    if why_not:
        world.do(AnswerTenant(event.request, why_not=why_not))


def _is_another(settings: LettingSettings, event: CreditAsked, rental: Rental) -> bool:
    """Say whether a tenant wants another offer than that of the rental which waits for its first payment.

    A stranger who knows the tenant's key may have asked for that rental, over HTTPS, which has only the first offer.
    """
    wants_another = settings.offer(event.offer) is not None and event.offer not in ("", rental.offer)
    return rental.state is RentalState.PENDING and event.face != "https" and wants_another


def _ask_for_another(world: World, settings: LettingSettings, event: CreditAsked, rental: Rental) -> str:
    if world.client(rental.id).invoice.asked:
        return _BEING_MADE
    landlord.end(world, rental, "another offer was asked for")
    return _ask_for_new(world, settings, event)


def _ask_for_new(world: World, settings: LettingSettings, event: CreditAsked) -> str:
    letting = world.letting
    offer = settings.offer(event.offer)
    if offer is None:
        return settings.no_offer(event.offer)
    if why_not := offer.refuse_first(event.amount_msat):
        return why_not
    if letting.pending >= settings.invoices_max:
        return "too many invoices wait for their payment: ask again in some minutes"
    if why_not := _why_not_metered(world, event, offer):
        return why_not
    networks = letting.allocate(offer)
    if networks is None and letting.others:
        letting.others = ()  # other landlords may have given networks back: the ledger will say which are taken
        landlord.settings_changed(world)
        networks = letting.allocate(offer)
    if networks is None:
        return _ALL_LET
    rental = Rental(
        id=world.new_id() + world.new_id(),
        wireguard_key=event.wireguard_key,
        face=event.face,
        peer=event.peer,
        offer=offer.name,
        networks=networks,
        state=RentalState.PENDING,
        rent_msat=offer.rent_msat,
        price_msat_per_gib=offer.price_msat_per_gib,
        activation_fee_msat=offer.activation_fee_msat,
        started_at_s=world.now.utc_s,
        started_s=letting.clock.at_s(world.now),
    )
    letting.add(rental)
    _note_asked(world, event, rental, offer)
    world.do(HoldNetworks(rental.id, networks))
    return ""


def networks_held(world: World, event: NetworksHeld) -> None:
    """Go on with a rental whose networks the ledger holds now; if another landlord has them, try other networks."""
    rental = world.letting.rentals.get(event.rental)
    if rental is None:  # it was released and forgotten meanwhile
        world.do(Persist(ForgetNeighbours((event.rental,))))
    elif rental.state is RentalState.RELEASED:
        landlord.begin_late(world, rental, event.taken)
    elif event.taken:
        _try_others(world, rental, event.taken)
    else:
        _make_invoice(world, rental)


def _try_others(world: World, rental: Rental, taken: tuple[Prefix, ...]) -> None:
    rental.networks, world.letting.others = (), taken
    landlord.settings_changed(world)
    offer = offer_of(world, rental)
    networks = world.letting.allocate(offer) if offer is not None else None
    if networks is None:
        _refuse_new(world, rental, _ALL_LET)
    else:
        rental.networks = networks
        world.do(HoldNetworks(rental.id, networks))


def _refuse_new(world: World, rental: Rental, why_not: str) -> None:
    world.client(rental.id).invoice.asked = False
    request, _ = world.letting.asking.pop(rental.id, (None, None))
    if request is not None:
        world.do(AnswerTenant(request, why_not=why_not))
    landlord.end(world, rental, "no invoice")


def _why_not_metered(world: World, event: CreditAsked, offer: Offer, has_room: bool = False) -> str:
    """Return why a price for traffic can't be agreed; "" if it can, or if the offer has none.

    Over the HTTPS face it can't: a tenant isn't told the price there.

    Args: has_room: room is kept in the kernel for the rental already.
    """
    if not offer.price_msat_per_gib:
        return ""
    if event.face == "https":
        now = f"the offer {offer.name!r} has a price for traffic now"
        return f"{now}, which can't be agreed over HTTPS: rent by gRPC or over the mesh"
    if not has_room and not metering.has_room(world):
        world.log_seldom(("no room", b"rental"), "a rental is refused: the kernel's table is full; raise CONTRACTS_MAX")
        return "all places for metered rentals are taken: ask again later"
    return ""


def _ask_for_more(world: World, settings: LettingSettings, event: CreditAsked, rental: Rental) -> str:
    offer = settings.offer(rental.offer)
    if offer is None:
        return f"the offer {rental.offer!r} of this rental has ended: no more credit can be added to it"
    if rental.state is RentalState.PENDING:
        why_not = offer.refuse_first(event.amount_msat)
    else:
        why_not = offer.refuse_later(event.amount_msat, credit_msat(world, rental, world.now))
    if why_not := why_not or _why_not_metered(world, event, offer, metering.is_entered(world, rental)):
        return why_not
    if world.client(rental.id).invoice.asked:
        return _BEING_MADE
    if rental.state is RentalState.PENDING:
        rental.started_at_s, rental.started_s = world.now.utc_s, world.letting.clock.at_s(world.now)
        rental.face, rental.peer = event.face, event.peer  # over HTTPS a stranger may have asked with the tenant's key
    _note_asked(world, event, rental, offer)
    _make_invoice(world, rental)
    return ""


def _note_asked(world: World, event: CreditAsked, rental: Rental, offer: Offer) -> None:
    if offer.price_msat_per_gib:
        metering.enter(world, rental)
    world.client(rental.id).invoice.asked = True
    fee_msat = offer.activation_fee_msat if rental.state is RentalState.PENDING else 0
    asked_s = world.letting.clock.at_s(world.now)
    quote = Quote(event.amount_msat, fee_msat, offer.rent_msat, offer.price_msat_per_gib, asked_s)
    world.letting.asking[rental.id] = event.request, quote


def _make_invoice(world: World, rental: Rental) -> None:
    """Ask our node for an invoice, which will replace the one before."""
    settings = world.settings.letting
    if settings is None:  # net.conf was reloaded a moment ago, and lets nothing now
        _refuse_new(world, rental, NOT_LETTING)
        return
    _, quote = world.letting.asking[rental.id]
    memo = f"rent of {networks_text(rental.networks)}"
    amount_msat, preimage = quote.amount_msat + quote.activation_fee_msat, holding.new_preimage(world, rental, settings)
    world.do(MakeInvoice(rental.id, PaymentKind.RENT, amount_msat, memo, settings.invoice_s, preimage))


def invoice_made(world: World, event: InvoiceMade) -> None:
    """Keep the rental with its invoice, and answer the tenant. The invoice itself is in the same transaction.

    An earlier invoice is withdrawn only now that there is a new one: if a tenant's client were told of no invoice, it
    would take the earlier one for paid. If that is paid all the same, the payment counts as credit.

    The tunnel may serve the tenant already, as the payment of the earlier invoice is held and about to be taken. It
    serves the tenant again when that payment is taken: our node may carry out our later order first and give it back.
    """
    rental = world.letting.rentals.get(event.identity)
    request, quote = world.letting.asking.pop(event.identity, (None, None))
    if rental is None:
        return
    if quote is not None:
        rental.agree(quote)
    landlord.withdraw_invoices(world, rental, "replaced")
    if rental.state is RentalState.PENDING:
        world.do(RemoveTunnelPeer(rental.wireguard_key))
    rental.payable[event.payment_hash] = quote
    landlord.save(world, rental, durable=True)
    if event.preimage:
        world.do(WatchInvoice(event.payment_hash))
    if request is not None:
        world.do(AnswerTenant(request, rental=rental.id, bolt11=event.bolt11))


def invoice_failed(world: World, event: InvoiceFailed) -> None:
    """Tell the tenant that there is no invoice, and free the networks of a new rental."""
    rental = world.letting.rentals.get(event.identity)
    request, _ = world.letting.asking.pop(event.identity, (None, None))
    if request is not None:
        # `event.why` names our node, its address and its files: it is for the operator alone, whose log has it.
        why_not = "the landlord's payment node can't make an invoice now: ask again later"
        world.do(AnswerTenant(request, why_not=why_not))
    if rental is not None and rental.state is RentalState.PENDING and not rental.payable:
        landlord.end(world, rental, "no invoice")


def cancel_asked(world: World, event: CancelAsked) -> None:
    """Withdraw the invoice of a new rental whose tenant doesn't want it, or say why not.

    The networks are free as soon as our node confirms that nobody can pay the invoice any more (`invoice_cancelled`);
    if it is paid before that, the rental begins.
    """
    rental = world.letting.by_key.get(event.wireguard_key)
    if rental is None or rental.state is not RentalState.PENDING:
        world.do(AnswerTenant(event.request, why_not="no rental of this WireGuard key waits for its first payment"))
    elif world.client(rental.id).invoice.asked:
        world.do(AnswerTenant(event.request, why_not=_BEING_MADE))
    else:
        world.do(RemoveTunnelPeer(rental.wireguard_key))  # it may have a peer if a payment is held
        landlord.withdraw_invoices(world, rental, "cancelled by the tenant")
        world.do(AnswerTenant(event.request, rental=rental.id))


def invoice_cancelled(world: World, payment_hash: bytes) -> None:
    """Release a rental whose first invoice nobody can pay any more."""
    record = world.money.invoices.get(payment_hash)
    rental = world.letting.rentals.get(record.identity) if record is not None else None
    if record is None or rental is None or record.state is not PaymentState.CANCELLED:
        return
    rental.payable.pop(payment_hash, None)
    if rental.payable or rental.payments or world.client(rental.id).invoice.asked:
        return
    if rental.state is RentalState.PENDING:
        landlord.end(world, rental, "not paid")
    else:
        landlord.forget(world, rental)
