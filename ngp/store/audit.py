"""Audit: does the money add up? Read by tests after every interleaving and crash, and by `ngp check`.

Accounts hold totals, payments and contracts the items; both are written in one transaction, so any difference between
them is a defect or a damaged file, and is named with both numbers.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict

_Key = tuple[bytes, str]

# a server's account is paid by what came in, a client's by what went out; refunds go the other way
_PAYMENTS = """SELECT identity, (direction = 'in') = (kind <> 'refund'), kind = 'refund', state, sum(amount_msat)
    FROM payments WHERE state IN ('settled', 'succeeded', 'pending') GROUP BY 1, 2, 3, 4"""
_CHARGES = """SELECT identity, role, sum(charged_msat) FROM (
    SELECT identity, role, charged_msat FROM contracts
    UNION ALL SELECT identity, role, charged_msat FROM summaries) GROUP BY 1, 2"""
# a client's account is charged by the bill; what its contracts are charged is by its own meter
_TOTALS = """SELECT identity, role, paid_msat, CASE role WHEN 'client' THEN metered_msat ELSE charged_msat END,
    refunded_msat FROM accounts"""
_ODD_JOURNAL = """SELECT journal.payment_hash, count(*), sum(abs(journal.amount_msat)), max(payments.amount_msat)
    FROM journal LEFT JOIN payments ON payments.payment_hash = journal.payment_hash
        AND payments.direction = CASE journal.state WHEN 'settled' THEN 'in' ELSE 'out' END
    WHERE journal.kind IN ('payment', 'refund') AND journal.state IN ('settled', 'succeeded')
    GROUP BY journal.payment_hash, journal.state
    HAVING max(payments.amount_msat) IS NULL OR sum(abs(journal.amount_msat)) <> max(payments.amount_msat)"""


def audit(connection: sqlite3.Connection) -> list[str]:
    """Return what doesn't add up, one sentence each; empty when all does."""
    paid: dict[_Key, int] = defaultdict(int)
    refunded: dict[_Key, int] = defaultdict(int)
    pending: dict[_Key, int] = defaultdict(int)
    for identity, server, refund, state, amount_msat in connection.execute(_PAYMENTS):
        key = (identity, "server" if server else "client")
        if refund:
            (pending if state == "pending" else refunded)[key] += amount_msat
        elif state != "pending":
            paid[key] += amount_msat
    charged = {(identity, role): amount for identity, role, amount in connection.execute(_CHARGES)}
    found: list[str] = []
    totals = {
        (row[0], row[1]): row[2:]
        for row in connection.execute(_TOTALS)
    }
    for key in sorted({*totals, *paid, *charged, *refunded}):
        paid_msat, charged_msat, refunded_msat = totals.get(key, (0, 0, 0))
        name = f"account {key[0].hex()} as {key[1]}"
        if paid_msat != paid[key]:
            found.append(f"{name}: paid {paid_msat} msat, its settled payments are {paid[key]} msat")
        if charged_msat != charged.get(key, 0):
            found.append(f"{name}: charged {charged_msat} msat, its contracts are {charged.get(key, 0)} msat")
        # a refund on its way may be booked already: its funds are spoken for
        if not refunded[key] <= refunded_msat <= refunded[key] + pending[key]:
            found.append(f"{name}: refunded {refunded_msat} msat, its settled refunds are {refunded[key]} msat")
    for payment_hash, lines, written, amount in connection.execute(_ODD_JOURNAL):
        found.append(
            f"journal, payment {payment_hash.hex()}: {lines} line(s) of {written} msat, the payment is {amount} msat"
        )
    return found
