"""What a command says if no daemon runs, but part of one is still in the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ngp import store
from ngp.cli import aftermath
from ngp.cli.aftermath import describe
from ngp.cli.place import Place
from ngp.daemon import offline
from ngp.daemon.state import StateLock, last_sign_s
from ngp.ports.network import KernelState
from tests.cli.conftest import Host

NEXT = "`ngp start` takes over, `ngp stop` removes what is left; either charges the traffic since the daemon's end"


@pytest.mark.parametrize(
    ("kernel", "killed", "says"),
    [
        (
            KernelState(meter=True, sells=True, gate=True),
            True,
            ("was killed", "T0", "gate is still in force", "refused", NEXT),
        ),
        (KernelState(meter=True, sells=True), True, ("gate is gone", "uploads of neighbours pass uncharged", NEXT)),
        (KernelState(meter=True), True, ("counts bought traffic", "no traffic is refused", NEXT)),
        (KernelState(meter=True, sells=True, gate=True), False, ("another state directory", "--state-dir")),
        (KernelState(closed=True), False, ("is dropped (WHEN_STOPPED: closed)", "`ngp start`", "`ngp stop`")),
        (KernelState(), True, ("was killed", "T0", "reboot", "ip netns")),
    ],
)
def test_what_is_in_force_and_what_to_do(kernel: KernelState, killed: bool, says: tuple[str, ...]) -> None:
    told = describe(kernel, Path("/s"), "T0" if killed else "")
    assert told.startswith("the daemon of /s was killed") is killed
    assert all(words in told for words in says) and "\n" not in told


def test_a_daemon_of_another_state_directory_is_named_by_its_process() -> None:
    assert "of process 4711" in describe(KernelState(meter=True), Path("/s"), "", 4711)
    assert "process" not in describe(KernelState(meter=True), Path("/s"), "")
    told = describe(KernelState(meter=True), Path("/s"), "", 4711, Path("/other"))
    assert "state directory, /other (of process 4711): name it with --state-dir /other" in told


def test_the_directory_of_another_daemon_is_found_by_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "kernel_state", lambda *_: KernelState(meter=True))
    monkeypatch.setattr(aftermath, "gating_pid", os.getpid)
    place = Place(str(tmp_path / "ours"))
    unknown = aftermath.look(place)
    lock = StateLock.take(tmp_path)
    known = aftermath.look(place)
    lock.release()
    assert unknown and unknown.remedy == "sudo ngp check --state-dir DIR"
    assert known and known.remedy == f"sudo ngp check --state-dir {tmp_path}"
    assert f"another state directory, {tmp_path} (of process {os.getpid()})" in known.found


def test_nothing_is_said_if_nothing_is_in_force() -> None:
    assert describe(KernelState(), Path("/s"), "") == ""


def test_the_last_sign_of_life_is_not_the_ledger_that_a_command_opened(tmp_path: Path) -> None:
    assert last_sign_s(tmp_path) == 0
    for name, time_s in (("ngp.pid", 1000), ("ledger.db-wal", 2000), ("ngp.log", 1500), ("ledger.db", 9000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time_s, time_s))
    assert last_sign_s(tmp_path) == 2000


@pytest.mark.parametrize("words", [("contracts",), ("backup", "copy.db"), ("check", "--config", "net.conf")])
def test_the_last_sign_of_life_stays_whatever_opens_the_ledger(host: Host, words: tuple[str, ...]) -> None:
    host.state_dir.mkdir(mode=0o700)
    (host.state_dir / "ngp.pid").write_text("4242\n")
    os.utime(host.state_dir / "ngp.pid", (1000, 1000))
    alive = (  # by os._exit, so that its last write stays in the log beside the ledger
        "import os, sys; from pathlib import Path; from ngp import store; "
        "ledger = store.at(Path(sys.argv[1])).open(); ledger.next_boot(1); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", alive, host.state_dir], env=host.variables(), check=True)
    os.utime(host.state_dir / "ledger.db-wal", (2000, 2000))
    host.ngp(*words)
    assert not (host.state_dir / "ledger.db-wal").exists(), "the ledger was opened and tidied"
    assert last_sign_s(host.state_dir) == 2000


def test_listings_of_a_killed_daemon_say_so_beside_their_rows(host: Host) -> None:
    host.state_dir.mkdir(mode=0o700)
    store.at(host.state_dir).open().close()
    assert host.ngp("contracts").returncode == 7
    (host.state_dir / "ngp.pid").write_text("4242\n")  # left by a daemon that ended without cleaning up
    for verb in ("contracts", "accounts"):
        done = host.ngp(verb, "--json", NGP_FAKE_STANDS="yes")
        assert (done.returncode, done.stdout) == (0, "[]\n")
        assert f"the daemon of {host.state_dir} was killed (last sign of life 20" in done.stderr
        assert "gate is still in force" in done.stderr
    done = host.ngp("status")
    assert done.returncode == 7
    assert done.stderr.splitlines()[0].startswith("ngp: ngp isn't running") and "was killed" in done.stderr
