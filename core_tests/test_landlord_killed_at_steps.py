"""Rentals through kill -9 of the landlord at each step: nothing is let twice, and each payment is counted once.

A tenant lives one rental: it asks, pays, shows the proof, fetches its configuration, and adds credit; the operator
switches it off and on, and ends it. The daemon is killed while it works on one of these steps, at a random instant. The
tenant repeats what it got no answer to, as tenants' programs do, and the books are compared on the way and at the end.

`--long` kills it at each step `--rounds` times. docs/reliability.md has the results.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Timer
from typing import Any, TypeVar

import pytest

from core_tests.lab import Lab
from core_tests.many_rentals import multiply
from core_tests.renting import NET_CONF, TUNNEL, Renting, open_renting, proof_of
from core_tests.shell import LabError, await_until
from core_tests.staticwire import Session, Tenant, wg_text
from ngp import invoice, store
from ngp.core.rental.terms import MONTH_S
from ngp.errors import RunningError

STEPS = ("ask", "prove", "configure", "add", "prove more", "off", "on", "release")
WORKS_S = 0.012  # the daemon works on a step for some milliseconds
FEE_SAT, FIRST_SAT, MORE_SAT = 48_000, 2000, 700
SAT = 1000
MANY, MANY_POOLS = 1000, ("10.64.0.0/16", "2001:db8:1000::/48")
Answer = TypeVar("Answer")


class Life:
    """One rental, from the first request to its end.

    Args: killed_at: the step in which the daemon is killed.
    """

    def __init__(self, renting: Renting, killed_at: str, chance: random.Random) -> None:
        self._renting, self._killed_at, self._chance = renting, killed_at, chance
        self._tenant = Tenant(Session("203.0.113.1", 443, connect=renting.outside.connect))
        self._paid_sat = 0

    def live(self) -> None:
        """Live it to the end."""
        self._pay("ask", "prove", FIRST_SAT, FEE_SAT)
        assert self._asked("configure", self._tenant.configuration)["addresses"]
        self._pay("add", "prove more", MORE_SAT)
        for order, state in (("off", "off"), ("on", "active"), ("release", "released")):
            self._ordered(order, state)
            networks = set(self._row()["networks"]) if state == "active" else set()
            assert networks_in_tunnel(self._renting).get(wg_text(self._tenant.key), set()) == networks
        assert self._row()["payments"] == 2
        self._tenant.session.close()

    def _pay(self, ask: str, prove: str, sat: int, fee_sat: int = 0) -> None:
        """Ask for an invoice, pay it, and show the proof; once more, since it counts once."""
        bolt11 = self._asked(ask, lambda: self._tenant.add_credit(sat))["Invoice"]
        assert invoice.read(bolt11).amount_msat == (sat + fee_sat) * SAT
        proof = proof_of(bolt11, self._renting.folder).hex()
        self._paid_sat += sat + fee_sat
        for step in (prove, ""):
            status = self._asked(step, lambda: self._tenant.status(Preimage=proof))
            assert status["unpaid_invoice"] is None and status["total_paid"] == self._paid_sat
        assert self._row()["paid_msat"] == self._paid_sat * SAT

    def _asked(self, step: str, ask: Callable[[], Answer]) -> Answer:
        """Ask the landlord; ask again if it was killed before it answered."""
        with self._perhaps_killed(step), suppress(OSError, ValueError, HTTPException):
            return ask()
        self._tenant.session.close()
        return ask()

    def _ordered(self, order: str, state: str) -> None:
        """Give an operator's order; give it again if the daemon was killed before it had carried it out."""
        rental = self._row()["id"]
        with self._perhaps_killed(order), suppress(RunningError, LabError):
            self._renting.daemon.ask(f"rentals {order}", rental=rental)
        if self._row()["state"] != state:
            self._renting.daemon.ask(f"rentals {order}", rental=rental)
        assert self._row()["state"] == state

    @contextmanager
    def _perhaps_killed(self, step: str) -> Iterator[None]:
        """Kill the daemon at some instant while the block runs, if it is the step for it, and start it again."""
        if step != self._killed_at:
            yield
            return
        pids = self._renting.daemon.pids()  # with those of commands that it runs
        processes = [os.pidfd_open(pid) for pid in pids]
        killer = Timer(self._chance.uniform(0, WORKS_S), _kill, (processes,))
        killer.start()
        try:
            yield
        finally:
            killer.join()
            for process in processes:
                select.select([process], [], [])  # its last thread is over, and so are its locks
                os.close(process)
            self._renting.daemon.start()

    def _row(self) -> dict[str, Any]:
        return self._renting.row(self._tenant, "--all")


