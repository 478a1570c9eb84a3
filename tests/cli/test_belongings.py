"""The state directory, key and ledger: a check reports whatever a start refuses, with the same exit code."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ngp import identity, store
from ngp.daemon import offline
from ngp.daemon.main import open_ledger
from ngp.daemon.state import StateLock, prepare
from ngp.errors import ConfigError, ExitCode, KernelError, LedgerError, NgpError
from tests.cli.conftest import LONGEST_S, Host

_CODES = {"kernel": ExitCode.KERNEL, "configuration": ExitCode.CONFIGURATION, "ledger": ExitCode.LEDGER}


def _start(state_dir: Path) -> None:
    """Take a state directory as a daemon does, up to its keys."""
    prepare(state_dir)
    lock = StateLock.take(state_dir)
    try:
        open_ledger(state_dir, store.at(state_dir)).close()
        identity.load_or_create(state_dir)
    finally:
        lock.release()


def _others_write(state_dir: Path) -> None:
    state_dir.chmod(0o1777)


def _another_owns(state_dir: Path) -> None:
    os.chown(state_dir, 12345, -1)


def _a_file_stands_there(state_dir: Path) -> None:
    state_dir.rename(state_dir.with_name("before"))
    state_dir.touch()


def _it_leads_nowhere(state_dir: Path) -> None:
    state_dir.rename(state_dir.with_name("before"))
    state_dir.symlink_to("nowhere")


def _the_key_is_shown(state_dir: Path) -> None:
    (state_dir / identity.KEY_FILE).chmod(0o644)


def _the_key_is_cut_off(state_dir: Path) -> None:
    os.truncate(state_dir / identity.KEY_FILE, 7)


def _the_ledger_is_lost(state_dir: Path) -> None:
    (state_dir / "ledger.db").unlink()


def _the_ledger_is_cut_off(state_dir: Path) -> None:
    os.truncate(state_dir / "ledger.db", 7)


def _the_pid_file_is_a_link(state_dir: Path) -> None:
    (state_dir / "ngp.pid").symlink_to(state_dir / "ledger.db")


def _nothing(_state_dir: Path) -> None:
    pass


def _verdict(state_dir: Path) -> tuple[set[ExitCode], str]:
    missing = [line for line in offline.check_state(state_dir) if not line.ok]
    return {_CODES[line.kind or "ledger"] for line in missing}, "; ".join(line.found for line in missing)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (_nothing, None),
        (_others_write, KernelError),
        (_another_owns, KernelError),
        (_a_file_stands_there, KernelError),
        (_it_leads_nowhere, KernelError),
        (_the_pid_file_is_a_link, KernelError),
        (_the_key_is_shown, ConfigError),
        (_the_key_is_cut_off, ConfigError),
        (_the_ledger_is_lost, LedgerError),
        (_the_ledger_is_cut_off, LedgerError),
    ],
)
def test_check_and_start_have_one_verdict_on_a_state_directory(
    tmp_path: Path, spoil: Callable[[Path], None], kind: type[NgpError] | None
) -> None:
    state_dir = tmp_path / "state"
    _start(state_dir)
    spoil(state_dir)
    if kind is None:
        _start(state_dir)
        assert _verdict(state_dir) == (set(), "")
        return
    with pytest.raises(kind) as refused:
        _start(state_dir)
    codes, found = _verdict(state_dir)
    assert kind.exit_code in codes
    assert str(state_dir) in found
    assert str(refused.value) in found or kind is KernelError


def test_before_the_first_start_all_is_well_and_nothing_is_made(tmp_path: Path) -> None:
    assert _verdict(tmp_path / "a" / "state") == (set(), "")
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_directory_can_be_made_is_missing(host: Host) -> None:
    (host.folder / "file").touch()
    place = str(host.folder / "file" / "state")
    for verb in ("check", "start"):
        done = host.ngp(verb, "--config", "net.conf", "--state-dir", place)
        assert done.returncode == ExitCode.KERNEL
        assert place in done.stdout + done.stderr


def test_a_file_system_without_writing_is_missing(host: Host) -> None:
    place = host.folder / "read-only"
    place.mkdir()
    mount = 'mount -t tmpfs -o ro tmpfs "$1"; shift; exec "$@"'
    for verb in ("check", "start"):
        words = host.command(verb, "--config", "net.conf", "--state-dir", str(place / "state"))
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", mount, "sh", str(place), *words],
            cwd=host.folder,
            env=host.variables(),
            text=True,
            capture_output=True,
            timeout=LONGEST_S,
            check=False,
        )
        assert done.returncode == ExitCode.KERNEL, done.stderr
        assert str(place) in done.stdout + done.stderr


def test_a_start_on_a_full_disk_is_tried_again_and_leaves_no_sign_of_a_daemon(host: Host) -> None:
    """The exit code matters, since docs/ngp.service makes systemd decide by it."""
    mount = 'd=$1; shift; mount -t tmpfs -o size=64k,mode=700 tmpfs "$d"; head -c 1M /dev/zero >"$d/ballast" || true'
    mount += '; code=0; "$@" || code=$?; ls -A "$d"; exit $code'
    host.state_dir.mkdir(mode=0o700)
    shell = ["unshare", "--mount", "sh", "-ec", mount, "sh", str(host.state_dir)]
    done = subprocess.run(
        [*shell, *host.command("start", "--foreground", "--config", "net.conf")],
        cwd=host.folder,
        env=host.variables(),
        text=True,
        capture_output=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == ExitCode.OTHER, done.stderr
    assert "No space left on device; free some space" in done.stderr
    assert "ballast" in done.stdout and "ngp.pid" not in done.stdout


def test_a_check_beside_a_daemon_names_a_directory_that_the_next_start_refuses(running: Host) -> None:
    mode = running.state_dir.stat().st_mode
    running.state_dir.chmod(0o1777)
    try:
        done = running.ngp("check", "--config", "net.conf", "--json")
    finally:
        running.state_dir.chmod(mode)
    row = json.loads(done.stdout)[-1]
    assert (done.returncode, row["name"], row["ok"]) == (ExitCode.KERNEL, "state directory", False)
    assert "chmod 0700" in row["found"]
