"""Records for tests of the ledger. Each builder takes only the fields that a test needs."""

from __future__ import annotations

import hashlib
from typing import Any

from ngp.core.messages import Role
from ngp.core.records import (
    AccountRecord,
    ContractRecord,
    Direction,
    JournalRecord,
    NeighbourRecord,
    PaymentKind,
    PaymentRecord,
    PaymentState,
)
from ngp.core.rental.records import RentalRecord

NOW = 1_800_000_000
DAY = 86_400
ALICE = b"A" * 32
BOB = b"B" * 32


def preimage(number: int) -> bytes:
    return hashlib.sha256(b"preimage %d" % number).digest()


def payment_hash(number: int) -> bytes:
    return hashlib.sha256(preimage(number)).digest()


def contract_id(number: int) -> bytes:
    return hashlib.sha256(b"contract %d" % number).digest()[:16]


def neighbour(identity: bytes = ALICE, **changes: Any) -> NeighbourRecord:
    values: dict[str, Any] = {
        "identity": identity, "interface": "mesh0", "link_address": b"\x02\0\0\0\0\1", "boot": 1, "sells": True,
        "buys": False, "first_seen_s": NOW, "last_seen_s": NOW,
    }  # fmt: skip
    return NeighbourRecord(**{**values, **changes})


def account(identity: bytes = ALICE, role: Role = Role.SERVER, **changes: Any) -> AccountRecord:
    values: dict[str, Any] = {
        "identity": identity, "role": role, "paid_msat": 0, "charged_msat": 0, "refunded_msat": 0,
        "grace_until_s": 0, "billed_msat": 0,
    }  # fmt: skip
    return AccountRecord(**{**values, **changes})


def contract(number: int, identity: bytes = ALICE, role: Role = Role.SERVER, **changes: Any) -> ContractRecord:
    values: dict[str, Any] = {
        "contract": contract_id(number), "role": role, "identity": identity, "interface": "mesh0",
        "link_address": b"\x02\0\0\0\0\1", "destination": "2001:db8::/64",
        "state": "active", "reason": "", "prices": ((0, 5 << 20), (4096, 6 << 20)),
        "data_limit_bytes": 1 << 24, "lifetime_s": 600, "used_to_bytes": 0,
        "used_from_bytes": 0,
        "charged_msat": 0, "billed_bytes": 0, "opened_at_s": NOW, "expires_at_s": NOW + 600, "closed_at_s": 0,
    }  # fmt: skip
    return ContractRecord(**{**values, **changes})


def payment(
    number: int, direction: Direction = Direction.IN, state: PaymentState = PaymentState.OPEN, **changes: Any
) -> PaymentRecord:
    values: dict[str, Any] = {
        "direction": direction, "payment_hash": payment_hash(number), "kind": PaymentKind.TOP_UP, "identity": ALICE,
        "amount_msat": 1000, "fee_msat": 0, "state": state,
        "bolt11": "lnbcrt" + "q" * 300, "preimage": preimage(number),
        "created_at_s": NOW, "settled_at_s": 0, "reason": "",
    }  # fmt: skip
    return PaymentRecord(**{**values, **changes})


def journal(kind: str = "contract", **changes: Any) -> JournalRecord:
    values: dict[str, Any] = {
        "time_s": NOW,
        "kind": kind,
        "identity": ALICE,
        "contract": b"",
        "amount_msat": 0,
        "payment_hash": b"",
        "state": "active",
    }
    return JournalRecord(**{**values, **changes})


def rental(identity: bytes = ALICE, **changes: Any) -> RentalRecord:
    values: dict[str, Any] = {
        "rental": identity, "wireguard_key": b"W" * 32, "face": "https", "offer": "default",
        "networks": "203.0.113.7/32 2001:db8::/64", "state": "active", "reason": "", "rent_msat": 24_000_000,
        "activation_fee_msat": 48_000_000, "rate_since_s": 5, "owed_msat": 0, "reserved_since_s": 0, "asked_msat": 0,
        "asked_rent_msat": 0, "period": contract_id(1), "period_charged_msat": 0, "period_opened_at_s": NOW,
        "started_at_s": NOW, "started_s": 5, "payments": 1, "peer": b"N" * 32,
    }  # fmt: skip
    return RentalRecord(**{**values, **changes})
