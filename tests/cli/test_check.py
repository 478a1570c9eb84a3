"""`ngp check` beside a daemon with canned answers, and without a daemon: its lines, and its exit codes."""

from __future__ import annotations

import json
import sqlite3

import pytest

from ngp.cli.check import _print
from tests.cli.conftest import Host, keep_books


def test_check_with_a_daemon(running: Host) -> None:
    done = running.ngp("check", "--config", "net.conf", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == ["configuration", "hook", "payment", "state directory"]
    assert all({"name", "ok", "found", "remedy"} <= row.keys() for row in rows)


def test_check_shows_a_warning_with_its_remedy_and_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    well = {"name": "hook", "ok": True, "found": "tcx", "remedy": ""}
    _print([well, {"name": "watchtower", "ok": True, "found": "none", "remedy": "add one"}])
    shown = capsys.readouterr().out
    assert "WARNING  watchtower  none\n" in shown and "mend: add one" in shown
    assert shown.endswith("all 2 are well, 1 with a warning\n")


def test_check_warns_of_values_with_which_little_passes(running: Host) -> None:
    small = running.folder / "small.conf"
    small.write_text(running.config.read_text() + "CONTRACT_DATA: 1\n")
    done = running.ngp("check", "--config", str(small))
    assert done.returncode == 0
    assert "WARNING  CONTRACT_DATA" in done.stdout and "mend: 100 MB, as shipped" in done.stdout


def test_a_daemon_is_asked_about_the_very_file(running: Host) -> None:
    other = running.folder / "other.conf"
    other.write_text("MESH_INTERFACES: [eth7]\n")
    rows = json.loads(running.ngp("check", "--config", "other.conf", "--json").stdout)
    assert all(word in rows[1]["found"] for word in ("eth7", str(other)))
    other.write_text("MESH_INTERFACES: [eth7]\n# " + 70_000 * "x")
    rows = json.loads(running.ngp("check", "--config", "other.conf", "--json").stdout)
    assert [row["name"] for row in rows] == ["configuration", "daemon", "hook", "payment", "state directory"]
    assert "too long" in rows[1]["found"] and rows[2]["found"] == "looked, asked about {}"
    other.write_text("SELL: perhaps\n")
    done = running.ngp("check", "--config", "other.conf", "--json")
    assert done.returncode == 3 and "not about this file" in json.loads(done.stdout)[1]["found"]


def test_check_without_a_daemon_goes_by_kind(host: Host) -> None:
    away = host.ngp("check", "--config", "net.conf")
    assert away.returncode == 5
    assert "the node is away" in away.stdout and "ledger.db: doesn't exist yet" in away.stdout
    assert host.ngp("check", "--config", "net.conf", NGP_FAKE_MISSING="hook").returncode == 4
    by_the_file = {"NGP_FAKE_MISSING": "hook", "NGP_FAKE_KIND": "configuration"}
    assert host.ngp("check", "--config", "net.conf", **by_the_file).returncode == 3
    host.config.write_text("SELL: perhaps\n")
    bad = host.ngp("check", "--config", "net.conf", "--json")
    assert bad.returncode == 3
    assert json.loads(bad.stdout)[0]["ok"] is False
    assert not host.state_dir.exists(), "check changes nothing"


def test_check_names_a_net_conf_that_shows_its_macaroon_and_looks_at_all_else(host: Host) -> None:
    host.config.write_text("MESH_INTERFACES: eth1\nPAYMENT_INTERFACE: lnd\nLND_CONNECT: lndconnect://a?macaroon=AgED\n")
    done = host.ngp("check", "--config", "net.conf", "--json")
    first, *others = json.loads(done.stdout)
    assert done.returncode == 3 and not first["ok"] and f"chmod 600 {host.config}" in first["found"]
    assert any(row["kind"] == "payment" for row in others)


@pytest.mark.parametrize("words", [(), ("--config", "gone.conf")])
def test_check_without_a_net_conf_doesnt_have_it_corrected(host: Host, words: tuple[str, ...]) -> None:
    host.config.unlink()
    done = host.ngp("check", "--json", *words)
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["remedy"]) == (3, "do what the message says, then run ngp check again")
    assert "copy " in row["found"] and "--config" in row["found"]
    host.config.write_text("SELL: perhaps\n")
    (row,) = json.loads(host.ngp("check", "--config", "net.conf", "--json").stdout)
    assert row["remedy"].startswith("correct the file")


@pytest.mark.parametrize(
    ("stands", "killed", "says"),
    [
        ("gate", True, "its gate is still in force"),
        ("gate", False, "another state directory"),
        ("closed", False, "is dropped (WHEN_STOPPED: closed)"),
    ],
)
def test_check_without_a_daemon_says_what_is_in_force(host: Host, stands: str, killed: bool, says: str) -> None:
    if killed:
        host.state_dir.mkdir(mode=0o700)
        (host.state_dir / "ngp.pid").write_text("4242\n")
    for text, code in ((host.config.read_text(), 4), ("SELL: perhaps\n", 3)):
        host.config.write_text(text)
        done = host.ngp("check", "--config", "net.conf", "--json", NGP_FAKE_STANDS=stands)
        row = json.loads(done.stdout)[1]
        remedy = "sudo ngp check --state-dir " if "another" in says else "sudo ngp start"
        assert (done.returncode, row["name"], row["ok"]) == (code, "daemon", False)
        assert says in row["found"] and row["remedy"].startswith(remedy)


def test_check_without_a_daemon_looks_at_the_ledger(host: Host) -> None:
    host.state_dir.mkdir(parents=True)
    (host.state_dir / "ledger.db").write_bytes(b"cut off")
    rows = json.loads(host.ngp("check", "--config", "net.conf", "--json").stdout)
    assert rows[-1]["name"] == rows[-1]["kind"] == "ledger" and rows[-1]["ok"] is False
    assert "holds only 7 bytes" in rows[-1]["found"]


def test_check_without_a_daemon_adds_up_the_books(host: Host) -> None:
    keep_books(host)  # its account has no payment
    done = host.ngp("check", "--config", "net.conf", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["ledger"]["ok"] is True
    assert (rows["books"]["ok"], rows["books"]["kind"]) == (False, "ledger")
    assert "paid 5000 msat, its settled payments add up to 0 msat" in rows["books"]["found"]
    assert "ngp backup" in rows["books"]["remedy"]
    with sqlite3.connect(host.state_dir / "ledger.db") as connection:
        connection.execute("UPDATE accounts SET paid_msat = 0, charged_msat = 0")
    connection.close()
    rows = {row["name"]: row for row in json.loads(host.ngp("check", "--config", "net.conf", "--json").stdout)}
    assert (rows["books"]["ok"], rows["books"]["found"]) == (True, "accounts, payments and contracts add up")
