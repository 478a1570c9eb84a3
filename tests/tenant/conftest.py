"""A stand-in landlord, `staticIP` as a function with a home of its own, and a tenant whose AutoPay may be started."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from ngp.cli import run_command
from ngp.cli.static_ip import static_ip
from ngp.modules.payment.sandbox import SandboxPayment
from ngp.tenant.home import FOLDER
from tests.tenant.keeper import Keeper
from tests.tenant.stand_in import StandIn, serving


@dataclass
class User:
    """Somebody who types `staticIP`."""

    home: Path
    landlord: StandIn

    @property
    def folder(self) -> Path:
        return self.home / FOLDER

    def static_ip(self, *words: str, named: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command. Args: named: with the landlord on the command line."""
        place = ["--rental_server_host", self.landlord.host, "--rental_server_fingerprint", self.landlord.pin]
        said, complaint = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, {"HOME": str(self.home)}),
            redirect_stdout(said),
            redirect_stderr(complaint),
        ):
            code = run_command(static_ip, "staticIP", [*(place if named else ()), *words])
        return subprocess.CompletedProcess(words, code, said.getvalue(), complaint.getvalue())


@pytest.fixture
def landlord(tmp_path: Path) -> Iterator[StandIn]:
    folder = tmp_path / "landlord"
    folder.mkdir()
    with serving(StandIn(), folder) as landlord:
        yield landlord


@pytest.fixture
def user(tmp_path: Path, landlord: StandIn) -> Iterator[User]:
    with mock.patch("ngp.tenant.renting.WIREGUARD_FOLDER", tmp_path / "wireguard"):
        yield User(tmp_path / "home", landlord)


@pytest.fixture
def keeper(tmp_path: Path, landlord: StandIn) -> Iterator[Keeper]:
    node = tmp_path / "node" / "sandbox.db"
    node.parent.mkdir()

    def is_paid(payment_hash: bytes) -> bool:
        if not node.exists():
            return False
        with sqlite3.connect(node) as connection:
            asked = "SELECT status FROM payments WHERE payment_hash = ?"
            row = connection.execute(asked, (payment_hash,)).fetchone()
        return row is not None and row[0] == "succeeded"

    def make_invoice(amount_msat: int, expiry_s: int) -> tuple[str, bytes]:
        async def make() -> tuple[str, bytes]:
            payee = SandboxPayment(tmp_path / "payee")
            made = await payee.create_invoice(amount_msat, "rent", expiry_s)
            await payee.close()
            return made.bolt11, made.payment_hash

        return asyncio.run(make())

    (tmp_path / "payee").mkdir()
    landlord.is_paid, landlord.make_invoice = is_paid, make_invoice
    with (
        mock.patch("ngp.tenant.payer.TRACK_EVERY_S", 0.05),
        mock.patch("ngp.tenant.payer._SURE_S", 0.1),
        mock.patch("ngp.tenant.renting.WIREGUARD_FOLDER", tmp_path / "wireguard"),
    ):
        yield Keeper(tmp_path, landlord)


@pytest.fixture
def quiet_log(tmp_path: Path) -> Iterator[None]:
    """Undo what the command does to logging and signals; another machine's AutoPay, or test, is no matter."""
    root, ours = logging.getLogger(), logging.getLogger("ngp")
    before, level, handler = root.handlers[:], ours.level, signal.getsignal(signal.SIGHUP)
    with mock.patch("ngp.cli.tenant_service._PUBLISHED_NAME", b"\0" + str(tmp_path).encode()[-90:]):
        yield
    root.handlers[:] = before
    ours.setLevel(level)
    signal.signal(signal.SIGHUP, handler)