def _kill(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)


def networks_in_tunnel(renting: Renting) -> dict[str, set[str]]:
    """Return the networks of each peer, as the landlord's WireGuard says; none is there twice."""
    said = renting.router.sh("wg", "show", TUNNEL, "allowed-ips")
    rows = {key: set(rest.split()) - {"(none)"} for key, rest in (line.split("\t") for line in said.splitlines())}
    assert len(set().union(*rows.values())) == sum(map(len, rows.values()))
    return rows


def assert_books_add_up(renting: Renting) -> None:
    assert store.at(renting.daemon.state_dir).audit(60) == ([], "")


@pytest.mark.first
def test_killed_at_each_step_it_lets_nothing_twice_and_counts_each_payment_once(lab: Lab, tmp_path: Path) -> None:
    kill_at_each_step(lab, tmp_path, rounds=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_at_each_step_many_times(lab: Lab, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kill_at_each_step(lab, tmp_path, int(pytestconfig.getoption("--rounds")))


def kill_at_each_step(lab: Lab, folder: Path, rounds: int) -> None:
    """Live a rental for each step and round; then compare the ledger's sums."""
    renting, chance = open_renting(lab, folder), random.Random(5)
    for number in range(rounds):
        for step in STEPS:
            try:
                Life(renting, step, chance).live()
            except Exception as error:
                raise AssertionError(f"killed at {step!r} in round {number}: {error}") from error
    assert_books_add_up(renting)
    assert len(renting.daemon.json("rentals", "--all")) == rounds * len(STEPS)


@pytest.mark.first
def test_killed_while_a_credit_ends_it_charges_exactly_the_credit(lab: Lab, tmp_path: Path) -> None:
    kill_while_credits_end(lab, tmp_path, rounds=2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_while_many_credits_end(lab: Lab, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kill_while_credits_end(lab, tmp_path, int(pytestconfig.getoption("--rounds")))


def kill_while_credits_end(lab: Lab, folder: Path, rounds: int) -> None:
    """Kill the daemon about when a credit of two seconds ends, and start it again up to a second later."""
    credit_sat, rent_sat_s = 100, 50
    lasts_s = credit_sat / rent_sat_s
    terms: dict[str, Any] = {"LANDLORD_RENT": f"{rent_sat_s * MONTH_S} sat"}
    terms["LANDLORD_INITIAL_CREDIT_MIN"] = f"{credit_sat} sat"
    renting, chance = open_renting(lab, folder, **terms), random.Random(6)
    for _ in range(rounds):
        tenant = renting.rent(credit_sat)
        time.sleep(chance.uniform(lasts_s - 0.6, lasts_s + 0.2))
        renting.daemon.kill9()
        time.sleep(chance.uniform(0, 1))
        renting.daemon.start()
        await_until(lambda: renting.row(tenant)["state"] == "reserved", what="the end of the credit")  # noqa: B023
        assert networks_in_tunnel(renting)[wg_text(tenant.key)] == set()
        rental = renting.row(tenant)["id"]
        lines = [one for one in renting.daemon.json("ledger") if one["neighbour"] == rental and one["kind"] == "rent"]
        assert sum(one["amount_msat"] for one in lines) == -credit_sat * SAT
        renting.daemon.ask("rentals release", rental=rental)
    assert_books_add_up(renting)


def test_a_thousand_rentals_survive_a_kill_and_the_next_one_rents(lab: Lab, tmp_path: Path) -> None:
    pools = [*NET_CONF["LANDLORD_POOLS"], *MANY_POOLS]  # type: ignore[misc]
    renting = open_renting(lab, tmp_path, LANDLORD_POOLS=pools)
    renting.rent(50_000)
    renting.daemon.kill9()
    multiply(renting.daemon.state_dir, MANY, MANY_POOLS)
    for _ in range(2):
        renting.daemon.start()
        rows = {one["wireguard_key"]: set(one["networks"]) for one in renting.daemon.json("rentals")}
        assert len(rows) == MANY + 1 and networks_in_tunnel(renting) == rows
        renting.daemon.kill9()
    assert_books_add_up(renting)
    renting.daemon.start()
    tenant = renting.rent()
    assert networks_in_tunnel(renting)[wg_text(tenant.key)] == set(renting.row(tenant)["networks"])
    assert renting.daemon.json("status")["letting"]["active"] == MANY + 2
