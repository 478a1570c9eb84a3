"""Values that cross the border between the core and the world: what the kernel is told and says, what payments are.

Plain data; `ngp.ports` says who takes and gives it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from ngp.core.messages import Address, Prefix, Role

FULL_PACKET_BYTES = 1500
"""A packet of the usual MTU, as the meter counts it: from the IP header on. Of a GSO superpacket that a contract has no
room for TCP sends the parts again, one by one, so nothing larger must fit."""


@dataclass(frozen=True, slots=True)
class LinkPeer:
    """A neighbour as the link knows it: an interface and a link-level address, with where to send the answer.

    Attributes:
        interface: name of the interface.
        link_address: MAC, 6 bytes; empty on layer-3 interfaces (WireGuard, ipip, tun), which have none.
        transport: the module's own return address (`192.0.2.1`, `fe80::1%eth0`, a MAC); not part of the identity.
    """

    interface: str
    link_address: bytes
    transport: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `ngp check`: what was looked at, what was found, and the command that mends it.

    One that is ok and has a remedy is a warning: ngp works, and something is to be thought about.

    Attributes:
        kind: what is at fault, which decides the exit code, where that isn't the part that was looked at
            (`configuration`: net.conf); else "".
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What of ours is in the kernel, whoever put it there: a daemon that runs or was killed, or `ngp stop`.

    Attributes:
        meter: traffic is counted and cut. sells: it was set up to sell, so there should be a gate.
        gate: the firewall asks the meter about what neighbours send.
        closed: the firewall drops what is forwarded from or to the mesh interfaces (WHEN_STOPPED: closed).
    """

    meter: bool = False
    sells: bool = False
    gate: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class FreeRule:
    """Traffic that costs nothing: a prefix, optionally one protocol (IP protocol number) and one port there.

    A payment service is one too, of one address, protocol and port.
    """

    prefix: Prefix
    protocol: int | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class DesiredNetwork:
    """What the kernel should look like while the daemon runs; `apply` makes it so, as often as it is called.

    Attributes:
        mesh_interfaces: gated and metered; existing names.
        lan_interfaces: ours, behind this router. All that are neither mesh nor LAN are upstream: traffic from a
            neighbour out of one of these always needs that neighbour's own contract, and traffic from one of these is
            never passed on to a neighbour without one.
        upstream_interfaces: those of them that lead somewhere now.
        families: subset of {4, 6}.
        sells: put the gate in place. buys: put the client's meter in place.
        free: never charged, either direction.
        services: never charged either, but at a rate for each neighbour, and only who asked there is answered.
        own_services: those on this host: what a neighbour exchanges with their ports, at whichever of our addresses,
            is held to the same rate.
        lane_bytes_s: that rate, both directions together, at least 1. lane_burst_bytes: so much at once.
        queue_number: NFQUEUE number.
        link_udp_port: the ngp link itself.
        contracts_max: slots of the contract table; fixed at set-up, a restart of the datapath is needed to change it.
        stranger_rate, stranger_burst: first packets a second handed to the daemon, all unknown neighbours together.
        neighbour_rate, neighbour_burst: the same for each known neighbour.
    """

    mesh_interfaces: tuple[str, ...]
    lan_interfaces: tuple[str, ...]
    upstream_interfaces: tuple[str, ...]
    families: frozenset[int]
    sells: bool
    buys: bool
    free: tuple[FreeRule, ...]
    services: tuple[FreeRule, ...]
    own_services: tuple[FreeRule, ...]
    lane_bytes_s: int
    lane_burst_bytes: int
    queue_number: int
    link_udp_port: int
    contracts_max: int
    stranger_rate: int
    stranger_burst: int
    neighbour_rate: int
    neighbour_burst: int


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    """A neighbour in the kernel's tables.

    Attributes:
        neighbour: a number > 0 chosen by the core, stable while the datapath stands; one for each (interface, link
            address).
        local_addresses: the neighbour's own addresses, which its server role never charges.
        buys_from_us, sells_to_us: which lookups make sense.
        blocked: nothing is let through to it, not even what it could pay by.
        has_paid: us, at least once. was_paid: by us, at least once. Of either, more first packets are held.
    """

    neighbour: int
    interface: str
    link_address: bytes
    local_addresses: tuple[Address, ...]
    buys_from_us: bool
    sells_to_us: bool
    blocked: bool = False
    has_paid: bool = False
    was_paid: bool = False


UNITS_PER_MSAT = 1 << 30
"""The kernel counts money in msat / 2^30, so that bytes x (msat per GiB) is exact and nothing is rounded there."""

MOST_UNITS_AHEAD = 1 << 62
"""What may stand ahead of an account's `spent`, at most: differences are signed, and 2^64 units are 17 million sat."""


@dataclass(frozen=True, slots=True)
class AccountLimit:
    """What a client's contracts may spend together in the kernel. Absolute values, so that a repeated one changes
    nothing. Amounts are cumulative, in units (see `UNITS_PER_MSAT`), from the account's first use in the kernel on.

    Attributes:
        account: the client's identity, 32 bytes, the key.
        limit_units: may be spent; lower than what is spent stops the account. No more than MOST_UNITS_AHEAD above or
            below what is spent: what is beyond is cut off, of the credit too.
        credit_units: may be spent above the limit until the credit ends. credit_ends_in_s: from now.
        low_water_units: count of `spent` at whose crossing one `account_low` hint is raised; None: at none.
    """

    account: bytes
    limit_units: int
    credit_units: int = 0
    credit_ends_in_s: float = 0.0
    low_water_units: int | None = None


