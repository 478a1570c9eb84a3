"""Verbs against a daemon with canned answers: JSON as the daemon sends it, exit codes, output for people."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ngp import cli
from ngp.cli import accounts, neighbours
from ngp.cli.show import print_unless_real
from ngp.config.loader import parse
from tests.cli.conftest import LONGEST_S, Host, keep_books
from tests.cli.fake_daemon import fake_main

LISTS = {
    "accounts": [fake_main.ACCOUNT],
    "neighbours": [fake_main.NEIGHBOUR],
    "ledger": [fake_main.ENTRY],
    "contracts": [fake_main.CONTRACT | {"id": "0" * 32, "state": "closed"}],
    "rentals": [fake_main.RENTAL],
}


@pytest.mark.parametrize("verb", LISTS)
def test_json_is_what_the_daemon_says(running: Host, verb: str) -> None:
    done = running.ngp(verb, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == LISTS[verb]


def test_status_json_is_what_the_daemon_says(running: Host) -> None:
    assert json.loads(running.ngp("status", "--json").stdout) == fake_main.STATUS


HEAVY = {"asyncio", "cryptography", "google", "grpc", "msgpack", "scapy", "sqlite3", "yaml"}
LOADED = "import sys; from ngp import cli; cli.run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"


@pytest.mark.parametrize("verb", ["status", *LISTS])
def test_a_verb_that_asks_the_daemon_loads_only_what_it_needs(running: Host, verb: str) -> None:
    """On a router the packages of daemon, ledger and payments take many times as long to load as the answer."""
    command = [sys.executable, "-c", LOADED, verb, "--json"]
    done = subprocess.run(command, env=running.variables(), capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert json.loads(done.stdout) and "ngp.cli.client" in loaded
    assert not HEAVY & loaded
    unneeded = {"ngp.config", "ngp.core.world", "ngp.core.values", "ngp.core.kernel", "ngp.ports", "ngp.cli.books"}
    assert not loaded & unneeded


def test_a_hundred_thousand_contracts_arrive_complete(running: Host) -> None:
    rows = json.loads(running.ngp("contracts", "--all", "--json").stdout)
    assert len({row["id"] for row in rows}) == len(rows) == 100_000


def test_an_empty_list_is_an_empty_list(running: Host) -> None:
    assert json.loads(running.ngp("ledger", "--since", "2040-01-01", "--json").stdout) == []
    assert running.ngp("ledger", "--since", "2040-01-01").stdout == "nothing since 2040-01-01\n"


@pytest.mark.parametrize("verb", ["contracts", "accounts", "ledger", "rentals", "status", "top"])
def test_every_listing_says_that_sandbox_money_is_not_real(running: Host, verb: str) -> None:
    words = [verb, "--count", "1"] if verb == "top" else [verb]
    shown = running.ngp(*words).stdout
    assert "not real money" in shown
    assert "sandbox money" not in shown  # it may be a test chain's money


def test_what_is_not_known_to_be_real_money_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_unless_real([])
    print_unless_real([{"real_money": True}])
    assert capsys.readouterr().out == ""
    print_unless_real([{"real_money": True}, {}])
    assert "not real money" in capsys.readouterr().out


def test_tables_show_money_and_bytes_exactly(running: Host) -> None:
    text = running.ngp("contracts").stdout
    for expected in ("1,234.567 sat", "1.18 MB (1,234,567)", "7 B", "5 msat/kB", "100 MB (104,857,600)"):
        assert expected in text
    assert "-1.500 sat" in running.ngp("accounts").stdout


def test_a_narrow_terminal_gets_blocks_of_lines(running: Host) -> None:
    lines = running.ngp("contracts", COLUMNS="40").stdout.splitlines()
    assert "destination  198.51.100.0/24" in lines
    assert "charged      1,234.567 sat" in lines


def test_control_characters_of_a_neighbour_stay_away_from_the_terminal(running: Host) -> None:
    assert "192.0.2.1?[2J" in running.ngp("neighbours").stdout
    refused = running.ngp("refund", "7f3a")
    assert (refused.returncode, refused.stderr) == (5, "ngp: no route?[31m: wait\n")


def test_a_neighbour_on_another_payment_network_is_marked(running: Host) -> None:
    assert "regtest, not ours" in running.ngp("neighbours").stdout


def test_a_block_that_waits_for_room_on_the_disk_is_marked() -> None:
    column = next(one for one in neighbours._COLUMNS if one.title == "blocked")
    assert column.show({"blocked": False, "block_waits": True}) == "no, until the ledger can be written"
    assert column.show({"blocked": True, "block_waits": False}) == column.show({"blocked": True}) == "yes"


def test_net_conf_takes_a_neighbour_as_it_is_listed() -> None:
    column = next(one for one in neighbours._COLUMNS if one.title == "neighbour")
    listed = column.show({"neighbour": "7f3a" * 16})
    entry = f"{{prefix: 192.0.2.0/24, sell: 1, neighbour: {listed}}}"
    assert parse(f"MESH_INTERFACES: mesh0\nPRICES: [{entry}]", Path("net.conf")).prices[0].neighbour == listed


def test_whom_our_routes_lead_through_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"neighbour": "7f3a" * 16, "chosen_for": ["0.0.0.0/0", "::/0"], "quality": 0.987}
    neighbours._print_more([row, {"neighbour": "8e" * 32, "chosen_for": [], "quality": 1.0}])
    assert capsys.readouterr().out == "packets to 0.0.0.0/0, ::/0 go through 7f3a7f3a7f3a7f3a, whose quality is 0.99\n"


@pytest.mark.parametrize("number", [1, 4, 6])
def test_what_a_neighbour_offers_is_said_with_its_price(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    offers = [{"destination": f"198.51.100.{last}/32", "price_msat_per_gib": 5 << 20} for last in range(number)]
    neighbours._print_more([{"neighbour": "7f3a" * 16, "offers": offers}, {"neighbour": "8e" * 32, "offers": []}])
    said = capsys.readouterr().out
    assert said.startswith("7f3a7f3a7f3a7f3a offers 198.51.100.0/32 for 5 msat/kB") and said.count("\n") == 1
    assert said.count("/32 for ") == min(number, neighbours.MOST_OFFERS)
    assert ("2 more (--json)" in said) is (number == 6)


def test_status_shows_times_reasons_and_counters_in_words(running: Host) -> None:
    lines = running.ngp("status").stdout.splitlines()
    assert any(line.split(maxsplit=1) == ["uptime", "1 d 2 h 3 min 4 s"] for line in lines)
    assert any(line.endswith("sandbox (not real money), not ready: asleep") for line in lines)
    assert any(line.split() == ["counters", "messages", "ignored", "replayed", "3"] for line in lines)


def test_an_account_that_is_not_topped_up_says_why(running: Host) -> None:
    shown = running.ngp("accounts").stdout.splitlines()
    assert shown[-1] == "7f3a000000000000 (server) is not topped up: the channel is empty?[2J"


def test_rentals_are_listed_and_offers(running: Host) -> None:
    shown = running.ngp("rentals").stdout
    for part in ("reserved (no credit)", "203.0.113.7/32, 2001:db8::/64", "-0.500 sat", "1.18 MB (1,234,567)", "?[2J"):
        assert part in shown
    assert len(json.loads(running.ngp("rentals", "--all", "--json").stdout)) == 2
    assert json.loads(running.ngp("rentals", "offers", "--json").stdout) == [fake_main.OFFER]
    shown = running.ngp("rentals", "offers").stdout
    assert "IPv4 /32, IPv6 /64" in shown and "60 d 21 h" in shown


def test_a_tenant_is_cut_off_only_if_the_operator_says_so_twice(running: Host) -> None:
    asked = running.ngp("rentals", "release", "203.0.113.7")
    assert (asked.returncode, asked.stdout) == (2, "") and "without a terminal give --yes" in asked.stderr
    assert "without a terminal give --yes" in running.ngp("rentals", "off", "203.0.113.7").stderr
    done = running.ngp("rentals", "release", "203.0.113.7", "--yes")
    assert (done.returncode, done.stdout) == (0, "rental 203.0.113.7 is released\n")
    assert running.ngp("rentals", "on", "5e").stdout == "rental 5e is on\n", "nobody loses by it"


@pytest.mark.parametrize(
    ("answer", "code", "said"), [(b"n\n", 130, b"Go on? [y/N]"), (b"y\n", 0, b"rental 5e is released")]
)
def test_on_a_terminal_a_release_asks(running: Host, answer: bytes, code: int, said: bytes) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        running.command("rentals", "release", "5e"), env=running.variables(), stdin=theirs, stdout=theirs,
        stderr=theirs, close_fds=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(LONGEST_S) == code
    assert b"others may rent its addresses" in shown and said in shown


@pytest.mark.parametrize(
    ("words", "right"),
    [(["off"], "off takes one RENTAL"), (["on", "a", "b"], "on takes one RENTAL"), (["new"], "known are offers, off")],
)
def test_words_that_rentals_does_not_know_are_bad_usage(running: Host, words: list[str], right: str) -> None:
    refused = running.ngp("rentals", *words)
    assert refused.returncode == 2 and right in refused.stderr


def test_a_tenants_account_shows_what_it_rents() -> None:
    column = next(one for one in accounts.COLUMNS if one.title == "neighbour")
    shown = column.show({"neighbour": "5e" * 32, "networks": ["203.0.113.7/32"]})
    assert shown == "5e5e5e5e5e5e5e5e rents 203.0.113.7/32"
    assert column.show({"neighbour": "5e" * 32}) == "5e5e5e5e5e5e5e5e"
    grace = next(one for one in accounts.COLUMNS if one.title == "grace left")
    tenant = {"role": "server", "networks": ["203.0.113.7/32"], "grace_left_bytes": 0}
    assert grace.show(tenant) == "-", "no tenant has a credit line"
    assert grace.show({**tenant, "networks": []}) != "-"


def test_ledger_as_csv(running: Host) -> None:
    rows = list(csv.DictReader(io.StringIO(running.ngp("ledger", "--csv").stdout)))
    written = {name: "" if value is None else str(value) for name, value in fake_main.ENTRY.items()}
    assert rows == [written | {"real_money": "no"}]


def test_top_gives_a_line_a_refresh_to_a_script(running: Host) -> None:
    lines = running.ngp("top", "--interval", "0.1", "--count", "3").stdout.splitlines()
    assert len(lines) == 3
    assert all("contracts 1 accounts 1 to 0 B/s" in line for line in lines)


def test_top_draws_on_a_terminal(running: Host) -> None:
    ours, theirs = pty.openpty()
    top = subprocess.Popen(
        running.command("top", "--count", "1"),
        stdout=theirs, stderr=theirs, env=running.variables(TERM="xterm", COLUMNS="160"), cwd=running.folder,
    )  # fmt: skip
    text = b""
    while b"198.51.100.0/24" not in text:
        text += os.read(ours, 65536)
    assert top.wait(LONGEST_S) == 0
    os.close(theirs)
    os.close(ours)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["server", "test"], 0, "Test OK\n"),
        (["server", "payment 7f3a 1000 sat"], 0, "neighbour    7f3a\namount msat  1000000\n"),
        (["server", "payment", "7f3a", "5"], 0, "neighbour    7f3a\namount msat  5\n"),
        (["block", "7f3a"], 0, "7f3a is blocked\n"),
    ],
)
def test_a_command_prints_the_daemons_answer_and_ends_with_its_code(
    running: Host, words: list[str], code: int, said: str
) -> None:
    done = running.ngp(*words)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


@pytest.mark.parametrize(
    "words",
    [
        [], ["nonsense"], ["status", "--nonsense"], ["block"], ["server"], ["server", "dance"], ["server", "test now"],
        ["server", "payment 7f3a"], ["server", "payment 7f3a much"], ["server", "payment 7f3a 0"],
        ["server", "payment 'open"], ["ledger", "--since", "soon"], ["ledger", "--csv", "--json"],
        ["top", "--count", "0"], ["top", "--interval", "nan"], ["lightning"], ["lightning", "dance"],
        ["lightning", "open", "7f3a"], ["lightning", "open", "7f3a", "--amount", "0"], ["lightning", "tower"],
        ["lightning", "open", "7f3a", "--amount", "100000", "--csv-delay", "10001"], ["lightning", "tower", "add"],
    ],
)  # fmt: skip
def test_bad_usage_is_2_in_one_line(running: Host, words: list[str]) -> None:
    done = running.ngp(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ngp: ")
    assert len(done.stderr.splitlines()) == 1


def test_errors_of_several_lines_keep_them(running: Host) -> None:
    bad = running.ngp("reload")
    assert (bad.returncode, bad.stderr) == (3, "ngp: net.conf:1: bad\nngp: net.conf:2: worse\n")


def test_a_defect_of_the_daemon_is_1_and_its_details_are_in_the_log_only(running: Host) -> None:
    failed = running.ngp("backup", "x")
    assert failed.returncode == 1
    assert "details" not in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert "a defect with details" in (running.state_dir / "ngp.log").read_text()


def test_a_buyer_sees_bill_and_meter_and_a_seller_the_grace_it_gives() -> None:
    seller = fake_main.ACCOUNT
    buyer = seller | {"role": "client", "grace_left_bytes": 0, "billed_msat": 7, "metered_msat": 9, "disputed": True}
    shown = {column.title: (column.show(seller), column.show(buyer)) for column in accounts.COLUMNS}
    assert shown["grace left"] == ("256 kB (262,144)", "-")
    assert shown["billed"] == ("-", "0.007 sat") and shown["our meter"] == ("-", "0.009 sat")
    assert shown["disputed"] == ("-", "yes")
    stuck = seller | {"on_its_way_msat": 5000, "on_its_way_since": "2030-01-31T08:00:00Z"}
    (on_its_way,) = [column for column in accounts.COLUMNS if column.title == "on its way"]
    assert (on_its_way.show(seller), on_its_way.show(stuck)) == ("-", "5.000 sat since 2030-01-31T08:00:00Z")


def test_a_closed_pipe_is_no_error_message(running: Host) -> None:
    ledger = subprocess.Popen(
        running.command("contracts", "--all", "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=running.variables(), cwd=running.folder,
    )  # fmt: skip
    assert ledger.stdout is not None
    assert ledger.stderr is not None
    ledger.stdout.read(10)
    ledger.stdout.close()
    assert ledger.stderr.read() == b""
    assert ledger.wait(LONGEST_S) == 1


def test_ctrl_c_is_quiet(running: Host) -> None:
    top = subprocess.Popen(
        running.command("top", "--interval", "60"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=running.variables(), cwd=running.folder,
    )  # fmt: skip
    assert top.stdout is not None
    assert top.stderr is not None
    assert top.stdout.readline()
    top.send_signal(signal.SIGINT)
    assert top.wait(LONGEST_S) == 130
    assert top.stderr.read().strip() == b""


def test_a_full_disk_under_the_output_is_told(running: Host) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            running.command("accounts", "--json"),
            stdout=full, stderr=subprocess.PIPE, env=running.variables(), cwd=running.folder, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "ngp: output: No space left on device\n"


# --- without a daemon -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["status"], ["contracts"], ["contracts", "--all"], ["accounts"], ["neighbours"], ["ledger"], ["reload"],
        ["top"], ["block", "7f3a"], ["unblock", "7f3a"],
        ["refund", "7f3a"], ["backup", "x"], ["server", "test"], ["stop"],
        ["status", "--json"], ["contracts", "--json"], ["ledger", "--csv"],
    ],
)  # fmt: skip
def test_without_daemon_and_ledger_it_is_7(host: Host, words: list[str]) -> None:
    done = host.ngp(*words)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr.startswith("ngp: ngp isn't running on ")
    assert not host.state_dir.exists()


def test_the_ledger_is_read_without_a_daemon(host: Host) -> None:
    keep_books(host)
    assert json.loads(host.ngp("ledger", "--json").stdout) == [
        {
            "time": "2001-09-09T01:46:40Z", "kind": "charge", "neighbour": "7f" * 32, "contract": b"c".hex() * 16,
            "amount_msat": 1500, "payment_hash": None, "state": "active", "real_money": False,
        }
    ]  # fmt: skip
    account: dict[str, Any] = json.loads(host.ngp("accounts", "--json").stdout)[0]
    assert account["balance_msat"] == 3500
    assert account["real_money"] is False
    assert host.ngp("contracts", "--all", "--json").stdout == "[]\n"
    assert host.ngp("contracts", "--json").returncode == 7
    assert "not real money" in host.ngp("ledger").stdout


def test_backup_without_a_daemon(host: Host) -> None:
    keep_books(host)
    assert host.ngp("backup", "copy.db").returncode == 0
    assert (host.folder / "copy.db").stat().st_mode & 0o777 == 0o600
    (host.folder / "other").write_text("mine")
    refused = host.ngp("backup", "other")
    assert refused.returncode == 6
    assert (host.folder / "other").read_text() == "mine"


def test_a_damaged_ledger_is_6(host: Host) -> None:
    host.state_dir.mkdir(mode=0o700)
    (host.state_dir / "ledger.db").write_bytes(b"")
    assert host.ngp("ledger").returncode == 6


# --- which daemon is meant --------------------------------------------------------------------------------------------


def test_the_state_directory_comes_from_net_conf(running: Host) -> None:
    running.environment = {"NGP_STATE_DIR": ""}
    try:
        assert running.ngp("server", "test", "--config", "net.conf").stdout == "Test OK\n"
        assert running.ngp("server", "test").stdout == "Test OK\n", "./net.conf is the second default"
        spoiled = running.folder / "spoiled.conf"
        spoiled.write_text(f"SELL: perhaps\nSTATE_DIR: {running.state_dir}  # here\n")
        assert running.ngp("server", "test", "--config", str(spoiled)).stdout == "Test OK\n"
        spoiled.write_text("SELL: perhaps\n")
        assert running.ngp("server", "test", "--config", str(spoiled)).returncode == 3
        assert running.ngp("server", "test", "--config", "net.conf", "--state-dir", "/nowhere").returncode == 7
    finally:
        running.environment = {}


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("contract", " Did you mean 'contracts'?"),
        ("neighbors", " Did you mean 'neighbours'?"),
        ("Status", " Did you mean 'status'?"),
        ("zzz", ""),
    ],
)
def test_a_verb_that_does_not_exist_gets_the_most_similar_one(
    typed: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([typed]) == 2
    assert capsys.readouterr().err == f"ngp: No such command {typed!r}.{hint} See: ngp --help\n"
