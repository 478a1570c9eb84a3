"""Kills at each step of a payment: nothing is paid twice, no credit is lost, nothing is carried for free.

The victims are both daemons and both nodes. The usual run kills each once, at different steps; `--long` kills each at
every step, `--rounds` times. docs/reliability.md has the results.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import Lab
from core_tests.lightning.books import assert_all_agree, assert_nothing_was_free, look, under_way
from core_tests.lightning.nodes import Lnd
from core_tests.lightning.steps import Stage, Step
from core_tests.lightning.trade import LightningTrade, lightning_trade
from core_tests.shell import await_until
from ngp.core.invoices import OPEN_S

GRACE_BYTES = 51_200
MSAT_PER_BYTE = 1
PACKETS_S = 50  # with 100 bytes and headers each, and answered, so that a top-up of 20 sat lasts a second or two
CONF = {"DEFAULT_PRICE": "1024 msat", "PAYMENT_AMOUNT": "10 sat", "GRACE_DATA": "50 kB"}
BUYER = {**CONF, "BUDGET_PAYMENT": "20 sat"}  # small top-ups, so that the next one is always due soon
VICTIMS = ("gateway's daemon", "client's daemon", "gateway's node", "client's node")
# If LND is killed while it sends a payment, it may report the payment as in flight for ever
# (lightningnetwork/lnd#5152). The next top-up comes when the invoice of that payment is withdrawn.
BACK_S = OPEN_S + 90
SAMPLE = list(zip(VICTIMS, (Step.SETTLED, Step.PROVEN, Step.IN_FLIGHT, Step.INTENDED), strict=True))


@pytest.mark.first
def test_each_of_four_is_killed_once_at_a_step_of_a_payment(lab: Lab) -> None:
    kill_all(lab, SAMPLE)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("victim", VICTIMS)
def test_one_of_four_is_killed_at_every_step_of_a_payment(lab: Lab, victim: str, pytestconfig: pytest.Config) -> None:
    rounds = int(pytestconfig.getoption("--rounds"))
    kill_all(lab, [(victim, step) for _ in range(rounds) for step in Step])


def kill_all(lab: Lab, cells: Sequence[tuple[str, Step]]) -> None:
    """Make all kills, each a victim and a step, one after the other in one trade; then compare all books."""
    with lightning_trade(lab, CONF, BUYER, channel_sat=10_000_000, relayed=True) as made:
        net, before = made.trade.net, look(made)
        at_internet = net.internet.counter("wan0", "in")
        for version in (4, 6):
            traffic.udp_echo(net.internet, net.remote(version), 5000)
        flow = traffic.start(net.client, "udp-send", net.remote(4), 5000, 24 * 60 * 60 * PACKETS_S, 100, PACKETS_S, 0)
        stage = Stage(made)
        for number, (victim, step) in enumerate(cells):
            began = time.monotonic()
            kill_at(made, stage, step, victim, settle=number % 2 == 0)
            took_s = time.monotonic() - began
            print(f"{number}: {victim} killed when {step.value}: paid again after {took_s:.1f} s", flush=True)
        flow.kill()
        flow.wait()
        paid, back = assert_all_agree(made, before)
        assert_nothing_was_free(made, at_internet, MSAT_PER_BYTE, GRACE_BYTES)
        stuck = len(under_way(made.paying))
        odd = f"{stuck} payments that LND lost, {back} that it settled and sent back"
        print(f"{len(cells)} kills, {paid} msat paid, {odd}; all books agree")


def kill_at(made: LightningTrade, stage: Stage, step: Step, victim: str, settle: bool) -> None:
    """Kill a victim at a step of the next top-up, and wait until that top-up or another one was paid and credited.

    Args:
        settle: settle a payment that is between the nodes; otherwise it is sent back.
    """
    who = one_of(made, victim)
    stage.reach(step)
    paid = int(made.trade.earned()["paid_msat"])
    who.kill9()
    stage.release()
    time.sleep(random.uniform(0.0, 0.3))
    who.start()
    stage.end_held(settle)
    await_until(lambda: made.trade.earned()["paid_msat"] > paid, BACK_S, f"a payment after {victim} died: {step.value}")


def one_of(made: LightningTrade, victim: str) -> Daemon | Lnd:
    """Return the daemon or node that a word of VICTIMS names."""
    all_four: Sequence[Daemon | Lnd] = (made.trade.gateway, made.trade.client, made.earning, made.paying)
    return all_four[VICTIMS.index(victim)]
