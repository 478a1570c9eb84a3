"""Values that cross the border between the core and the world: what the kernel is told and says, what payments are.

Plain data; `ngp.ports` says who takes and gives it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from ngp.core.messages import Address, Prefix, Role
from ngp.core.pricing import SAT_MSAT


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
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""


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
        upstream_interfaces: ignored interfaces that carry a default route: traffic from a neighbour out of one of
            these always needs that neighbour's own contract, and traffic from one of these is never passed on to
            a neighbour without one.
        families: subset of {4, 6}.
        sells: put the gate in place. buys: put the client's meter in place.
        free: never charged, either direction.
        services: never charged either, but at a rate for each neighbour, and only who asked there is answered.
        lane_bytes_s: that rate, both directions together, at least 1. lane_burst_bytes: so much at once.
        queue_number: NFQUEUE number.
        link_udp_port: the ngp link itself.
        contracts_max: slots of the contract table; fixed at set-up, a restart of the datapath is needed to change it.
        stranger_rate, stranger_burst: first packets a second handed to the daemon, all unknown neighbours together.
        neighbour_rate, neighbour_burst: the same for each known neighbour.
    """

    mesh_interfaces: tuple[str, ...]
    upstream_interfaces: tuple[str, ...]
    families: frozenset[int]
    sells: bool
    buys: bool
    free: tuple[FreeRule, ...]
    services: tuple[FreeRule, ...]
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
        blocked: nothing is let through to it, not even what it could pay by. has_paid: us, at least once.
    """

    neighbour: int
    interface: str
    link_address: bytes
    local_addresses: tuple[Address, ...]
    buys_from_us: bool
    sells_to_us: bool
    blocked: bool = False
    has_paid: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """The kernel's share of one contract. Absolute values, so that a repeated grant changes nothing.

    Attributes:
        contract: 16 bytes, the key. The first grant of a contract makes its counters start at `used_base_bytes`.
        neighbour: KernelNeighbour.neighbour.
        role: SERVER: the gate enforces. CLIENT: counted by the same rule, and refused nothing.
        destination: covered prefix.
        granted_bytes: cumulative bytes, both directions, that may pass.
        low_water_bytes: cumulative count at whose crossing one `low` hint is raised.
        expires_in_s: from now; 0 or less blocks at once. Held in the kernel as an instant of its monotonic clock.
        blocked: drop everything of this destination in the kernel and never queue it (a refusal that is remembered).
        used_to_base_bytes, used_from_base_bytes: where counting starts when the contract is new to the kernel
            (a restart of the machine), else ignored.
    """

    contract: bytes
    neighbour: int
    role: Role
    destination: Prefix
    granted_bytes: int
    low_water_bytes: int
    expires_in_s: float
    blocked: bool = False
    used_to_base_bytes: int = 0
    used_from_base_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """Cumulative counters of one contract: towards the destination, from it, and bytes refused at the limit."""

    contract: bytes
    used_to_bytes: int
    used_from_bytes: int
    refused_bytes: int


@dataclass(frozen=True, slots=True)
class AdoptedContract:
    """A contract found running in the kernel after the daemon died."""

    grant: Grant
    reading: Reading


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
    DEPLETED = "depleted"


@dataclass(frozen=True, slots=True)
class Hint:
    """A contract crossed its low-water mark or ran out."""

    kind: HintKind
    contract: bytes


@dataclass(frozen=True, slots=True)
class PaymentCapabilities:
    """What a payment module can do; the core adapts.

    Attributes:
        real_money: False for the sandbox; every listing says so.
        settles_by_proof: the module has no network of its own: a preimage handed to `settle_invoice` is the settlement.
        hold_invoices: can hold and settle or cancel later.
        least_amount_msat: smallest invoice it makes (1,000 where only whole sat are possible).
        chosen_preimages: an invoice can be made for a preimage of ours.
        signs: can sign with the node's key.
    """

    real_money: bool
    settles_by_proof: bool
    hold_invoices: bool
    least_amount_msat: int
    chosen_preimages: bool = True
    signs: bool = True


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


class ChannelState(StrEnum):
    """Where a channel is in its life."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


