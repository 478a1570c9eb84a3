"""Tools that people run: asking for help sets nothing up, and the laboratory keeps a log that somebody may need."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from core_tests.lightning import __main__ as laboratory
from core_tests.lightning.nodes import Btcd
from core_tests.shell import LabError, await_until

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.parametrize(
    "tool", ["demo", "bench", "lightning-lab", "setup", "simulate", "fresh-machine", "stock-kernel", "walk-through"]
)
def test_help_sets_nothing_up_before_the_first_set_up(tmp_path: Path, tool: str) -> None:
    shutil.copytree(TOOLS, tmp_path / "tools")
    done = subprocess.run([tmp_path / "tools" / tool, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  sudo tools/{tool} " in done.stdout and "#" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


def test_the_walk_through_finds_its_commands_in_the_readme(tmp_path: Path) -> None:
    done = subprocess.run([TOOLS / "walk-through", "show"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("sysctl -w net.ipv4.ip_forward=1", "bin/pip wheel ", "--find-links wheels ngp", "SELL: no"):
        assert command in done.stdout
    readme = (TOOLS.parent / "README.md").read_text()
    shutil.copytree(TOOLS, tmp_path / "tools")
    (tmp_path / "README.md").write_text(readme.replace("    sudo ngp stop", "    sudo ngp halt"))
    done = subprocess.run([tmp_path / "tools/walk-through", "show"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "walk-through: README's step 4 has no ngp stop\n")


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


def test_an_interrupted_set_up_says_so_on_the_terminal_and_not_in_its_log(tmp_path: Path) -> None:
    shutil.copytree(TOOLS, tmp_path / "tools")
    stand_ins = "need_root() { :; }; set_up_alone() { logged building bash -c 'echo begun >begun; exec sleep 600'; }"
    process = subprocess.Popen(
        ["bash", "-c", f"set -e; source tools/setup; {stand_ins}; set_up"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "building" in process.stdout.readline()
    await_until((tmp_path / "begun").exists, what="the step")
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[1] == "bash: interrupted in the set-up; the next run goes on with it\n"
    assert process.returncode == 130


def test_an_image_serves_every_head_with_the_same_dependencies(tmp_path: Path) -> None:
    shutil.copytree(TOOLS, tmp_path / "tools")
    script = """
    git init -q . && git config user.email nobody@example.org && git config user.name nobody
    key() { git add -A && git commit -qm more && (source tools/stock-kernel; image_key system); }
    echo one >setup.cfg; mkdir docs; first=$(key)
    echo two >docs/page.md; [ "$(key)" = "$first" ] && echo the source alone: the same
    echo two >setup.cfg; [ "$(key)" != "$first" ] && echo other dependencies: another
    """
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("the source alone: the same\nother dependencies: another\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a command"),
        (("--suite",), "needs a"),
        (("--kernels", "6.1", "true"), "unknown option '--kernels'"),
    ],
)
@pytest.mark.parametrize("tool", ["fresh-machine", "stock-kernel"])
def test_a_tool_for_machines_refuses_a_slip_before_it_makes_anything(
    tmp_path: Path, tool: str, words: tuple[str, ...], said: str
) -> None:
    where = os.environ | {"NGP_MACHINES": str(tmp_path / "machines")}
    done = subprocess.run([TOOLS / tool, *words], env=where, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and said in done.stderr and list(tmp_path.iterdir()) == []


def test_a_folder_that_isnt_there_is_refused_before_a_machine_is_made(tmp_path: Path) -> None:
    where = os.environ | {"NGP_MACHINES": str(tmp_path / "machines")}
    words = [TOOLS / "stock-kernel", "--with", tmp_path / "router", "true"]
    done = subprocess.run(words, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"{tmp_path}/router doesn't exist" in done.stderr and list(tmp_path.iterdir()) == []


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


def test_the_laboratory_says_how_its_nodes_are_used_and_ends_quietly_where_nobody_reads_on(tmp_path: Path) -> None:
    folder = tmp_path / f"ngp-lightning-lab-{os.geteuid()}"
    folder.mkdir()
    node = {"namespace": "lab-alice", "lnddir": "/tmp/alice", "rpc": "127.0.0.1:10009"}
    (folder / "state.json").write_text(json.dumps({"nodes": {"alice": node}}))
    status = [sys.executable, "-u", "-m", "core_tests.lightning", "status"]
    where = {"cwd": TOOLS.parent, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(status, capture_output=True, text=True, check=False, **where)  # type: ignore[call-overload]
        assert (done.returncode, done.stderr) == (0, "")
        assert "ip netns exec NAMESPACE ngp" in done.stdout and "LNDDIR/tls.cert" in done.stdout
        assert "bakemacaroon" in done.stdout
        nobody, pipe = os.pipe()
        os.close(nobody)
        done = subprocess.run(status, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False, **where)  # type: ignore[call-overload]
        os.close(pipe)
        assert done.stderr == ""


@pytest.mark.parametrize("said", ["-1", "0", "six"])
def test_a_number_of_blocks_is_refused_before_btcctl_sees_it(said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{said}' is no number of blocks: write 1 or more"):
        laboratory._blocks(said)


def test_blocks_are_mined_without_a_word_about_a_file_of_options(tmp_path: Path) -> None:
    words = Btcd(tmp_path, tmp_path / "btcd").command("generate")
    (options,) = (word.partition("=")[2] for word in words if word.startswith("--configfile="))
    assert Path(options).exists()  # else btcctl complains that it can't make one
