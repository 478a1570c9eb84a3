"""The demonstration runs to its end with equal totals; if a byte or a msat differs, it says so and fails."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import IO

import pytest

from core_tests.counter import Flow, Tally
from core_tests.demo import DIFFERS, DONE, INTERRUPTED, verdict
from core_tests.demo_books import Books, Count, Row, compare, count_arrived, due_msat
from core_tests.demo_view import ngp_line
from core_tests.shell import ROOT, run, sh

MSAT_PER_KB = 1 << 20
V4, V6, CUT = "198.51.100.1", "2001:db8:ffff::1", "198.51.100.3"
PRICES = {"a": [(0, 4 * MSAT_PER_KB), (1024, 6 * MSAT_PER_KB)], "b": [(0, MSAT_PER_KB)], "c": [(0, MSAT_PER_KB)]}
TOTALS = ("IPv4 bytes to destinations", "IPv6 bytes back from them", "all bytes, sold and billed", "msat paid")


def contract(name: str, destination: str, to: int, back: int) -> Row:
    used, price = to + back, PRICES[name][-1][1]
    return {
        "id": name,
        "destination": destination,
        "used_to_bytes": to,
        "used_from_bytes": back,
        "billed_bytes": used,
        "charged_msat": due_msat(used, PRICES[name]),
        "price_msat_per_gib": price,
    }


def sound() -> tuple[Count, Books, Books]:
    """Return a count and both sides' books that agree; the client sent 100 bytes into the cut, where 24 had room."""
    rows = [
        contract("a", f"{V4}/32", 1000, 1500),
        contract("b", f"{V6}/128", 700, 0),
        contract("c", f"{CUT}/32", 500, 524),
    ]
    charged = sum(row["charged_msat"] for row in rows)
    account = {"paid_msat": 50, "charged_msat": charged, "refunded_msat": 0, "balance_msat": 50 - charged}
    bought = deepcopy(rows)
    bought[2]["used_to_bytes"] = 600
    bought[2]["used_from_bytes"] = 500
    metered = sum(due_msat(row["used_to_bytes"] + row["used_from_bytes"], PRICES[row["id"]]) for row in bought)
    arrived = {V4: {"to": 1000, "from": 1500}, V6: {"to": 700, "from": 0}, CUT: {"to": 500, "from": 524}}
    return Count(arrived), Books(rows, account), Books(bought, {**account, "metered_msat": metered})


def judge(count: Count, gateway: Books, client: Books) -> int:
    return verdict(compare(count, gateway, client, PRICES, [CUT]))


def test_books_that_agree_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(*sound()) == DONE
    said = capsys.readouterr().out
    assert "Equal to the byte and the msat" in said and "not real" in said and "DIFFERS" not in said


@pytest.mark.parametrize("address", [V4, V6, CUT])
@pytest.mark.parametrize("way", ["to", "from"])
@pytest.mark.parametrize("off", [-1, 1])
def test_one_byte_off_in_the_count_fails(address: str, way: str, off: int, capsys: pytest.CaptureFixture[str]) -> None:
    count, gateway, client = sound()
    count.arrived[address][way] += off
    assert judge(count, gateway, client) == DIFFERS
    said = capsys.readouterr().out
    assert re.search(rf"^{re.escape(address)} {way} .*DIFFERS gateway {re.escape(format(-off, '+'))}", said, re.M)


@pytest.mark.parametrize("key", ["charged_msat", "paid_msat", "refunded_msat", "balance_msat"])
@pytest.mark.parametrize("side", [1, 2])
def test_one_msat_off_in_an_account_fails(key: str, side: int) -> None:
    books = sound()
    account = books[side].account  # type: ignore[union-attr]
    account[key] += 1
    assert judge(*books) == DIFFERS


@pytest.mark.parametrize(
    ("side", "key"),
    [
        (1, "used_to_bytes"),
        (1, "used_from_bytes"),
        (1, "charged_msat"),
        (2, "used_to_bytes"),
        (2, "used_from_bytes"),
        (2, "billed_bytes"),
    ],
)
def test_one_off_in_a_contract_fails(side: int, key: str) -> None:
    books = sound()
    contracts = books[side].contracts  # type: ignore[union-attr]
    contracts[0][key] += 1
    assert judge(*books) == DIFFERS


def test_errors_that_cancel_each_other_out_are_found() -> None:
    count, gateway, client = sound()
    count.arrived[V4]["to"] += 1
    count.arrived[CUT]["to"] -= 1
    assert judge(count, gateway, client) == DIFFERS


def test_a_price_holds_from_its_byte_on_and_rounds_up_once() -> None:
    assert due_msat(1024, PRICES["a"]) == 4
    assert due_msat(2048, PRICES["a"]) == 10
    assert due_msat(1025, PRICES["a"]) == 5
    assert due_msat(0, PRICES["a"]) == 0


