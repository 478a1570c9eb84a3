"""Layout: the meter's tables in bytes, as meter.h has them. Native byte order; addresses as on the wire.

Raise LAYOUT here and in meter.h together, and add an entry to BOOKS. A running meter with another LAYOUT is never
adopted: what its contracts used is charged, and the contracts are made anew in new tables.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import ip_network
from typing import NamedTuple

from ngp.core.messages import Address, Prefix, Role
from ngp.core.prefixes import PackedPrefix
from ngp.ports.network import FreeRule
from ngp.ports.services import SERVICES_A_HOST, free_at, room_for_services

LAYOUT = 14
TABLES_BEGIN, GATE_PROGRAMS_BEGIN = "ngp_", "xt_"
CONFIG, CONTRACTS, LABELS = "ngp_config", "ngp_contracts", "ngp_labels"
ACCOUNTS, IDENTITIES = "ngp_accounts", "ngp_identities"
NEIGHBOURS, INTERFACES, HINTS, COUNTERS = "ngp_neighbours", "ngp_interfaces", "ngp_hints", "ngp_counters"
EARLY, LANES, UPPERS, INSIDE = "ngp_early", "ngp_lanes", "ngp_uppers", "ngp_inside"
FLOWS, PLACES = "ngp_flows", "ngp_places"
OURS, HELD_FOR, SENT, UNSOLD = "ngp_ours", "ngp_held_for", "ngp_sent", "ngp_unsold"
MOST_OURS = 4096
HOSTS = {4: "ngp_hosts4", 6: "ngp_hosts6"}
PREFIXES = {4: "ngp_prefixes4", 6: "ngp_prefixes6"}
FREE = {4: "ngp_free4", 6: "ngp_free6"}
ELSEWHERE = {4: "ngp_elsewhere4", 6: "ngp_elsewhere6"}
TABLES = (
    *(CONFIG, CONTRACTS, LABELS, ACCOUNTS, IDENTITIES, NEIGHBOURS, INTERFACES, HINTS, COUNTERS),
    *(*HOSTS.values(), *PREFIXES.values(), *FREE.values(), *ELSEWHERE.values()),
    *(
        LANES,
        UPPERS,
        FLOWS,
        PLACES,
        OURS,
        HELD_FOR,
        "ngp_sent",
        "ngp_asked",
        EARLY,
        INSIDE,
        UNSOLD,
        "ngp_strangers",
        "ngp_returning",
        "ngp_leaders",
        "ngp_waiting",
    ),
)

SELLS, BUYS, LAYER3 = 1, 2, 64
FAMILY = {4: 4, 6: 8}
FREE_FLAG = {4: 16, 6: 32}
OFFERS_FLAG = {4: 1 << 12, 6: 1 << 13}
OWN_SERVICES_FLAG = 1 << 14
HAS_UPPERS = 1 << 15
REWRITES = 1 << 16
SEVERAL_LINKS = 1 << 17
ALONE = 1 << 18
NOTHING_BOUGHT = 1 << 19
PREFIXES_FLAGS = 0xF00
MESH, LAN, LINK_ADDRESSES, MADE_CLSACT = 1, 2, 4, 8
BUYS_FROM_US, SELLS_TO_US, SHUT_OUT, HAS_PAID, WAS_PAID = 1, 2, 4, 8, 16
ROLE = {Role.SERVER: 0, Role.CLIENT: 1}
ROLE_OF = {number: role for role, number in ROLE.items()}

# The words of a contract's line and of an account's line; the kernel writes those from KERNEL_WORDS on.
LIMIT, EXPIRES_NS, LOW_WATER, TAG, PRICE, USED, USED_TO, MARK = range(8)
CREDIT, CREDIT_UNTIL_NS, ACCOUNT_LOW_WATER, ACCOUNT_TAG, SPENT, RETURNED = 1, 2, 3, 4, 5, 6
KERNEL_WORDS, LINE_WORDS, LINE_BYTES = 5, 8, 64
ORDERS = struct.Struct("=5Q")  # the words of a contract's line that user space writes
VALID, BLOCKED, WIDE, DEFAULT_ROUTE, RESOLD = 1, 2, 4, 8, 16
GENERATION_MASK, FLAGS_MASK = 0xFFFFFF, 0xFF
NO_ACCOUNT = 0
WORD_MASK = (1 << 64) - 1
NEVER_NS, _ENDLESS_S = (1 << 63) - 1, 1e9
_MARK_FACTOR = 0x9E3779B97F4A7C15

LABEL = struct.Struct("=16sqq16sIBBBxI4x")  # the fields of a `Label`
LABEL_BASE_TO_AT, LABEL_NEIGHBOUR_AT = 16, 48
# Identity; what the slot's counters showed as spent when the account got the slot; the account's limit / 2^32, which
# shows how often the words have wrapped; generation of the slot.
IDENTITY = struct.Struct("=32sQqI12x")
IDENTITY_LIMIT_AT = 40
ENTRY = struct.Struct("=II")
OWN_ENTRY = ENTRY.pack(0xFFFFFFFF, 0)
ELSEWHERE_VALUE = struct.pack("=I", 1)
NEIGHBOUR = struct.Struct("=IIIIQQ12s4x")
FLOW_MEMORY, FLOW_PLACE = struct.Struct("=IIQ"), struct.Struct("=II")
FLOW_NS = 600 * 10**9
FLOWS_MOST = 1 << 19
TENANTS_LINK = bytes(10)  # tenants have no links: the tunnel vouches for their addresses
OUR_FLOWS, STRANGERS_FLOWS = 0, 0xFFFFFFFF  # payers that aren't neighbours
HINT = struct.Struct("=IIQ")
INSIDE_KEY, INSIDE_VALUE = struct.Struct("=II16s"), struct.Struct("=QQ")
EARLY_KEY = struct.Struct("=I16s")
EARLY_VALUE = struct.Struct("=QQQQ")
LANE = struct.Struct("=QQQ520x")
STRANGERS_LANE, NEWCOMERS_LANE = 0, 0xFFFFFFFF
CONFIG_TAIL = struct.Struct("=IHBBQQQQQQQQQQQ")
CONFIG_FLOWS_BITS_AT = 14
_LINK = struct.Struct("=I6s")
_FREE_HEAD = struct.Struct("=II")
_RATED = 0x100
_MARK_BYTES = 8
_THIS_HOST: tuple[Prefix, ...] = (ip_network("127.0.0.1"), ip_network("::1"))  # no packet from a link goes there


class Counter(IntEnum):
    """The kernel's own counters. They count packets, except for HINTS_LOST and those whose names end with BYTES."""

    REFUSED_EXHAUSTED = 0  # the contract's data was used up
    REFUSED_EXPIRED = 1  # the contract's time was over
    REFUSED_BLOCKED = 2  # the destination is refused for the moment, or the contract is being closed
    UNCOVERED = 3  # towards a neighbour: not covered by a contract, forged, or an ICMP error over its limit
    PASSED_TO_QUEUE = 4  # held for the daemon
    ASKED_BEFORE = 5  # not held, as enough packets to the same destination are held already
    OVER_RATE = 6  # not held, as a neighbour, or all strangers, sent to too many new destinations
    CONTENDED = 7  # dropped, as other processors changed the sum at each attempt to charge them
    HINTS_LOST = 8  # hints for which the ring buffer had no room
    LANE_BYTES = 9  # bytes that passed in lanes
    LANE_OVER_RATE = 10  # dropped, as their lane had no room
    REFUSED_UNPAID = 11  # the account had neither money nor credit left; UNPAID_RATE may still let the packet pass
    UNPAID_BYTES = 12  # bytes that passed uncharged by UNPAID_RATE
    UNPAID_OVER_RATE = 13  # dropped, as UNPAID_RATE had no room
    UNSOLD_BYTES = 14  # bytes that came from the mesh, so that we paid for them, to a neighbour that didn't buy them


