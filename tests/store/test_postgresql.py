"""What PostgreSQL adds: landlords that share a database, a server that dies, commits in doubt, secrets in URLs."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import psycopg
import pytest
from adapters import Postgresql
from fighting_landlord import FightingLandlord, identity, place
from ledger_records import NOW, account, contract, journal, payment

import ngp
from core_tests.postgresql import Server, url
from core_tests.shell import suspended
from ngp import store as stores
from ngp.core.records import ForgetNeighbours, PaymentState
from ngp.core.rental.records import RentalRecord
from ngp.core.rental.rental import PAID_LATE
from ngp.errors import LedgerError, LedgerMomentError
from ngp.ports import Ledger
from ngp.store import schema
from ngp.store.postgresql import PostgresStore, server
from ngp.store.postgresql.ledger import PostgresLedger
from ngp.store.sqlite import SqliteStore, file

ROOT = Path(ngp.__file__).parent.parent
R1, R2 = b"1" * 32, b"2" * 32
V4, V4_ALL, V6 = ip_network("192.0.2.1/32"), ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")
PAID = [
    payment(1, state=PaymentState.SETTLED, settled_at_s=NOW), account(paid_msat=1000),
    journal("payment", amount_msat=1000, payment_hash=payment(1).payment_hash, state="settled"),
]  # fmt: skip


@pytest.fixture
def places(tmp_path: Path) -> tuple[PostgresStore, PostgresStore]:
    """Two identities in one database, with nothing held by anybody."""
    with psycopg.connect(url(), autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('ngp.let_networks')").fetchone() != (None,):
            connection.execute("DELETE FROM ngp.let_networks")
    some = [PostgresStore(url(), os.urandom(32), tmp_path / "ledger.db") for _ in range(2)]
    return some[0], some[1]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may kill."""
    with closing(Server()) as one:
        yield one


def rental(rental_id: bytes = R1, networks: str = str(V4), state: str = "active", reason: str = "") -> RentalRecord:
    return RentalRecord(
        rental_id, rental_id, "https", "default", networks, state, reason, 1, 0, 0, 0, 0, 0, 0, b"", 0, 0, NOW, 0, 0
    )


def content(ledger: Ledger) -> tuple[object, ...]:
    """Return what a ledger has, in an order that doesn't depend on the database."""
    snapshot = ledger.load(NOW)
    accounts = tuple(sorted(snapshot.accounts, key=lambda one: one.identity))
    return replace(snapshot, accounts=accounts), ledger.contracts(include_closed=True), list(ledger.journal())


def cut_off(ledger: PostgresLedger) -> None:
    """End the ledger's session, as the server does when the network is gone."""
    with psycopg.connect(url()) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (ledger._connection.info.backend_pid,))


# --- landlords that share a database ----------------------------------------------------------------------------------


def test_no_network_is_held_for_two_landlords(places: tuple[PostgresStore, PostgresStore]) -> None:
    with closing(places[0].open()) as ours, closing(places[1].open()) as theirs:
        assert ours.hold_networks(R1, [V4, V6]) == ()
        assert ours.hold_networks(R1, [V4, V6]) == (), "a second time changes nothing"
        assert set(theirs.hold_networks(R2, [V4_ALL])) == {V4, V6}, "what is held, so that it can choose others"
        assert theirs.hold_networks(R2, [ip_network("192.0.2.2/32")]) == ()
        assert set(theirs.load(NOW).others) == {V4, V6} and set(ours.load(NOW).others) == {ip_network("192.0.2.2/32")}
        assert set(ours.hold_networks(b"3" * 32, [V4_ALL])) == {V4, V6, ip_network("192.0.2.2/32")}


