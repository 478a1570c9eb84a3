"""Audit: does the money add up? Used by tests after every interleaving and crash, and by `ngp check`. Pure.

Accounts have totals; payments and contracts are the items. Both are written in one transaction, so any difference means
a defect or a damaged ledger; it is reported with both numbers. Each ledger calculates the sums in its own way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

_Key = tuple[bytes, str]


def accounts(
    payments: Iterable[tuple[bytes, bool, bool, str, int]],
    charges: Iterable[tuple[bytes, str, int]],
    totals: Iterable[tuple[bytes, str, int, int, int]],
) -> list[str]:
    """Compare accounts with payments and contracts.

    Args:
        payments: sums by (identity, whether they are for the server's account, whether they are refunds, state), msat.
            Incoming payments go to a server's account, outgoing ones to a client's; refunds the other way.
        charges: sums over contracts, folded ones too, by (identity, role), msat.
        totals: (identity, role, paid, charged, refunded) of each account, msat. Where our role is client, the account
            is charged by the server's bill, but contracts by our own meter; so there `charged` is the account's metered
            sum (`metered_msat`).
    """
    paid: dict[_Key, int] = defaultdict(int)
    refunded: dict[_Key, int] = defaultdict(int)
    pending: dict[_Key, int] = defaultdict(int)
    for identity, server, refund, state, amount_msat in payments:
        key = (identity, "server" if server else "client")
        if refund:
            (pending if state == "pending" else refunded)[key] += amount_msat
        elif state != "pending":
            paid[key] += amount_msat
    charged = {(identity, role): amount for identity, role, amount in charges}
    found: list[str] = []
    accounts = {(row[0], row[1]): row[2:] for row in totals}
    for key in sorted({*accounts, *paid, *charged, *refunded}):
        paid_msat, charged_msat, refunded_msat = accounts.get(key, (0, 0, 0))
        name = f"account {key[0].hex()} as {key[1]}"
        if paid_msat != paid[key]:
            found.append(f"{name}: paid {paid_msat} msat, its settled payments add up to {paid[key]} msat")
        if charged_msat != charged.get(key, 0):
            found.append(f"{name}: charged {charged_msat} msat, its contracts add up to {charged.get(key, 0)} msat")
        # a refund on its way may be booked already, as its money is reserved
        if not refunded[key] <= refunded_msat <= refunded[key] + pending[key]:
            found.append(f"{name}: refunded {refunded_msat} msat, its settled refunds add up to {refunded[key]} msat")
    return found


def overbilled(rows: Iterable[tuple[bytes, int, int]]) -> list[str]:
    """Report accounts with servers that are charged more than was billed.

    Args: rows: (identity, charged msat, billed msat) of each such account.
    """
    return [
        f"account {identity.hex()} as client: charged {charged_msat} msat, its server billed {billed_msat} msat"
        for identity, charged_msat, billed_msat in rows
    ]


def journal(rows: Iterable[tuple[bytes, int, int, int | None]]) -> list[str]:
    """Report payments that differ from the journal.

    Args: rows: (payment hash, number of lines in the journal, their sum in msat, the payment in msat; None if the
        ledger has no such payment) of each that differs.
    """
    return [
        f"journal, payment {payment_hash.hex()}: {lines} line(s) of {written} msat, the payment is {amount} msat"
        for payment_hash, lines, written, amount in rows
    ]
