"""Landlord: what letting needs beside the core: the tunnel to the tenants, and the faces by which tenants ask.

The core says who may use the tunnel. If the tunnel can't be changed right now, it is changed as soon as possible. Until
then a new tenant has no service, as WireGuard accepts nobody that wasn't added. A tenant whose traffic is metered gets
its networks only while the kernel has its contracts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ngp import key_file
from ngp.core.effects import Effect, Persist
from ngp.core.events import Event
from ngp.core.host_port import join_host_port
from ngp.core.messages import Address
from ngp.core.rental.effects import AnswerTenant, RemoveTunnelPeer, SetTunnelPeer
from ngp.core.rental.events import TunnelPeerSet, TunnelPeerUnmetered
from ngp.core.rental.pools import FreeNetworks
from ngp.core.rental.records import RentalRecord
from ngp.core.rental.terms import LettingSettings
from ngp.core.rental.tunnel import TunnelPeer
from ngp.core.values import Check
from ngp.daemon.letting import Letting
from ngp.errors import KernelError
from ngp.ports import Face, NeighbourFace, Tunnel
from ngp.ports.letting import DesiredTunnel

KEY_FILE = "tunnel.key"

_log = logging.getLogger("ngp")


def tunnel_key(state_dir: Path) -> X25519PrivateKey:
    """Read the tunnel's private key, or make one. Raises: ConfigError, MomentError."""
    key = key_file.load_or_create(
        state_dir / KEY_FILE,
        "tunnel key",
        "key, which every tenant must be told",
        lambda: X25519PrivateKey.generate().private_bytes_raw(),
    )
    return X25519PrivateKey.from_private_bytes(key)


def desired_tunnel(settings: LettingSettings, private_key: X25519PrivateKey) -> DesiredTunnel:
    """Return what the tunnel should look like."""
    tunnel = settings.tunnel
    assert tunnel is not None
    return DesiredTunnel(
        interface=tunnel.interface,
        port=tunnel.port,
        private_key=private_key.private_bytes_raw(),
        outside=tunnel.outside,
        pools=FreeNetworks(settings.pools).blocks(),
        proxy=tunnel.routing == "proxy",
        kind=tunnel.kind,
        mtu=tunnel.mtu,
    )


def endpoints_of(settings: LettingSettings, addresses: Iterable[Address]) -> tuple[str, ...]:
    """Return where tenants reach the tunnel, `host:port`.

    Args: addresses: used if net.conf names no endpoint, IPv4 first.
    """
    assert settings.tunnel is not None
    port = settings.tunnel.port
    found = settings.endpoints or tuple((str(one), None) for one in sorted(addresses, key=lambda one: one.version))
    return tuple(join_host_port(host, own or port) for host, own in found)


def look(settings: LettingSettings, tunnel: Tunnel, faces: Iterable[Face]) -> list[Check]:
    """Return what is missing for letting, and what tenants must be told; changes nothing.

    Args: tunnel, faces: instances that aren't used for letting; they are only asked what is missing.
    """
    lines = tunnel.check(desired_tunnel(settings, X25519PrivateKey.generate()))  # any key does: it isn't set
    return [*lines, *(line for face in faces for line in face.check(settings))]


