"""Settlements: a paid invoice of ours is credited once, by its hash, whether the payer or our node says so first."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from ngp.core.account import Account
from ngp.core.effects import Persist, ProveSettlement
from ngp.core.messages import Paid
from ngp.core.payment_node import Settlement
from ngp.core.records import CursorRecord, PaymentKind, PaymentRecord, PaymentState
from ngp.core.rental import landlord
from ngp.core.selling import grace, metering
from ngp.core.timers import Due
from ngp.core.topups import REMEMBERED_S, add_top_up
from ngp.core.world import World

ASK_MORE_AFTER_S = 60.0
"""For so long after a client's budgets refused a sum we ask it for no larger ones: each declined invoice takes time."""


def proof_received(world: World, paid: Paid) -> None:
    """Take a preimage as proof that an invoice of ours was paid (BOLT 11: its SHA-256 is the payment hash).

    Service resumes at once, before our own node reports the payment; the ledger counts it once.
    """
    record = world.money.invoices.get(paid.payment_hash)
    if record is None or sha256(paid.preimage).digest() != paid.payment_hash:
        world.count("proofs_foreign")
    elif record.state is PaymentState.SETTLED:
        world.count("proofs_replayed")
    else:
        world.count("proofs_applied")
        _credit(world, replace(record, preimage=paid.preimage), record.amount_msat)
        if world.node.settles_by_proof:
            world.do(ProveSettlement(paid.preimage))


def settlement_seen(world: World, seen: Settlement) -> None:
    """Credit a payment that our node reports, and store how far its stream was read (the cursor).

    The cursor alone needs no flush to the disk. If a power cut takes it back, the node reports some payments again, and
    each counts once. A restored node may start its count anew; then the cursor goes back, with the same effect.
    """
    if seen.cursor != world.money.cursor:
        world.money.cursor = seen.cursor
        world.do(Persist(CursorRecord(seen.cursor)))
    record = world.money.invoices.get(seen.payment_hash)
    if record is None:
        world.count("settlements_foreign")  # for no invoice of ours that we remember
    elif record.state is PaymentState.SETTLED and seen.amount_msat <= record.amount_msat:
        world.count("settlements_replayed")
    else:
        world.count("settlements_applied")
        _credit(world, record, seen.amount_msat)  # if a proof came before: only what was paid beyond the invoice's sum


def _credit(world: World, record: PaymentRecord, paid_msat: int) -> None:
    amount_msat = paid_msat - (record.amount_msat if record.state is PaymentState.SETTLED else 0)
    settled = replace(record, state=PaymentState.SETTLED, amount_msat=paid_msat, settled_at_s=world.now.utc_s)
    world.money.invoices[record.payment_hash] = settled
    world.timers.set(Due.INVOICE, record.payment_hash, world.now.monotonic_s + REMEMBERED_S)
    world.do(Persist(settled, durable=True))
    kind = "refund" if record.kind is PaymentKind.REFUND else "payment"
    world.journal(kind, record.identity, settled.state.value, amount_msat, paid=record.payment_hash)
    if record.kind is PaymentKind.REFUND:
        _refunded(world, record, amount_msat)
    else:
        _paid(world, record, amount_msat)


def _refunded(world: World, record: PaymentRecord, amount_msat: int) -> None:
    account = world.server(record.identity)
    account.refunded_msat += amount_msat
    _invoice_over(account, record)
    world.save_account(account, durable=True)
    world.log(f"refund of {amount_msat} msat received from {record.identity.hex()[:8]}")


def _paid(world: World, record: PaymentRecord, amount_msat: int) -> None:
    account = world.client(record.identity)
    _invoice_over(account, record)
    if world.now.monotonic_s - account.budget_told_mono_s > ASK_MORE_AFTER_S:
        account.most_asked_msat *= 2  # a client that declined a large sum may pay more, step by step
    if record.kind is PaymentKind.RENT:
        account.paid_msat += amount_msat
        landlord.paid(world, account, record.payment_hash, amount_msat)
        return
    account.invoice.declined = 0
    grace.judge(world, account)
    add_top_up(world, account, amount_msat)
    world.log(f"payment of {amount_msat} msat received from {record.identity.hex()[:8]}")
    metering.paid_for(world, account)
    world.save_account(account, durable=True)
    world.timers.set(Due.STATEMENT, account.identity, world.now.monotonic_s + 0.05)


def _invoice_over(account: Account, record: PaymentRecord) -> None:
    if account.invoice.payment_hash == record.payment_hash:
        account.invoice.payment_hash, account.invoice.not_before_mono_s = b"", 0.0
