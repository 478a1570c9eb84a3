"""Kernel: what the core and the network module tell each other: orders to the kernel, and readings of its counters.

Plain data; `ngp.ports.network` says what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import NamedTuple

from ngp.core.messages import Address, Prefix, Role
from ngp.core.prefixes import PackedPrefix

LARGEST_PACKET_BYTES = 65_535
"""The largest packet. With an account that can't pay for so much, packets may be refused."""
FULL_PACKET_BYTES = 1500
"""A packet of the usual MTU, as the meter counts it: from the IP header on. A contract with less room than this is as
good as used up. It needs no room for a GSO superpacket: if one is dropped, TCP sends its parts again as packets."""


TENANTS = 0
"""In a tenant's contract, this stands in the place of the neighbour's number. The contract's destination is the
tenant's own network, whose packets in the landlord's tunnel the kernel charges in both directions."""


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    """A neighbour in the kernel's tables.

    Attributes:
        neighbour: a number > 0 chosen by the core, stable while the datapath exists; one for each (interface, link
            address).
        local_addresses: the neighbour's own addresses, which it never charges for as a server; None: it hasn't said
            them since the start, and those that the kernel knows still hold.
        buys_from_us, sells_to_us: whether the kernel must look for contracts that we sell to it, or buy from it.
        blocked: nothing is let through to it, not even to payment services.
        has_paid: the neighbour paid us at least once, so the kernel holds more of its first packets.
        was_paid: we paid the neighbour at least once, so it may hold more of ours.
        identity: the identity on this link. All links of an identity share one contract for each destination.
    """

    neighbour: int
    interface: str
    link_address: bytes
    local_addresses: tuple[Address, ...] | None
    buys_from_us: bool
    sells_to_us: bool
    blocked: bool = False
    has_paid: bool = False
    was_paid: bool = False
    identity: bytes = b""


UNITS_PER_MSAT = 1 << 30
"""The kernel counts money in msat / 2^30, so that bytes x (msat per GiB) is exact and the kernel rounds nothing."""


MOST_UNITS_AHEAD = 1 << 62
"""Most units (4.3 million sat) by which a limit may exceed what an account spent: the kernel subtracts the two as
signed 64-bit numbers."""


@dataclass(frozen=True, slots=True)
class AccountLimit:
    """What a client's contracts may spend together in the kernel. All values are absolute, so repeating them changes
    nothing. Amounts are cumulative since the account's first use in the kernel, in units (see `UNITS_PER_MSAT`).

    Attributes:
        account: the client's identity, 32 bytes, the key.
        limit_units: what may be spent. A limit below what is spent stops the account. A limit that is more than
            MOST_UNITS_AHEAD away from what is spent is taken as exactly so far away.
        credit_units: may be spent above the limit until the credit ends; at most MOST_UNITS_AHEAD count.
        credit_ends_in_s: from now.
        low_water_units: the kernel raises one `account_low` hint when `spent` crosses this count; None: no hint.
    """

    account: bytes
    limit_units: int
    credit_units: int = 0
    credit_ends_in_s: float = 0.0
    low_water_units: int | None = None


@dataclass(frozen=True, slots=True)
class AccountReading:
    """What an account spent in the kernel, cumulative; `exhausted`: its present limit made the kernel drop a packet."""

    account: bytes
    spent_units: int
    exhausted: bool = False


class LastingTerms(NamedTuple):
    """The fields of a `Grant` that don't vary between two grants of an unchanged contract."""

    neighbour: int
    role: Role
    destination: PackedPrefix
    limit_bytes: int
    account: bytes
    price_msat_per_gib: int
    low_water_bytes: int | None
    blocked: bool
    resold: bool


class Grant(NamedTuple):
    """The part of a contract that the kernel knows. All values are absolute, so repeating a grant changes nothing.

    Attributes:
        contract: 16 bytes, the key.
        neighbour: KernelNeighbour.neighbour, or TENANTS.
        role: SERVER: the gate enforces the contract. CLIENT: the meter counts by the same rule and refuses nothing.
        destination: covered prefix.
        account: the client's identity, whose `AccountLimit` the kernel knows already; b"" if we are the client, or if
            nothing may pass (`blocked`).
        price_msat_per_gib: what the account pays for traffic, at most 2^40. Never less than the highest price in the
            schedule for bytes that may still pass.
        limit_bytes: cumulative bytes, both directions, that may pass.
        low_water_bytes: the kernel raises one `low` hint when the cumulative count crosses this; None: no hint.
        expires_in_s: from now; 0 or less blocks at once. The kernel keeps it as an instant of its monotonic clock.
        blocked: drop all packets to this destination in the kernel and never queue them: a remembered refusal, or what
            the contract rests on isn't bought yet.
        resold: a sale of a default route that we buy ourselves: it also covers what goes on to the mesh or comes from
            there, except for the prefixes that `Network.set_elsewhere` names.
        used_to_base_bytes, used_from_base_bytes: where the counters start if the contract is new to the kernel, as
            after a reboot; else ignored.
    """

    contract: bytes
    neighbour: int
    role: Role
    destination: PackedPrefix
    limit_bytes: int
    expires_in_s: float
    account: bytes = b""
    price_msat_per_gib: int = 0
    low_water_bytes: int | None = None
    blocked: bool = False
    resold: bool = False
    used_to_base_bytes: int = 0
    used_from_base_bytes: int = 0


