"""Daemons whose ledgers are in PostgreSQL: a gateway whose server dies, and landlords that let from one pool."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import Lab
from core_tests.postgresql import Server
from core_tests.renting import TUNNEL, open_renting
from core_tests.shell import await_until
from core_tests.staticwire import LandlordRefuses
from core_tests.trade import SETTLED_S, Trade, open_trade, restart


def answered(trade: Trade, number: int, count: int = 1, wait_s: float = traffic.PATIENCE_S) -> int:
    return traffic.ping(trade.net.client, trade.net.remote(4, number), count=count, wait_s=wait_s).received


def await_sums(trade: Trade) -> None:
    def sums(row: dict[str, int]) -> list[int]:
        return [row[key] for key in ("paid_msat", "charged_msat", "refunded_msat")]

    await_until(lambda: sums(trade.earned()) == sums(trade.spent()), SETTLED_S, "equal accounts")
    earned = trade.earned()
    assert earned["charged_msat"] == sum(row["charged_msat"] for row in trade.sold())


def rows(daemon: Daemon, verb: str) -> list[dict[str, Any]]:
    """Return what a verb lists; it is told which net.conf says where the ledger is."""
    done = daemon.cli(verb, "--json", "--config", str(daemon.config))
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def look(daemon: Daemon) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows(daemon, "check")}


def test_a_gateway_keeps_its_books_in_a_database_that_dies_and_comes_back(lab: Lab) -> None:
    with closing(Server()) as server:
        url = server.url.replace("ngp@", "ngp:s3cret@")
        trade = open_trade(lab, gateway={"LEDGER": url})
        assert answered(trade, 1) == 1
        await_sums(trade)
        server.kill()
        assert answered(trade, 2, wait_s=1) == 0, "a contract that can't be written isn't agreed"
        assert answered(trade, 1, count=3) == 3, "those that run go on"
        await_until(lambda: not trade.gateway.ask("status")["ledger"]["writable"], what="the ledger frozen")
        server.start()
        await_until(lambda: answered(trade, 3, wait_s=1) == 1, what="service when the server is back")
        restart(trade.gateway)
        trade.await_acquainted()
        assert answered(trade, 4) == 1
        await_sums(trade)
        trade.gateway.kill9()
        server.kill()
        server.start()
        trade.gateway.start()
        trade.await_acquainted()
        assert answered(trade, 1) == 1
        await_sums(trade)
        copy = lab.folder / "copy.db"
        assert trade.gateway.cli("backup", str(copy)).returncode == 0 and copy.stat().st_mode & 0o777 == 0o600
        checks = look(trade.gateway)
        assert checks["ledger"]["ok"] and checks["books"]["ok"], checks
        paid = trade.earned()["paid_msat"]
        trade.gateway.stop()
        assert [row["paid_msat"] for row in rows(trade.gateway, "accounts")] == [paid], "read without a daemon"
        checks = look(trade.gateway)
        assert checks["ledger"]["ok"] and "postgresql://ngp@" in str(checks["ledger"]), checks
        assert "s3cret" not in trade.gateway.log() + str(checks)
        assert not (trade.gateway.state_dir / "ledger.db").exists()
        with psycopg.connect(server.url) as connection:
            found = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'ngp\\_%'").fetchall()
        assert len(found) == 1, "a restart made no second ledger"


def test_landlords_with_one_pool_let_no_address_twice(lab: Lab, tmp_path: Path) -> None:
    with closing(Server()) as server:
        east, west = (
            open_renting(
                lab, tmp_path / name, name, LANDLORD_POOLS=["198.51.100.0/31"],
                LANDLORD_INTERFACE=f"{TUNNEL}{name[0]}", LEDGER=server.url,
            )
            for name in ("east", "west")
        )  # fmt: skip
        first, second = east.rent(), west.rent()
        assert east.row(first)["networks"] == ["198.51.100.0/32"]
        assert west.row(second)["networks"] == ["198.51.100.1/32"]
        for one in (east, west):
            with pytest.raises(LandlordRefuses, match="all addresses of this offer are let"):
                one.rent()
        east.daemon.kill9()
        with pytest.raises(LandlordRefuses, match="are let"):
            west.rent()
        east.daemon.start()
        assert east.row(first)["state"] == "active"
        assert west.daemon.cli("rentals", "release", "198.51.100.1", "--yes").returncode == 0
        assert east.row(east.rent())["networks"] == ["198.51.100.1/32"], "what the other gave back"
        with pytest.raises(LandlordRefuses, match="are let"):
            west.rent()
        for one in (east, west):
            one.daemon.stop()
            assert look(one.daemon)["books"]["ok"]
