"""Networks: neighbours whose payment nodes are on different networks don't trade; both operators are told so.

Nothing else shows it: packets are turned away like any that nobody sells, and each daemon by itself is in order.

A network has two names. A node says which chain it is on (`testnet4`, which both sides' hellos compare); an invoice
begins with what BOLT 11 gives to a kind of chain (`tb`: any testnet; `tbs`: any signet). Each is compared here, once.
"""

from __future__ import annotations

import logging

from ngp.core.peers import Neighbour
from ngp.core.world import World

AGAIN_S = 3600.0
"""A neighbour that changes its network with each hello fills no log."""


_INVOICES = {"testnet3": "testnet", "testnet4": "testnet", "mutinynet": "signet"}
"""What invoices call a chain, where that isn't its own name."""
_SIGNETS = frozenset({"signet", "mutinynet"})
"""LND calls every signet so, whatever its challenge; Electrum has a name for one of them."""
_ALSO = {"testnet3": "testnet"}


def is_same(one: str, other: str) -> bool:
    """Say whether two nodes may be on one chain, by what they call theirs."""
    return _ALSO.get(one, one) == _ALSO.get(other, other) or {one, other} <= _SIGNETS


def takes_invoice(ours: str, invoices: str) -> bool:
    """Say whether an invoice may be of our chain, by the network that its first letters name."""
    return _INVOICES.get(ours, ours) == invoices


def note_network(world: World, neighbour: Neighbour, network: str) -> None:
    """Take over the network that a neighbour names in its hello; where it isn't ours, the operator is told once.

    Args:
        network: the neighbour's word, which anybody may make up.
    """
    before, ours = neighbour.network, world.node.network
    neighbour.network = network
    if network == before or is_same(network, ours) or world.now.monotonic_s < neighbour.network_told_mono_s + AGAIN_S:
        return
    neighbour.network_told_mono_s = world.now.monotonic_s
    world.log(
        f"no trade with neighbour {neighbour.identity.hex()[:8]} on {neighbour.link[0]}: it pays on network "
        f"{network!r}, we on {ours!r}; one of the two needs another payment node: PAYMENT_INTERFACE in net.conf, and "
        "the node behind it",
        logging.WARNING,
    )
