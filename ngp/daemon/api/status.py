"""Status: a page about the running daemon and one about its Lightning node; keys as in docs/operators-guide.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ngp.daemon.api.rentals import LettingStatus
from ngp.daemon.api.rows import ChannelRow, RouteRow, WatchRow


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Packets that wait for a contract, and packets that were dropped instead."""

    held: int
    dropped: int


@dataclass(frozen=True, slots=True)
class PaymentStatus:
    """The payment node. `on_their_way`: number of payments whose outcome isn't known."""

    module: str
    ready: bool
    why_not: str | None
    network: str
    real_money: bool
    on_their_way: int


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """Whether the ledger can be written."""

    writable: bool
    why_not: str | None


@dataclass(frozen=True, slots=True)
class NotToppedUp:
    """An account with running contracts that isn't topped up."""

    neighbour: str
    role: str
    why_not: str


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts since the start, by reason or name."""

    messages_ignored: Mapping[str, int]
    core: Mapping[str, int]
    kernel: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Status:
    """State of the daemon. `letting` is None while nothing is let.

    `upstream_load` is between 0 and 1; 0 if prices don't depend on it, as it isn't measured then.
    """

    version: str
    uptime_s: int
    identity: str
    interfaces: tuple[str, ...]
    upstream_interfaces: tuple[str, ...]
    lan_interfaces: tuple[str, ...]
    upstream_load: float
    queue: QueueStatus
    datapath: Mapping[str, str]
    payment: PaymentStatus
    ledger: LedgerStatus
    contracts: int
    neighbours: int
    not_topped_up: tuple[NotToppedUp, ...]
    routes: tuple[RouteRow, ...]
    letting: LettingStatus | None
    counters: Counters


@dataclass(frozen=True, slots=True)
class LightningStatus:
    """Our Lightning node, its channels and watchtowers, and advice on the channels with neighbours."""

    module: str
    node: str
    network: str
    ready: bool
    why_not: str | None
    block: int
    synced: bool
    balance_msat: int
    channels: tuple[ChannelRow, ...]
    watchtowers: WatchRow
    advice: tuple[str, ...]
