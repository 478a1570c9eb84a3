"""Ports: the interfaces between ngp and the world around it. Of the values that they take and return, those that
rules read or make are in `ngp.core`; the others are beside their port.

An adapter in `modules/` implements one of these. It is found by an entry point (`ngp.link`, `ngp.network`,
`ngp.payment`, `ngp.tunnel`, `ngp.face` in setup.cfg), so anybody can add one. The ledger's adapters are in
`ngp/store/`, since the conservation of money depends on them. Link, payment and faces wait for others, so they are
asynchronous. The network port and the tunnel make short system calls, and the ledger is used by one thread, so these
are synchronous.
"""

from ngp.ports.clock import Clock
from ngp.ports.ledger import Ledger, Store
from ngp.ports.letting import Face, LettingService, NeighbourFace, Tunnel
from ngp.ports.link import Link
from ngp.ports.network import Network
from ngp.ports.payment import ChannelManager, Payment, TowerManager

__all__ = [
    "ChannelManager",
    "Clock",
    "Face",
    "Ledger",
    "LettingService",
    "Link",
    "NeighbourFace",
    "Network",
    "Payment",
    "Store",
    "TowerManager",
    "Tunnel",
]