class Label(NamedTuple):
    """A contract's label. A counter of the slot minus its base is what the contract has used.

    Attributes:
        base_to, base_from: the bases of two counters: bytes to the destination, and bytes from it.
        address: the destination's first address, packed and filled up to 16 bytes. bits: its prefix length.
        number: the neighbour's number.
        role: ours, as in ROLE.
        generation: that of the slot.
    """

    contract: bytes
    base_to: int
    base_from: int
    address: bytes
    number: int
    bits: int
    version: int
    role: int
    generation: int

    @property
    def destination(self) -> PackedPrefix:
        """The destination."""
        return PackedPrefix(self.version, self.bits, self.address[:4] if self.version == 4 else self.address)

    @property
    def is_host(self) -> bool:
        """Whether the destination is one address."""
        return self.bits == (32 if self.version == 4 else 128)


def make_tag(
    generation: int,
    slot: int = NO_ACCOUNT,
    blocked: bool = False,
    wide: bool = False,
    default_route: bool = False,
    resold: bool = False,
) -> int:
    """Return the tag of a slot in use.

    Args:
        slot: for a contract, the slot of the account that pays for it.
        wide: its bytes are counted by address too. default_route: it is for 0.0.0.0/0 or ::/0.
        resold: a default route that we buy ourselves.
    """
    flags = VALID | BLOCKED * blocked | WIDE * wide | DEFAULT_ROUTE * default_route | RESOLD * resold
    return flags | generation << 8 | slot << 32


