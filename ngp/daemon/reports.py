"""Reports: the rows that listings show, the same whether they come from the running daemon or from the ledger alone.

Keys are those of docs/operators-guide.md and stay. Money is msat, data bytes, times ISO 8601 UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ngp import identity
from ngp.core.account import Account
from ngp.core.channels import Channel, Watch
from ngp.core.contract import Contract
from ngp.core.messages import Role
from ngp.core.records import (
    AccountRecord,
    ContractRecord,
    Direction,
    JournalRecord,
    PaymentKind,
    PaymentRecord,
    PaymentState,
)

Row = dict[str, Any]


def iso(utc_s: int) -> str | None:
    """Write a UTC instant, or None for one that never was."""
    return datetime.fromtimestamp(utc_s, UTC).isoformat().replace("+00:00", "Z") if utc_s else None


def contract_row(record: ContractRecord, real_money: bool) -> Row:
    """Return the row of a contract."""
    row = {
        "id": record.contract.hex(),
        "role": record.role.value,
        "neighbour": identity.text(record.identity),
        "interface": record.interface,
        "link_address": record.link_address.hex(":"),
        "destination": record.destination,
        "state": record.state,
        "reason": record.reason,
        "price_msat_per_gib": record.prices[-1][1],
        "data_limit_bytes": record.data_limit_bytes,
        "granted_bytes": record.granted_bytes,
        "used_to_bytes": record.used_to_bytes,
        "used_from_bytes": record.used_from_bytes,
        "charged_msat": record.charged_msat,
        "opened_at": iso(record.opened_at_s),
        "expires_at": iso(record.expires_at_s),
        "closed_at": iso(record.closed_at_s),
        "real_money": real_money,
    }
    if record.role is Role.CLIENT:
        row["billed_bytes"] = record.billed_bytes
    return row


def live_contract_row(contract: Contract, real_money: bool) -> Row:
    """Return the row of a contract that the daemon holds, with its present rate."""
    row = contract_row(contract.record(), real_money)
    row["rate_bytes_s"] = int(contract.rate_bytes_s)
    return row


def channel_row(channel: Channel, neighbour: bytes | None, why_not: Sequence[str]) -> Row:
    """Return the row of a channel of our node; what isn't known is None.

    Args:
        neighbour: whose node the peer is; None where no neighbour announced it.
        why_not: why it doesn't suit; empty: it does, if it is a neighbour's.
    """
    return {
        "neighbour": identity.text(neighbour) if neighbour else None,
        "peer": channel.peer,
        "channel": channel.point,
        "state": str(channel.state),
        "blocks_left": channel.blocks_left,
        "active": channel.active,
        "private": channel.private,
        "capacity_sat": channel.capacity_sat,
        "can_send_sat": channel.can_send_sat,
        "can_receive_sat": channel.can_receive_sat,
        "least_payment_msat": channel.least_htlc_msat or None,
        "our_csv_delay_blocks": channel.our_wait_blocks or None,
        "their_csv_delay_blocks": channel.their_wait_blocks or None,
        "suits": not why_not if why_not or neighbour else None,
        "why_not": "; ".join(why_not) or None,
    }


def watch_row(watch: Watch) -> Row:
    """Return what is known of the node's watchtowers."""
    return {
        "active": watch.active,
        "unknown": watch.unknown or None,
        "backups": watch.backups,
        "pending_backups": watch.pending_backups,
        "failed_backups": watch.failed_backups,
        "towers": [
            {
                "tower": tower.key,
                "addresses": list(tower.addresses),
                "used": tower.used,
                "sessions": tower.sessions,
                "backups": tower.backups,
                "pending_backups": tower.pending_backups,
            }
            for tower in watch.towers
        ],
    }


def blocked_row(who: bytes) -> Row:
    """Describe a blocked neighbour that is on no link, as `ngp neighbours` does those that are."""
    nothing = ("interface", "link_address", "address", "network", "same_network", "sells", "buys")
    return {
        "neighbour": identity.text(who),
        **dict.fromkeys(nothing),
        "up": False,
        "blocked": True,
        "lane_bytes": 0,
        "last_seen": None,
    }