class Landlord:
    """Keeps tunnel and faces as net.conf and the core say. Does nothing as long as nothing is let.

    What failed in `apply` is tried again when `apply` is called again, also with the same settings.

    Args:
        tunnel: not set up yet.
        faces: not open yet.
        peers: returns all tenants that the tunnel should have now.
        are_granted: says whether the kernel has all of these contracts.
        tell: receives an event when a tenant whose payment is held until then was added to the tunnel, or couldn't be;
            and when a tenant got no networks, as the kernel doesn't meter it.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        faces: Sequence[Face],
        letting: Letting,
        private_key: X25519PrivateKey,
        peers: Callable[[], Iterable[TunnelPeer]],
        are_granted: Callable[[Sequence[bytes]], bool],
        tell: Callable[[Event], None],
    ) -> None:
        self.tunnel = tunnel
        self.letting = letting
        self._faces = faces
        self._private_key = private_key
        self._peers = peers
        self._are_granted = are_granted
        self._tell = tell
        self._settings: LettingSettings | None = None
        self._is_behind = False

    async def apply(self, settings: LettingSettings | None) -> None:
        """Let as net.conf says now; None: let nothing, and remove the tunnel. Raises: ConfigError, KernelError."""
        if settings is None:
            if self._settings is not None:
                await self._end()
            return
        if settings != self._settings:
            self._set_up(settings)
            self._settings, self._is_behind = settings, False
        for face in self._faces:  # also with the same settings: a face may have failed, or its file may be new
            await face.open(self.letting, settings)

    async def _end(self) -> None:
        for face in self._faces:
            await face.close()
        self.tunnel.clean_up()
        self._settings = None

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Carry out those of a batch's effects that are for tenants; the others are ignored."""
        touched = False
        for effect in effects:
            match effect:
                case SetTunnelPeer():
                    self._set_peer(effect)
                case RemoveTunnelPeer():
                    self._change(lambda key=effect.wireguard_key: self.tunnel.remove_peers([key]))  # type: ignore[misc]
                case AnswerTenant():
                    self.letting.answer(effect)
                case Persist(record=RentalRecord()):
                    pass  # changes nothing at the tunnel, but perhaps somebody waits for this payment
                case _:
                    continue
            touched = True
        if touched:
            self.letting.changed()

    async def answer(self, content: bytes, neighbour: bytes, who: Hashable) -> bytes:
        """Answer a neighbour's call; empty if nothing is let over the mesh link. Args: who: the caller's link."""
        for face in self._faces:
            if isinstance(face, NeighbourFace):
                return await face.answer(content, neighbour, who)
        return b""

    def _set_peer(self, effect: SetTunnelPeer) -> None:
        if effect.held:
            self.catch_up()
        if not effect.held:
            self._change(lambda: self.tunnel.set_peers([self._metered(effect.peer)]))
        elif self._are_granted(effect.peer.contracts):
            why_not = self._change(lambda: self.tunnel.set_peers([effect.peer]))
            self._tell(TunnelPeerSet(effect.held, why_not))
        else:
            self._tell(TunnelPeerSet(effect.held, "the kernel refused to meter it"))

    def _set_up(self, settings: LettingSettings) -> None:
        peers = tuple(self._metered(peer) for peer in self._peers())
        self.tunnel.set_up(desired_tunnel(settings, self._private_key), peers)

    def _metered(self, peer: TunnelPeer) -> TunnelPeer:
        """Return a tenant as the tunnel may have it: without networks if the kernel lacks a contract that meters it."""
        if not peer.networks or self._are_granted(peer.contracts):
            return peer
        self._tell(TunnelPeerUnmetered(peer.wireguard_key))
        return TunnelPeer(peer.wireguard_key, ())

    def _change(self, deed: Callable[[], None]) -> str:
        """Change the tunnel, now or as soon as possible. Returns why it isn't changed now; "" if it is."""
        if self._settings is None or self._is_behind:
            return "the tunnel can't be changed right now"  # `apply` or `catch_up` sets all peers
        try:
            deed()
        except KernelError as error:
            _log.error("the tunnel lacks a change, which is made as soon as possible: %s", error)
            self._is_behind = True
            return str(error)
        return ""

    def catch_up(self) -> None:
        """Make the changes that failed before, and make a tunnel again that was removed; call this now and then."""
        if self._settings is None:
            return
        try:
            if not self._is_behind:
                if self.tunnel.stands():
                    return
                _log.error("the tunnel or its rules are gone: another program removed them; they are made anew")
                self._is_behind = True
            self._set_up(self._settings)
        except KernelError:
            return
        self._is_behind = False
        _log.info("the tunnel has all changes now")

    async def close(self, clean_up: bool) -> None:
        """Close the faces; the tunnel goes on unless it is cleaned up."""
        for face in self._faces:
            await face.close()
        if clean_up:
            self.tunnel.clean_up()
        self.tunnel.close()
