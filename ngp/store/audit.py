"""Audit: does the money add up? Read by tests after every interleaving and crash, and by `ngp check`. Pure.

Accounts hold totals, payments and contracts the items; both are written in one transaction, so any difference between
them is a defect or a damaged ledger, and is named with both numbers. Each ledger brings the sums in its own way.
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
        payments: sums by (identity, whether it concerns the account as a server, whether it is a refund, state), msat;
            a server's account is paid by what came in, a client's by what went out; refunds go the other way.
        charges: sums over contracts and folded ones by (identity, role), msat.
        totals: (identity, role, paid, charged, refunded) of each account, msat. A client's is charged by the bill, but
            its contracts by its own meter: so it is that sum (`metered_msat`) which is given here.
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
            found.append(f"{name}: paid {paid_msat} msat, its settled payments are {paid[key]} msat")
        if charged_msat != charged.get(key, 0):
            found.append(f"{name}: charged {charged_msat} msat, its contracts are {charged.get(key, 0)} msat")
        # a refund on its way may be booked already: its funds are spoken for
        if not refunded[key] <= refunded_msat <= refunded[key] + pending[key]:
            found.append(f"{name}: refunded {refunded_msat} msat, its settled refunds are {refunded[key]} msat")
    return found


def overbilled(rows: Iterable[tuple[bytes, int, int]]) -> list[str]:
    """Name clients' accounts that are charged more than was billed. Args: rows: identity, charged and billed, msat."""
    return [
        f"account {identity.hex()} as client: charged {charged_msat} msat, its server billed {billed_msat} msat"
        for identity, charged_msat, billed_msat in rows
    ]


def journal(rows: Iterable[tuple[bytes, int, int, int | None]]) -> list[str]:
    """Name payments that the journal has otherwise. Args: rows: payment hash, lines, their sum, the payment, msat."""
    return [
        f"journal, payment {payment_hash.hex()}: {lines} line(s) of {written} msat, the payment is {amount} msat"
        for payment_hash, lines, written, amount in rows
    ]
