"""Networks: neighbours whose payment nodes are on different networks don't trade; both operators are told so.

Nothing else shows it: packets are turned away like any that nobody sells, and each daemon by itself is in order.
"""

from __future__ import annotations

import logging

from ngp.core.world import Neighbour, World

AGAIN_S = 3600.0
"""A neighbour that changes its network with each hello fills no log."""


def note_network(world: World, neighbour: Neighbour, network: str) -> None:
    """Take over the network that a neighbour names in its hello; where it isn't ours, the operator is told once.

    Args:
        network: the neighbour's word, which anybody may make up.
    """
    before, ours = neighbour.network, world.means.network
    neighbour.network = network
    if network in (before, ours) or world.now.monotonic_s < neighbour.network_told_mono_s + AGAIN_S:
        return
    neighbour.network_told_mono_s = world.now.monotonic_s
    world.log(
        f"no trade with neighbour {neighbour.identity.hex()[:8]} on {neighbour.link[0]}: it pays on network "
        f"{network!r}, we on {ours!r}; one of the two needs another payment node: PAYMENT_INTERFACE in net.conf, and "
        "the node behind it",
        logging.WARNING,
    )
