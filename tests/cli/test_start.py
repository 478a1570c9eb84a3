"""`ngp start` and `ngp stop` with real processes: readiness, errors, locks, kill -9, terminals that vanish."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from ngp.config import parse
from ngp.daemon import logs, offline, spawn, state
from ngp.daemon.state import NamespaceLock, StateLock, prepare, running_pid
from ngp.errors import KernelError, RunningError
from tests.cli.conftest import LONGEST_S, Host

# Clean-up locks the network namespace, which all processes of a test run share. So these tests run one after the other.
pytestmark = pytest.mark.xdist_group("start")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def kill(host: Host) -> None:
    """Kill the daemon and wait until the kernel has released its lock."""
    pid = host.pid()
    watch = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        signal_came, _, _ = select.select([watch], [], [], LONGEST_S)
        assert signal_came
    finally:
        os.close(watch)


def told(stderr: str) -> list[str]:
    """Return the lines on stderr, without the progress that a slow machine shows."""
    return [line for line in stderr.splitlines() if line and not line.startswith("ngp is starting: ")]


def test_start_returns_when_ready_and_the_daemon_goes_on(host: Host) -> None:
    started = host.start()
    assert (started.returncode, told(started.stderr)) == (0, [])
    assert f"process {host.pid()}" in started.stdout
    assert json.loads((host.state_dir / "options.json").read_text()) == str(host.config)
    assert host.ngp("server", "test").stdout == "Test OK\n"
    assert mode(host.state_dir) & 0o707 == 0o700
    assert mode(host.state_dir / "control.sock") in (0o600, 0o660)
    assert {mode(host.state_dir / name) for name in ("ngp.log", "ngp.pid")} == {0o640}
    stopped = host.ngp("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "ngp has stopped\n")
    assert sorted(each.name for each in host.state_dir.iterdir()) == ["ngp.log", "options.json"]


def test_what_the_daemon_warns_of_before_it_is_ready_reaches_the_terminal(host: Host) -> None:
    started = host.start(NGP_FAKE="warns")
    assert started.returncode == 0
    assert told(started.stderr) == [f"WARNING no interface has the name wlan{number}?[2J" for number in range(3)]
    where = f"ngp runs (process {host.pid()}), without a mesh interface yet: nothing is gated; its log is "
    assert started.stdout == f"{where}{host.state_dir / 'ngp.log'}\n"
    assert "no use to an operator" in (host.state_dir / "ngp.log").read_text()


def test_endless_warnings_are_cut_and_are_in_the_log(host: Host) -> None:
    started = host.start(NGP_FAKE="warns without end")
    lines = told(started.stderr)
    assert started.returncode == 0 and sum(map(len, lines[:-1])) <= logs.MOST_TOLD
    assert lines[0].startswith("WARNING no interface") and lines[-1] == "WARNING there are more warnings in the log"
    assert "wlan8999" in (host.state_dir / "ngp.log").read_text()


def test_with_v_a_warning_is_shown_once(host: Host) -> None:
    with (host.folder / "terminal").open("w") as terminal:  # the daemon keeps it
        started = subprocess.run(
            host.command("start", "-v", "--config", "net.conf"),
            cwd=host.folder, env=host.variables(NGP_FAKE="warns"), stdout=terminal, stderr=terminal, check=False,
        )  # fmt: skip
    assert started.returncode == 0 and host.ngp("stop").returncode == 0
    assert (host.folder / "terminal").read_text().count("the name wlan2") == 1


def test_second_daemon_is_refused_with_the_first_ones_number(host: Host) -> None:
    host.start()
    second = host.start()
    assert second.returncode == 7
    assert f"process {host.pid()}" in second.stderr
    stays = host.start("--foreground")
    assert stays.returncode == 7
    assert f"process {host.pid()}" in stays.stderr


def test_two_state_directories_run_side_by_side(host: Host) -> None:
    other = str(host.folder / "other")
    assert host.start().returncode == 0
    assert host.start("--state-dir", other).returncode == 0
    assert host.ngp("stop", "--state-dir", other).returncode == 0
    assert host.ngp("server", "test").returncode == 0


def test_a_second_daemon_in_a_namespace_is_refused_with_the_first_ones_number_and_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_NAMESPACE_NAME", f"\0ngp/test/{os.getpid()}".encode())
    assert not NamespaceLock.is_held()
    first = NamespaceLock.take()
    assert NamespaceLock.is_held()
    pid = os.getpid()
    expected = rf"another ngp \(process {pid}\), .* gates this network namespace: stop that one \(kill {pid}, or "
    with pytest.raises(RunningError, match=f"{expected}ngp stop --state-dir with its directory"):
        NamespaceLock.take()
    lock = StateLock.take(tmp_path)
    with pytest.raises(RunningError, match=f"state directory {tmp_path}, gates .*, or ngp stop --state-dir {tmp_path}"):
        NamespaceLock.take()
    lock.release()
    first.release()
    NamespaceLock.take().release()


def test_close_needs_no_state_directory_and_does_nothing_where_stopped_means_open(host: Host) -> None:
    done = host.ngp("close", "--config", "net.conf")
    assert (done.returncode, done.stdout) == (0, "('eth1',) () [4, 6]\nclosed until ngp starts: eth1\n")
    assert not host.state_dir.exists()
    host.config.write_text(host.config.read_text().replace("closed", "open"))
    done = host.ngp("close", "--config", "net.conf")
    assert (done.returncode, done.stdout) == (0, "WHEN_STOPPED is open: nothing was closed\n")


@pytest.mark.parametrize(
    ("says", "stands", "code"), [("open", "closed", 0), ("closed", "closed", 7), ("open", "gate", 7), ("open", "", 7)]
)
def test_stop_without_a_daemon_opens_what_was_closed_if_the_file_says_open_now(
    host: Host, says: str, stands: str, code: int
) -> None:
    host.state_dir.mkdir(mode=0o700)
    host.config.write_text(host.config.read_text().replace("closed", says))
    done = host.ngp("stop", "--config", "net.conf", NGP_FAKE_STANDS=stands)
    assert (done.returncode, (host.state_dir / "cleaned").exists()) == (code, code == 0), done.stderr
    if code == 0:
        assert (host.state_dir / "cleaned").read_text() == "False" and "open now" in done.stdout
        failed = host.ngp("stop", "--config", "net.conf", NGP_FAKE_STANDS=stands, NGP_FAKE="refuse")
        assert (failed.returncode, failed.stderr) == (4, "ngp: no rights: sudo ngp stop\n")


@pytest.mark.parametrize("whose", ["this state directory", "another"])
def test_close_beside_a_daemon_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    def take() -> NamespaceLock:
        raise RunningError("another ngp daemon")

    monkeypatch.setattr(NamespaceLock, "take", take)
    lock = StateLock.take(tmp_path) if whose == "this state directory" else None
    expected = f"ngp runs on {tmp_path} .process {os.getpid()}" if lock else "another ngp daemon"
    with pytest.raises(RunningError, match=expected):
        offline.shut(parse("MESH_INTERFACES: eth1\n", tmp_path / "net.conf"), tmp_path)
    if lock:
        lock.release()


def test_after_kill_9_start_works_again(host: Host) -> None:
    host.start()
    kill(host)
    assert host.ngp("server", "test").returncode == 7
    assert host.start().returncode == 0
    assert host.ngp("server", "test").stdout == "Test OK\n"


def test_stop_cleans_up_after_kill_9(host: Host) -> None:
    host.start()
    kill(host)
    stopped = host.ngp("stop", "--config", "net.conf")
    assert stopped.returncode == 0, stopped.stderr
    assert "removed" in stopped.stdout
    assert (host.state_dir / "cleaned").read_text() == "True", "WHEN_STOPPED is closed"
    assert host.ngp("stop", "--config", "net.conf").returncode == 7, "nothing is left to stop"


@pytest.mark.parametrize("state_dir_is", ["named in the file", "named in the command, the file is gone"])
def test_stop_cleans_up_after_kill_9_with_a_net_conf_that_cant_be_used(host: Host, state_dir_is: str) -> None:
    host.start()
    kill(host)
    if state_dir_is == "named in the file":
        host.config.write_text(f"SELL: perhaps\nSTATE_DIR: {host.state_dir}\n")
        words, why = ["--config", "net.conf"], "SELL"
    else:
        host.config.unlink()
        words, why = ["--config", "net.conf", "--state-dir", str(host.state_dir)], "doesn't exist"
    stopped = host.ngp("stop", *words, NGP_STATE_DIR="")
    assert stopped.returncode == 0, stopped.stderr
    assert "WHEN_STOPPED is unknown" in stopped.stdout and why in stopped.stdout
    assert (host.state_dir / "cleaned").read_text() == "False", "left open"


def test_stop_that_cant_tell_which_daemon_names_the_way_without_a_file(host: Host) -> None:
    lost = host.ngp("stop", "--config", "gone.conf", NGP_STATE_DIR="")
    assert lost.returncode == 3
    assert "gate may be in force" in lost.stderr and "ngp stop --state-dir DIR" in lost.stderr


def test_a_failed_clean_up_is_told_and_can_be_tried_again(host: Host) -> None:
    host.start()
    kill(host)
    failed = host.ngp("stop", "--config", "net.conf", NGP_FAKE="refuse")
    assert (failed.returncode, failed.stderr) == (4, "ngp: no rights: sudo ngp stop\n")
    assert host.ngp("stop", "--config", "net.conf").returncode == 0


def test_a_start_that_is_refused_after_kill_9_still_leaves_something_to_stop(host: Host) -> None:
    host.start()
    kill(host)
    assert host.start(NGP_FAKE="refuse").returncode == 4
    assert host.ngp("stop", "--config", "net.conf").returncode == 0


@pytest.mark.parametrize("words", [[], ["-v"], ["--foreground"], ["--foreground", "-v"]])
def test_the_daemons_error_and_exit_code_come_through_once(host: Host, words: list[str]) -> None:
    refused = host.start(*words, NGP_FAKE="refuse")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert told(refused.stderr) == ["ngp: no such interface eth9: correct MESH_INTERFACES"]
    assert host.ngp("stop").returncode == 7, "it touched nothing"
    if "--foreground" in words:  # perhaps nobody has seen its output
        assert "no such interface" in (host.state_dir / "ngp.log").read_text()
    else:
        assert not host.state_dir.exists(), "it leaves no directory that it made"


def test_a_refused_start_leaves_a_state_directory_that_was_there(host: Host) -> None:
    host.state_dir.mkdir(mode=0o700)
    assert host.start(NGP_FAKE="refuse").returncode == 4
    assert "no such interface" in (host.state_dir / "ngp.log").read_text()


@pytest.mark.parametrize(("fate", "code", "said"), [("die", 5, "exit code 5"), ("bug", 1, "RuntimeError")])
def test_a_daemon_that_dies_at_start_is_told_without_traceback(host: Host, fate: str, code: int, said: str) -> None:
    failed = host.start(NGP_FAKE=fate)
    assert failed.returncode == code
    (line,) = told(failed.stderr)
    assert said in line and "ngp.log" in line
    assert (host.state_dir / "ngp.log").exists()
    if fate == "bug":
        assert "unforeseen" in (host.state_dir / "ngp.log").read_text()


def start_slowly(host: Host) -> subprocess.Popen[str]:
    """Start a daemon that isn't ready until the test has made the file `melted`."""
    return subprocess.Popen(
        host.command("start", "--config", "net.conf"),
        cwd=host.folder, env=host.variables(NGP_FAKE="slow"), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_slow_start_shows_what_it_waits_for(host: Host) -> None:
    with start_slowly(host) as slow:
        assert slow.stderr is not None
        said = ""
        for line in slow.stderr:  # would run for ever if it were never told
            said += line
            if "waiting for the snow to melt" in line:
                (host.state_dir / "melted").touch()
        assert slow.wait(LONGEST_S) == 0
    assert re.fullmatch(r"(ngp is starting: \d+ s(, waiting for the snow to melt)?\n)+", said)
    assert "waiting for the snow to melt" in said


def test_a_bad_net_conf_is_3_and_starts_nothing(host: Host) -> None:
    host.config.write_text("MESH_INTERFACES: eth1\nSELL: perhaps\nQUEUE_NUMBER: many\n")
    bad = host.start()
    assert bad.returncode == 3
    lines = bad.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("ngp: ") for line in lines)
    assert not host.state_dir.exists()


