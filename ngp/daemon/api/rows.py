"""Rows: the answers of the api, the same whether they come from the running daemon or from the ledger alone.

The field names are the JSON keys in docs/operators-guide.md and don't change. Money is msat, data bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ngp import identity
from ngp.core.buying.account import ServerAccount
from ngp.core.channels import Channel
from ngp.core.contract import Contract
from ngp.core.messages import MARK_BYTES, Prefix, Role
from ngp.core.records import (
    AccountRecord,
    ContractRecord,
    Direction,
    JournalRecord,
    PaymentKind,
    PaymentRecord,
    PaymentState,
)
from ngp.core.selling.account import ClientAccount
from ngp.core.values import Check
from ngp.daemon.api.plain import instant, when_known
from ngp.ports.network import HostBytes
from ngp.ports.payment import Watch

AccountKey = tuple[bytes, Role]


# --- contracts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContractRow:
    """A contract. `billed_bytes` is None unless we buy, `rate_bytes_s` unless a running daemon has the contract."""

    id: str
    role: str
    neighbour: str
    interface: str
    link_address: str
    destination: str
    state: str
    reason: str
    price_msat_per_gib: int
    data_limit_bytes: int
    used_to_bytes: int
    used_from_bytes: int
    charged_msat: int
    opened_at: datetime | None
    expires_at: datetime | None
    closed_at: datetime | None
    real_money: bool
    rests_on: str | None
    hops: int
    billed_bytes: int | None = when_known()
    rate_bytes_s: int | None = when_known()


def contract_row(found: Contract | ContractRecord, real_money: bool, now_mono_s: float = 0.0) -> ContractRow:
    """Return the row of a contract of the daemon, or of one in the ledger.

    Args: now_mono_s: the present time, for a contract of the daemon, whose rate falls while nothing is carried.
    """
    record = found.record() if isinstance(found, Contract) else found
    return ContractRow(
        id=record.contract.hex(),
        role=record.role.value,
        neighbour=identity.text(record.identity),
        interface=record.interface,
        link_address=record.link_address.hex(":"),
        destination=record.destination,
        state=record.state,
        reason=record.reason,
        price_msat_per_gib=record.prices[-1][1] if record.prices else 0,  # a rental's period has none
        data_limit_bytes=record.data_limit_bytes,
        used_to_bytes=record.used_to_bytes,
        used_from_bytes=record.used_from_bytes,
        charged_msat=record.charged_msat,
        opened_at=instant(record.opened_at_s),
        expires_at=instant(record.expires_at_s),
        closed_at=instant(record.closed_at_s),
        real_money=real_money,
        rests_on=record.rests_on.hex() or None,
        hops=max(1, len(record.path) // MARK_BYTES),
        billed_bytes=record.billed_bytes if record.role is Role.CLIENT else None,
        rate_bytes_s=int(found.rate.at(now_mono_s)) if isinstance(found, Contract) else None,
    )


@dataclass(slots=True)
class DestinationRow:
    """Sums over the contracts of one role for one destination."""

    role: str
    destination: str
    contracts: int
    used_to_bytes: int
    used_from_bytes: int
    charged_msat: int
    real_money: bool
    top: tuple[HostRow, ...] = ()


@dataclass(frozen=True, slots=True)
class HostRow:
    """What contracts for several addresses carried to and from one of them, as far as the kernel remembers it."""

    address: str
    used_to_bytes: int
    used_from_bytes: int


MOST_TOP = 20


def by_destination(
    rows: Iterable[ContractRow], inside: Mapping[bytes, Sequence[HostBytes]] | None = None
) -> list[DestinationRow]:
    """Sum contracts for each role and destination.

    Args: inside: what was carried to single addresses within contracts, by contract; None: that isn't known.
    """
    sums: dict[tuple[str, str], DestinationRow] = {}
    hosts: dict[tuple[str, str], dict[str, HostRow]] = {}
    for row in rows:
        key = row.role, row.destination
        total = sums.setdefault(key, DestinationRow(*key, 0, 0, 0, 0, row.real_money))
        total.contracts += 1
        total.used_to_bytes += row.used_to_bytes
        total.used_from_bytes += row.used_from_bytes
        total.charged_msat += row.charged_msat
        for host in (inside or {}).get(bytes.fromhex(row.id or ""), ()):
            ours, address = hosts.setdefault(key, {}), str(host.address)
            had = ours.get(address, HostRow(address, 0, 0))
            to_bytes, from_bytes = had.used_to_bytes + host.used_to_bytes, had.used_from_bytes + host.used_from_bytes
            ours[address] = HostRow(address, to_bytes, from_bytes)
    for key, found in hosts.items():
        by_bytes = sorted(found.values(), key=lambda one: one.used_to_bytes + one.used_from_bytes, reverse=True)
        sums[key].top = tuple(by_bytes[:MOST_TOP])
    return list(sums.values())


# --- accounts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account: paid = charged + refunded + balance, always. Only a tenant's has `networks`, which it rents."""

    role: str
    neighbour: str
    balance_msat: int
    reserved_msat: int
    grace_left_bytes: int
    paid_msat: int
    charged_msat: int
    refunded_msat: int
    on_its_way_msat: int
    on_its_way_since: datetime | None
    billed_msat: int
    metered_msat: int
    contracts: int
    disputed: bool
    why_not: str | None
    real_money: bool
    networks: tuple[str, ...] | None = when_known()


