"""Keeping: how long a ledger keeps its records, so that it stays small on a router's flash and no msat is lost.

Closed contracts make it grow most: thousands a day. After 90 days, or earlier if there are more than MOST_CLOSED, they
are added to sums, one line for each neighbour, role and day. The same transaction deletes the contracts, so an
account's charges still add up.
Contracts without traffic are deleted after an hour, as a hostile neighbour can make them for free. Settled payments
stay for ever with their preimage, the proof of payment; only the invoice's text is deleted. Old lines of the journal
without money or contract are deleted too.
"""

from __future__ import annotations

from ngp.core.values import DAY_S

KEEP_CLOSED_S = 3600
"""How long a start may need closed contracts, see `Ledger.load`; none is deleted earlier."""

MOST_CLOSED = 65_536
KEEP_CONTRACTS_S = 90 * DAY_S
KEEP_INVOICE_TEXT_S = 7 * DAY_S
KEEP_UNPAID_S = DAY_S