def generation_of(tag: int) -> int:
    """Return the generation in a tag: a number for the use of a slot to which the tag belongs."""
    return tag >> 8 & GENERATION_MASK


def next_generation(generation: int) -> int:
    """Return the generation of a slot's next use. It is never 0, since an unused table is all zeroes."""
    return generation % GENERATION_MASK + 1


def instant_ns(now_ns: int, in_s: float) -> int:
    """Return the kernel's time `in_s` seconds from now; 0, which is always past, if `in_s` is 0 or less.

    `now_ns` itself wouldn't do for "at once": the programs' clock is up to a tick behind ours, so to them `now_ns` is
    still in the future.
    """
    if in_s <= 0:
        return 0
    return now_ns + int(in_s * 1e9) if in_s < _ENDLESS_S else NEVER_NS


def mark_of(limit: int, tag: int) -> int:
    """Return the mark that the kernel writes when a packet meets this limit (`mark_of` in charge.h)."""
    return limit ^ (generation_of(tag) * _MARK_FACTOR & WORD_MASK)


def signed(difference: int) -> int:
    """Return the signed value of a difference of two words that wrap: between -2^63 and 2^63."""
    return (difference + (1 << 63) & WORD_MASK) - (1 << 63)


@dataclass(frozen=True, slots=True)
class Books:
    """Books: where in the tables of a LAYOUT to find what the contracts used, so that later versions can charge it.

    Some things are the same in every LAYOUT, so Books don't have them. All tables' names begin with TABLES_BEGIN. In
    `ngp_config` the lower half of the second word is the LAYOUT itself, and the lowest four bits of the first word are
    SELLS, BUYS and the IP versions. `ngp_interfaces` has the flags of each mesh interface. A contract is in use if the
    lowest bit of its line's tag is set.

    Attributes:
        contracts, labels: names of tables.
        line_words: the number of words, of 8 bytes, in a contract's line.
        tag, limit, used, used_to: the places of these words in a line; a limit of 0 lets nothing more pass.
        label: a label's fields. The first are the contract's id, the base of `used_to`, and the base of `used` -
            `used_to` (a counter minus its base is what the contract has used).
    """

    contracts: str
    labels: str
    line_words: int
    tag: int
    limit: int
    used: int
    used_to: int
    label: struct.Struct


