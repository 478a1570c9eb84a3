"""`ngp stop`: end the daemon, or clean up after one that was killed. Returns when nothing of it is left.

If no daemon runs or was killed, it opens what an earlier stop closed, if WHEN_STOPPED has been changed to open since.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ngp.cli.client import BrokenOff, Daemon
from ngp.cli.place import Place
from ngp.cli.show import Progress, clean
from ngp.cli.streams import say
from ngp.cli.verbs import verb_command
from ngp.daemon.state import left_behind, running_pid
from ngp.errors import ConfigError, LedgerError, NgpError, RunningError

if TYPE_CHECKING:
    from ngp.core.settings import Settings

_MOST_S = 120.0
_PAUSE_S = 0.05


@verb_command("stop")
def command(place: Place) -> int:
    """Stop the daemon."""
    return stop(place)


def stop(place: Place) -> int:
    """Stop the daemon of a place and print what was done.

    Raises: RunningError: there was nothing to stop or to open. LedgerError: it stopped, but records that couldn't be
        written are lost.
    """
    lost: object = ""
    state_dir = _state_dir(place)
    progress = Progress("ngp is stopping")
    try:
        with suppress(BrokenOff):  # the daemon ended before it answered, which is fine
            lost = Daemon(state_dir, _MOST_S, progress).ask("stop")
        _await_end(place, progress)
    except RunningError:
        progress.end()
        if running_pid(state_dir) is not None:
            raise
        if not left_behind(state_dir):
            if not _reopened(place):
                raise
            say("ngp wasn't running; what an earlier stop had closed is open now, as WHEN_STOPPED says")
            return 0
        lost = _clean_up(place)
        if lost:
            raise LedgerError(clean(lost)) from None
        return 0
    finally:
        progress.end()
    if left_behind(state_dir):
        lost = lost or _clean_up(place)
    else:
        say("ngp has stopped")
    if lost:
        raise LedgerError(clean(lost))
    return 0


def _await_end(place: Place, progress: Progress) -> None:
    began = time.monotonic()
    while (pid := running_pid(place.state_dir)) is not None:
        if (waited_s := time.monotonic() - began) > _MOST_S:
            raise NgpError(f"process {pid} hasn't ended within {_MOST_S:g} s: kill -9 {pid}; ngp stop")
        progress(waited_s)
        time.sleep(_PAUSE_S)


def _state_dir(place: Place) -> Path:
    """Return the daemon's state directory. Raises ConfigError, with a way to stop without a file."""
    try:
        return place.state_dir
    except ConfigError as error:
        hint = "a gate may be in force, but the file doesn't say whose; without the file: ngp stop --state-dir DIR"
        raise ConfigError(f"{error}\n{hint}") from error


def _clean_up(place: Place) -> str:
    """Clean up after a daemon that was killed. Returns what is lost, or ""."""
    from ngp.daemon import offline  # late: it imports every module, and isn't needed if a daemon runs

    settings, why_not = _settings(place)
    lost = offline.clean_up(place.state_dir, settings)
    charged = ", and the traffic of its contracts is charged" if lost == "" else ""
    say(f"ngp wasn't running any more; all that it left in the kernel is removed{charged}")
    if settings is None:
        say("WHEN_STOPPED is unknown, so forwarded traffic passes freely, as with open; net.conf can't be used:")
        say(*map(clean, why_not.splitlines()))
    return lost or ""


def _reopened(place: Place) -> bool:
    """Open what an earlier stop closed, if net.conf says open now. Returns whether anything was closed.

    A file without mesh interfaces, as the shipped one, isn't that of the daemon which closed them.
    """
    settings, _ = _settings(place)
    if settings is None or settings.closed_when_stopped or not settings.mesh_interfaces:
        return False
    from ngp.daemon import offline  # late: it imports every module, and isn't needed if a daemon runs

    return offline.reopen(settings, place.state_dir)


def _settings(place: Place) -> tuple[Settings | None, str]:
    """Return the settings of net.conf, or None and why the file can't be used."""
    try:
        return place.settings(), ""
    except ConfigError as error:
        return None, str(error)
