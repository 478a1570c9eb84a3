"""Layout: the meter's tables in bytes, as meter.h has them. Native byte order; addresses as on the wire.

meter.h's LAYOUT and this one's grow together; a running meter with another number is never adopted.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_network

from ngp.core.messages import Prefix, Role
from ngp.ports import FreeRule

LAYOUT = 5
CONFIG, CONTRACTS, LABELS = "ngp_config", "ngp_contracts", "ngp_labels"
NEIGHBOURS, INTERFACES, HINTS, COUNTERS = "ngp_neighbours", "ngp_interfaces", "ngp_hints", "ngp_counters"
EARLY, LANES = "ngp_early", "ngp_lanes"
HOSTS = {4: "ngp_hosts4", 6: "ngp_hosts6"}
PREFIXES = {4: "ngp_prefixes4", 6: "ngp_prefixes6"}
FREE = {4: "ngp_free4", 6: "ngp_free6"}
TABLES = (
    *(CONFIG, CONTRACTS, LABELS, NEIGHBOURS, INTERFACES, HINTS, COUNTERS),
    *(*HOSTS.values(), *PREFIXES.values(), *FREE.values()),
    *(LANES, "ngp_asked", EARLY, "ngp_strangers", "ngp_returning", "ngp_waiting"),
)

SELLS, BUYS, LAYER3 = 1, 2, 64
FAMILY = {4: 4, 6: 8}
FREE_FLAG = {4: 16, 6: 32}
OFFERS_FLAG = {4: 1 << 12, 6: 1 << 13}
OWN_SERVICES_FLAG = 1 << 14
PREFIXES_FLAGS = 0xF00
MESH, UPSTREAM, LINK_ADDRESSES, MADE_CLSACT = 1, 2, 4, 8
BUYS_FROM_US, SELLS_TO_US, SHUT_OUT, HAS_PAID = 1, 2, 4, 8
ROLE = {Role.SERVER: 0, Role.CLIENT: 1}
ROLE_OF = {number: role for role, number in ROLE.items()}

# Words of a contract's line.
GRANTED, EXPIRES_NS, LOW_WATER, TAG, USED, USED_TO, REFUSED, LINE_WORDS = 0, 1, 2, 3, 4, 5, 6, 8
LINE_BYTES = 64
VALID, BLOCKED = 1, 2
GENERATION_MASK = 0xFFFFFF

# id; what the counters showed, less what the contract had used already, when it took its slot; destination; generation.
LABEL = struct.Struct("=16sqqq16sBBBxI")
ENTRY = struct.Struct("=II")
OWN_ENTRY = ENTRY.pack(0xFFFFFFFF, 0)
NEIGHBOUR = struct.Struct("=IIQQ")
HINT = struct.Struct("=IIQ")
EARLY_KEY = struct.Struct("=I16s")
EARLY_VALUE = struct.Struct("=QQQQ")
LANE = struct.Struct("=QQ512x")
STRANGERS_LANE, NEWCOMERS_LANE = 0, 0xFFFFFFFF
CONFIG_TAIL = struct.Struct("=IHHQQQQQQQQ")
_LINK = struct.Struct("=I6s")
_FREE_HEAD = struct.Struct("=II")
_SERVICES_MAX = 8
_RATED = 0x100
_THIS_HOST: tuple[Prefix, ...] = (ip_network("127.0.0.1"), ip_network("::1"))  # nothing from a link is bound for these


class Counter(IntEnum):
    """The kernel's own counters, in packets (LANE_BYTES: bytes)."""

    REFUSED_DEPLETED = 0
    REFUSED_EXPIRED = 1
    REFUSED_BLOCKED = 2
    UNCOVERED = 3
    PASSED_TO_QUEUE = 4
    ASKED_BEFORE = 5
    OVER_RATE = 6
    CONTENDED = 7
    HINTS_LOST = 8
    LANE_BYTES = 9
    LANE_OVER_RATE = 10


def prefixes_flag(role: Role, version: int) -> int:
    """Return the config flag that says there are contracts for more than a host."""
    return 1 << (8 + 2 * ROLE[role] + (version == 6))


def link_key(ifindex: int, link_address: bytes) -> bytes:
    """Return a neighbour's place on its link, 10 bytes; the MAC is zero where there are none."""
    return _LINK.pack(ifindex, link_address.ljust(6, b"\0"))


def read_link_key(link: bytes) -> tuple[int, bytes]:
    """Return (interface index, MAC) of a link key."""
    ifindex, link_address = _LINK.unpack_from(link)
    return ifindex, link_address


def neighbour_key(link: bytes) -> bytes:
    """Return the key of the neighbour table."""
    return link + b"\0\0"


def host_key(link: bytes, role: Role, address: bytes) -> bytes:
    """Return the key of a host's contract."""
    return link + ROLE[role].to_bytes(2, sys.byteorder) + address


def prefix_key(number: int, role: Role, address: bytes, bits: int) -> bytes:
    """Return the key of a prefix's contract."""
    return struct.pack("=II", 32 + bits, number | ROLE[role] << 31) + address


def is_host(prefix: Prefix) -> bool:
    """Say whether a prefix is one address."""
    return prefix.prefixlen == prefix.max_prefixlen


def read_prefix(version: int, address: bytes, bits: int) -> Prefix:
    """Return the destination of a label."""
    return IPv4Network((address[:4], bits)) if version == 4 else IPv6Network((address, bits))


def address_bytes(prefix: Prefix) -> bytes:
    """Return a prefix's first address."""
    return prefix.network_address.packed


def free_tables(
    free: tuple[FreeRule, ...], services: tuple[FreeRule, ...], own: tuple[FreeRule, ...] = ()
) -> dict[int, dict[bytes, bytes]]:
    """Flatten FREE_DESTINATIONS and PAYMENT_SERVICES, whose protocols are marked.

    The kernel finds only the longest prefix, so each says what its wider ones say too.

    Args: own: services of this host, which stand under its loopback address in both families, whichever was written.
    Returns: for each family, key -> value.
    Raises: ValueError with the prefix, when more than 8 protocol and port pairs meet on one.
    """
    services = (*services, *(replace(rule, prefix=host) for rule in own for host in _THIS_HOST))
    found: dict[int, dict[bytes, bytes]] = {4: {}, 6: {}}
    for prefix in {rule.prefix for rule in (*free, *services)}:
        pairs = sorted({(rule.protocol or 0, rule.port or 0) for rule in free if _covers(rule.prefix, prefix)})
        everything = (0, 0) in pairs
        pairs = [] if everything else pairs
        rated = {(_RATED | (rule.protocol or 0), rule.port or 0) for rule in services if rule.prefix == prefix}
        pairs += sorted(rated)
        if len(pairs) > _SERVICES_MAX:
            where = "this router" if prefix in _THIS_HOST else prefix
            raise ValueError(f"{where} has {len(pairs)} services, and {_SERVICES_MAX} are the most for one host")
        packed = b"".join(port.to_bytes(2, "big") + protocol.to_bytes(2, sys.byteorder) for protocol, port in pairs)
        value = _FREE_HEAD.pack(everything, len(pairs)) + packed.ljust(4 * _SERVICES_MAX, b"\0")
        found[prefix.version][struct.pack("=I", prefix.prefixlen) + address_bytes(prefix)] = value
    return found


def _covers(wide: Prefix, narrow: Prefix) -> bool:
    return (
        wide.version == narrow.version
        and wide.prefixlen <= narrow.prefixlen
        and int(wide.network_address) == int(narrow.network_address) & int(wide.netmask)
    )