@pytest.mark.parametrize("record", [rental(state="released"), ForgetNeighbours((R1,))], ids=["released", "forgotten"])
def test_what_is_released_or_forgotten_is_free_for_others(
    places: tuple[PostgresStore, PostgresStore], record: Any
) -> None:
    with closing(places[0].open()) as ours, closing(places[1].open()) as theirs:
        ours.hold_networks(R1, [V4])
        ours.commit([rental()])
        assert theirs.hold_networks(R2, [V4]) == (V4,)
        ours.commit([record])
        assert theirs.hold_networks(R2, [V4]) == ()


def test_a_late_payment_keeps_what_was_held_for_it(places: tuple[PostgresStore, PostgresStore]) -> None:
    with closing(places[0].open()) as ours, closing(places[1].open()) as theirs:
        ours.commit([rental(state="released", reason=PAID_LATE)])
        assert theirs.hold_networks(R2, [V4]) == (), "it isn't held before it is asked for"
        theirs.commit([rental(R2, state="released")])
        ours.hold_networks(R1, [V4])
        ours.commit([rental(state="released", reason=PAID_LATE)])
        assert theirs.hold_networks(R2, [V4]) == (V4,)


def test_the_database_refuses_a_rental_whose_network_is_let(places: tuple[PostgresStore, PostgresStore]) -> None:
    with closing(places[0].open()) as ours, closing(places[1].open()) as theirs:
        ours.commit([rental()])
        with pytest.raises(LedgerError, match="Another landlord") as refused:
            theirs.commit([account(paid_msat=1), rental(R2, str(V4_ALL))])
        assert not isinstance(refused.value, LedgerMomentError)
        assert theirs.load(NOW).accounts == theirs.load(NOW).rentals == ()


def test_a_start_releases_what_was_held_without_a_record(places: tuple[PostgresStore, PostgresStore]) -> None:
    with closing(places[0].open()) as ours:
        ours.commit([rental()])
        ours.hold_networks(R2, [V6])
    with closing(places[0].open()), closing(places[1].open()) as theirs:
        assert theirs.hold_networks(b"3" * 32, [V6]) == ()
        assert set(theirs.hold_networks(b"3" * 32, [V4])) == {V4}


# --- one daemon for an identity ---------------------------------------------------------------------------------------


def test_a_second_daemon_of_an_identity_is_refused(
    places: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server._SESSION, "lock_timeout", "100ms")
    with closing(places[0].open()) as first:
        with pytest.raises(LedgerMomentError, match="Another ngp with the same identity.key"):
            places[0].open()
        first.commit(PAID)
    places[0].open().close()


def test_a_daemon_that_was_cut_off_goes_on(places: tuple[PostgresStore, PostgresStore]) -> None:
    with closing(places[0].open()) as ledger:
        ledger.commit(PAID)
        cut_off(ledger)
        with pytest.raises(LedgerMomentError, match="The ledger is intact"):
            ledger.commit([contract(1)])
        ledger.commit([contract(1)])
        assert ledger.contracts() == [contract(1)]
        cut_off(ledger)
        with pytest.raises(LedgerMomentError):
            ledger.contracts()
        assert ledger.contracts() == [contract(1)]


def test_a_daemon_that_was_cut_off_writes_nothing_after_another_one_did(
    places: tuple[PostgresStore, PostgresStore],
) -> None:
    with closing(places[0].open()) as ledger:
        cut_off(ledger)
        with closing(places[0].open()) as other:
            other.commit(PAID)
        with pytest.raises(LedgerMomentError):
            ledger.commit([account(paid_msat=5)])
        for _ in range(2):
            with pytest.raises(LedgerError, match="another daemon wrote to it.*start ngp again") as refused:
                ledger.commit([account(paid_msat=5)])
            assert not isinstance(refused.value, LedgerMomentError)
    assert places[0].audit(60.0) == ([], "")