@dataclass(frozen=True, slots=True)
class AccountReading:
    """What an account spent in the kernel, cumulative; `exhausted`: a packet was refused at its present limit."""

    account: bytes
    spent_units: int
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """The kernel's share of one contract. Absolute values, so that a repeated grant changes nothing.

    Attributes:
        contract: 16 bytes, the key. The first grant of a contract makes its counters start at `used_base_bytes`.
        neighbour: KernelNeighbour.neighbour.
        role: SERVER: the gate enforces. CLIENT: counted by the same rule, and refused nothing.
        destination: covered prefix.
        account: the client's identity, whose `AccountLimit` the kernel knows already; b"" where we are the client, or
            nothing may pass (`blocked`).
        price_msat_per_gib: what a byte costs the account, at most 2^40. Never below what the schedule of prices asks
            for a byte that may still pass.
        limit_bytes: cumulative bytes, both directions, that may pass.
        low_water_bytes: cumulative count at whose crossing one `low` hint is raised; None: at none.
        expires_in_s: from now; 0 or less blocks at once. Held in the kernel as an instant of its monotonic clock.
        blocked: drop everything of this destination in the kernel and never queue it (a refusal that is remembered).
        used_to_base_bytes, used_from_base_bytes: where counting starts when the contract is new to the kernel
            (a restart of the machine), else ignored.
    """

    contract: bytes
    neighbour: int
    role: Role
    destination: Prefix
    limit_bytes: int
    expires_in_s: float
    account: bytes = b""
    price_msat_per_gib: int = 0
    low_water_bytes: int | None = None
    blocked: bool = False
    used_to_base_bytes: int = 0
    used_from_base_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """Cumulative counters of one contract: towards the destination and from it.

    `exhausted`: a packet was refused at the limit that it has now.
    """

    contract: bytes
    used_to_bytes: int
    used_from_bytes: int
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class AdoptedContract:
    """A contract found running in the kernel after the daemon died."""

    grant: Grant
    reading: Reading


@dataclass(frozen=True, slots=True)
class AdoptedAccount:
    """An account found in the kernel after the daemon died; `spent` was read before its contracts were."""

    limit: AccountLimit
    reading: AccountReading


@dataclass(frozen=True, slots=True)
class Adopted:
    """All that was found in the kernel after the daemon died."""

    accounts: tuple[AdoptedAccount, ...] = ()
    contracts: tuple[AdoptedContract, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldPacket:
    """A packet that waits in the queue for a contract; `handle` is good for one verdict."""

    handle: int
    interface: str
    link_address: bytes
    source: Address
    destination: Address
    length_bytes: int
    route: Prefix | None = None


class Verdict(Enum):
    """What becomes of a held packet. REPEAT sends it through the gate again, so that it is charged."""

    REPEAT = "repeat"
    DROP = "drop"
    PROHIBIT = "prohibit"  # drop, and tell the sender by ICMP, rate-limited


class HintKind(StrEnum):
    """What the kernel's ring buffer tells; hints only, a few may be lost."""

    LOW = "low"
    EXHAUSTED = "exhausted"
    ACCOUNT_LOW = "account_low"
    ACCOUNT_EXHAUSTED = "account_exhausted"


@dataclass(frozen=True, slots=True)
class Hint:
    """A contract or an account crossed its low-water mark, or a packet met its limit (once a limit).

    `key` is the contract's, or the account's (the client's identity).
    """

    kind: HintKind
    key: bytes


@dataclass(frozen=True, slots=True)
class PaymentCapabilities:
    """What a payment module can do; the core adapts.

    Attributes:
        real_money: False for the sandbox; every listing says so.
        settles_by_proof: the module has no network of its own: a preimage handed to `settle_invoice` is the settlement.
        least_amount_msat: smallest invoice it makes (1,000 where only whole sat are possible).
    """

    real_money: bool
    settles_by_proof: bool
    least_amount_msat: int


@dataclass(frozen=True, slots=True)
class PaymentInfo:
    """The node behind the module: its public key and the network it is on.

    Attributes:
        addresses: `host:port` where others reach it, as it announces itself; they may change, and it is still the same.
    """

    account_id: str
    network: str
    addresses: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class NewInvoice:
    """An invoice that we made."""

    bolt11: str
    payment_hash: bytes
    amount_msat: int
    expires_in_s: int


class InvoiceState(StrEnum):
    """State of an invoice of ours."""

    OPEN = "open"
    ACCEPTED = "accepted"
    SETTLED = "settled"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Settlement:
    """An invoice of ours was paid; `cursor` resumes the stream behind it. May come twice."""

    cursor: int
    payment_hash: bytes
    amount_msat: int


@dataclass(frozen=True, slots=True)
class DecodedInvoice:
    """What a BOLT11 string of somebody else says."""

    payment_hash: bytes
    amount_msat: int | None
    expires_in_s: int
    payee: str
    network: str
    memo: str


class PaymentStatus(StrEnum):
    """Outcome of a payment of ours. PENDING stays pending until the node says otherwise: never pay again on it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PENDING = "pending"


UNKNOWN_PAYMENT = "unknown"
"""The reason of a failure where the node never heard of the payment."""


@dataclass(frozen=True, slots=True)
class PaymentOutcome:
    """What became of a payment; preimage and fee when it succeeded, the reason when it failed."""

    payment_hash: bytes
    status: PaymentStatus
    preimage: bytes = b""
    fee_msat: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Now:
    """One instant on both clocks: UTC seconds for records, monotonic seconds for intervals."""

    utc_s: int
    monotonic_s: float
