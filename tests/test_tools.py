"""Tools that a person runs: their help sets nothing up, and the laboratory keeps what one may still want to read."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from core_tests.lightning import __main__ as laboratory
from core_tests.lightning.nodes import Btcd
from core_tests.shell import LabError

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.parametrize("tool", ["demo", "bench", "lightning-lab", "setup"])
def test_help_sets_nothing_up_before_the_first_set_up(tmp_path: Path, tool: str) -> None:
    shutil.copytree(TOOLS, tmp_path / "tools")
    done = subprocess.run([tmp_path / "tools" / tool, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  sudo tools/{tool} " in done.stdout and "#" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


def test_a_set_up_waits_for_another_of_the_same_checkout(tmp_path: Path) -> None:
    shutil.copytree(TOOLS, tmp_path / "tools")
    stand_ins = "need_root() { :; }; set_up_alone() { echo alone; }"
    with (tmp_path / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(
            ["bash", "-c", f"set -e; source tools/setup; {stand_ins}; set_up"],
            cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert second.stdout is not None
        assert "another tool sets this checkout up: waiting for it" in second.stdout.readline()
    assert second.communicate()[0] == "alone\n" and second.returncode == 0


def test_the_laboratorys_log_outlives_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"FOLDER": tmp_path, "STATE": tmp_path / "state.json", "LOCK": tmp_path / "lock", "LOG": tmp_path / "log"}
    for name, value in names.items():
        monkeypatch.setattr(laboratory, name, value)
    monkeypatch.setattr(laboratory, "prepare", lambda _say: None)
    monkeypatch.setattr(laboratory.os, "geteuid", lambda: 0)
    monkeypatch.setattr(laboratory.subprocess, "Popen", lambda *_, **__: SimpleNamespace(poll=lambda: 1))
    names["LOG"].write_text("why the last one ended")
    with pytest.raises(LabError, match="did not come up"):
        laboratory.up()
    assert (tmp_path / "log.old").read_text() == "why the last one ended"
    assert names["LOG"].read_text() == ""


def test_blocks_are_mined_without_a_word_about_a_file_of_options(tmp_path: Path) -> None:
    words = Btcd(tmp_path, tmp_path / "btcd").command("generate")
    (options,) = (word.partition("=")[2] for word in words if word.startswith("--configfile="))
    assert Path(options).exists()  # else btcctl complains that it can't make one