def test_a_database_that_was_restored_under_a_daemon_gets_nothing_more(tmp_path: Path) -> None:
    adapter = Postgresql(tmp_path)
    with closing(adapter.store.open()) as ledger:
        ledger.commit(PAID)
        adapter.execute("UPDATE state SET value = value - 1 WHERE name = 'commits'")
        for _ in range(2):
            with pytest.raises(LedgerError, match="the database was restored; start ngp again"):
                ledger.commit([account(paid_msat=5)])
    assert adapter.store.audit(60.0) == ([], "")


# --- commits in doubt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_answer_was_lost_counts_once(
    places: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    with closing(places[0].open()) as ledger:
        connection = ledger._connection

        def loses(statement: Any, *values: Any) -> Any:
            if statement != "COMMIT":
                return type(connection).execute(connection, statement, *values)
            if committed:
                type(connection).execute(connection, statement)
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

        closed = [contract(1, charged_msat=7, closed_at_s=NOW), contract(1)]  # its id is used again
        records = [*PAID, account(paid_msat=1000, charged_msat=7), *closed]
        monkeypatch.setattr(connection, "execute", loses)
        with pytest.raises(LedgerMomentError):
            ledger.commit(records)
        later = [journal("statement")]
        ledger.commit(later)  # another batch may come before it is tried again
        ledger.commit([*records, *later][: len(records)])
        ledger.commit([*records[:1], contract(2)])
        assert len(ledger.contracts()) == 2
        kinds = sorted(line.kind for line in ledger.journal())
        assert kinds == ["payment", "statement", "summary"]
    assert places[0].audit(60.0) == ([], "")


def test_commits_are_flushed_even_where_the_servers_settings_are_faster(
    places: tuple[PostgresStore, PostgresStore],
) -> None:
    with psycopg.connect(url(), autocommit=True) as connection:
        connection.execute("ALTER ROLE ngp SET synchronous_commit = off")
        try:
            with closing(places[0].open()) as ledger:
                assert ledger._connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        finally:
            connection.execute("ALTER ROLE ngp RESET synchronous_commit")


def test_a_server_that_hangs_stops_no_daemon(
    places: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(places[0].open()) as ledger:
        ledger._connection.most_s = 0.5
        with suspended(ledger._connection.info.backend_pid):
            began = time.monotonic()
            with pytest.raises(LedgerMomentError, match="doesn't answer"):
                ledger.commit(PAID)
            assert time.monotonic() - began < 30
        ledger.commit(PAID)
    assert places[0].audit(60.0) == ([], "")


# --- the place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says", "passes"),
    [
        (lambda one: one.replace("ngp@", "nobody@"), 'role "nobody" does not exist. Correct LEDGER', False),
        (lambda one: one.replace("/postgres?", "/none?"), 'database "none" does not exist. Correct LEDGER', False),
        (lambda one: one.replace("ngpt-", "no-"), "The ledger is intact; start the server", True),
    ],
    ids=["user", "database", "server"],
)
def test_a_place_that_cant_be_reached_says_what_is_wrong(
    tmp_path: Path, wrong: Callable[[str], str], says: str, passes: bool
) -> None:
    store = PostgresStore(wrong(url()), R1, tmp_path / "ledger.db")
    for deed in (store.open, store.exists, store.look, lambda: store.audit(1.0)):
        with pytest.raises(LedgerError, match=says) as refused:
            deed()
        assert isinstance(refused.value, LedgerMomentError) is passes


