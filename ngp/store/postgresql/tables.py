"""Tables: makes a ledger's schema in the database, or brings it up to date, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ngp.core.messages import Prefix
from ngp.core.rental.records import RentalRecord
from ngp.core.rental.rental import PAID_LATE, RentalState
from ngp.errors import LedgerError
from ngp.store import rows, schema
from ngp.store.postgresql import dialect
from ngp.store.postgresql.server import Connection, Place

_MAKERS = 0x6E67706C  # number ("ngpl") of the lock under which one ledger at a time makes the tables that all share
_SHARED = (
    "CREATE SCHEMA IF NOT EXISTS ngp",
    """CREATE TABLE IF NOT EXISTS ngp.let_networks (
        network CIDR NOT NULL, ledger TEXT NOT NULL, rental BYTEA NOT NULL,
        EXCLUDE USING gist (network inet_ops WITH &&))""",
    "CREATE INDEX IF NOT EXISTS let_networks_rental ON ngp.let_networks (rental)",
)
_VERSION = "schema"
_COUNT = "commits"
OWN_STATE = (_VERSION, _COUNT)
"""Names in the table `state` that SQLite's file doesn't have."""

_HOLD = """INSERT INTO ngp.let_networks SELECT wanted, ?, ? FROM unnest(CAST(? AS cidr[])) AS wanted
    WHERE NOT EXISTS (SELECT 1 FROM ngp.let_networks AS held WHERE held.network = wanted AND held.rental = ?)"""
_KEPT = f"(state <> '{RentalState.RELEASED}' OR reason = '{PAID_LATE}')"


def exists(connection: Connection, place: Place) -> bool:
    """Say whether the identity has a schema."""
    found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (place.schema,)).fetchone()
    return found is not None


def version(connection: Connection, place: Place) -> int:
    """Return how many migrations the ledger has. Raises LedgerError: the schema is no ledger, or of a newer ngp."""
    has_table = connection.execute("SELECT to_regclass('state')").fetchone() != (None,)
    found = rows.state(dialect.Statements(connection), _VERSION) if has_table else None
    if found is None:
        raise LedgerError(
            f"ledger {place}: the schema isn't a ledger of ngp. Nothing was changed. Restore a dump (pg_dump), or a "
            "copy made by `ngp backup`"
        )
    known = len(schema.MIGRATIONS)
    if found > known:
        raise LedgerError(
            f"ledger {place}: was written by a newer ngp (schema {found}, this one knows {known}); install the "
            "newer ngp again, or restore a dump made before the update"
        )
    return found


def make(connection: Connection, place: Place) -> None:
    """Make the tables, inside a transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKERS,))
    for statement in (*_SHARED, f"CREATE SCHEMA {place.schema}"):
        connection.execute(statement)
    _advance(connection, 0)
    connection.execute(dialect.query(rows.PUT_STATE), (_COUNT, 0))


def migrate(connection: Connection, place: Place) -> None:
    """Bring the tables up to date, inside a transaction."""
    done = version(connection, place)
    if done < len(schema.MIGRATIONS):
        _advance(connection, done)


def _advance(connection: Connection, done: int) -> None:
    for migration in schema.MIGRATIONS[done:]:
        for statement in migration:
            connection.execute(dialect.definition(statement), ())
    connection.execute(dialect.query(rows.PUT_STATE), (_VERSION, len(schema.MIGRATIONS)))


def count(connection: Connection) -> int:
    """Return the number of the last transaction."""
    return rows.state(dialect.Statements(connection), _COUNT) or 0


def number(statements: dialect.Statements, value: int) -> bool:
    """Give the present transaction its number. Returns False if the last one isn't one less: another daemon wrote."""
    changed = statements.execute(
        "UPDATE state SET value = ? WHERE name = ? AND value = ?", (value, _COUNT, value - 1)
    ).rowcount
    return changed == 1


# --- networks, which all landlords of the database share --------------------------------------------------------------


def hold(statements: dialect.Statements, place: Place, rental: bytes, networks: Iterable[str]) -> None:
    """Hold networks for a rental, if it doesn't hold them already. The database refuses what overlaps another's."""
    statements.execute(_HOLD, (place.schema, rental, list(networks), rental))


def follow(
    statements: dialect.Statements, place: Place, rentals: Mapping[bytes, RentalRecord], forgotten: Iterable[bytes]
) -> None:
    """Hold and release networks as the records say, in their transaction."""
    gone = list(forgotten)
    for rental, record in rentals.items():
        if record.state != RentalState.RELEASED:
            hold(statements, place, rental, record.networks.split())
        elif record.reason != PAID_LATE:
            gone.append(rental)
    if gone:
        statements.execute("DELETE FROM ngp.let_networks WHERE rental = ANY(?) AND ledger = ?", (gone, place.schema))


def reconcile(statements: dialect.Statements, place: Place) -> None:
    """Release networks whose rental has no record, as the daemon died before it wrote one; hold those in records."""
    statements.execute(
        "DELETE FROM ngp.let_networks AS held WHERE ledger = ? AND NOT EXISTS "
        f"(SELECT 1 FROM rentals WHERE rentals.rental = held.rental AND {_KEPT})",
        (place.schema,),
    )
    found = statements.execute("SELECT rental, networks FROM rentals WHERE state <> 'released'").fetchall()
    for rental, networks in found:
        hold(statements, place, rental, networks.split())


def held_by_others(statements: dialect.Statements, place: Place) -> Sequence[Prefix]:
    """Return all networks that other landlords let or hold."""
    found = statements.execute("SELECT network FROM ngp.let_networks WHERE ledger <> ?", (place.schema,))
    return [row[0] for row in found]


def held(statements: dialect.Statements, besides: bytes) -> Sequence[Prefix]:
    """Return all networks that are held for rentals other than this one, by any landlord."""
    found = statements.execute("SELECT network FROM ngp.let_networks WHERE rental <> ?", (besides,))
    return [row[0] for row in found]