def account_row(
    found: ClientAccount | ServerAccount | AccountRecord,
    real_money: bool,
    on_its_way: Sequence[PaymentRecord] = (),
    grace_data_bytes: int = 0,
    networks: Sequence[Prefix] = (),
) -> AccountRow:
    """Return the row of an account of the daemon, or of one in the ledger when no daemon runs.

    Args:
        on_its_way: our payments whose outcome isn't known.
        grace_data_bytes: the credit that a neighbour may have; only for an account of the daemon.
        networks: what a tenant rents. A tenant's identity is its rental's, and it has no grace.
    """
    live = None if isinstance(found, AccountRecord) else found
    client = found if isinstance(found, ClientAccount) else None
    bill = found if isinstance(found, AccountRecord) else found.record()
    return AccountRow(
        role=found.role.value,
        neighbour=identity.text(found.identity),
        balance_msat=found.paid_msat - found.charged_msat - found.refunded_msat,
        reserved_msat=client.reserved_msat if client else 0,
        grace_left_bytes=client.grace_left_bytes(grace_data_bytes) if client and not networks else 0,
        paid_msat=found.paid_msat,
        charged_msat=found.charged_msat,
        refunded_msat=found.refunded_msat,
        on_its_way_msat=sum(one.amount_msat for one in on_its_way),
        on_its_way_since=instant(min((one.created_at_s for one in on_its_way), default=0)),
        billed_msat=bill.billed_msat,
        metered_msat=_metered_msat(found),
        contracts=live.running if live else 0,
        disputed=bill.disputed,
        why_not=_why_not(live) or None,
        real_money=real_money,
        networks=tuple(map(str, networks)) or None,
    )


def _why_not(live: ClientAccount | ServerAccount | None) -> str:
    if isinstance(live, ServerAccount) and live.missing_msat and not live.why_not:
        return f"the neighbour hasn't credited {live.missing_msat} msat of ours; perhaps it restored an older ledger"
    return live.why_not if live is not None else ""


def _metered_msat(found: ClientAccount | ServerAccount | AccountRecord) -> int:
    """Return the sum by our own meter: up to now for an account of the daemon, up to the last write for a record."""
    if isinstance(found, ClientAccount) or found.role is Role.SERVER:
        return found.charged_msat
    return found.metered_msat


def on_their_way(payments: Iterable[PaymentRecord]) -> Mapping[AccountKey, Sequence[PaymentRecord]]:
    """Return our payments whose outcome isn't known, by account: top-ups as a client, refunds as a server."""
    found: dict[AccountKey, list[PaymentRecord]] = {}
    for one in payments:
        if one.direction is Direction.OUT and one.state is PaymentState.PENDING:
            role = Role.SERVER if one.kind is PaymentKind.REFUND else Role.CLIENT
            found.setdefault((one.identity, role), []).append(one)
    return found


# --- journal and neighbours -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A line of the journal."""

    time: datetime | None
    kind: str
    neighbour: str | None
    contract: str | None
    amount_msat: int
    payment_hash: str | None
    state: str
    real_money: bool


def journal_row(record: JournalRecord, real_money: bool) -> JournalRow:
    """Return the row of a journal line."""
    return JournalRow(
        time=instant(record.time_s),
        kind=record.kind,
        neighbour=identity.text(record.identity) if record.identity else None,
        contract=record.contract.hex() or None,
        amount_msat=record.amount_msat,
        payment_hash=record.payment_hash.hex() or None,
        state=record.state,
        real_money=real_money,
    )


