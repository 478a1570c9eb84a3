"""Meeting: a hello makes a neighbour known, or shows that a neighbour is back after it was away.

A neighbour that is back gets what it may have missed. We stop sending a message after some seconds without an answer,
and a neighbour that restarted has forgotten what we asked. A neighbour can be away and back hundreds of times a second.
So we send all of this at most four times in a row, and then every three seconds.
"""

from __future__ import annotations

from ngp.core import forgetting, invoices, networks, orders
from ngp.core.buying import bills
from ngp.core.effects import Greet, Persist
from ngp.core.events import MessageReceived
from ngp.core.messages import Hello
from ngp.core.peers import Neighbour
from ngp.core.selling import endings, first_packets, negotiation, statements
from ngp.core.world import World


def hello_heard(world: World, event: MessageReceived, hello: Hello) -> None:
    """Take over what a neighbour says about itself; send it what it may have missed if it was away or restarted."""
    neighbour = _introduce(world, event)
    if neighbour is None:
        return
    restarted = neighbour.boot != event.boot
    returned = restarted or not neighbour.up
    was = (neighbour.sells, neighbour.buys)
    changed = (neighbour.network, neighbour.sells, neighbour.buys, neighbour.addresses) != (
        hello.network,
        hello.sells,
        hello.buys,
        hello.addresses,
    )
    networks.note_network(world, neighbour, hello.network)
    neighbour.sells, neighbour.buys = hello.sells, hello.buys
    neighbour.addresses, neighbour.payee = hello.addresses, hello.payee
    neighbour.boot = event.boot
    neighbour.up = True
    if returned:
        neighbour.met_mono_s = world.now.monotonic_s
    neighbour.heard_mono_s, neighbour.last_seen_s = world.now.monotonic_s, world.now.utc_s
    neighbour.quality.heard(world.now.monotonic_s)
    if changed or returned:
        # If only the addresses changed, nothing is written: the record doesn't have them.
        if neighbour.kept and (returned or was != (hello.sells, hello.buys)):
            world.do(Persist(neighbour.record()))
        world.tell_kernel(neighbour)
    if hello.wants_reply:
        world.do(Greet(event.link[0], event.identity, event.link, event.message_id))
    neighbour.missed |= returned
    if restarted:
        statements.restarted(world, neighbour.identity)
    tell_missed(world, neighbour)
    first_packets.strangers_known(world, neighbour)


def tell_missed(world: World, neighbour: Neighbour) -> None:
    """Send a neighbour that was away what it may have missed: invoice, proofs, statements, ends of contracts, quotes.

    If we did so too often lately, we do it later, when the neighbour sends its next message.
    """
    if not neighbour.missed or not neighbour.tells.take(world.now.monotonic_s):
        return
    neighbour.missed = False
    account = world.clients.get(neighbour.identity)
    if account is not None:
        invoices.send_again(world, account)
        statements.came_back(world, neighbour, account)
        endings.came_back(world, neighbour, account)
    bills.came_back(world, neighbour)
    negotiation.quote_again(world, neighbour)
    recent = world.now.utc_s - invoices.INVOICE_EXPIRY_S
    for payment in world.money.payments_to(neighbour.identity):
        if payment.settled_at_s >= recent:
            orders.tell_outcome(world, neighbour, payment)


def _introduce(world: World, event: MessageReceived) -> Neighbour | None:
    """Find or make the neighbour that sent a hello.

    A second identity on a link address is refused while the first one is heard. Otherwise an attacker who forges the
    link address could take a customer's place.
    """
    existing = world.peers.by_link.get(event.link)
    if existing is not None and existing.identity != event.identity:
        if existing.up and world.now.monotonic_s - existing.heard_mono_s < forgetting.LINK_SILENCE_S:
            world.count("link_taken")
            return None
        forgetting.drop_neighbour(world, existing)
    neighbour = world.peers.neighbours.get((event.identity, event.link))
    if neighbour is None:
        if max(len(world.peers.neighbours), len(world.accounts)) >= forgetting.MOST_NEIGHBOURS:
            forgetting.make_room(world)
        if len(world.peers.neighbours) >= forgetting.MOST_NEIGHBOURS:
            world.count("too_many_neighbours")
            return None
        forgetting.forget_links(world, event.identity)
        neighbour = Neighbour(event.identity, event.link, world.peers.next_number(), first_seen_s=world.now.utc_s)
        world.peers.add(neighbour)
        world.log(f"neighbour {event.identity.hex()[:16]} found on {event.link[0]}")
    world.peers.by_link[event.link] = neighbour
    return neighbour
