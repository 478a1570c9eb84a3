"""`ngp stop` after kill -9: traffic that was carried without a daemon is charged to the byte, or reported as lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.next_layout import import_path, make
from core_tests.shell import await_until, sh
from core_tests.test_interface_kinds import kernel_state
from core_tests.trade import GATEWAY, Trade, assert_conserved, open_trade, start_all, used
from ngp.errors import ExitCode

PINGS, PAYLOAD_BYTES, HEADERS_BYTES = 5, 500, 28
EXCHANGED = 2 * PINGS * (PAYLOAD_BYTES + HEADERS_BYTES)


def exchange(trade: Trade) -> None:
    pings = traffic.ping(trade.net.client, trade.net.remote(4), count=PINGS, payload_bytes=PAYLOAD_BYTES)
    assert pings.received == PINGS


def carried(rows: list[dict[str, object]], trade: Trade) -> int:
    (row,) = [row for row in rows if str(row["destination"]).startswith(f"{trade.net.remote(4)}/")]
    return used(row)


def open_on_small_disk(lab: Lab) -> Trade:
    """Put the gateway's state on a small disk of its own."""
    trade = open_trade(lab)
    trade.gateway.stop()
    state = trade.gateway.state_dir
    sh("mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "ngpt", str(state))
    lab.on_exit(lambda: sh("umount", "-l", str(state), check=False))
    trade.gateway.start()
    trade.await_acquainted()
    return trade


def kill_both(trade: Trade) -> tuple[int, int]:
    """Let traffic pass with both daemons killed; returns the counts of both meters before."""
    trade.prepay()
    exchange(trade)
    trade.assert_books_agree()
    before = carried(trade.sold(), trade), carried(trade.bought(), trade)
    trade.gateway.kill9()
    trade.client.kill9()
    exchange(trade)
    return before


@pytest.mark.parametrize("version", ["same", "later"])
def test_traffic_without_a_daemon_is_charged_to_the_byte(lab: Lab, tmp_path: Path, version: str) -> None:
    """Also if the `ngp stop` is that of a later version, whose tables in the kernel differ."""
    trade = open_trade(lab, {**GATEWAY, "WHEN_STOPPED": "closed"})
    sold, bought = kill_both(trade)
    if version == "later":
        trade.gateway.import_path = trade.client.import_path = import_path(make(tmp_path))
    balance = trade.earned()["balance_msat"]
    for daemon, words in ((trade.gateway, ("--config", str(trade.gateway.config))), (trade.client, ())):
        stopped = daemon.cli("stop", *words)
        assert (stopped.returncode, stopped.stderr) == (0, "")
        assert "is removed, and the traffic of its contracts is charged" in stopped.stdout
    assert traffic.ping(trade.net.client, trade.net.remote(4), wait_s=0.5).received == 0, "it is closed"
    assert carried(trade.sold(), trade) == sold + EXCHANGED
    assert carried(trade.bought(), trade) == bought + EXCHANGED
    assert trade.earned()["balance_msat"] < balance
    assert_conserved(trade.gateway)  # the client's account follows the bills, which come later
    for daemon in (trade.gateway, trade.client):
        assert daemon.cli("stop").returncode == ExitCode.RUNNING, "nothing is charged twice"
    assert carried(trade.sold(), trade) == sold + EXCHANGED
    start_all(trade.gateway, trade.client)
    trade.await_acquainted()
    trade.assert_books_agree()


@pytest.mark.parametrize("spoiled", ["full", "gone"])
def test_traffic_that_no_ledger_records_is_reported_as_lost_and_nothing_stays(lab: Lab, spoiled: str) -> None:
    trade = open_on_small_disk(lab)
    kill_both(trade)
    state = trade.gateway.state_dir
    if spoiled == "full":
        with (state / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
    else:
        (state / "ledger.db").rename(state / "elsewhere.db")
    stopped = trade.gateway.cli("stop")
    assert stopped.returncode == ExitCode.LEDGER
    assert "is removed\n" in stopped.stdout and "since the ledger's last entry is lost" in stopped.stderr
    await_until(lambda: not kernel_state(trade.net.gateway), what="an end without leftovers")
