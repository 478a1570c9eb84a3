"""An upgrade that changes the kernel's tables, under traffic: booked to the byte, and carried on in a moment.

The next version is made up (`next_layout`). Its start is also killed at three steps: before it has booked what the old
tables counted, after that, and when its own tables are in place of the old ones.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from core_tests import next_layout
from core_tests.counter import Counter
from core_tests.daemon import START_TIMEOUT_S, Daemon
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.test_killed import (
    DESTINATIONS,
    GRACE_BYTES,
    assert_money_and_bytes,
    carried_bytes,
    open_busy_trade,
    start_flows,
)
from core_tests.trade import Trade
from ngp.errors import ExitCode

PREPAID = "3000 sat"  # lasts for more than a minute
SLOW_PPS, FAST_PPS = 20, 300  # to each destination
DEATHS = ("ngp.daemon.last_books:_book", "ngp.daemon.last_books:Persist", "ngp.daemon.node:restore")


@dataclass(frozen=True, slots=True)
class Scene:
    """A trade whose gateway was killed under traffic that is prepaid for some time, and the next version of ngp."""

    trade: Trade
    later: Path
    counters: tuple[Counter, Counter]
    flows: list[subprocess.Popen[str]]

    def carried(self) -> int:
        return carried_bytes(self.trade, *self.counters)

    def await_more(self) -> None:
        before = self.carried()
        await_until(lambda: self.carried() > before + 20_000, what="traffic")

    def upgrade(self, daemon: Daemon) -> None:
        daemon.import_path = next_layout.import_path(self.later)

    def assert_money_and_bytes(self) -> None:
        """Use up the first payment, end the traffic after a second one, and compare both ledgers and the receivers."""
        self.flows.extend(start_flows(self.trade, 600.0, rate_pps=FAST_PPS))
        await_until(lambda: sum(row["kind"] == "payment" for row in self.trade.client.json("ledger")) > 1, 60.0)
        for flow in self.flows:
            flow.kill()
            flow.wait()
        assert_money_and_bytes(self.trade, *self.counters)


@pytest.fixture
def scene(lab: Lab, tmp_path: Path) -> Scene:
    trade = open_busy_trade(lab, CONTRACT_DATA="20 MB", PAYMENT_AMOUNT=PREPAID, TRUST_AMOUNT=PREPAID)
    later = next_layout.make(tmp_path)
    counters = trade.net.internet.counter("wan0", "in"), trade.net.client.counter("mesh0", "in")
    scene = Scene(trade, later, counters, start_flows(trade, 600.0, rate_pps=SLOW_PPS))
    await_until(lambda: len(trade.sold(state="active")) == len(DESTINATIONS), what="the first payment")
    # Listings show a payment a moment before the kernel knows it. Killed then, only the grace would go on.
    await_until(lambda: scene.carried() > GRACE_BYTES, what="traffic that needs the payment")
    trade.gateway.kill9()
    scene.await_more()
    return scene


def longest_pause_s(scene: Scene, work: Callable[[], None]) -> float:
    """Do something, and return the longest time in which nothing was carried, until traffic goes on afterwards."""
    longest_s, carried, since_s, end = 0.0, scene.carried(), time.monotonic(), time.monotonic() + START_TIMEOUT_S
    with ThreadPoolExecutor(1) as pool:
        working, wanted = pool.submit(work), None
        while wanted is None or carried < wanted:
            assert time.monotonic() < end, f"nothing was carried any more for {longest_s} s"
            now, now_s = scene.carried(), time.monotonic()
            if now > carried:
                longest_s, carried, since_s = max(longest_s, now_s - since_s), now, now_s
            if wanted is None and working.done():
                wanted = carried + 20_000
            time.sleep(0.01)
        working.result()
    return longest_s


def test_what_the_tables_of_another_version_counted_is_booked_and_traffic_goes_on(scene: Scene) -> None:
    trade = scene.trade
    scene.upgrade(trade.gateway)
    began_s = time.monotonic()
    paused_s = longest_pause_s(scene, trade.gateway.start)
    went_on_s = time.monotonic() - began_s
    print(f"started, and traffic went on, in {went_on_s:.2f} s; nothing was carried for {paused_s:.2f} s")
    trade.client.kill9()
    scene.await_more()
    scene.upgrade(trade.client)
    trade.client.start()
    trade.await_acquainted()
    scene.await_more()
    scene.assert_money_and_bytes()
    for daemon in (trade.gateway, trade.client):
        daemon.await_logged("contracts of another version of ngp carried")


@pytest.mark.parametrize("dies_in", DEATHS)
def test_killed_in_the_midst_of_an_upgrade_nothing_is_charged_twice_or_lost(scene: Scene, dies_in: str) -> None:
    gateway = scene.trade.gateway
    next_layout.die_in(scene.later, dies_in)
    scene.upgrade(gateway)
    assert gateway.try_start().returncode
    next_layout.die_in(scene.later, "")
    gateway.start()
    scene.await_more()
    scene.assert_money_and_bytes()


def test_an_upgrade_that_fails_leaves_all_to_the_version_before(scene: Scene) -> None:
    """A start that fails before it has booked what the kernel counted must leave the kernel as it is."""
    gateway = scene.trade.gateway
    (scene.later / next_layout.OBJECT).unlink()
    before = gateway.import_path
    scene.upgrade(gateway)
    assert gateway.try_start().returncode == ExitCode.KERNEL
    scene.await_more()
    gateway.import_path = before
    gateway.start()
    scene.assert_money_and_bytes()
