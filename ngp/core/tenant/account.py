"""Account: what a tenant knows of its rental, from what it paid and what the landlord confirmed.

The tenant computes its credit itself: what was paid at the present rent, and the credit carried from before, less the
rent since then. The landlord's word is compared with that. It may say more, as somebody may pay by hand, but never
less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ngp.core.messages import Prefix
from ngp.core.payment_node import DecodedInvoice
from ngp.core.pricing import SAT_MSAT, show_money
from ngp.core.tenant.answers import Asked, Status
from ngp.core.tenant.terms import SaleTerms

CLOCK_AHEAD_S = 10
"""How far a landlord's clock may be ahead of ours."""
CREDIT_SHORT_S = 20
"""A landlord may state a credit that is lower than ours, by at most the rent of this time, or by LEAST_SHORT_MSAT."""
LEAST_SHORT_MSAT = SAT_MSAT
"""A landlord may have counted one second more at a former, much higher rent: that difference stays for good."""


@dataclass(frozen=True, slots=True)
class Account:
    """A rental as its tenant knows it. Money msat, times UTC seconds by the landlord's clock.

    Attributes:
        started: something was paid.
        since_s: when the present rent began, with a payment.
        paid_since_msat: that payment, with the activation fee if it was the first.
        carried_msat: the credit just before that payment; for the first payment, minus the activation fee.
        rate_sat_s: the present rent, sat a second.
    """

    started: bool = False
    networks: tuple[Prefix, ...] = ()
    started_at_s: int = 0
    since_s: int = 0
    paid_since_msat: int = 0
    carried_msat: int = 0
    rate_sat_s: float = 0.0
    paid_msat: int = 0
    payments: int = 0
    activation_fee_msat: int = 0

    def credit_msat(self, at_s: float) -> int:
        """Return the credit at a time, rounded down; negative while back rent is owed."""
        rent_msat = max(0.0, at_s - self.since_s) * self.rate_sat_s * SAT_MSAT
        return math.floor(self.paid_since_msat + self.carried_msat - rent_msat)


@dataclass(frozen=True, slots=True)
class Order:
    """A payment that was, or is about to be, sent. Money msat.

    Attributes:
        is_first: the payment includes the activation fee.
        rate_sat_s: the rent that the landlord promised for this payment.
        at_s: when its invoice was made, by the landlord's clock: from then on that rent counts.
        node: public key of the payment node.
        carried_msat: the credit just before by the landlord's word, as a user who pays by hand accepts what traffic was
            charged until then. None: the credit by our books.
    """

    payment_hash: bytes
    amount_msat: int
    added_msat: int
    is_first: bool
    rate_sat_s: float
    at_s: int
    node: str
    fee_limit_msat: int
    sent_at_s: int
    carried_msat: int | None = None

    @property
    def fee_msat(self) -> int:
        """The activation fee, as far as this payment includes one."""
        return self.amount_msat - self.added_msat


def faults_of_invoice(
    asked: Asked, invoice: DecodedInvoice, wanted_msat: int, offered: SaleTerms | None, is_first: bool | None
) -> list[str]:
    """Return why an invoice must not be paid; empty if it is for what was asked.

    Args:
        wanted_msat: the credit that was asked for.
        offered: the terms that the landlord named before it made the invoice; None if they weren't asked for.
        is_first: whether there is no rental by our own books; None if our books don't say.
    """
    return list(_faults(asked, invoice, wanted_msat, offered, is_first))


def _faults(
    asked: Asked, invoice: DecodedInvoice, wanted_msat: int, offered: SaleTerms | None, is_first: bool | None
) -> Iterator[str]:
    if is_first is not None and asked.is_first != is_first:
        if is_first:
            yield "the landlord has a rental for this key already, but nothing was paid for it from here"
        else:
            yield "the landlord has no rental for this key any more: a payment would rent anew, with an activation fee"
    if asked.payee and invoice.payee != asked.payee:
        yield (
            f"the invoice is of the Lightning node {invoice.payee}, but {asked.payee} is trusted: somebody may have "
            "stolen the landlord's identity; ask the landlord"
        )
    if asked.added_msat != wanted_msat:
        yield f"it would add {show_money(asked.added_msat)} of credit, but {show_money(wanted_msat)} were asked for"
    due_msat = asked.added_msat + asked.terms.activation_fee_msat
    if invoice.amount_msat is None:
        yield "the invoice has no amount"
    elif invoice.amount_msat != due_msat:
        parts = "credit and activation fee are" if asked.is_first else "the credit is"
        yield f"the invoice is over {show_money(invoice.amount_msat)}, but {parts} {show_money(due_msat)}"
    if offered is not None and asked.terms != (offered if asked.is_first else replace(offered, activation_fee_msat=0)):
        yield "the landlord changed its terms between offer and invoice; ask for the offer again"
    if invoice.expires_in_s <= 0:
        yield "the invoice has expired; ask for a new one, and check this machine's clock"