def test_a_start_without_rights_is_4_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(logs, "open_log", refuse)  # as for a user without root's rights, on a directory that root made
    with pytest.raises(KernelError, match="ngp.log: Permission denied; start with sudo, or --state-dir"):
        spawn.start_detached(tmp_path / "net.conf", tmp_path, False, lambda _s, _stage: None)


def test_a_net_conf_that_others_can_write_is_refused(host: Host) -> None:
    host.config.chmod(0o666)
    assert host.start().returncode == 3


def test_ctrl_c_while_starting_ends_the_daemon_too(host: Host) -> None:
    with start_slowly(host) as starting:
        assert starting.stderr is not None
        assert starting.stderr.readline(), "it says that it waits"
        starting.send_signal(signal.SIGINT)
        assert starting.wait(LONGEST_S) == 130
        assert told(starting.stderr.read()) == []
    assert running_pid(host.state_dir) is None


def test_v_writes_to_the_terminal_and_survives_its_end(host: Host) -> None:
    ours, theirs = pty.openpty()
    try:
        started = subprocess.run(
            host.command("start", "-v", "--config", "net.conf"),
            cwd=host.folder, env=host.variables(), stdout=subprocess.DEVNULL, stderr=theirs, check=False,
        )  # fmt: skip
        assert started.returncode == 0
        text = os.read(ours, 4096).decode()
        assert "INFO ready: ?[2J" in text, "control characters are taken out"
    finally:
        os.close(theirs)
        os.close(ours)
    os.kill(host.pid(), signal.SIGHUP)
    assert host.ngp("server", "test").stdout == "Test OK\n"
    os.kill(host.pid(), signal.SIGHUP)
    assert host.ngp("server", "test").stdout == "Test OK\n"
    assert host.ngp("stop").returncode == 0
    assert (host.state_dir / "ngp.log").read_text().count("reloaded") == 2


