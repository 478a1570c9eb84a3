"""A tenant's commands through kill -9 at any moment: each is simply given again, and what was paid is counted once.

A kill takes all that the command started with it, as the kernel's or a service manager's does. `--long` kills each
command `--rounds` times. docs/reliability.md has the results.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

from core_tests.lab import Lab
from core_tests.market import V4, V6, Market, open_market
from core_tests.renting import fingerprint_of
from core_tests.shell import await_until
from ngp.errors import ExitCode
from ngp.tenant.policy import PRIORITIES

NAME, MORE_SAT = "shop", 500
BUDGETS = "".join(f"BUDGET_{one}: 90000000 sat\n" for one in ("HOUR", "DAY", "TOTAL"))
TENANT = f"MESH_INTERFACES: mesh0\n{BUDGETS}TENANT_TARGET_CREDIT: 1000 sat\nTENANT_PAYMENT_MIN: {MORE_SAT} sat\n"
RUNS_S = {"new": (0.3, 2.5), "up": (0.3, 1.6), "add": (0.3, 2.0), "down": (0.3, 1.0), "forget": (0.3, 1.0)}
"""When a command is killed: it loads for a third of a second, and is over at the end of this time or some later."""


class Tenant:
    """A tenant whose commands are killed."""

    def __init__(self, market: Market, chance: random.Random) -> None:
        self.market, self._chance = market, chance
        (market.tenant.folder / "net.conf").write_text(TENANT)
        market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))

    def killed(self, verb: str, *words: str) -> None:
        """Begin a command, and kill it with all that it started."""
        command = self.market.command(verb, *words)
        process = self.market.tenant.popen(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(self._chance.uniform(*RUNS_S[verb]))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def rents(self) -> None:
        """Rent; what was begun is completed by AutoPay."""
        self.killed("new", "let", "--name", NAME, "--yes")
        if self.market.rent("autopay", NAME, "--once").returncode == ExitCode.USAGE:
            self.market.done("new", "let", "--name", NAME, "--yes")
        self.market.done("conf", NAME)
        assert self.market.status()["state"] == "active"

    def brings_up(self) -> None:
        """Bring the tunnel up."""
        self.killed("up", NAME)
        self.market.done("up", NAME)
        for address in (V4, V6):
            await_until(lambda: self.market.reached(address), what=f"{address} answers")  # noqa: B023

    def pays(self) -> None:
        """Add credit; AutoPay finds out what became of the payment."""
        self.killed("add", NAME, "--amount", str(MORE_SAT), "--yes")
        self.market.done("autopay", NAME, "--once")
        (let,) = self.market.daemon.json("rentals")
        self.market.assert_paid_once(let)

    def ends(self) -> None:
        """Bring the tunnel down, and forget the rental."""
        self.killed("down", NAME)
        self.market.done("down", NAME)
        assert self.market.tenant.ip("-br", "link", "show", "type", "tun") == ""
        rules = self.market.tenant.ip("rule") + self.market.tenant.ip("-6", "rule")
        assert not [one for one in PRIORITIES if f"{one}:" in rules]
        self.killed("forget", NAME, "--yes")
        assert self.market.rent("forget", NAME, "--yes").returncode in (ExitCode.DONE, ExitCode.USAGE)
        (let,) = self.market.daemon.json("rentals")
        self.market.daemon.ask("rentals release", rental=let["id"])


def kill_at_any_moment(lab: Lab, rounds: int) -> None:
    """Let a tenant live a rental for each round, every command of it killed once."""
    tenant = Tenant(open_market(lab), random.Random(8))
    for number in range(rounds):
        try:
            tenant.rents()
            tenant.brings_up()
            tenant.pays()
            tenant.ends()
        except Exception as error:
            raise AssertionError(f"round {number}: {error}") from error


@pytest.mark.first
def test_a_tenants_commands_that_are_killed_are_simply_given_again(lab: Lab) -> None:
    kill_at_any_moment(lab, rounds=2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_tenants_commands_are_killed_many_times(lab: Lab, pytestconfig: pytest.Config) -> None:
    kill_at_any_moment(lab, int(pytestconfig.getoption("--rounds")))


def test_a_tunnel_that_a_killed_wg_quick_left_half_made_is_made_anew(lab: Lab) -> None:
    tenant = Tenant(open_market(lab), random.Random(8))
    market = tenant.market
    market.done("new", "let", "--name", NAME, "--yes")
    interface = market.status()["id"]
    market.tenant.sh("wireguard-go", interface)
    market.done("up", NAME)
    await_until(lambda: market.reached(V4), what="the rented address answers")
    before = market.tenant.ip("-o", "link", "show", "dev", interface)
    market.done("up", NAME)
    assert market.tenant.ip("-o", "link", "show", "dev", interface) == before, "a whole one stays"
    market.tenant.ip("address", "flush", "dev", interface)
    market.done("up", NAME)
    await_until(lambda: market.reached(V4), what="the rented address answers again")
    market.done("down", NAME)
