"""Device: what both implementations of WireGuard (the kernel's and wireguard-go) can do, and how peers change.

If a network is given to a second peer, WireGuard silently takes it from the first. So a network is first taken from
the peer that loses it, and given to the other peer in a second step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Protocol

from ngp.core.messages import Prefix
from ngp.errors import KernelError
from ngp.ports.letting import PeerReading

Networks = Mapping[bytes, Iterable[Prefix]]  # of each peer, by its public key


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer as the device has it.

    `networks_text`: its networks as the device writes them; few readers need them parsed.
    """

    reading: PeerReading
    networks_text: tuple[str, ...]

    @property
    def networks(self) -> frozenset[Prefix]:
        """The networks that it may send from. Raises KernelError if the device gave garbage."""
        try:
            return frozenset(map(ip_network, self.networks_text))
        except ValueError as error:
            raise KernelError(
                f"a peer's allowed-ips can't be read: {error}; delete the interface and try again"
            ) from error


@dataclass(frozen=True, slots=True)
class Standing:
    """A device as it is: private key (b"" if it has none yet), UDP port, peers by public key."""

    private_key: bytes = field(repr=False)
    port: int
    peers: Mapping[bytes, Peer]


@dataclass(frozen=True, slots=True)
class PeerChange:
    """Give a peer exactly these networks; None: remove it."""

    wireguard_key: bytes
    networks: tuple[Prefix, ...] | None


class Device(Protocol):
    """An implementation of WireGuard. `name` is that of an interface. Every method raises KernelError or OSError.

    Attributes:
        implementation: its name for status. kind: the kind of its interfaces, as `ip -d link` shows it.
    """

    implementation: str
    kind: str

    def why_not(self) -> tuple[str, str]:
        """Return why this host can't use this implementation, and the remedy; ("", "") if it can."""

    def make(self, name: str) -> None:
        """Make an interface, without a key and without peers."""

    def read(self, name: str) -> Standing:
        """Return what an interface has."""

    def set(self, name: str, private_key: bytes, port: int) -> None:
        """Set key and UDP port."""

    def change(self, name: str, changes: Sequence[PeerChange]) -> None:
        """Change peers, in this order; those that aren't named aren't disturbed."""

    def await_end(self, name: str) -> None:
        """Return when nothing is left of an interface that was deleted."""


def steps(standing: Networks, wanted: Networks) -> list[list[PeerChange]]:
    """Return the changes, step by step, that lead from the peers that a device has to those that it should have. Pure.

    No step gives a peer a network that another peer still has, and a peer that is right already isn't named.
    """
    losing = [PeerChange(key, None) for key in standing if key not in wanted]
    gaining = []
    for key, networks in wanted.items():
        new, old = frozenset(networks), frozenset(standing.get(key, ()))
        if old - new:
            losing.append(PeerChange(key, _sorted(old & new)))
        if new - old or key not in standing:
            gaining.append(PeerChange(key, _sorted(new)))
    return [step for step in (losing, gaining) if step]


def _sorted(networks: Iterable[Prefix]) -> tuple[Prefix, ...]:
    return tuple(sorted(networks, key=lambda network: (network.version, network.network_address, network.prefixlen)))
