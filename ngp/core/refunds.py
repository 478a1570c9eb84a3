"""Refunds: the server offers what is free on an account, the client asks for no more than its books say, once."""

from __future__ import annotations

import logging

from ngp.core.account import Account
from ngp.core.budget import broken_limit
from ngp.core.effects import MakeInvoice
from ngp.core.invoices import INVOICE_EXPIRY_S
from ngp.core.messages import Refund, Role
from ngp.core.payments import MOST_INVOICE_EXPIRY_S, names_its_payee, pay
from ngp.core.pricing import SAT_MSAT
from ngp.core.records import PaymentKind
from ngp.core.values import DecodedInvoice
from ngp.core.world import Neighbour, World


def refundable_msat(account: Account) -> int:
    """Return what of an account is its owner's to take away: paid, not charged, not held by running contracts."""
    return max(0, account.funds_msat)


def refund_offered(world: World, identity: bytes) -> str:
    """Offer a client its balance back; it answers with an invoice. Returns what was done, for the operator."""
    account = world.accounts.get((identity, Role.SERVER))
    amount = refundable_msat(account) // SAT_MSAT * SAT_MSAT if account is not None else 0
    if account is None or amount < max(SAT_MSAT, world.means.least_amount_msat):
        return f"nothing to refund to {identity.hex()[:8]}: {amount} msat are free on its account"
    neighbour = world.any_link(identity)
    if neighbour is None:
        return f"no refund to {identity.hex()[:8]}: it is away; run the command again when it is back"
    account.refund_offered_msat = amount
    world.send(neighbour, Refund(amount))
    return f"refund of {amount} msat offered to {identity.hex()[:8]}; paid when it sends its invoice"


def refund_received(world: World, neighbour: Neighbour, refund: Refund, decoded: DecodedInvoice | None) -> None:
    """Client: answer an offer with an invoice. Server: pay the invoice that answers our offer, within the balance."""
    if refund.bolt11:
        _pay_back(world, neighbour, refund, decoded)
    else:
        _take_back(world, neighbour, refund)


def _take_back(world: World, neighbour: Neighbour, refund: Refund) -> None:
    account = world.accounts.get((neighbour.identity, Role.CLIENT))
    balance_msat = 0 if account is None else account.balance_msat
    amount = min(refund.amount_msat, max(0, balance_msat)) // SAT_MSAT * SAT_MSAT
    if amount < refund.amount_msat:
        world.log(
            f"{neighbour.identity.hex()[:8]} offers a refund of {refund.amount_msat} msat; by our books we have "
            f"{balance_msat} msat with it and ask for no more"
        )
    if account is None or account.invoice or account.invoice_asked:
        return
    if amount >= max(SAT_MSAT, world.means.least_amount_msat):
        account.invoice_asked = True
        memo = f"ngp refund from {neighbour.identity.hex()[:16]}"
        world.do(MakeInvoice(neighbour.identity, PaymentKind.REFUND, amount, memo, INVOICE_EXPIRY_S))


def _pay_back(world: World, neighbour: Neighbour, refund: Refund, decoded: DecodedInvoice | None) -> None:
    if decoded is None or decoded.amount_msat != refund.amount_msat or decoded.network != world.means.network:
        world.count("invoice_malformed")
        return
    account = world.accounts.get((neighbour.identity, Role.SERVER))
    lasts = 0 < decoded.expires_in_s <= MOST_INVOICE_EXPIRY_S
    if account is None or not lasts or not names_its_payee(world, neighbour, decoded):
        world.count("refund_refused")
        return
    amount = refund.amount_msat
    offered = min(account.refund_offered_msat, refundable_msat(account))  # unasked for, the fees alone would drain us
    ours = decoded.payment_hash in world.payments or decoded.payment_hash in world.invoices
    if ours or not 0 < amount <= offered:
        world.count("refund_refused")
        return
    cost = amount + world.settings.fee_limit.of_msat(amount)
    limit = broken_limit(world.settings.budgets, world.spending, neighbour.identity, cost, world.now.utc_s)
    if limit is not None:
        world.log(f"refund of {amount} msat to {neighbour.identity.hex()[:8]} not paid: {limit}", logging.WARNING)
        return
    if amount < offered:
        world.log(f"{neighbour.identity.hex()[:8]} asks for {amount} msat of {offered} msat offered")
    account.refund_offered_msat = 0
    account.refunding_msat += amount
    pay(world, neighbour, PaymentKind.REFUND, refund.bolt11, decoded.payment_hash, amount)
