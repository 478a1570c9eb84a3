"""SQLite's migrations: an older ledger is copied, then brought up to date, or left as it is."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from ledger_records import ALICE, BOB, NOW, account, contract
from test_sqlite_file import filled

from ngp.core.messages import Role
from ngp.errors import LedgerError
from ngp.store import schema
from ngp.store.sqlite import SqliteStore
from ngp.store.sqlite.ledger import SqliteLedger

LINK_OF_CREDIT = "grace_interface", "grace_link_address"


def test_an_older_ledger_is_copied_and_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "ledger.db")
    newer = ("ALTER TABLE accounts ADD COLUMN note TEXT NOT NULL DEFAULT ''",)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, newer))
    ledger = SqliteLedger.open(path)
    number = len(schema.MIGRATIONS)
    assert ledger._connection.execute("PRAGMA user_version").fetchone() == (number,)
    assert len(ledger.contracts()) == 200
    copy = tmp_path / f"ledger.db.before-{number}"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    monkeypatch.undo()
    assert len(SqliteLedger.open(copy).contracts()) == 200


def test_blocks_of_an_older_ledger_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    everything = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", everything[:2])
    older = SqliteLedger.open(path)
    row = "INSERT INTO neighbours VALUES (?, ?, x'', 1, 1, 1, ?, 1, 1)"
    older._connection.executemany(row, [(ALICE, "a", 1), (ALICE, "b", 1), (BOB, "a", 0)])
    older.close()
    monkeypatch.setattr(schema, "MIGRATIONS", everything)
    snapshot = SqliteLedger.open(path).load(NOW)
    assert snapshot.blocked == (ALICE,)
    assert len(snapshot.neighbours) == 3


def test_contracts_of_an_older_ledger_rest_on_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    everything = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", everything[:7])
    older = SqliteLedger.open(path)
    row = (b"c" * 16, "client", ALICE, "a", b"", "192.0.2.0/24", "active", "", "[[0,5]]", 9, 9, 1, 2, 3, 0, NOW, NOW, 0)
    older._connection.execute(f"INSERT INTO contracts VALUES ({', '.join('?' * len(row))}, 'traffic')", row)
    older.close()
    monkeypatch.setattr(schema, "MIGRATIONS", everything)
    ledger = SqliteLedger.open(path)
    (found,) = ledger.load(NOW).contracts
    assert (found.path, found.rests_on, found.kind, found.charged_msat) == (b"", b"", "traffic", 3)
    ledger.commit([found._replace(path=b"p" * 16, rests_on=b"r" * 16)])
    (found,) = ledger.load(NOW).contracts
    assert (found.path, found.rests_on) == (b"p" * 16, b"r" * 16)


def test_a_migration_that_fails_half_way_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "ledger.db")
    broken = ("DROP TABLE contracts", "ALTER TABLE nowhere ADD COLUMN x")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    with pytest.raises(LedgerError, match="nowhere"):
        SqliteLedger.open(path)
    monkeypatch.undo()
    assert len(SqliteLedger.open(path).contracts()) == 200


def test_an_older_ledger_knows_what_was_metered_and_takes_what_was_closed_as_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger.open(path)
    ledger.commit([
        account(role=Role.CLIENT, charged_msat=7), account(paid_msat=2, charged_msat=9, grace_until_s=NOW),
        contract(1, used_to_bytes=1, closed_at_s=NOW),
        contract(2, role=Role.CLIENT, charged_msat=30), contract(3, role=Role.CLIENT, charged_msat=4, closed_at_s=NOW),
    ])  # fmt: skip
    run = ledger._connection.execute
    run("INSERT INTO summaries VALUES (?, 'client', 0, 1, 0, 0, 100)", (ALICE,))
    run("DROP INDEX contracts_unacknowledged")
    later = ("reputation_ppm", "reputation_at_s", "unseen_payments", "served_msat", *LINK_OF_CREDIT)
    for column in ("metered_msat", "tolerated_msat", *later):
        run(f"ALTER TABLE accounts DROP COLUMN {column}")
    run("DROP TABLE rentals")
    for column in ("kind", "path", "rests_on"):
        run(f"ALTER TABLE contracts DROP COLUMN {column}")
    run("DROP TABLE blocks")
    run("ALTER TABLE neighbours ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0")
    for column in ("grace_data_bytes", "grace_price_msat_per_gib"):
        run(f"ALTER TABLE accounts DROP COLUMN {column}")
    run("ALTER TABLE contracts ADD COLUMN granted_bytes INTEGER NOT NULL DEFAULT 4096")
    run("ALTER TABLE accounts ADD COLUMN grace_debt_bytes INTEGER NOT NULL DEFAULT 1024")
    run("PRAGMA user_version = 1")
    ledger.close()
    ledger = SqliteLedger.open(path)
    (owes,) = (one for one in ledger.load(NOW).accounts if one.role is Role.SERVER)
    assert (owes.paid_msat - owes.charged_msat - owes.refunded_msat, owes.grace_until_s) == (-7, NOW)  # grace was used
    assert {one.role: one.metered_msat for one in ledger.load(NOW).accounts} == {Role.CLIENT: 134, Role.SERVER: 0}
    assert ledger.unacknowledged(ALICE, (0, b""), 9) == ((), None)


def test_servers_of_an_older_ledger_are_trusted_with_what_they_carried_unless_it_was_in_doubt(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger.open(path)
    used = {"metered_msat": 100, "tolerated_msat": 5}
    doubted = account(BOB, Role.CLIENT, unseen_payments=2, served_msat=7, **used)
    ledger.commit([account(ALICE, Role.CLIENT, **used), doubted])
    for column in LINK_OF_CREDIT:
        ledger._connection.execute(f"ALTER TABLE accounts DROP COLUMN {column}")
    ledger._connection.execute("PRAGMA user_version = 10")
    ledger.close()
    found = SqliteLedger.open(path).load(NOW).accounts
    assert {one.identity: one.served_msat for one in found} == {ALICE: 105, BOB: 7}


def test_books_of_an_older_format_wait_for_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "ledger.db")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ()))
    found, unknown = SqliteStore(path).audit(60.0)
    assert found == [] and "older ngp" in unknown
