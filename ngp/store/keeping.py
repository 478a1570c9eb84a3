"""Keeping: how long a ledger keeps what, so that it stays small on a router's flash, without a msat going astray.

Closed contracts are what grows: thousands a day. After 90 days, or when there are more of them than MOST_CLOSED, each
is folded into one line per neighbour, role and day, in the transaction that deletes it, so that an account's charges
still add up. Those that carried nothing go after an hour: a hostile neighbour can make them for nothing. Settled
payments stay for ever with their preimage, the proof of payment; only the invoice's text goes. Old lines of the journal
go that carry no money and belong to no contract.
"""

from __future__ import annotations

_DAY_S = 86_400
KEEP_CLOSED_S = 3600
"""What a start reads of closed contracts, see `Ledger.load`: nothing goes before."""

MOST_CLOSED = 65_536
KEEP_CONTRACTS_S = 90 * _DAY_S
KEEP_INVOICE_TEXT_S = 7 * _DAY_S
KEEP_UNPAID_S = _DAY_S
