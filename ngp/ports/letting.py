"""Letting: what only a landlord needs: a tunnel to its tenants, and the faces by which they ask."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ngp.core.messages import Address, Prefix
from ngp.core.rental.calls import Call, Payee, Session
from ngp.core.rental.status import Asked, Configuration, RentalStatus
from ngp.core.rental.terms import LettingSettings, Offer
from ngp.core.rental.tunnel import TunnelPeer
from ngp.core.values import Check


@dataclass(frozen=True, slots=True)
class DesiredTunnel:
    """The landlord's tunnel as it should be while the daemon runs. Its peers, the tenants, are set one by one.

    Attributes:
        interface: its name. mtu: in bytes.
        port: UDP, on all addresses.
        private_key: 32 bytes; a secret.
        outside: interface towards the internet.
        pools: prefixes from which networks are let, without what is excluded. Packets to a part of them that isn't let
            are refused, not routed back.
        proxy: answer for let addresses on `outside` by ARP and NDP.
        kind: `auto`, `kernel` or `userspace`.
    """

    interface: str
    port: int
    private_key: bytes = field(repr=False)
    outside: str
    pools: tuple[Prefix, ...]
    proxy: bool
    kind: str
    mtu: int


@dataclass(frozen=True, slots=True)
class PeerReading:
    """What the tunnel knows of a tenant: bytes are cumulative since the peer was added; times UTC seconds, 0: never."""

    wireguard_key: bytes
    received_bytes: int
    sent_bytes: int
    handshake_at_s: int
    endpoint: str


class Tunnel(Protocol):
    """The landlord's WireGuard tunnel: tenants are its peers. Calls take milliseconds and wait for no other host.

    A tenant can send from its networks only, and packets to them reach only that tenant. WireGuard itself would move a
    network that is given to a second peer; this port refuses that.
    """

    def check(self, desired: DesiredTunnel) -> list[Check]:
        """Return what is missing on this host, and whether packets from outside find the pools; changes nothing."""

    def set_up(self, desired: DesiredTunnel, peers: Sequence[TunnelPeer]) -> None:
        """Make the tunnel, or take over the one that a killed daemon left; then its peers are exactly these.

        Peers that are right already aren't disturbed. Raises: KernelError; then nothing of a new set-up is left.
        """

    def set_peers(self, peers: Sequence[TunnelPeer]) -> None:
        """Add peers or change them. Raises: KernelError, also if another peer has one of the networks."""

    def remove_peers(self, wireguard_keys: Sequence[bytes]) -> None:
        """Remove peers; unknown ones are ignored. Raises: KernelError."""

    def stands(self) -> bool:
        """Say whether what `set_up` made still exists, at little cost. Raises: KernelError."""

    def read(self) -> list[PeerReading]:
        """Return what the tunnel knows of its peers. Raises: KernelError."""

    def addresses(self, interface: str) -> tuple[Address, ...]:
        """Return an interface's own addresses, both families, without link-local ones. Raises: KernelError."""

    def describe(self) -> dict[str, str]:
        """Return which implementation is in use, for `ngp status`."""

    def close(self) -> None:
        """Close sockets; the tunnel goes on."""

    def clean_up(self) -> None:
        """Remove all that this port made, and nothing else, without a record of what it made. Safe to call twice."""


class LettingService(Protocol):
    """What a face asks of the landlord; `ngp.daemon.letting` implements it. Refused requests raise RentalError."""

    def offer(self, name: str = "") -> Offer:
        """Return an offer by its name; the first one if the name is ""."""

    def offers(self) -> list[tuple[Offer, int]]:
        """Return all offers, each with the number of further rentals for which the pools have room."""

    def payee(self) -> Payee:
        """Return the node that makes the invoices."""

    def session(self) -> Session:
        """Return what tenants need to prove their keys (`ngp.calls.proof`)."""

    def check_proof(self, call: Call, nonce: int, proofs: Sequence[tuple[bytes, bytes]]) -> None:
        """Accept a call, once, if its sender proves that it has these WireGuard keys. Raises: ProofError.

        Args: nonce: the one in the request. proofs: keys of 32 bytes, each with its proof.
        """

    async def ask(self, wireguard_key: bytes, amount_msat: int, face: str, offer: str = "", peer: bytes = b"") -> Asked:
        """Return an invoice for a tenant's new or running rental. Raises: LedgerError: nothing can be written now.

        Args:
            amount_msat: the credit to add; a new rental's invoice includes the activation fee as well.
            peer: identity of the neighbour that asks over the mesh link.
        """

    async def cancel(self, wireguard_key: bytes) -> RentalStatus:
        """Withdraw the invoice of a rental that wasn't paid yet, for a caller who proved that it has the key.

        Raises: LedgerError: nothing can be written now.
        """

    def status(self, wireguard_key: bytes) -> RentalStatus:
        """Return a tenant's newest rental."""

    async def paid(self, wireguard_key: bytes, bolt11: str, most_s: float) -> RentalStatus:
        """Wait until an invoice of a tenant is paid, or some seconds have passed. Returns the status then."""

    def prove(self, preimage: bytes) -> None:
        """Take the preimage of a tenant's invoice as proof of its payment; any other has no effect."""

    def configuration(self, wireguard_key: bytes) -> Configuration:
        """Return what a tenant's tunnel needs, once its rental is paid."""

    async def rekey(self, wireguard_key: bytes, new_key: bytes) -> RentalStatus:
        """Give a rental another key, for a caller who proved that it has both keys. Raises: LedgerError."""

    async def refund(self, wireguard_key: bytes, bolt11: str) -> RentalStatus:
        """Pay a tenant's invoice for what is left of a rental that is over (`RentalStatus.fetchable_msat`), once.

        A face calls this only for somebody who proved the possession of the WireGuard key. The payment is ordered when
        this returns; the tenant's own node tells of its arrival. If it fails, the money can be fetched again.

        Args: bolt11: the tenant's invoice, which may be hostile.
        """


class Face(Protocol):
    """A way for tenants to reach the landlord over the network. Requests are bounded in size, time and number."""

    async def open(self, letting: LettingService, settings: LettingSettings) -> None:
        """Serve as net.conf says; nobody if it has no address for this face. Raises: ConfigError, KernelError.

        A second call applies changed settings; if that fails, the former ones stay in force.
        """

    def check(self, settings: LettingSettings) -> list[Check]:
        """Return what a tenant needs to know (the certificate's fingerprint), and what is missing; changes nothing."""

    async def close(self) -> None:
        """Stop serving; safe to call twice."""


@runtime_checkable
class NeighbourFace(Face, Protocol):
    """A way for neighbours to reach the landlord: the daemon brings their calls, which came over the mesh link."""

    async def answer(self, content: bytes, neighbour: bytes, who: Hashable) -> bytes:
        """Return the answer to a neighbour's call; b"" if nothing is let over the mesh link. It raises nothing.

        Args:
            content: the call as the neighbour sent it.
            neighbour: its identity.
            who: its link address. Calls are limited by link address, because new identities cost nothing.
        """