@dataclass(frozen=True, slots=True)
class OfferedRow:
    """What a neighbour asks for a destination."""

    destination: str
    price_msat_per_gib: int


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route that we made, as our choice among several neighbours. `router`: its IP address, if it needs one."""

    destination: str
    interface: str
    router: str | None
    neighbour: str | None


@dataclass(frozen=True, slots=True)
class NeighbourRow:
    """A neighbour on a link, or a blocked one that is on no link, of which most fields are unknown.

    Attributes:
        block_waits: the operator's block or unblock isn't in force yet, because the ledger can't be written.
        why_not_bought: why the last contract that we needed from the neighbour wasn't agreed; None if it was.
        reputation: how far it keeps its word, 0 to 1; a stranger has 0.5.
        why_unpaid: why we pay it nothing more, though we buy from it; None if we pay.
        offers: its prices, asked or paid, of destinations that it is compared by; chosen_for: prefixes to which our
            routes lead through it (CHOOSE_ROUTES).
        quality: how well it carries our traffic, 0 to 1.
    """

    neighbour: str
    interface: str | None = None
    link_address: str | None = None
    address: str | None = None
    network: str | None = None
    same_network: bool | None = None
    sells: bool | None = None
    buys: bool | None = None
    up: bool = False
    blocked: bool = True
    block_waits: bool = False
    lane_bytes: int = 0
    last_seen: datetime | None = None
    why_not_bought: str | None = None
    reputation: float = 0.5
    why_unpaid: str | None = None
    offers: tuple[OfferedRow, ...] = ()
    quality: float | None = None
    chosen_for: tuple[str, ...] = ()


# --- check ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A line of `ngp check`; `kind` says what is wrong, which decides the exit code."""

    name: str
    ok: bool
    found: str
    remedy: str
    kind: str


def check_row(check: Check, kind: str) -> CheckRow:
    """Return the row of a check. Args: kind: used if the check has no kind of its own."""
    return CheckRow(check.name, check.ok, check.found, check.remedy, check.kind or kind)


# --- Lightning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """A channel of our node; unknown fields are None."""

    neighbour: str | None
    peer: str
    channel: str
    state: str
    blocks_left: int
    active: bool
    private: bool
    capacity_sat: int
    can_send_sat: int
    can_receive_sat: int
    least_payment_msat: int | None
    our_csv_delay_blocks: int | None
    their_csv_delay_blocks: int | None
    suits: bool | None
    why_not: str | None


def channel_row(channel: Channel, neighbour: bytes | None, why_not: Sequence[str]) -> ChannelRow:
    """Return the row of a channel.

    Args:
        neighbour: the neighbour whose node the peer is; None if no neighbour announced that node.
        why_not: why the channel doesn't suit; empty if it suits, or if it isn't a neighbour's.
    """
    return ChannelRow(
        neighbour=identity.text(neighbour) if neighbour else None,
        peer=channel.peer,
        channel=channel.point,
        state=str(channel.state),
        blocks_left=channel.blocks_left,
        active=channel.active,
        private=channel.private,
        capacity_sat=channel.capacity_sat,
        can_send_sat=channel.can_send_sat,
        can_receive_sat=channel.can_receive_sat,
        least_payment_msat=channel.least_htlc_msat or None,
        our_csv_delay_blocks=channel.our_wait_blocks or None,
        their_csv_delay_blocks=channel.their_wait_blocks or None,
        suits=not why_not if why_not or neighbour else None,
        why_not="; ".join(why_not) or None,
    )


@dataclass(frozen=True, slots=True)
class TowerRow:
    """A watchtower of our node, and the backups it got."""

    tower: str
    addresses: tuple[str, ...]
    used: bool
    sessions: int
    backups: int
    pending_backups: int


@dataclass(frozen=True, slots=True)
class WatchRow:
    """What is known of the node's watchtowers; `unknown` says why nothing is known."""

    active: bool
    unknown: str | None
    backups: int
    pending_backups: int
    failed_backups: int
    towers: tuple[TowerRow, ...]


def watch_row(watch: Watch) -> WatchRow:
    """Return what is known of the node's watchtowers."""
    return WatchRow(
        active=watch.active,
        unknown=watch.unknown or None,
        backups=watch.backups,
        pending_backups=watch.pending_backups,
        failed_backups=watch.failed_backups,
        towers=tuple(
            TowerRow(one.key, one.addresses, one.used, one.sessions, one.backups, one.pending_backups)
            for one in watch.towers
        ),
    )
