"""`staticIP AutoPay`, the command: how it ends, and what it says."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from unittest import mock

import pytest

from ngp.cli.tenant_service import only_autopay
from ngp.errors import ExitCode
from ngp.modules.payment.sandbox import SandboxPayment
from ngp.tenant import autopay, files
from ngp.tenant.autopay import Kept
from ngp.tenant.home import FOLDER, Home
from tests.tenant.conftest import User
from tests.tenant.keeper import Keeper, Told


def command(keeper: Keeper) -> subprocess.CompletedProcess[str]:
    """Run `staticIP AutoPay` in the home of another user, who has the keeper's node."""
    user = User(keeper.folder / "other", keeper.landlord)

    async def find(_home: Home, _ask: object, _how: str) -> SandboxPayment:
        return SandboxPayment(keeper.folder / "node", keeper.options)

    with mock.patch("ngp.tenant.wallet.find", find), mock.patch("ngp.cli.tenant_service.proof_of", lambda *_: Told()):
        return user.static_ip("AutoPay")


def test_the_command_pays_until_it_is_told_to_stop_and_does_not_end_with_0(keeper: Keeper, quiet_log: None) -> None:
    def stop_when_paid() -> None:
        while len(keeper.landlord.rentals) == 0 or next(iter(keeper.landlord.rentals.values())).payments < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    watching = threading.Thread(target=stop_when_paid)
    watching.start()
    done = command(keeper)
    watching.join()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert len(keeper.payments()) == 3
    log = (keeper.folder / "other" / FOLDER / "debug.log").read_text()
    assert "paid 49000 sat" in log and keeper.landlord.pin not in log


def test_the_command_ends_with_5_and_the_limit_if_the_terms_are_refused(keeper: Keeper, quiet_log: None) -> None:
    keeper.landlord.rent = 48_001
    done = command(keeper)
    assert done.returncode == ExitCode.PAYMENT and "MaxMonthlyRate" in done.stderr


def test_the_stricter_of_two_limits_holds(keeper: Keeper, quiet_log: None, tmp_path: Path) -> None:
    net_conf = tmp_path / "net.conf"
    net_conf.write_text("TENANT_ACTIVATION_MAX: 47999 sat\nTENANT_RENT_MAX: 99999 sat\n")
    with mock.patch("ngp.cli.tenant_service.ROUTERS_CONFIG", net_conf):
        done = command(keeper)
        assert done.returncode == ExitCode.PAYMENT and "TENANT_ACTIVATION_MAX" in done.stderr
        keeper.landlord.rent = 48_001
        assert "MaxMonthlyRate" in command(keeper).stderr
        net_conf.write_text("MESH_INTERFACES: mesh0\nTENANT_RENT_MAX: much\n")
        assert command(keeper).returncode == ExitCode.CONFIGURATION


def test_a_second_one_ends_with_7(keeper: Keeper, quiet_log: None) -> None:
    with only_autopay(keeper.folder):
        assert command(keeper).returncode == ExitCode.RUNNING
    Home(keeper.folder / "other" / FOLDER)
    with files.only_one(keeper.folder / "other" / FOLDER / "AutoPay.lock", "AutoPay", "end it"):
        assert command(keeper).returncode == ExitCode.RUNNING


def test_without_a_payment_node_it_says_how_to_name_one(keeper: Keeper, quiet_log: None) -> None:
    user = User(keeper.folder / "other", keeper.landlord)
    with mock.patch("sys.stdin", io.StringIO()):
        done = user.static_ip("AutoPay")
    assert done.returncode == ExitCode.CONFIGURATION and "LNDhost" in done.stderr


def test_an_unreachable_node_in_the_file_is_no_reason_to_use_another(keeper: Keeper, quiet_log: None) -> None:
    user = User(keeper.folder / "other", keeper.landlord)
    user.folder.mkdir(parents=True)
    (user.folder / "Config.yaml").write_text("LNDhost: lndconnect://127.0.0.1:1?macaroon=AgEDbG5k\n")
    done = user.static_ip("AutoPay")
    assert done.returncode in (ExitCode.PAYMENT, ExitCode.CONFIGURATION) and "AgEDbG5k" not in done.stderr
    assert not keeper.landlord.rentals


def test_a_defect_is_told_once_and_looks_go_on_beside_other_rentals(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    look, faults = autopay.look, [OverflowError("a number")] * 2

    async def failing(kept: Kept) -> float:
        if faults:
            raise faults.pop()
        return await look(kept)

    with (
        mock.patch("ngp.tenant.autopay.LOOK_AGAIN_S", 0.1),
        mock.patch("ngp.tenant.autopay.look", failing),
        pytest.raises(TimeoutError),
    ):
        asyncio.run(asyncio.wait_for(keeper.keep(once=False, alone=False), 5))
    assert sum("a defect of ngp (OverflowError" in line for line in caplog.messages) == 1
    assert len(keeper.payments()) == 3


@pytest.mark.parametrize("defect", [RuntimeError("a defect"), MemoryError()])
def test_a_defect_ends_it_with_a_message_and_not_with_0(keeper: Keeper, quiet_log: None, defect: Exception) -> None:
    user = User(keeper.folder, keeper.landlord)
    with (
        mock.patch("ngp.tenant.wallet.find", mock.AsyncMock()),
        mock.patch("ngp.tenant.autopay.look", mock.AsyncMock(side_effect=defect)),
    ):
        done = user.static_ip("AutoPay")
    assert done.returncode == ExitCode.OTHER and type(defect).__name__ in done.stderr
