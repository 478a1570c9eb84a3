"""A stand-in landlord, and `staticIP` as a function with a home of its own."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from ngp.cli import run_command
from ngp.cli.static_ip import static_ip
from ngp.tenant.home import FOLDER
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
