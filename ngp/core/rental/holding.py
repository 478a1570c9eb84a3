"""Holding: a rental's first payment waits at our payment node until the tunnel serves the tenant, or goes back.

The invoice is a hold invoice: the payment node has its hash, and the ledger has the preimage before the tenant has the
invoice. A payment that arrives is held. Then the tunnel gets the tenant, and only then the node gets the preimage,
which takes the payment; it counts at that moment, once, by its hash. If the tunnel can't have the tenant, the invoice
is cancelled, and the payer's node has its money back at once, without fees. That a payment is held isn't recorded:
after a kill at any point the node is asked again for each open hold invoice, and what it says decides.

A later payment is credit of a rental that is served already, so its invoice is an ordinary one.
"""

from __future__ import annotations

import logging

from ngp.core.invoices import withdraw
from ngp.core.pricing import show_money
from ngp.core.records import PaymentRecord, PaymentState
from ngp.core.rental import metering
from ngp.core.rental.effects import RemoveTunnelPeer, SettleInvoice, SetTunnelPeer
from ngp.core.rental.events import InvoiceHeld, TunnelPeerSet
from ngp.core.rental.landlord import NOT_LET, may_let, tunnel_peer
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.rental.terms import LettingSettings
from ngp.core.world import World

LEAST_BLOCKS_LEFT = 24
"""A held payment that ends by itself in fewer blocks is given back: otherwise its channels may be closed on the chain.

LND itself cancels 18 blocks before the end (invoices.holdexpirydelta), and acts on the chain 16 blocks before it.
"""
NOT_SERVED = "not served"


def new_preimage(world: World, rental: Rental, settings: LettingSettings) -> bytes:
    """Return 32 random bytes as preimage of a rental's next invoice; b"" if the invoice's payment isn't to be held."""
    if rental.state is not RentalState.PENDING or settings.hold == "no" or not world.node.holds:
        return b""
    return world.new_id() + world.new_id()


def held(world: World, event: InvoiceHeld) -> None:
    """Serve a tenant whose payment waits, or give the payment back.

    If the invoice is withdrawn already, nothing is done: our node is told to give its payment back.
    """
    record = world.money.invoices.get(event.payment_hash)
    if record is None or record.state is not PaymentState.OPEN:
        return
    rental = world.letting.rentals.get(record.identity)
    if rental is None or rental.state is RentalState.RELEASED:
        _give_back(world, record, "the rental is over")
    elif why_not := _why_not(world, rental, event.blocks_left):
        _give_back(world, record, why_not)
    elif rental.state is RentalState.PENDING:
        metering.grant(world, rental)  # if it is metered, nothing passes before the payment is taken
        world.do(SetTunnelPeer(tunnel_peer(world, rental), event.payment_hash))
    else:  # another invoice of the rental was paid meanwhile, so this payment is further credit
        world.do(SettleInvoice(record.preimage))


def _why_not(world: World, rental: Rental, blocks_left: int) -> str:
    if not may_let(world, rental):
        return NOT_LET
    if blocks_left < LEAST_BLOCKS_LEFT:
        return f"the payment was held for too long, and ends by itself after {blocks_left} more blocks"
    return ""


def peer_set(world: World, event: TunnelPeerSet) -> None:
    """Take the payment of a tenant that the tunnel serves now, or give it back."""
    record = world.money.invoices.get(event.payment_hash)
    rental = world.letting.rentals.get(record.identity) if record is not None else None
    if record is None or rental is None:
        return
    if record.state is PaymentState.OPEN and not event.why_not:
        world.do(SettleInvoice(record.preimage))
    elif record.state is PaymentState.OPEN:
        _give_back(world, record, event.why_not)
    elif rental.state is RentalState.PENDING:  # the invoice was withdrawn in this moment
        world.do(RemoveTunnelPeer(rental.wireguard_key))


def _give_back(world: World, record: PaymentRecord, why_not: str) -> None:
    withdraw(world, record, NOT_SERVED)
    who = f"rental {record.identity.hex()[:8]}"
    world.log(f"{who}: {show_money(record.amount_msat)} are given back: {why_not}", logging.WARNING)
