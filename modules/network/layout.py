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
from ngp.core.services import SERVICES_A_HOST, free_at, room_for_services
from ngp.ports import FreeRule

LAYOUT = 6
CONFIG, CONTRACTS, LABELS = "ngp_config", "ngp_contracts", "ngp_labels"
NEIGHBOURS, INTERFACES, HINTS, COUNTERS = "ngp_neighbours", "ngp_interfaces", "ngp_hints", "ngp_counters"
EARLY, LANES, UPPERS = "ngp_early", "ngp_lanes", "ngp_uppers"
HOSTS = {4: "ngp_hosts4", 6: "ngp_hosts6"}
PREFIXES = {4: "ngp_prefixes4", 6: "ngp_prefixes6"}
FREE = {4: "ngp_free4", 6: "ngp_free6"}
TABLES = (
    *(CONFIG, CONTRACTS, LABELS, NEIGHBOURS, INTERFACES, HINTS, COUNTERS),
    *(*HOSTS.values(), *PREFIXES.values(), *FREE.values()),
    *(LANES, UPPERS, "ngp_asked", EARLY, "ngp_strangers", "ngp_returning", "ngp_waiting"),
)

SELLS, BUYS, LAYER3 = 1, 2, 64
FAMILY = {4: 4, 6: 8}
FREE_FLAG = {4: 16, 6: 32}
OFFERS_FLAG = {4: 1 << 12, 6: 1 << 13}
OWN_SERVICES_FLAG = 1 << 14
HAS_UPPERS = 1 << 15
PREFIXES_FLAGS = 0xF00
MESH, LAN, LINK_ADDRESSES, MADE_CLSACT = 1, 2, 4, 8
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

    Services for which there is no room (`left_out`) aren't there: which addresses are ours, and so how many services
    meet under one, changes as the daemon runs, and the gate may not depend on it.

    Args: own: services of this host, which stand under its loopback address in both families, whichever was written.
    Returns: for each family, key -> value.
    """
    services = _placed(services, own)
    found: dict[int, dict[bytes, bytes]] = {4: {}, 6: {}}
    for prefix in {rule.prefix for rule in (*free, *services)}:
        here = free_at(prefix, free)
        pairs = sorted((rule.protocol or 0, rule.port or 0) for rule in here)
        everything = (0, 0) in pairs
        pairs = [] if everything else pairs[:SERVICES_A_HOST]
        rated = list(_rated(prefix, services))[: max(0, room_for_services(here))]
        pairs += sorted((_RATED | (protocol or 0), port or 0) for protocol, port in rated)
        packed = b"".join(port.to_bytes(2, "big") + protocol.to_bytes(2, sys.byteorder) for protocol, port in pairs)
        value = _FREE_HEAD.pack(everything, len(pairs)) + packed.ljust(4 * SERVICES_A_HOST, b"\0")
        found[prefix.version][struct.pack("=I", prefix.prefixlen) + address_bytes(prefix)] = value
    return found


def left_out(
    free: tuple[FreeRule, ...], services: tuple[FreeRule, ...], own: tuple[FreeRule, ...]
) -> tuple[FreeRule, ...]:
    """Return the services for which `free_tables` has no room, the last ones of their host, as they were written."""
    placed = _placed(services, own)
    crowd = {
        (prefix, pair)
        for prefix in {rule.prefix for rule in placed}
        for pair in list(_rated(prefix, placed))[max(0, room_for_services(free_at(prefix, free))) :]
    }
    missing = [rule for rule in services if (rule.prefix, (rule.protocol, rule.port)) in crowd]
    missing += [rule for rule in own if any((host, (rule.protocol, rule.port)) in crowd for host in _THIS_HOST)]
    return tuple(missing)


def _placed(services: tuple[FreeRule, ...], own: tuple[FreeRule, ...]) -> tuple[FreeRule, ...]:
    return (*services, *(replace(rule, prefix=host) for rule in own for host in _THIS_HOST))


def _rated(prefix: Prefix, services: tuple[FreeRule, ...]) -> dict[tuple[int | None, int | None], None]:
    """Return the payment services at a prefix, each pair once, in order."""
    return dict.fromkeys((rule.protocol, rule.port) for rule in services if rule.prefix == prefix)
