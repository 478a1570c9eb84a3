"""A disk that fills up and a clock that jumps by years: neither may cost money or a contract.

The machine's own clock isn't changed: the daemon under test adds offsets from a file to UTC.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core_tests import traffic
from core_tests.daemon import STATE_KEY, Daemon
from core_tests.lab import Lab
from core_tests.shell import ROOT, await_until, sh
from core_tests.trade import SETTLED_S, Trade, open_trade, restart
from ngp.errors import ExitCode

YEARS_S = 10 * 365 * 86_400
LIFETIME_S = 25  # three jumps and pings, on a busy machine too
SKEW = """import os, time
_utc = time.time
def _skewed():
    try:
        return _utc() + float(open(os.environ["NGPT_SKEW"]).read() or 0)
    except (OSError, ValueError):
        return _utc()
time.time = _skewed
"""


def answered(trade: Trade, number: int, count: int = 1, wait_s: float = traffic.PATIENCE_S) -> int:
    return traffic.ping(trade.net.client, trade.net.remote(4, number), count=count, wait_s=wait_s).received


def await_sums(trade: Trade) -> None:
    """Wait until both accounts agree; the client's meter may have counted packets that the gateway refused."""

    def sums(row: dict[str, int]) -> list[int]:
        return [row[key] for key in ("paid_msat", "charged_msat", "refunded_msat")]

    await_until(lambda: sums(trade.earned()) == sums(trade.spent()), SETTLED_S, "equal accounts")
    earned = trade.earned()
    assert earned["paid_msat"] == earned["charged_msat"] + earned["refunded_msat"] + earned["balance_msat"]
    assert earned["charged_msat"] == sum(row["charged_msat"] for row in trade.sold())


def test_a_full_disk_stops_new_contracts_and_loses_nothing(lab: Lab) -> None:
    trade = open_trade(lab)
    trade.gateway.stop()
    state = trade.gateway.state_dir
    sh("mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "ngpt", str(state))
    lab.on_exit(lambda: sh("umount", "-l", str(state), check=False))
    trade.gateway.start()
    trade.await_acquainted()
    assert answered(trade, 1) == 1
    await_sums(trade)
    before = trade.earned()
    ballast = state / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    assert answered(trade, 2, wait_s=1) == 0  # a contract that can't be written isn't agreed
    assert answered(trade, 1, count=3) == 3
    await_until(lambda: not trade.gateway.ask("status")["ledger"]["writable"], what="the ledger's state in `status`")
    refused = trade.gateway.cli("block", trade.sold()[0]["neighbour"])
    assert refused.returncode == ExitCode.LEDGER and "nothing was done" in refused.stderr
    assert trade.gateway.cli("backup", str(lab.folder / "copy.db")).returncode == 0  # to a disk with room
    ballast.unlink()
    await_until(lambda: answered(trade, 3, wait_s=1) == 1, what="service when there is room again")
    restart(trade.gateway)
    trade.await_acquainted()
    await_sums(trade)
    assert trade.earned()["paid_msat"] >= before["paid_msat"]
    assert trade.earned()["charged_msat"] > before["charged_msat"]
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    assert answered(trade, 3) == 1
    stopped = trade.gateway.cli("stop")
    assert stopped.returncode == ExitCode.LEDGER and "ngp has stopped" in stopped.stdout
    assert "since the ledger could last be written are lost" in stopped.stderr


@pytest.mark.first
def test_jumps_of_the_clock_neither_end_nor_prolong_nor_lose_anything(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    skew = lab.folder / "skew"
    skew.write_text("0")
    (lab.folder / "sitecustomize.py").write_text(SKEW)

    def environment(daemon: Daemon) -> dict[str, str]:
        path = f"{lab.folder}:{ROOT}" if daemon.name == "gateway" else str(ROOT)
        return {**os.environ, STATE_KEY: str(daemon.state_dir), "PYTHONPATH": path, "NGPT_SKEW": str(skew)}

    monkeypatch.setattr(Daemon, "_environment", environment)
    trade = open_trade(lab, both={"CONTRACT_TIME": LIFETIME_S, "TIME_RENEWAL": 0, "DATA_RENEWAL": 0})
    assert answered(trade, 1) == 1
    await_until(lambda: trade.earned()["paid_msat"] > 0, what="the payment")
    (row,) = trade.sold()
    for jump in (YEARS_S, -YEARS_S, 0):
        _jump(trade, skew, jump)
        assert answered(trade, 1) == 1  # a contract's time runs by the monotonic clock
    assert [one["id"] for one in trade.sold() if one["state"] != "closed"] == [row["id"]]
    await_until(lambda: trade.sold(reason="expired"), what="the end at its time, not later")
    paid = trade.earned()["paid_msat"]
    for jump in (YEARS_S, -YEARS_S, 0):
        _jump(trade, skew, jump)
        restart(trade.gateway)
        trade.await_acquainted()
        assert trade.earned()["paid_msat"] == paid
    assert answered(trade, 2) == 1
    await_sums(trade)


def _jump(trade: Trade, skew: Path, seconds: int) -> None:
    """Move the gateway's UTC, and wait until it notices."""
    skew.write_text(str(seconds))
    uptime_s = trade.gateway.json("status")["uptime_s"]
    await_until(lambda: trade.gateway.ask("status")["uptime_s"] > uptime_s, what="a second under the new time")
