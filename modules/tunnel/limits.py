"""Limits: a tenant's rate limits in the tunnel's table, changed one tenant at a time.

nft reads all of a table's limits and networks before each change, which takes a tenth of a second with a thousand
tenants, and the daemon's loop waits meanwhile. So these changes go straight to the kernel, each in one transaction. The
rest of the table is written by nft, once (`rules.py`).

Source: linux/netfilter/nf_tables.h, nfnetlink.h
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ngp.core.messages import Prefix
from ngp.core.rental.tunnel import TunnelPeer
from ngp.modules import netlink
from ngp.modules.netlink import Asker, Order, attribute, nested, text_attribute
from ngp.modules.tunnel.rules import BURST_BYTES, HEADER, NFTABLES, TABLE_NAME, WAYS, limit_name

_NEW_ELEMENTS, _DELETE_ELEMENTS, _NEW_OBJECT, _DELETE_OBJECT = (NFTABLES << 8 | number for number in (12, 14, 18, 20))
_BEGIN, _END = 0x10, 0x11
_BATCH = struct.pack("!BBH", 0, 0, NFTABLES)
_LIMIT, _BYTES, _OVER = 4, 1, 1
_INTERVAL_END = 1


def change(before: TunnelPeer | None, after: TunnelPeer | None) -> None:
    """Replace a tenant's limits, completely or not at all. Raises OSError."""
    orders = [order for peer in [before] if peer for order in _remove(peer)]
    orders += [order for peer in [after] if peer for order in _add(peer)]
    if orders:
        begin, end = ((kind, 0, _BATCH) for kind in (_BEGIN, _END))
        with Asker(netlink.NETFILTER) as kernel:
            kernel.transact(begin, orders, end)


def _add(peer: TunnelPeer) -> Iterator[Order]:
    if peer.rate_bytes_s is not None:
        limit = nested(
            4,
            attribute(1, struct.pack("!Q", peer.rate_bytes_s)),
            attribute(2, struct.pack("!Q", 1)),  # second
            attribute(3, struct.pack("!I", BURST_BYTES)),
            attribute(4, struct.pack("!I", _BYTES)),
            attribute(5, struct.pack("!I", _OVER)),
        )
        for way in WAYS:
            yield _NEW_OBJECT, netlink.CREATE | netlink.EXCLUSIVE, _object(peer, way) + limit
            for network in peer.networks:
                reference = text_attribute(9, limit_name(peer, way))
                yield _NEW_ELEMENTS, netlink.CREATE | netlink.EXCLUSIVE, _elements(way, network, reference)


def _remove(peer: TunnelPeer) -> Iterator[Order]:
    if peer.rate_bytes_s is not None:
        for way in WAYS:
            for network in peer.networks:
                yield _DELETE_ELEMENTS, 0, _elements(way, network, b"")
            yield _DELETE_OBJECT, 0, _object(peer, way)


def _object(peer: TunnelPeer, way: str) -> bytes:
    name = text_attribute(2, limit_name(peer, way))
    return HEADER + TABLE_NAME + name + attribute(3, struct.pack("!I", _LIMIT))


def _elements(way: str, network: Prefix, reference: bytes) -> bytes:
    """Write an interval: its first address, and the first address after it, unless there is none."""
    bounds = [nested(1, nested(1, attribute(1, network.network_address.packed)), reference)]
    if int(network.broadcast_address) + 1 < 1 << network.max_prefixlen:
        after = (network.broadcast_address + 1).packed
        bounds.append(nested(1, nested(1, attribute(1, after)), attribute(3, struct.pack("!I", _INTERVAL_END))))
    name = text_attribute(2, f"{way}{network.version}")
    return HEADER + TABLE_NAME + name + nested(3, *bounds)