NO_LIMIT_MSAT = 1 << 63


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    """One end of a channel and what it may send by it (BOLT 2, open_channel and update_add_htlc).

    Attributes:
        balance_msat: its part now; what is on its way, and the fee of the commitment, are taken off.
        held_back_msat: of that, what can't be sent: the reserve, and room for the commitment's fee to rise.
        least_htlc_msat, most_htlc_msat: smallest and largest payment that it may send.
        most_in_flight_msat, in_flight_msat: what may be on its way at a time, and what is.
        most_htlcs, htlcs: likewise, their number.
        dust_msat: a payment below it has no output in the commitment: closing the channel while it is on its way gives
            it to the miners.
    """

    balance_msat: int
    held_back_msat: int = 0
    least_htlc_msat: int = 0
    most_htlc_msat: int = NO_LIMIT_MSAT
    most_in_flight_msat: int = NO_LIMIT_MSAT
    in_flight_msat: int = 0
    most_htlcs: int = 483
    htlcs: int = 0
    dust_msat: int = 0


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel of our payment node. What an opening or closing one doesn't tell is 0.

    Attributes:
        peer: public key of the node at the other end, hex.
        point: funding transaction and output, `txid:index`.
        active: payments can go over it now.
        capacity_sat, ours_sat, theirs_sat: its size, and what is whose now.
        least_htlc_msat: smallest payment that goes over it.
        our_wait_blocks: our coins come free so many blocks after we closed it alone (BOLT 2, to_self_delay).
        our_end, their_end: what may be sent and received now.
        their_wait_blocks: the peer's come free so many blocks after it closed it alone; so long can we, or a
            watchtower, answer an old state. 0: the node doesn't say.
        blocks_left: until it is open, or until our coins are free; 0 where nobody knows yet.
    """

    peer: str
    point: str
    active: bool
    private: bool
    capacity_sat: int
    ours_sat: int
    theirs_sat: int
    least_htlc_msat: int
    our_wait_blocks: int
    our_end: ChannelEnd
    their_end: ChannelEnd
    their_wait_blocks: int = 0
    state: ChannelState = ChannelState.OPEN
    blocks_left: int = 0

    @property
    def can_send_sat(self) -> int:
        """What we can pay over it in all, while it is active."""
        return _left_sat(self, self.our_end)

    @property
    def can_receive_sat(self) -> int:
        """What we can be paid over it in all, while it is active."""
        return _left_sat(self, self.their_end)


def _left_sat(channel: Channel, end: ChannelEnd) -> int:
    return max(0, end.balance_msat - end.held_back_msat) // SAT_MSAT if channel.state is ChannelState.OPEN else 0


@dataclass(frozen=True, slots=True)
class Tower:
    """A watchtower that our node knows.

    Attributes:
        key: its public key, hex.
        addresses: `host:port`.
        used: new sessions are made with it.
        sessions: agreed with it; a backup needs one.
        backups, pending_backups: states that it has, and that it was sent or waits to be sent.
    """

    key: str
    addresses: tuple[str, ...]
    used: bool
    sessions: int
    backups: int
    pending_backups: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Who watches the chain for us.

    Attributes:
        active: the node's watchtower client runs; without it no tower can be added.
        towers: those that it knows.
        backups, pending_backups: states handed to towers, and waiting for it, since the node's start.
        failed_backups: states that no tower can punish, since what it could take is too small.
        unknown: why none of this is known (a right that is missing), "" where it is.
    """

    active: bool = False
    towers: tuple[Tower, ...] = ()
    backups: int = 0
    pending_backups: int = 0
    failed_backups: int = 0
    unknown: str = ""

    @property
    def watched(self) -> bool:
        """Whether a tower takes our backups."""
        return any(tower.used and tower.sessions for tower in self.towers)


@dataclass(frozen=True, slots=True)
class ChainView:
    """What our payment node sees of the chain: its height, and whether that is the newest block."""

    height: int
    synced: bool


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