def test_a_user_without_rights_is_told_what_to_grant(tmp_path: Path) -> None:
    with psycopg.connect(url(), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS poor")
        connection.execute("CREATE ROLE poor LOGIN")
    with pytest.raises(LedgerError, match="GRANT CREATE ON DATABASE"):
        PostgresStore(url().replace("ngp@", "poor@"), os.urandom(32), tmp_path / "ledger.db").open()


def test_no_error_shows_the_url_or_a_rows_values(places: tuple[PostgresStore, PostgresStore], tmp_path: Path) -> None:
    bad = [
        "postgresql://ann:s3cret@127.0.0.1:9/x", "postgresql://127.0.0.1:9/?password=s3cret",
        *(f"postgresql://ann:s3cr{one}et@127.0.0.1:9/x" for one in ("%zz", "/", "@", ":", "?", "#")),
        "postgresql://127.0.0.1:s3cret/x",
    ]  # fmt: skip
    for one in bad:
        with pytest.raises(LedgerError) as refused:
            PostgresStore(one, R1, tmp_path / "ledger.db").open()
        assert "s3cr" not in str(refused.value) + repr(refused.value.__cause__)
    assert "s3cret" not in repr(server.Place(bad[0], R1))
    with closing(places[0].open()) as ledger, pytest.raises(LedgerError) as failed:
        ledger.commit([replace(payment(1), amount_msat=-1)])
    assert payment(1).preimage.hex() not in str(failed.value) and failed.value.__cause__ is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE state SET value = 99 WHERE name = 'schema'", "newer ngp"),
        ("DELETE FROM state WHERE name = 'schema'", "isn't a ledger"),
        ("DROP TABLE state", "isn't a ledger"),
    ],
)
def test_what_is_no_ledger_of_this_ngp_is_refused(tmp_path: Path, change: str, says: str) -> None:
    adapter = Postgresql(tmp_path)
    adapter.store.open().close()
    adapter.execute(change)
    for deed in (adapter.store.open, adapter.store.look, lambda: adapter.store.audit(1.0)):
        with pytest.raises(LedgerError, match=says):
            deed()


