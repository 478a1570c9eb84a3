"""Owners: which tenant has which network. No two tenants' networks overlap.

WireGuard itself would give the network, or the smaller of two networks that overlap, to the tenant that came last, and
say nothing. So ngp checks this before each change.
"""

from __future__ import annotations

from base64 import b64encode
from bisect import bisect_left
from collections.abc import Iterable

from ngp.core.messages import Prefix
from ngp.core.rental.tunnel import TunnelPeer
from ngp.errors import KernelError

_Span = tuple[int, int, int]  # version, first and last address


class Owners:
    """Tenants by public key; a change that would make networks overlap is refused as a whole."""

    def __init__(self, peers: Iterable[TunnelPeer] = ()) -> None:
        self.peers: dict[bytes, TunnelPeer] = {}
        self._spans: list[_Span] = []  # sorted
        self._owners: dict[_Span, TunnelPeer] = {}
        self.add(peers)

    def add(self, peers: Iterable[TunnelPeer]) -> None:
        """Add tenants or change them. Raises KernelError naming both tenants; then nothing has changed."""
        wanted = {peer.wireguard_key: peer for peer in peers}
        before = [self.peers[key] for key in wanted if key in self.peers]
        self.remove(wanted)
        try:
            for peer in wanted.values():
                self._add(peer)
        except KernelError:
            self.remove(wanted)
            for peer in before:
                self._add(peer)
            raise

    def remove(self, keys: Iterable[bytes]) -> None:
        """Remove tenants; unknown ones are ignored."""
        for key in keys:
            peer = self.peers.pop(key, None)
            for span in map(_span, peer.networks if peer else ()):
                if self._owners.get(span) is peer:
                    del self._owners[span]
                    del self._spans[bisect_left(self._spans, span)]

    def _add(self, peer: TunnelPeer) -> None:
        self.peers[peer.wireguard_key] = peer
        for network in peer.networks:
            span = _span(network)
            at = bisect_left(self._spans, span)
            for other in self._spans[max(at - 1, 0) : at + 1]:
                if other[0] == span[0] and other[1] <= span[2] and span[1] <= other[2]:
                    self._refuse(network, peer, self._owners[other])
            self._spans.insert(at, span)
            self._owners[span] = peer

    @staticmethod
    def _refuse(network: Prefix, peer: TunnelPeer, owner: TunnelPeer) -> None:
        theirs = next(each for each in owner.networks if each.version == network.version and each.overlaps(network))
        raise KernelError(
            f"network {network} of tenant {key_text(peer.wireguard_key)}: tenant {key_text(owner.wireguard_key)} has "
            f"{theirs}; the tunnel was left as it was"
        )


def key_text(key: bytes) -> str:
    """Return a public key as WireGuard's tools write it. Pure."""
    return b64encode(key).decode()


def _span(network: Prefix) -> _Span:
    return network.version, int(network.network_address), int(network.broadcast_address)