def by_destination(rows: Iterable[Row]) -> list[Row]:
    """Sum contract rows for each role and destination."""
    sums: dict[tuple[str, str], Row] = {}
    for row in rows:
        total = sums.setdefault(
            (row["role"], row["destination"]),
            {
                "role": row["role"],
                "destination": row["destination"],
                "contracts": 0,
                "used_to_bytes": 0,
                "used_from_bytes": 0,
                "charged_msat": 0,
                "real_money": row["real_money"],
            },
        )
        total["contracts"] += 1
        for key in ("used_to_bytes", "used_from_bytes", "charged_msat"):
            total[key] += row[key]
    return list(sums.values())


def account_row(
    account: Account, grace_data_bytes: int, real_money: bool, on_its_way: Sequence[PaymentRecord] = ()
) -> Row:
    """Return the row of an account that the daemon holds. Args: on_its_way: our payments whose end isn't known."""
    return {
        "role": account.role.value,
        "neighbour": identity.text(account.identity),
        "balance_msat": account.balance_msat,
        "reserved_msat": max(0, account.reserved_msat),
        "grace_left_bytes": max(0, grace_data_bytes - account.grace_bytes_in_use) if account.role is Role.SERVER else 0,
        "paid_msat": account.paid_msat,
        "charged_msat": account.charged_msat,
        "refunded_msat": account.refunded_msat,
        **_on_its_way(on_its_way),
        "billed_msat": account.billed_msat,
        "metered_msat": account.metered_msat if account.role is Role.CLIENT else account.charged_msat,
        "contracts": account.running,
        "disputed": account.disputed,
        "why_not": account.why_not or None,
        "real_money": real_money,
    }


def stored_account_row(record: AccountRecord, real_money: bool, on_its_way: Sequence[PaymentRecord] = ()) -> Row:
    """Return the row of an account out of the ledger, when no daemon runs. Args: as for `account_row`."""
    return {
        "role": record.role.value,
        "neighbour": identity.text(record.identity),
        "balance_msat": record.paid_msat - record.charged_msat - record.refunded_msat,
        "reserved_msat": 0,
        "grace_left_bytes": 0,
        "paid_msat": record.paid_msat,
        "charged_msat": record.charged_msat,
        "refunded_msat": record.refunded_msat,
        **_on_its_way(on_its_way),
        "billed_msat": record.billed_msat,
        "metered_msat": record.metered_msat if record.role is Role.CLIENT else record.charged_msat,
        "contracts": 0,
        "disputed": record.disputed,
        "why_not": None,
        "real_money": real_money,
    }


def on_their_way(payments: Iterable[PaymentRecord]) -> Mapping[tuple[bytes, Role], Sequence[PaymentRecord]]:
    """Find our payments whose end isn't known, by account: top-ups as a client, refunds as a server."""
    found: dict[tuple[bytes, Role], list[PaymentRecord]] = {}
    for one in payments:
        if one.direction is Direction.OUT and one.state is PaymentState.PENDING:
            role = Role.SERVER if one.kind is PaymentKind.REFUND else Role.CLIENT
            found.setdefault((one.identity, role), []).append(one)
    return found


def _on_its_way(payments: Sequence[PaymentRecord]) -> Row:
    since = min((one.created_at_s for one in payments), default=0)
    return {"on_its_way_msat": sum(one.amount_msat for one in payments), "on_its_way_since": iso(since)}


def journal_row(record: JournalRecord, real_money: bool) -> Row:
    """Return the row of a journal line."""
    return {
        "time": iso(record.time_s),
        "kind": record.kind,
        "neighbour": identity.text(record.identity) if record.identity else None,
        "contract": record.contract.hex() or None,
        "amount_msat": record.amount_msat,
        "payment_hash": record.payment_hash.hex() or None,
        "state": record.state,
        "real_money": real_money,
    }