def test_an_older_ledger_is_migrated_or_left_as_it_is(
    places: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = schema.MIGRATIONS
    with closing(places[0].open()) as ledger:
        ledger.commit(PAID)
    broken = ("DROP TABLE contracts", "ALTER TABLE nowhere ADD x INTEGER")
    monkeypatch.setattr(schema, "MIGRATIONS", (*everything, broken))
    assert places[0].audit(60.0) == ([], "the ledger is of an older ngp; the next start updates it")
    with pytest.raises(LedgerError, match="nowhere"):
        places[0].open()
    monkeypatch.setattr(schema, "MIGRATIONS", (*everything, ("ALTER TABLE contracts ADD COLUMN x INTEGER",)))
    places[0].open().close()
    assert places[0].audit(60.0) == ([], "")


def test_a_backup_is_a_ledger_of_its_own_and_can_be_taken_over(
    places: tuple[PostgresStore, PostgresStore], tmp_path: Path
) -> None:
    with closing(places[0].open()) as ledger:
        ledger.next_boot(7)
        ledger.commit([*PAID, contract(1), rental(), account(R1, paid_msat=0)])
        ledger.backup(tmp_path / "copy")
        ledger.backup(tmp_path / "copy")
        before = content(ledger)
        with pytest.raises(LedgerError, match="is no backup"):
            (tmp_path / "other").write_text("x")
            ledger.backup(tmp_path / "other")
    copy = SqliteStore(tmp_path / "copy")
    assert copy.audit(60.0) == ([], "")
    with closing(copy.open()) as opened:
        assert content(opened) == before
    with psycopg.connect(url(), autocommit=True) as connection:
        connection.execute("DELETE FROM ngp.let_networks")
    (tmp_path / "copy").rename(tmp_path / "ledger.db")
    assert places[1].exists()
    with closing(places[1].open()) as ledger:
        assert content(ledger) == before and ledger.next_boot() == 8
        ledger.commit([journal("statement")])
        assert len(list(ledger.journal())) == 2
    assert (tmp_path / "ledger.db.moved").exists() and not (tmp_path / "ledger.db").exists()
    assert places[1].audit(60.0) == ([], "")
    (tmp_path / "ledger.db.moved").rename(tmp_path / "ledger.db")
    with pytest.raises(LedgerError, match="so does .*ledger.db. Move"):
        places[1].open()


def test_a_file_whose_taking_over_was_cut_short_is_taken_over_once(
    places: tuple[PostgresStore, PostgresStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SqliteStore(tmp_path / "ledger.db").open()) as former:
        former.commit(PAID)

    def fails(_path: Path) -> None:
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patched:
        patched.setattr(file, "set_aside", fails)
        with pytest.raises(LedgerError, match="ledger.db: .*read-only"):
            places[0].open()
    with closing(places[0].open()) as ledger:
        assert len(list(ledger.journal())) == 1
    assert (tmp_path / "ledger.db.moved").exists()
    assert places[0].audit(60.0) == ([], "")


def test_without_an_identity_there_is_no_ledger_yet(tmp_path: Path) -> None:
    place_ = stores.at(tmp_path, url())
    assert not place_.exists()
    with pytest.raises(LedgerError, match="no identity.key yet"):
        place_.open()


def test_without_the_driver_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from pathlib import Path\nfrom ngp import store\nfrom ngp.errors import LedgerError\n"
        "try: store.at(Path('.'), 'postgresql://ann:s3cret@db/x', bytes(32))\n"
        "except LedgerError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "ngp[postgresql]" in said and "s3cret" not in said


# --- the fight --------------------------------------------------------------------------------------------------------


class Side:
    """One landlord's process, started again whenever it was killed."""

    def __init__(self, server_url: str, folder: Path, number: int) -> None:
        self.words = [
            sys.executable, str(Path(__file__).parent / "fighting_landlord.py"), server_url, str(folder), str(number),
        ]  # fmt: skip
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/core'}"}
        self.log = folder / f"log-{number}"
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )

    def kill(self) -> None:
        assert self.process.poll() is None, self.log.read_text()
        self.process.kill()
        self.process.wait()

    def did(self, what: str) -> int:
        return self.log.read_text().split().count(what)


def held_by_both(server_url: str) -> list[str]:
    """Return the networks of all rentals that aren't over, of both landlords at one instant."""
    query = " UNION ALL ".join(
        f"SELECT networks FROM {server.Place(server_url, identity(number)).schema}.rentals WHERE state <> 'released'"
        for number in (1, 2)
    )
    with psycopg.connect(server_url) as connection:
        return [network for row in connection.execute(query) for network in row[0].split()]


@pytest.mark.first
def test_two_landlords_fight_for_the_last_address_while_one_and_the_server_are_killed(
    own_server: Server, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds = 60 if pytestconfig.getoption("--long") else 10
    chance = random.Random(7)
    for number in (1, 2):
        place(own_server.url, tmp_path, number).open().close()
    sides = [Side(own_server.url, tmp_path, number) for number in (1, 2)]
    try:
        for _ in range(rounds):
            before, until = [side.did("let") for side in sides], time.monotonic() + chance.uniform(0.0, 0.5)
            deadline = time.monotonic() + 60
            while time.monotonic() < until or any(
                side.did("let") == count for side, count in zip(sides, before, strict=True)
            ):
                held = held_by_both(own_server.url)
                assert len(held) == len(set(held)), "let twice"
                assert time.monotonic() < deadline, [side.log.read_text() for side in sides]
            victim = chance.choice(sides)
            victim.kill()
            if chance.random() < 0.7:
                own_server.kill()
                time.sleep(chance.uniform(0.0, 0.3))
                own_server.start()
            victim.start()
    finally:
        for side in sides:
            side.process.kill()
            side.process.wait()
    for number, side in enumerate(sides, 1):
        assert side.did("let") >= rounds and side.did("full") > 0, side.log.read_text()
        assert "Traceback" not in side.log.read_text()
        with closing(FightingLandlord(own_server.url, tmp_path, number)) as landlord, closing(landlord.node):
            landlord.check()
            booked = sum(one.paid_msat for one in landlord.ledger.load(landlord.clock().utc_s).accounts)
            assert booked == sum(amount for _, amount in landlord.node.paid) > 0
    held = held_by_both(own_server.url)
    assert len(held) == len(set(held))
