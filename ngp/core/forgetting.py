"""Forgetting: what is kept of neighbours that never paid nor were paid, and for how long.

A hello, a contract and the grace cost nothing, nor do keys and link addresses. So who never paid is remembered while
there is room: of neighbours that are silent only what they owe, and of debts the newest. Somebody who makes himself
thousands of keys pushes out others like him, and never one that paid.
"""

from __future__ import annotations

from ngp.core import grace, seller
from ngp.core.account import Account
from ngp.core.world import World

MOST_NEIGHBOURS = 4096
MOST_DEBTORS = 4096
MOST_LINKS = 8
LINK_SILENCE_S = 60.0
LOOK_FOR_IDLE_S = 5.0


def make_room(world: World) -> None:
    """Forget whom we may, but not at every hello: a look at all of them for each made-up key would keep us busy."""
    if world.now.monotonic_s - world.looked_for_idle_mono_s >= LOOK_FOR_IDLE_S:
        world.looked_for_idle_mono_s = world.now.monotonic_s
        forget_neighbours(world)
        forget_debtors(world)


def forget_links(world: World, identity: bytes) -> None:
    """Make room for another link of an identity: who paid once could else fill our tables by made-up addresses."""
    links = world.by_identity.get(identity, {})
    while len(links) >= MOST_LINKS:
        seller.drop_neighbour(world, min(links.values(), key=lambda neighbour: neighbour.heard_mono_s))


def forget_neighbours(world: World) -> None:
    """Drop the links of those that were not heard for a minute and have neither money nor contracts here."""
    if len(world.neighbours) < MOST_NEIGHBOURS:
        return
    for neighbour in list(world.neighbours.values()):
        silent = world.now.monotonic_s - neighbour.heard_mono_s > LINK_SILENCE_S
        idle = not neighbour.contracts and not any(one.stands for one in world.accounts_of(neighbour.identity))
        if silent and idle and not neighbour.blocked:
            seller.drop_neighbour(world, neighbour)


def forget_debtors(world: World) -> None:
    """Forget those who only ever used grace and are on no link, beyond the newest; their contracts and sums go along.

    A debt that still counts on its interface stays: else made-up keys would get the interface's credit again and again.
    """
    gone = list(dict.fromkeys(identity for identity, _ in world.accounts if _is_worthless(world, identity)))
    surplus = gone[: max(0, len(gone) - MOST_DEBTORS)]
    for identity in surplus:
        for account in world.accounts_of(identity):
            grace.take_back(world, account)
    if surplus:
        world.forget(surplus)


def _is_worthless(world: World, identity: bytes) -> bool:
    if identity in world.by_identity or identity in world.blocked:
        return False
    accounts = world.accounts_of(identity)
    return not any(one.stands or _weighs(world, one) for one in accounts)


def _weighs(world: World, account: Account) -> bool:
    return account.credit is not None and any(map(world.credit.weighs, account.credit.links))
