"""The demonstration of renting runs to its end with equal books; if a msat differs, it says so and fails."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from copy import deepcopy

import pytest

from core_tests.demo import DIFFERS, DONE, INTERRUPTED, USAGE, verdict
from core_tests.demo_staticwire import (
    BYTE_MSAT,
    FEE_SAT,
    PARTIES,
    RENT_SAT_S,
    SAT,
    Reading,
    Reckoned,
    Row,
    compare,
    rent_due_msat,
)
from core_tests.shell import ROOT, run, sh
from core_tests.test_demo import namespaces_of, play_until
from ngp.modules.tunnel.userspace import SOCKETS
from ngp.tenant.renting import WIREGUARD_FOLDER

INVOICES = (49_000 * SAT, 4_000 * SAT)
TO, BACK, RENT = 781_367, 370_050, 38 * RENT_SAT_S * SAT
DUE = RENT + (TO + BACK) * BYTE_MSAT
ROW: Row = {
    "used_to_bytes": TO,
    "used_from_bytes": BACK,
    "paid_msat": sum(INVOICES),
    "activation_fee_msat": FEE_SAT * SAT,
    "charged_msat": DUE,
    "credit_msat": sum(INVOICES) - FEE_SAT * SAT - DUE,
}
JOURNAL: list[Row] = [
    *({"kind": "payment", "amount_msat": one} for one in INVOICES),
    {"kind": "activation", "amount_msat": -FEE_SAT * SAT},
    *({"kind": "rent", "amount_msat": -RENT // 2} for _ in range(2)),
    {"kind": "charge", "amount_msat": -(TO + BACK) * BYTE_MSAT},
    {"kind": "contract", "amount_msat": 0},
]
SERVICE = Reading(37.4, 38.6)


def judge(
    let: Row = ROW,
    rented: Row = ROW,
    journal: list[Row] = JOURNAL,
    payments: Sequence[int] = INVOICES,
    to: int = TO,
    back: int = BACK,
) -> int:
    reckoned = Reckoned(INVOICES, to, back, SERVICE)
    return verdict(compare(let, rented, journal, payments, reckoned), sides=PARTIES)


def test_books_that_agree_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge() == DONE
    said = capsys.readouterr().out
    assert "landlord" in said and "not real" in said and "DIFFERS" not in said


@pytest.mark.parametrize("name", ROW)
@pytest.mark.parametrize("side", ["let", "rented"])
def test_one_msat_off_in_a_listing_fails(side: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(**{side: ROW | {name: ROW[name] + 1}}) == DIFFERS  # type: ignore[arg-type]
    assert f"DIFFERS {PARTIES[side == 'rented']} " in capsys.readouterr().out or name == "charged_msat"


@pytest.mark.parametrize("number", range(len(JOURNAL) - 1))
def test_one_msat_off_in_a_ledger_fails(number: int) -> None:
    journal = deepcopy(JOURNAL)
    journal[number]["amount_msat"] += 1
    assert judge(journal=journal) == DIFFERS
    assert judge(payments=[INVOICES[0], INVOICES[1] - 1]) == DIFFERS


@pytest.mark.parametrize(("to", "back"), [(TO + 1, BACK), (TO, BACK - 1)])
def test_one_byte_off_in_the_count_fails(to: int, back: int) -> None:
    assert judge(to=to, back=back) == DIFFERS


@pytest.mark.parametrize(("charged_s", "due_s"), [(36, 37), (37, 37), (38, 38), (39, 39), (40, 39)])
def test_rent_is_that_of_the_seconds_that_a_stopwatch_allows(charged_s: int, due_s: int) -> None:
    assert rent_due_msat(charged_s * RENT_SAT_S * SAT, SERVICE) == due_s * RENT_SAT_S * SAT


# --- the real thing ---


def demo(*words: str) -> list[str]:
    return [sys.executable, "-m", "core_tests.demo", "--staticwire", *words]


@pytest.mark.first
def test_the_demonstration_ends_equal() -> None:
    done = run(demo("--plain"), timeout_s=300, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    story = done.stdout
    assert done.returncode == DONE, f"{story}\n{done.stderr}"
    chapters = [story.index(f"{number}/6 ") for number in range(1, 7)]
    assert chapters == sorted(chapters)
    for told in ("ngp rent trust", "ngp rent new", "198.51.100.1: connected", "2001:db8:100::1: connected",
                 "the kernel cut it at the byte", "can't connect any more", "ngp rent add", "the same addresses",
                 "bytes towards the tenant", "bytes from the tenant", "Equal to the byte and the msat"):  # fmt: skip
        assert told in story, f"{told!r} is missing in:\n{story}"
    assert story.count(": connected; all of") == 4 and "not real" in story


def test_a_terminal_that_is_closed_in_the_middle_leaves_nothing() -> None:
    process = play_until(demo("--plain"), "a service of the tenant listens")
    prefix = namespaces_of(process.pid).pop().rpartition("-")[0]
    (link,) = (each for each in WIREGUARD_FOLDER.glob("*.conf") if prefix in str(each.readlink()))
    os.killpg(process.pid, signal.SIGHUP)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, complaint
    assert not link.is_symlink() and not (SOCKETS / f"{link.stem}.sock").exists()
    assert prefix not in sh("ip", "netns", "list")


@pytest.mark.parametrize("word", ["--lightning", "--seconds=5"])
def test_options_of_the_other_story_are_refused(word: str) -> None:
    done = run(demo(word), timeout_s=120, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == USAGE
    assert "--staticwire" in done.stderr
