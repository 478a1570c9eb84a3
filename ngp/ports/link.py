"""Link: how datagrams reach the daemons of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ngp.core.values import Check, LinkPeer


class Link(Protocol):
    """Carries datagrams between this daemon and those of neighbours."""

    max_datagram_bytes: int

    def check(self, interfaces: Sequence[str]) -> list[Check]:
        """Return obstacles on this host, and how neighbours are found on these interfaces; changes nothing.

        The call is cheap once the link is open.
        """

    def taken(self, interfaces: Sequence[str]) -> list[Check]:
        """Open and close the link, to find what would stop a start from opening it.

        Don't call it while our daemon runs.
        """

    async def open(self, interfaces: Sequence[str], receive: Callable[[LinkPeer, bytes], None]) -> None:
        """Start on these interfaces; `receive` is called in the event loop for each datagram. Raises KernelError."""

    async def update(self, interfaces: Sequence[str]) -> None:
        """Use another list of interfaces; those that are in both lists are not disturbed."""

    def name_neighbours(self, addresses: Sequence[str]) -> None:
        """From now on look for neighbours at these addresses (NGP_INTERFACE). Some links need none and ignore them."""

    def send(self, peer: LinkPeer, datagram: bytes) -> None:
        """Send to one neighbour; never blocks, may lose the datagram. Raises ValueError above max_datagram_bytes."""

    def broadcast(self, interface: str, datagram: bytes) -> None:
        """Send to every neighbour on an interface; never blocks, may lose the datagram."""

    def trust(self, peer: LinkPeer) -> None:
        """Prefer datagrams of this link address, which is proven, so that strangers' floods don't displace them."""

    def counters(self) -> dict[str, int]:
        """Return the numbers of datagrams refused below the wire layer, by reason."""

    async def close(self) -> None:
        """Release the sockets; safe to call twice."""
