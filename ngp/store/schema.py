"""Schema: the ledger's tables, as a list of migrations that only grows, in SQLite's words.

A released migration is never edited, as a router in the field may be at any of them. SQLite's `PRAGMA user_version`
counts the migrations applied to a file, and `PRAGMA application_id` marks it as a ledger. So a database of another
program, or of a newer ngp, is refused instead of being written to. `ngp.store.postgresql.dialect` translates the types.

Tables are STRICT: a float or a text in an amount is an error here, not a wrong balance later. Tables with
short rows are WITHOUT ROWID, which saves one of two trees; contracts and payments have long rows, for which
https://www.sqlite.org/withoutrowid.html advises against it.
"""

from __future__ import annotations

APPLICATION_ID = 0x6E67706C  # "ngpl"
PAGE_BYTES = 4096

EMPTY = "closed_at_s > 0 AND used_to_bytes = 0 AND used_from_bytes = 0 AND charged_msat = 0 AND billed_bytes = 0"
"""Closed contracts without traffic."""

_FIRST = (
    "CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE neighbours (
        identity BLOB NOT NULL, interface TEXT NOT NULL, link_address BLOB NOT NULL, boot INTEGER NOT NULL,
        sells INTEGER NOT NULL, buys INTEGER NOT NULL, blocked INTEGER NOT NULL,
        first_seen_s INTEGER NOT NULL, last_seen_s INTEGER NOT NULL,
        PRIMARY KEY (identity, interface, link_address)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE accounts (
        identity BLOB NOT NULL, role TEXT NOT NULL CHECK (role IN ('server', 'client')),
        paid_msat INTEGER NOT NULL CHECK (paid_msat >= 0), charged_msat INTEGER NOT NULL CHECK (charged_msat >= 0),
        refunded_msat INTEGER NOT NULL CHECK (refunded_msat >= 0), grace_debt_bytes INTEGER NOT NULL,
        grace_until_s INTEGER NOT NULL, billed_msat INTEGER NOT NULL, disputed INTEGER NOT NULL,
        PRIMARY KEY (identity, role)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE contracts (
        contract BLOB PRIMARY KEY NOT NULL, role TEXT NOT NULL CHECK (role IN ('server', 'client')),
        identity BLOB NOT NULL, interface TEXT NOT NULL, link_address BLOB NOT NULL, destination TEXT NOT NULL,
        state TEXT NOT NULL, reason TEXT NOT NULL, prices TEXT NOT NULL, data_limit_bytes INTEGER NOT NULL,
        lifetime_s INTEGER NOT NULL, granted_bytes INTEGER NOT NULL,
        used_to_bytes INTEGER NOT NULL CHECK (used_to_bytes >= 0),
        used_from_bytes INTEGER NOT NULL CHECK (used_from_bytes >= 0),
        charged_msat INTEGER NOT NULL CHECK (charged_msat >= 0), billed_bytes INTEGER NOT NULL,
        opened_at_s INTEGER NOT NULL, expires_at_s INTEGER NOT NULL, closed_at_s INTEGER NOT NULL) STRICT""",
    "CREATE INDEX contracts_closed ON contracts (closed_at_s)",
    f"CREATE INDEX contracts_empty ON contracts (closed_at_s) WHERE {EMPTY}",
    # touched_s is the later of created and settled; compact = 1 once the invoice's text was dropped
    """CREATE TABLE payments (
        direction TEXT NOT NULL CHECK (direction IN ('in', 'out')), payment_hash BLOB NOT NULL, kind TEXT NOT NULL,
        identity BLOB NOT NULL, amount_msat INTEGER NOT NULL CHECK (amount_msat >= 0),
        fee_msat INTEGER NOT NULL CHECK (fee_msat >= 0), state TEXT NOT NULL, bolt11 TEXT NOT NULL,
        preimage BLOB NOT NULL, created_at_s INTEGER NOT NULL, settled_at_s INTEGER NOT NULL, reason TEXT NOT NULL,
        touched_s INTEGER NOT NULL, compact INTEGER NOT NULL DEFAULT 0,
        UNIQUE (direction, payment_hash)) STRICT""",
    "CREATE INDEX payments_waiting ON payments (state) WHERE state IN ('open', 'pending')",
    "CREATE INDEX payments_loose ON payments (touched_s) WHERE compact = 0",
    # covers the sums for budgets, so that a start reads only this index, not every payment
    """CREATE INDEX payments_spent ON payments (identity, touched_s, amount_msat, fee_msat)
        WHERE direction = 'out' AND state IN ('pending', 'succeeded')""",
    """CREATE TABLE journal (
        id INTEGER PRIMARY KEY, time_s INTEGER NOT NULL, kind TEXT NOT NULL, identity BLOB NOT NULL,
        contract BLOB NOT NULL, amount_msat INTEGER NOT NULL, payment_hash BLOB NOT NULL,
        state TEXT NOT NULL) STRICT""",
    "CREATE INDEX journal_contract ON journal (contract) WHERE contract <> x''",
    """CREATE TABLE summaries (
        identity BLOB NOT NULL, role TEXT NOT NULL, day_s INTEGER NOT NULL, contracts INTEGER NOT NULL,
        used_to_bytes INTEGER NOT NULL, used_from_bytes INTEGER NOT NULL, charged_msat INTEGER NOT NULL,
        PRIMARY KEY (identity, role, day_s)) STRICT, WITHOUT ROWID""",
)

# new: the sum by a client's own meter, and the acknowledged part of a closed contract's bill; contracts that are closed
# already count as acknowledged
_SECOND = (
    "ALTER TABLE accounts ADD COLUMN metered_msat INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE accounts ADD COLUMN tolerated_msat INTEGER NOT NULL DEFAULT 0",
    """UPDATE accounts SET metered_msat =
        (SELECT coalesce(sum(charged_msat), 0) FROM contracts
            WHERE contracts.role = 'client' AND contracts.identity = accounts.identity)
        + (SELECT coalesce(sum(charged_msat), 0) FROM summaries
            WHERE summaries.role = 'client' AND summaries.identity = accounts.identity)
        WHERE role = 'client'""",
    """UPDATE contracts SET billed_bytes = used_to_bytes + used_from_bytes
        WHERE role = 'server' AND closed_at_s > 0""",
    # a partial index: only bills that aren't acknowledged yet
    """CREATE INDEX contracts_unacknowledged ON contracts (identity, closed_at_s, contract)
        WHERE role = 'server' AND closed_at_s > 0 AND billed_bytes < used_to_bytes + used_from_bytes""",
)

# blocks get a table of their own: as a column of links they were lost when a link was forgotten
_THIRD = (
    "CREATE TABLE blocks (identity BLOB PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID",
    "INSERT INTO blocks SELECT DISTINCT identity FROM neighbours WHERE blocked",
    "ALTER TABLE neighbours DROP COLUMN blocked",
)

# the kernel has the account now: a contract's granted bytes are gone, and grace that is owed is a negative balance
_FOURTH = (
    "ALTER TABLE contracts DROP COLUMN granted_bytes",
    "ALTER TABLE accounts DROP COLUMN grace_debt_bytes",
    "ALTER TABLE accounts ADD COLUMN grace_data_bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE accounts ADD COLUMN grace_price_msat_per_gib INTEGER NOT NULL DEFAULT 0",
)

# rentals, whose periods are contracts too; a start needs those that hold networks, and those with money left
_FIFTH = (
    "ALTER TABLE contracts ADD COLUMN kind TEXT NOT NULL DEFAULT 'traffic'",
    """CREATE TABLE rentals (
        rental BLOB PRIMARY KEY NOT NULL, wireguard_key BLOB NOT NULL, face TEXT NOT NULL, offer TEXT NOT NULL,
        networks TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, rent_msat INTEGER NOT NULL,
        activation_fee_msat INTEGER NOT NULL, rate_since_s INTEGER NOT NULL,
        owed_msat INTEGER NOT NULL CHECK (owed_msat >= 0), reserved_since_s INTEGER NOT NULL,
        asked_msat INTEGER NOT NULL, asked_rent_msat INTEGER NOT NULL, period BLOB NOT NULL,
        period_charged_msat INTEGER NOT NULL, period_opened_at_s INTEGER NOT NULL, started_at_s INTEGER NOT NULL,
        started_s INTEGER NOT NULL, payments INTEGER NOT NULL) STRICT""",
    "CREATE INDEX rentals_held ON rentals (state) WHERE state <> 'released'",
)

# what a rental's traffic costs and has used
_SIXTH = tuple(
    f"ALTER TABLE rentals ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0"
    for name in (
        *("price_msat_per_gib", "asked_price_msat_per_gib", "used_to_bytes", "used_from_bytes", "traffic_units"),
        *("second_to_bytes", "second_from_bytes", "period_began_to_bytes", "period_began_from_bytes"),
    )
)

# the neighbour that rents over the mesh link
_SEVENTH = ("ALTER TABLE rentals ADD COLUMN peer BLOB NOT NULL DEFAULT x''",)

# who sells to whom, and the purchase that a sale rests on
_EIGHTH = (
    "ALTER TABLE contracts ADD COLUMN path BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE contracts ADD COLUMN rests_on BLOB NOT NULL DEFAULT x''",
)

# how far the other side of an account keeps its word
_NINTH = (
    "ALTER TABLE accounts ADD COLUMN reputation_ppm INTEGER NOT NULL DEFAULT 500000",
    "ALTER TABLE accounts ADD COLUMN reputation_at_s INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE accounts ADD COLUMN unseen_payments INTEGER NOT NULL DEFAULT 0",
)

# what a server had shown to have carried
_TENTH = ("ALTER TABLE accounts ADD COLUMN served_msat INTEGER NOT NULL DEFAULT 0",)

# What a server has shown to have carried is what it is prepaid. Before, that was noted only to judge its payments.
_ELEVENTH = (
    """UPDATE accounts SET served_msat = metered_msat + tolerated_msat
        WHERE role = 'client' AND unseen_payments = 0 AND served_msat < metered_msat + tolerated_msat""",
)

# the link on which a client's credit counts
_TWELFTH = (
    "ALTER TABLE accounts ADD COLUMN grace_interface TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE accounts ADD COLUMN grace_link_address BLOB NOT NULL DEFAULT x''",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    _FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH, _SEVENTH, _EIGHTH, _NINTH, _TENTH,
    _ELEVENTH, _TWELFTH,
)  # fmt: skip