_BOOKS_7 = Books(
    contracts="ngp_contracts",
    labels="ngp_labels",
    line_words=8,
    tag=3,
    limit=0,
    used=5,
    used_to=6,
    label=struct.Struct("=16sqq16sIBBBxI4x"),
)
BOOKS = {7: _BOOKS_7, 8: _BOOKS_7, 9: _BOOKS_7, 10: _BOOKS_7, 11: _BOOKS_7, 12: _BOOKS_7, 13: _BOOKS_7, 14: _BOOKS_7}
"""Books by LAYOUT. Never change or remove an entry: `former.last_readings` reads the tables of old versions by it."""


def prefixes_flag(role: Role, version: int) -> int:
    """Return the flag in ngp_config that says that there are contracts for prefixes of several addresses."""
    return 1 << (8 + 2 * ROLE[role] + (version == 6))


def link_key(ifindex: int, link_address: bytes) -> bytes:
    """Return the key of a neighbour's link, 10 bytes; the MAC is zero on interfaces without MACs."""
    return _LINK.pack(ifindex, link_address.ljust(6, b"\0"))


def neighbour_key(link: bytes) -> bytes:
    """Return the key of the neighbour table."""
    return link + b"\0\0"


def host_key(link: bytes, role: Role, address: bytes) -> bytes:
    """Return the key of a destination that is a single address. Args: link: from `link_key`; address: packed."""
    return link + ROLE[role].to_bytes(2, sys.byteorder) + address


def prefix_key(number: int, role: Role, address: bytes, bits: int) -> bytes:
    """Return the key of a destination that is a prefix. Args: number: that of the neighbour's first link."""
    return struct.pack("=II", 32 + bits, number | ROLE[role] << 31) + address


def elsewhere_key(prefix: Prefix) -> bytes:
    """Return the key of a prefix that a resold default route doesn't cover."""
    return struct.pack("=I", prefix.prefixlen) + address_bytes(prefix)


def our_key(address: Address) -> bytes:
    """Return the key of an address of this host."""
    return struct.pack("=I16s", address.version == 6, address.packed)


def held_key(link: bytes, payload: bytes) -> bytes | None:
    """Return the key of a held packet, the same that `hold` in meter.bpf.c makes. Pure; takes hostile bytes.

    Args: payload: the packet, from its IP header on.
    Returns: None if the kernel makes no key for such a packet.
    """
    version = payload[0] >> 4 if payload else 0
    transport = (payload[0] & 15) * 4 if version == 4 else 40
    if version not in (4, 6) or len(payload) < max(20, transport):
        return None
    source, protocol = (payload[12:16], payload[9]) if version == 4 else (payload[8:24], payload[6])
    mark = payload[transport + (4 if protocol == socket.IPPROTO_TCP else 8) :][:_MARK_BYTES]
    mark = mark if len(mark) == _MARK_BYTES else bytes(_MARK_BYTES)
    return neighbour_key(link) + source.ljust(16, b"\0") + mark


def is_host(prefix: Prefix) -> bool:
    """Say whether a prefix is one address."""
    return prefix.prefixlen == prefix.max_prefixlen


def address_bytes(prefix: Prefix) -> bytes:
    """Return a prefix's first address."""
    return prefix.network_address.packed


def free_tables(
    free: tuple[FreeRule, ...], services: tuple[FreeRule, ...], own: tuple[FreeRule, ...] = ()
) -> dict[int, dict[bytes, bytes]]:
    """Return the entries of the tables of free destinations, which have the payment services too (flag _RATED).

    Services for which there is no room (see `left_out`) aren't entered. That is no error: how many services this host
    has depends on its addresses, which change while the daemon runs.

    Args: own: services of this host. They are entered under its loopback addresses, 127.0.0.1 and ::1.
    Returns: by IP version, the entries' values by their keys.
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
    """Return the services for which `free_tables` has no room: at each host, those that net.conf names last."""
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
    """Return the protocols and ports of the payment services at a prefix, in order, each pair once."""
    return dict.fromkeys((rule.protocol, rule.port) for rule in services if rule.prefix == prefix)
