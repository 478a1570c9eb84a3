"""Networks: neighbours whose payment nodes are on different networks don't trade, and both operators are told.

Nothing else would show the cause: packets are dropped as if nobody sold their destination, and each daemon looks
healthy.

A payment network has two names. A payment node names its chain (`testnet4`), and hellos carry this name. An invoice
begins with a prefix that names only a kind of chain (BOLT 11; `tb`: any testnet, `tbs`: any signet). Both comparisons,
of two hellos and of an invoice with our own node, are made here.
"""

from __future__ import annotations

from ngp.core.peers import Neighbour
from ngp.core.world import World

_INVOICES = {"testnet3": "testnet", "testnet4": "testnet", "mutinynet": "signet"}
"""By a chain's name: the name that its invoices' prefix stands for, if that is another name."""
_SIGNETS = frozenset({"signet", "mutinynet"})
"""Names that may mean the same chain: LND calls every signet `signet`; Electrum has another name for one of them."""
_ALSO = {"testnet3": "testnet"}
"""By a chain's name: another name that some nodes use for the chain."""


def is_same(one: str, other: str) -> bool:
    """Say whether two nodes may be on the same chain, by the names that they give."""
    return _ALSO.get(one, one) == _ALSO.get(other, other) or {one, other} <= _SIGNETS


def takes_invoice(ours: str, invoices: str) -> bool:
    """Say whether an invoice may be for our chain.

    Args: ours: the name that our node gives. invoices: the name that the invoice's prefix stands for.
    """
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
