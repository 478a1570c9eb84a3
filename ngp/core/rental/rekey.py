"""Rekey: a tenant who has both keys gives its rental another WireGuard key.

The former key means nothing afterwards: neither the tunnel nor any face knows it any more. Earlier rentals of the
tenant, which may have money left to be fetched, get the new key too.
"""

from __future__ import annotations

from ngp.core.rental import landlord
from ngp.core.rental.effects import AnswerTenant, RemoveTunnelPeer, SetTunnelPeer
from ngp.core.rental.events import RekeyAsked
from ngp.core.rental.rental import RentalState
from ngp.core.world import World


def asked(world: World, event: RekeyAsked) -> None:
    """Change a rental's key, or answer why not."""
    letting = world.letting
    why_not = _why_not(world, event)
    if why_not:
        world.do(AnswerTenant(event.request, why_not=why_not))
        return
    for one in letting.change_key(event.wireguard_key, event.new_key):
        landlord.save(world, one, durable=True)
    rental = letting.by_key[event.new_key]
    world.do(RemoveTunnelPeer(event.wireguard_key))  # before its networks get another peer
    world.do(SetTunnelPeer(landlord.tunnel_peer(world, rental)))
    world.do(AnswerTenant(event.request, rental=rental.id))


def _why_not(world: World, event: RekeyAsked) -> str:
    """Return why a key can't be changed, in words for the tenant; "" if it can."""
    rentals = world.letting.by_key
    rental, other = rentals.get(event.wireguard_key), rentals.get(event.new_key)
    if rental is None or rental.state is RentalState.RELEASED:
        return "no rental has the WireGuard key that you want to replace: rent anew"
    if rental.state is RentalState.PENDING:  # asking costs nothing: one tenant could get many by changing the key
        return "the rental isn't paid yet: pay its invoice, or ask for one with the new key"
    if other is not None and other.state is not RentalState.RELEASED:
        return "the new WireGuard key has a rental already: make another key"
    return ""