class Reading(NamedTuple):
    """Cumulative counters of one contract: towards the destination and from it.

    `exhausted`: a packet was refused at the contract's present limit.
    """

    contract: bytes
    used_to_bytes: int
    used_from_bytes: int
    exhausted: bool = False

    @property
    def used_bytes(self) -> int:
        """Bytes carried so far, both directions."""
        return self.used_to_bytes + self.used_from_bytes


class AdoptedContract(NamedTuple):
    """A contract found running in the kernel after the daemon died."""

    grant: Grant
    reading: Reading


@dataclass(frozen=True, slots=True)
class AdoptedAccount:
    """An account found in the kernel after the daemon died. What it spent was read before its contracts' counters."""

    limit: AccountLimit
    reading: AccountReading


@dataclass(frozen=True, slots=True)
class Adopted:
    """All that was found in the kernel after the daemon died.

    Attributes:
        at_mono_s: the instant, by the monotonic clock, that `expires_in_s` and `credit_ends_in_s` count from: to read a
            hundred thousand contracts takes a second or two.
        room: slots of the contract table. A table that goes on running may have another size than net.conf says.
    """

    accounts: tuple[AdoptedAccount, ...] = ()
    contracts: tuple[AdoptedContract, ...] = ()
    at_mono_s: float = field(default=0.0, compare=False)
    room: int = field(default=1 << 31, compare=False)


@dataclass(frozen=True, slots=True)
class Router:
    """The next router on a route.

    Attributes:
        interface: a mesh interface.
        link_address: None: the kernel doesn't know it yet, and looks for it.
        address: None on an interface whose other end needs none.
    """

    interface: str
    link_address: bytes | None
    address: Address | None = None

    @property
    def place(self) -> tuple[str, Address | None]:
        """What a route says of the router, so that two routers are the same even if one's link address isn't known."""
        return self.interface, self.address


UNKNOWN_ROUTER = Router("", None)


@dataclass(frozen=True, slots=True)
class Onward:
    """Where packets to a destination go on from here.

    Attributes:
        route: our route, if it leads through a router; None: it doesn't, or isn't known.
        router: the next router, if it is on a mesh interface; None: it isn't.
        inside: routers in the mesh to which our routes to parts of the destination lead; empty if only the way of one
            address was asked for. `UNKNOWN_ROUTER` is among them if these routes couldn't be read.
    """

    route: Prefix | None = None
    router: Router | None = None
    inside: tuple[Router, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshRoutes:
    """This host's routes of one IP version that lead to other routers in the mesh.

    Attributes:
        default: the next router of the default route; None: that isn't one router on a mesh interface.
        others: all other routes of the main table, with their next routers. Of a prefix there may be several.
        is_whole: False if there are more routes than were read.
    """

    version: int
    default: Router | None = None
    others: tuple[tuple[Prefix, Router], ...] = ()
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Fork:
    """A prefix to which the operator's routes lead through several routers in the mesh, so that there is a choice.

    Attributes:
        routers: the next routers, in the order in which the routes prefer them. Those on links that are down are left
            out, so there may be fewer than two.
        chosen: the router of the route that we made; None: the operator's routes lead.
        is_stale: our route must be made anew: the operator's one, of which it is a copy, changed since, or somebody
            removed a rule of ours.
    """

    prefix: Prefix
    routers: tuple[Router, ...]
    chosen: Router | None = None
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class HeldPacket:
    """A packet that no contract covers, and that waits in the kernel's queue.

    Attributes:
        handle: names the packet for one verdict.
        link: (interface, link address) that the packet came from.
        onward: where it would go on from here.
    """

    handle: int
    link: tuple[str, bytes]
    destination: Address
    onward: Onward = Onward()


class Verdict(Enum):
    """What happens to a held packet. REPEAT sends it through the gate again, so that it is charged."""

    REPEAT = "repeat"
    DROP = "drop"
    PROHIBIT = "prohibit"  # drop, and tell the sender by ICMP, rate-limited


class HintKind(StrEnum):
    """Kinds of hints in the kernel's ring buffer; a few hints may be lost."""

    LOW = "low"  # a contract crossed its low-water mark
    EXHAUSTED = "exhausted"  # a packet met its contract's limit
    ACCOUNT_LOW = "account_low"  # an account crossed its low-water mark
    ACCOUNT_EXHAUSTED = "account_exhausted"  # a packet met the account's limit
    UNBOUGHT = "unbought"  # we send a neighbour what we should buy there


@dataclass(frozen=True, slots=True)
class Hint:
    """A contract or an account crossed its low-water mark, or refused a packet at its limit (one hint for each limit).

    UNBOUGHT is different: we send a neighbour traffic for which we should ask it for a contract, as it won't propose
    one by itself.

    Attributes:
        key: the contract's id, or the account's key (the client's identity).
        neighbour, destination: only in UNBOUGHT: to which neighbour we send the traffic, and the traffic's destination.
    """

    kind: HintKind
    key: bytes
    neighbour: int = 0
    destination: Address | None = None
