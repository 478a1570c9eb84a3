"""Forgetting: what is kept about neighbours that never paid nor were paid, and for how long.

Anybody can say hello, and gets a contract and grace without paying; new keys and link addresses cost nothing. So
neighbours that never paid are remembered only while there is room. Of those that are silent only the debt is kept, and
of all such debts only the newest MOST_DEBTORS. An attacker who makes thousands of keys displaces other neighbours that
never paid, but none that paid.
"""

from __future__ import annotations

from ngp.core.contract import CloseReason
from ngp.core.effects import ForgetNeighbour, Persist
from ngp.core.peers import Neighbour
from ngp.core.records import ForgetLink
from ngp.core.selling import grace, quoting
from ngp.core.selling.sale import Sale
from ngp.core.world import World

MOST_NEIGHBOURS = 4096
MOST_DEBTORS = 4096
MOST_LINKS = 8
LINK_SILENCE_S = 60.0  # a neighbour that wasn't heard on its link for this time has left it
LOOK_FOR_IDLE_S = 5.0  # least time between two searches for neighbours to forget


def drop_neighbour(world: World, neighbour: Neighbour) -> None:
    """Remove a neighbour from its link, with its contracts that aren't running; running ones are halted.

    With its last link the identity is forgotten, too, if its accounts are empty.
    """
    for contract in list(neighbour.contracts.values()):
        world.halt(contract, CloseReason.CANCELLED)
        if isinstance(contract, Sale) and not contract.open:
            quoting.forget(world, contract)
    if not world.peers.remove(neighbour):
        world.forget_if_gone(neighbour.identity, neighbour.kept)
    elif neighbour.kept:
        world.do(Persist(ForgetLink(neighbour.identity, *neighbour.link)))
    world.do(ForgetNeighbour(neighbour.number))


def make_room(world: World) -> None:
    """Forget what may be forgotten, but not at every hello: a flood of made-up keys must not keep us busy."""
    if world.now.monotonic_s - world.peers.looked_for_idle_mono_s >= LOOK_FOR_IDLE_S:
        world.peers.looked_for_idle_mono_s = world.now.monotonic_s
        _forget_neighbours(world)
        _forget_debtors(world)


def forget_links(world: World, identity: bytes) -> None:
    """Make room for another link of an identity by dropping the one silent for longest; at most MOST_LINKS stay.

    Otherwise an identity that paid once could fill our tables with made-up link addresses.
    """
    links = world.peers.by_identity.get(identity, {})
    while len(links) >= MOST_LINKS:
        drop_neighbour(world, min(links.values(), key=lambda neighbour: neighbour.heard_mono_s))


def _forget_neighbours(world: World) -> None:
    """Drop the links of neighbours that were silent for a minute and have neither money nor contracts here."""
    if len(world.peers.neighbours) < MOST_NEIGHBOURS:
        return
    for neighbour in list(world.peers.neighbours.values()):
        silent = world.now.monotonic_s - neighbour.heard_mono_s > LINK_SILENCE_S
        idle = not neighbour.contracts and not any(one.worth_keeping for one in world.accounts_of(neighbour.identity))
        if silent and idle and neighbour.identity not in world.peers.blocked:
            drop_neighbour(world, neighbour)


def _forget_debtors(world: World) -> None:
    """Forget neighbours that have no link and never paid, with all their records; the newest MOST_DEBTORS are kept.

    A debt that still counts on its interface is kept too. Otherwise an attacker with made-up keys could use up the
    interface's credit, be forgotten, and use it up again.
    """
    gone = [who for who in dict.fromkeys((*world.clients, *world.servers)) if _is_worthless(world, who)]
    surplus = gone[: max(0, len(gone) - MOST_DEBTORS)]
    for identity in surplus:
        if identity in world.clients:
            grace.take_back(world, world.clients[identity])
    if surplus:
        world.forget(surplus)


def _is_worthless(world: World, identity: bytes) -> bool:
    if identity in world.peers.by_identity or identity in world.peers.blocked:
        return False
    client = world.clients.get(identity)
    owes = client is not None and client.credit is not None and client.credit.weighs
    return not owes and not any(one.worth_keeping for one in world.accounts_of(identity))