def test_the_daemons_log_follows_its_name_and_standard_error_with_it(host: Host) -> None:
    host.start()
    log = host.state_dir / "ngp.log"
    log.rename(host.state_dir / "ngp.log.moved")
    os.kill(host.pid(), signal.SIGHUP)
    assert host.ngp("server", "test").stdout == "Test OK\n"
    assert "reloaded" in log.read_text()
    assert os.readlink(f"/proc/{host.pid()}/fd/2") == str(log)
    assert mode(log) == 0o640


def test_a_package_in_the_current_folder_is_not_taken_for_ngp(host: Host) -> None:
    trap = host.folder / "ngp"
    trap.mkdir()
    (trap / "__init__.py").write_text("raise SystemExit('trapped')")
    started = subprocess.run(
        [host.command()[0], "-P", "-m", "ngp", "start", "--config", "net.conf"],
        cwd=host.folder, env=host.variables(), text=True, capture_output=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    assert host.ngp("stop", PYTHONSAFEPATH="1").returncode == 0
    assert running_pid(host.state_dir) is None


# --- the lock, without processes --------------------------------------------------------------------------------------


def test_the_lock_is_held_once(tmp_path: Path) -> None:
    lock = StateLock.take(tmp_path)
    assert running_pid(tmp_path) == os.getpid()
    with pytest.raises(RunningError, match=f"process {os.getpid()}"):
        StateLock.take(tmp_path)
    lock.release()
    assert running_pid(tmp_path) is None
    assert not (tmp_path / "ngp.pid").exists()
    lock.release()


def test_a_stale_pid_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "ngp.pid").write_text("1\n")
    assert running_pid(tmp_path) is None
    lock = StateLock.take(tmp_path)
    assert lock.after_killed
    assert (tmp_path / "ngp.pid").read_text() == f"{os.getpid()}\n"
    lock.abandon()
    assert (tmp_path / "ngp.pid").exists()


def test_a_link_in_the_place_of_the_pid_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1\n")
    (tmp_path / "ngp.pid").symlink_to(tmp_path / "precious")
    with pytest.raises(KernelError):
        StateLock.take(tmp_path)
    assert (tmp_path / "precious").read_text() == "1\n"


def test_a_state_directory_that_others_can_change_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(KernelError, match="chmod 0700"):
        prepare(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match="not a directory"):
        prepare(tmp_path / "file")
