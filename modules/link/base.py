"""What all links share: one port for each interface, opened when the interface appears.

A link whose datagrams a filter in the kernel takes in (UDP, Ethernet) also has one inlet for all of its ports.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ngp.core.values import Check, LinkPeer
from ngp.errors import KernelError
from ngp.modules.bpf import try_to_load
from ngp.modules.link import inlet
from ngp.modules.link.inlet import Arrival, Inlet

Receive = Callable[[LinkPeer, bytes], None]


class Port(ABC):
    """The sockets on one interface."""

    index: int

    @abstractmethod
    def send(self, peer: LinkPeer, datagram: bytes) -> bool:
        """Send to one neighbour; returns False if the kernel refused."""

    @abstractmethod
    def broadcast(self, datagram: bytes) -> bool:
        """Send to all neighbours on the interface; returns False if the kernel refused."""

    @abstractmethod
    def close(self) -> None:
        """Release the sockets."""


AnyPort = TypeVar("AnyPort", bound=Port)


class PortLink(ABC, Generic[AnyPort]):
    """A link with one port on each of its interfaces."""

    max_datagram_bytes: int

    def __init__(self) -> None:
        self._ports: dict[str, AnyPort] = {}
        self._by_index: dict[int, AnyPort] = {}
        self._counts: Counter[str] = Counter()
        self._receive: Receive | None = None

    @abstractmethod
    def open_port(self, interface: str, on_trial: bool) -> AnyPort | None:
        """Open a port on an interface; None if the interface has just vanished. Raises KernelError.

        Args: on_trial: the port is only opened to see whether that is possible, and receives nothing.
        """

    def taken(self, interfaces: Sequence[str]) -> list[Check]:
        """Check that ports can be opened: open one on each interface and close it; the errors are those of a start."""
        for name in interfaces:
            try:
                port = self.open_port(name, on_trial=True)
            except KernelError as error:
                return [Check("link", False, str(error))]
            if port is not None:
                port.close()
        return []

    async def open(self, interfaces: Sequence[str], receive: Receive) -> None:
        """Start on these interfaces; a later `update` opens those that don't exist yet. Raises KernelError."""
        self._receive = receive
        try:
            await self.update(interfaces)
        except KernelError:
            await self.close()
            raise

    async def update(self, interfaces: Sequence[str]) -> None:
        """Follow a changed list; an interface that was deleted and made again is reopened. Raises KernelError."""
        assert self._receive is not None, "update before open"
        present = {name: index for index, name in socket.if_nameindex()}
        for name in list(self._ports):
            if name not in interfaces or present.get(name) != self._ports[name].index:
                self._close_port(name)
        for name in interfaces:
            if name in present and name not in self._ports:
                port = self.open_port(name, on_trial=False)
                if port is not None:
                    self._ports[name] = self._by_index[port.index] = port

    def name_neighbours(self, addresses: Sequence[str]) -> None:
        """Do nothing: this link needs no neighbours' addresses. Links that use them have a method of their own."""

    def send(self, peer: LinkPeer, datagram: bytes) -> None:
        """Send to one neighbour; losses are counted, never raised. Raises ValueError above max_datagram_bytes."""
        port = self._port_for(peer.interface, datagram)
        if port is None or not port.send(peer, datagram):
            self._counts["unsent"] += 1

    def broadcast(self, interface: str, datagram: bytes) -> None:
        """Send to every neighbour on an interface. Raises ValueError above max_datagram_bytes."""
        port = self._port_for(interface, datagram)
        if port is None or not port.broadcast(datagram):
            self._counts["unsent"] += 1

    def _port_for(self, interface: str, datagram: bytes) -> AnyPort | None:
        if len(datagram) > self.max_datagram_bytes:
            raise ValueError(f"a datagram of {len(datagram)} bytes; at most {self.max_datagram_bytes} are possible")
        return self._ports.get(interface)

    def counters(self) -> dict[str, int]:
        """Return how many datagrams were refused or not sent, by reason."""
        return dict(self._counts)

    async def close(self) -> None:
        """Release the sockets."""
        for name in list(self._ports):
            self._close_port(name)

    def _close_port(self, name: str) -> None:
        port = self._ports.pop(name)
        del self._by_index[port.index]
        port.close()


class InletPort(Port):
    """The sockets on one interface, whose datagrams come through the inlet."""

    @abstractmethod
    def peer(self, arrival: Arrival) -> LinkPeer:
        """Return the sender of a datagram."""


class InletLink(PortLink[InletPort]):
    """Ports whose datagrams come through one inlet; a module that adds `open_port` implements `ngp.ports.Link`."""

    def __init__(self) -> None:
        super().__init__()
        self._inlet: Inlet | None = None

    def check(self, interfaces: Sequence[str]) -> list[Check]:
        """Check that this kernel accepts the inlet's programs, and say how neighbours are found; change nothing."""
        return [] if self._inlet is not None else [try_to_load("inlet", inlet.object_path(), {})]

    async def open(self, interfaces: Sequence[str], receive: Receive) -> None:
        self._inlet = Inlet(self._arrived)
        await super().open(interfaces, receive)

    def _arrived(self, arrival: Arrival) -> None:
        port = self._by_index.get(arrival.index)
        if port is not None and self._receive is not None:  # otherwise its interface is no longer in the list
            self._receive(port.peer(arrival), arrival.datagram)

    def trust(self, peer: LinkPeer) -> None:
        """Reserve a share of the inlet for this link address, so that what others send can't keep its datagrams out."""
        port = self._ports.get(peer.interface)
        if port is not None and self._inlet is not None:
            self._inlet.trust(port.index, peer.link_address)

    def counters(self) -> dict[str, int]:
        return {**self._counts, **(self._inlet.counters() if self._inlet is not None else {})}

    async def close(self) -> None:
        await super().close()
        if self._inlet is not None:
            self._counts.update(self._inlet.counters())
            self._inlet.close()
            self._inlet = None