def disagreements(account: Account, status: Status, now_s: float) -> list[str]:
    """Return where a landlord's word is to the tenant's disadvantage; empty if it isn't.

    Where traffic has a price, the credit isn't compared here: how much traffic there was is only the landlord's word.
    AutoPay compares it with this machine's own count (`ngp.core.tenant.traffic`).

    Args:
        now_s: UTC, by our clock.
    """
    return list(_disagreements(account, status, now_s))


def _disagreements(account: Account, status: Status, now_s: float) -> Iterator[str]:
    ahead_s = status.now_s - now_s
    if ahead_s > CLOCK_AHEAD_S:
        yield (
            f"the landlord's clock is {ahead_s:.0f} s ahead of ours, so it would end the credit too early: check this "
            "machine's clock, then ask the landlord"
        )
    if not account.started:
        return
    if status.paid_msat < account.paid_msat or status.payments < account.payments:
        yield (
            f"the landlord counts {status.payments} payments of {show_money(status.paid_msat)} in all, but "
            f"{account.payments} of {show_money(account.paid_msat)} were made"
        )
    if status.activation_fee_msat > account.activation_fee_msat:
        yield (
            f"the landlord counts an activation fee of {show_money(status.activation_fee_msat)}, but the fee "
            f"recorded here is {show_money(account.activation_fee_msat)}"
        )
    paid_by_others = status.payments > account.payments
    if status.rate_sat_s > account.rate_sat_s and not paid_by_others:
        yield f"the rent rose from {account.rate_sat_s:g} to {status.rate_sat_s:g} sat a second without a payment"
    ours_msat = account.credit_msat(status.now_s)
    rent_msat = round(CREDIT_SHORT_S * max(account.rate_sat_s, status.rate_sat_s) * SAT_MSAT)
    short_msat = max(LEAST_SHORT_MSAT, rent_msat)
    if not status.price_msat_per_gib and status.credit_msat < ours_msat - short_msat:
        yield (
            f"the landlord says {show_money(status.credit_msat)} of credit are left, but by our books it is "
            f"{show_money(ours_msat)}"
        )
    if account.networks and status.networks and set(status.networks) != set(account.networks):
        yield (
            f"the landlord changed the networks from {', '.join(map(str, account.networks))} to "
            f"{', '.join(map(str, status.networks))}"
        )


def follow(account: Account, status: Status) -> Account:
    """Take over what a landlord says after somebody else paid; unchanged if nobody did.

    Back rent is taken over only as far as it is owed by our own books.

    Call it only when there are no `disagreements`.
    """
    if account.started and status.payments in (0, account.payments):
        return replace(account, networks=account.networks or status.networks)
    if not status.payments:
        return account
    return Account(
        started=True,
        networks=account.networks or status.networks,
        started_at_s=status.started_at_s,
        since_s=status.now_s,
        paid_since_msat=0,
        carried_msat=max(status.credit_msat, min(0, account.credit_msat(status.now_s))),
        rate_sat_s=status.rate_sat_s,
        paid_msat=status.paid_msat,
        payments=status.payments,
        activation_fee_msat=status.activation_fee_msat,
    )


def paid(account: Account, order: Order) -> Account:
    """Count a payment that arrived: a period at the promised rent begins when its invoice was made."""
    before_msat = account.credit_msat(order.at_s) if order.carried_msat is None else order.carried_msat
    carried_msat = -order.fee_msat if order.is_first else before_msat
    return replace(
        account,
        started=True,
        started_at_s=order.at_s if order.is_first else account.started_at_s,
        since_s=order.at_s,
        paid_since_msat=order.amount_msat,
        carried_msat=carried_msat,
        rate_sat_s=order.rate_sat_s,
        paid_msat=account.paid_msat + order.amount_msat,
        payments=account.payments + 1,
        activation_fee_msat=order.fee_msat if order.is_first else account.activation_fee_msat,
    )
