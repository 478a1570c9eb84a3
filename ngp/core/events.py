"""Events: all that can happen to the core. The time is passed along with each event; the core has no clock.

Held packets, settlements and outcomes of payments are events too; their classes are in `kernel` and `payment_node`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ngp.core.channels import Channel
from ngp.core.kernel import AccountReading, Fork, HeldPacket, Hint, MeshRoutes, Onward, Reading
from ngp.core.messages import Message, Prefix, StatementLine
from ngp.core.payment_node import DecodedInvoice, PaymentOutcome, Settlement
from ngp.core.records import PaymentKind
from ngp.core.rental.events import RentalEvent
from ngp.core.settings import Settings


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A neighbour's message, its signature and sequence already checked.

    `decoded` belongs to an Invoice, or to a Refund with an invoice: the payment module's reading of its BOLT11 string.
    `sends_to` belongs to a Propose: the part of its destination to which our traffic goes through this neighbour.
    `onward` belongs to an Ask: where packets to an address of its destination (`prefixes.sample`) go on from here.
    `sends_all` belongs to a Propose: whether our default route leads through this neighbour. It is False unless
    BUY_DEFAULT_ROUTE is set.
    `routes` belongs to an Ask for a default route that leads into the mesh: our routes there, as they are now; empty if
    they were told a moment ago.
    """

    identity: bytes
    link: tuple[str, bytes]
    boot: int
    message: Message
    message_id: int
    decoded: DecodedInvoice | None = None
    sends_to: Prefix | None = None
    onward: Onward = Onward()
    sends_all: bool = False
    routes: tuple[MeshRoutes, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadSeen:
    """The load of the upstream interface was measured, in millionths of what it carries."""

    load_ppm: int


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A message was not acknowledged in time."""

    identity: bytes
    link: tuple[str, bytes]
    message: Message


@dataclass(frozen=True, slots=True)
class Delivered:
    """The neighbour acknowledged a message that `delivery.wants_receipt` names, so it has stored the contents."""

    identity: bytes
    link: tuple[str, bytes]
    message: Message


@dataclass(frozen=True, slots=True)
class BillsRecalled:
    """A page of what `RecallBills` asked for, in the order of closing.

    `after`: (time of closing, id) of the page's last contract; the next page begins after it. None: no page follows.
    """

    identity: bytes
    lines: tuple[StatementLine, ...]
    after: tuple[int, bytes] | None


@dataclass(frozen=True, slots=True)
class UsageRead:
    """The kernel's cumulative counters of some contracts and accounts."""

    readings: tuple[Reading, ...]
    accounts: tuple[AccountReading, ...] = ()


@dataclass(frozen=True, slots=True)
class Hinted:
    """The kernel says that contracts or accounts run low or ran out.

    A `UsageRead` with the contracts that the hints name comes before this event. If a hint names an account, that
    `UsageRead` has all contracts that changed.
    """

    hints: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class Halted:
    """No packet of a contract passes any more.

    `reading`: the kernel's last reading of it; None: the kernel had no such contract.
    """

    contract: bytes
    reading: Reading | None


@dataclass(frozen=True, slots=True)
class AccountCounted:
    """What `CountAccount` asked for.

    `spent_units` was read first. Then the packets on their way left the meter, and only then `readings` were taken, so
    they contain all bytes that `spent_units` paid for.
    """

    account: bytes
    spent_units: int
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class InvoiceMade:
    """Our payment node made the invoice that `MakeInvoice` asked for, or the operator credited a sandbox account.

    Attributes:
        preimage: of a hold invoice; b"": the invoice is an ordinary one.
    """

    identity: bytes
    kind: PaymentKind
    bolt11: str
    payment_hash: bytes
    amount_msat: int
    expires_in_s: int
    preimage: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class InvoiceFailed:
    """Our payment node could not make an invoice."""

    identity: bytes
    kind: PaymentKind
    why: str


@dataclass(frozen=True, slots=True)
class InvoiceCancelled:
    """Our payment node cancelled an invoice of ours, so nobody can pay it any more."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class ChannelsSeen:
    """Our payment node's channels as they are now; they are read now and then, and after payments."""

    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: the core does what is due by now."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The daemon is about to stop in good order: say goodbye to the neighbours and write everything down."""


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The operator reloaded net.conf. Running contracts keep their terms."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class ForksSeen:
    """The host's routes were looked at, at the start or after a change; only with CHOOSE_ROUTES."""

    forks: tuple[Fork, ...]


@dataclass(frozen=True, slots=True)
class RoutesSeen:
    """The host's routes into the mesh were looked at, after a change; only while a default route is resold."""

    routes: tuple[MeshRoutes, ...]


@dataclass(frozen=True, slots=True)
class RoutesLookedUp:
    """Where the traffic of contracts goes on from here, by the contracts' ids. Answers `LookUpRoutes`."""

    onward: tuple[tuple[bytes, Onward], ...]


@dataclass(frozen=True, slots=True)
class UnsoldSeen:
    """The kernel's counter of bytes that came from the mesh and were dropped, as their receivers hadn't bought them.

    It is read each second while a default route is resold.
    """

    counted_bytes: int


@dataclass(frozen=True, slots=True)
class LossesSeen:
    """Such bytes, by the purchases by which they came, since the last such event. See `Network.unsold_by_purchase`.

    What is in `UnsoldSeen` was told by such events before.
    """

    by_purchase: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class BlockNeighbour:
    """The operator blocks or unblocks a neighbour."""

    identity: bytes
    blocked: bool


@dataclass(frozen=True, slots=True)
class RefundNeighbour:
    """The operator gives a client's prepaid balance back."""

    identity: bytes


@dataclass(frozen=True, slots=True)
class AskRefund:
    """The operator wants back what we prepaid with a server."""

    identity: bytes


Event = (
    MessageReceived
    | Undelivered
    | Delivered
    | BillsRecalled
    | HeldPacket
    | UsageRead
    | Hinted
    | Halted
    | AccountCounted
    | InvoiceMade
    | InvoiceFailed
    | InvoiceCancelled
    | Settlement
    | ChannelsSeen
    | LoadSeen
    | PaymentOutcome
    | Tick
    | Stopping
    | SettingsChanged
    | ForksSeen
    | RoutesSeen
    | RoutesLookedUp
    | UnsoldSeen
    | LossesSeen
    | BlockNeighbour
    | RefundNeighbour
    | AskRefund
    | RentalEvent
)
