"""Networks: neighbours whose payment nodes are on different networks don't trade, and both operators are told.

Nothing else would show the cause: packets are refused like any that nobody sells, and each daemon looks healthy.

A network has two names. A node says which chain it is on (`testnet4`; the two hellos are compared). An invoice begins
with BOLT 11's prefix for a kind of chain (`tb`: any testnet; `tbs`: any signet). All comparisons are made here.
"""

from __future__ import annotations

from ngp.core.peers import Neighbour
from ngp.core.world import World

_INVOICES = {"testnet3": "testnet", "testnet4": "testnet", "mutinynet": "signet"}
"""The names of chains in invoices, if they differ from the chain's own name."""
_SIGNETS = frozenset({"signet", "mutinynet"})
"""LND calls every signet `signet`, whatever its challenge; Electrum has another name for one of them."""
_ALSO = {"testnet3": "testnet"}


def is_same(one: str, other: str) -> bool:
    """Say whether two nodes may be on the same chain, by the names that they give."""
    return _ALSO.get(one, one) == _ALSO.get(other, other) or {one, other} <= _SIGNETS


def takes_invoice(ours: str, invoices: str) -> bool:
    """Say whether an invoice may be for our chain, by the network in its prefix."""
    return _INVOICES.get(ours, ours) == invoices


def note_network(world: World, neighbour: Neighbour, network: str) -> None:
    """Take over the network that a neighbour names in its hello; if it isn't ours, warn the operator, at most hourly.

    Args:
        network: what the neighbour says; it may be anything.
    """
    before, ours = neighbour.network, world.node.network
    neighbour.network = network
    if network == before or is_same(network, ours):
        return
    world.log_seldom(
        ("network", neighbour.identity),
        f"no trade with neighbour {neighbour.identity.hex()[:8]} on {neighbour.link[0]}: it pays on network "
        f"{network!r}, we on {ours!r}; one of the two needs another payment node: check PAYMENT_INTERFACE in net.conf "
        "and the node behind it",
    )