def test_only_what_arrived_is_counted() -> None:
    at_internet = {
        Flow("in", "203.0.113.1", V4, 17): Tally(2, 200),
        Flow("out", V4, "203.0.113.1", 17): Tally(9, 900),
        Flow("in", "203.0.113.1", "203.0.113.2", 1): Tally(1, 84),
    }
    at_client = {Flow("in", V4, "192.0.2.2", 6): Tally(1, 60), Flow("out", "192.0.2.2", V4, 17): Tally(5, 500)}
    assert count_arrived(at_internet, at_client, [V4, V6]).arrived == {
        V4: {"to": 200, "from": 60},
        V6: {"to": 0, "from": 0},
    }


def test_a_command_to_look_around_can_be_typed_as_it_is_told() -> None:
    program, *words = shlex.split(ngp_line("contracts --all", Path("/a b")))[2:]  # after env and PYTHONPATH
    assert Path(program).name == "ngp" and words == ["contracts", "--all", "--state-dir", "/a b"]


# --- the real thing ---


def demo(*words: str) -> list[str]:
    return [sys.executable, "-m", "core_tests.demo", *words]


def namespaces_of(pid: int) -> set[str]:
    """Return the namespaces that a process has started its children in (`ip netns exec` becomes the command)."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    # A child may end before it is asked about.
    named = (sh("ip", "netns", "identify", str(child), check=False).strip() for child in children)
    return set(named) - {""}


@pytest.mark.first
def test_the_demonstration_ends_equal() -> None:
    done = run(demo("--plain", "--seconds", "4"), timeout_s=300, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    story = done.stdout
    assert done.returncode == DONE, f"{story}\n{done.stderr}"
    chapters = [story.index(f"{number}/7 ") for number in range(1, 8)]
    assert chapters == sorted(chapters)
    for told in ("neighbour", "counter-offer", "first packet answered", "runs on grace", "payment received",
                 "renewed, now", "not one packet lost", "closed (exhausted)", "0 arrived in 2 s", *TOTALS):  # fmt: skip
        assert told in story, f"{told!r} is missing in:\n{story}"
    assert "not real" in story


@pytest.mark.first
def test_the_demonstration_on_real_nodes_ends_equal() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run(demo("--plain", "--lightning", "--seconds", "4"), timeout_s=500, environment=environment)
    assert done.returncode == DONE, f"{done.stdout}\n{done.stderr}"
    for told in ("LND of the client", "LND of the gateway", "as both ledgers say", "coins of a private chain", *TOTALS):
        assert told in done.stdout, f"{told!r} is missing in:\n{done.stdout}"
    assert "sandbox" not in done.stdout


@pytest.mark.long
@pytest.mark.first
def test_the_mesh_comes_to_zero_and_is_drawn(tmp_path: Path) -> None:
    picture, environment = tmp_path / "mesh.png", {**os.environ, "PYTHONPATH": str(ROOT)}
    words = demo("--plain", "--mesh", "--picture", str(picture))
    done = run(words, timeout_s=1800, environment=environment)
    assert done.returncode == DONE, f"{done.stdout}\n{done.stderr}"
    for told in ("every one came back", "sold to the byte", "all ledgers sum to 0 ", "not real"):
        assert told in done.stdout, f"{told!r} is missing in:\n{done.stdout}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def read_until(stream: IO[str], mark: str) -> str:
    said = ""
    for line in stream:
        said += line
        if mark in line:
            return said
    raise AssertionError(f"no {mark!r} in:\n{said}")


def play_until(command: Sequence[str], mark: str) -> subprocess.Popen[str]:
    """Start a demonstration in a session of its own, and return its process when it has said something."""
    process = subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    read_until(process.stdout, mark)
    return process


def test_ctrl_c_in_the_middle_leaves_nothing() -> None:
    process = play_until(demo("--plain"), "first packet answered")
    prefix = namespaces_of(process.pid).pop().rpartition("-")[0]
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, complaint
    assert "interrupted" in complaint
    assert not [name for name in sh("ip", "netns", "list").split() if name.startswith(prefix)]
    assert not [path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith(prefix)]


@pytest.mark.parametrize(
    "words",
    [
        ("--seconds", "1"),
        ("--seconds", "nan"),
        ("--frobnicate",),
        ("--mesh", "--lightning"),
        ("--mesh", "--staticwire"),
        ("--picture", "/nowhere/mesh.png", "--mesh"),
        ("--picture", "/", "--mesh"),
        ("--picture", "mesh.png"),
    ],
)
def test_wrong_usage_is_reported(words: tuple[str, ...]) -> None:
    done = run(demo(*words), timeout_s=120, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert words[0] in done.stderr
